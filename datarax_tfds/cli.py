"""The command `datarax-tfds`: what is asked of a job's files, without the job."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from datarax_tfds.audit import audit


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status for the shell."""
    parser = argparse.ArgumentParser(prog="datarax-tfds", description=__doc__)
    commands = parser.add_subparsers(required=True)
    auditing = commands.add_parser(
        "audit",
        help="prove that each record of each epoch was delivered once, from logs of cursors",
    )
    auditing.add_argument("logs", nargs="+", type=Path, help="of CursorLog; process 0's first")
    logs = parser.parse_args(words).logs
    try:
        found = audit(*(log.read_text().splitlines() for log in logs), subject="datarax-tfds audit")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{found}\n")
    return 0 if found.sound else 1
