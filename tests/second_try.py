"""A pytest plugin: failed tests get a second try, and are listed as flaky if it passes.

    pytest --second-try=flaky.txt

Ten failed tests at most run again, each alone in a new process; more failures have another cause
than a busy machine. For each test that passes the second time, the file tells what the first try
printed, and which files the same process had tested before: one of them may have left something.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MOST = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--second-try",
        metavar="FILE",
        type=Path,
        help="run failed tests of several processes again, and append flaky ones to this file",
    )


def pytest_configure(config: pytest.Config) -> None:
    flaky = config.getoption("--second-try")
    if flaky is not None and not hasattr(config, "workerinput"):  # not in a worker of pytest-xdist
        config.pluginmanager.register(SecondTry(flaky))


class SecondTry:
    def __init__(self, flaky: Path):
        self._flaky = flaky
        self._failures: dict[str, str] = {}  # what each test that failed has printed
        self._tested: dict[str, dict[str, None]] = {}  # the files that each process has tested
        self._before: dict[str, str] = {}  # what had been tested before each test that failed

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        node = getattr(report, "node", None)  # of pytest-xdist
        tested = self._tested.setdefault("" if node is None else node.gateway.id, {})
        tested[report.nodeid.partition("::")[0]] = None
        if report.failed:
            self._before[report.nodeid] = ", ".join(tested)
            printed = "\n".join([report.longreprtext, report.capstdout, report.capstderr])
            self._failures[report.nodeid] = self._failures.get(report.nodeid, "") + printed

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Iterator[None]:
        result = yield  # pytest prints the failures of the first try
        failures = self._failures
        if exitstatus == pytest.ExitCode.TESTS_FAILED and len(failures) <= MOST:
            again = [test for test in failures if not self._passes(test, session.config)]
            if not again:
                session.exitstatus = pytest.ExitCode.OK
        return result

    def _passes(self, test: str, config: pytest.Config) -> bool:
        config.get_terminal_writer().line(f"\nsecond try: {test}")
        config.get_terminal_writer().flush()
        command = [sys.executable, "-m", "pytest", test]
        passed = subprocess.run(command, cwd=config.rootpath).returncode == 0
        if passed:
            with self._flaky.open("a") as file:
                file.write(f"flaky: {test}\nIt passes alone, and failed in a process that tested ")
                file.write(f"{self._before[test]}.\n{self._failures[test]}\n")
        return passed
