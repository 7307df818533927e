"""A pytest plugin: failed tests get a second try, and are listed as flaky if it passes.

    pytest --second-try=flaky.txt

Three failed tests at most run again, one after the other and with no other test beside them; more
failures have another cause than a busy machine. What the first try printed is shown, and appended
to the file for each test that passes the second time.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MOST = 3


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

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
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
                file.write(f"flaky: {test}\n{self._failures[test]}\n")
        return passed
