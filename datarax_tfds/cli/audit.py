"""`datarax-tfds audit`: checks from cursor logs that each record was delivered once."""

import argparse
import sys

HELP = "check from cursor logs that each record of each epoch was delivered exactly once"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "logs",
        nargs="+",
        help="the paths that CursorLog was given, also gs:// and s3://; process 0's first",
    )


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 if each record was delivered once, else 1."""
    from datarax_tfds.history.audit import audit
    from datarax_tfds.history.log_files import log_lines

    found = audit(*map(log_lines, arguments.logs), subject="datarax-tfds audit")
    sys.stdout.write(f"{found}\n")
    return 0 if found.sound else 1
