#!/usr/bin/env python3
"""Runs the tests of faults, and prints the result of each beside its target.

    scripts/fault_report.py            # the long form, which takes many minutes
    scripts/fault_report.py --short    # only as much as scripts/test does
    scripts/fault_report.py --service  # kills workers of Ray, and Ray, while a job trains: minutes

Each row of the table is written by a test. If a row says only how many cases were tried, all
of them passed, unless a test failed. The exit status is that of the tests.
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
    "test_environment.py",
]
# They need Ray.
SERVICE_TESTS = ["test_service_faults.py", "test_service_ray.py"]


def main() -> int:
    """Runs the tests and prints the table. Returns the exit status of the tests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="only as much as scripts/test does")
    parser.add_argument(
        "--service", action="store_true", help="the faults of workers on other machines alone"
    )
    options = parser.parse_args()
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
        tests = [
            str(ROOT / "tests" / test) for test in (SERVICE_TESTS if options.service else TESTS)
        ]
        status = subprocess.run(
            [*command, *([] if options.short else ["--full"]), *tests], cwd=ROOT, check=False
        ).returncode
        rows = figures.read_text().splitlines() if figures.exists() else []
    table = Table("fault", "found", "target")
    for row in rows:
        table.add_row(*json.loads(row))
    Console(width=120).print(table)
    return status


if __name__ == "__main__":
    sys.exit(main())
