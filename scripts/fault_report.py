#!/usr/bin/env python3
"""Runs the tests of faults, and prints what each of them found, beside what was asked for.

    scripts/fault_report.py            # at length: kills of real processes, minutes
    scripts/fault_report.py --short    # as the tests run anyway

A row is written by the test that shows it; where it says how many were tried, all hold if no test
fails. One that does is named, and ends the report with 1.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
TESTS = [
    "test_elastic.py",
    "test_killed_saves.py",
    "test_valid_steps.py",
    "test_agreement.py",
    "test_preparing.py",
    "test_bad_configs.py",
    "test_bad_calls.py",
    "test_bad_states.py",
    "test_bad_files.py",
    "test_bad_inputs.py",
    "test_trust.py",
    "test_environment.py",
]


def main() -> int:
    """Runs, reads, prints; returns the exit status of the tests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="no more than the tests do anyway")
    short = parser.parse_args().short
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.jsonl"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--show-capture=no",
            f"--figures={figures}",
        ]
        tests = [str(ROOT / "tests" / test) for test in TESTS]
        status = subprocess.run(
            [*command, *([] if short else ["--full"]), *tests], cwd=ROOT, check=False
        ).returncode
        rows = figures.read_text().splitlines() if figures.exists() else []
    table = Table("fault", "found", "target")
    for row in rows:
        table.add_row(*json.loads(row))
    Console(width=120).print(table)
    return status


if __name__ == "__main__":
    sys.exit(main())
