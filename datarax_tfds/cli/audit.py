"""`datarax-tfds audit`: checks from cursor logs that each record was delivered once."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

HELP = "check from cursor logs that each record of each epoch was delivered exactly once"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logs", nargs="+", type=Path, help="CursorLog files; process 0's first")


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 if each record was delivered once, else 1."""
    from datarax_tfds.history.audit import audit

    found = audit(*map(_lines, arguments.logs), subject="datarax-tfds audit")
    sys.stdout.write(f"{found}\n")
    return 0 if found.sound else 1


def _lines(log: Path) -> Iterator[str]:
    """The lines of a file, which is open only while they are read."""
    with log.open() as file:
        yield from file
