"""Tools for datasets and training logs.

Each command is a module with a `HELP` text, `add_arguments(parser)`, and `run(arguments)`, which
returns the exit status. A command imports JAX and the rest of the library in `run`, so that help
appears at once.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from datarax_tfds.cli import audit, index

_COMMANDS: dict[str, Any] = {"audit": audit, "index": index}


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    Args:
        words: The arguments; by default, those of the process.

    Returns:
        The exit status of the command; 2 for an `OSError` or a `ValueError`, which is printed.
    """
    from datarax_tfds import __version__

    parser = argparse.ArgumentParser(
        prog="datarax-tfds", description="Tools for datasets and training logs."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, command in _COMMANDS.items():
        subparser = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    arguments = parser.parse_args(words)
    try:
        return arguments.run(arguments)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
