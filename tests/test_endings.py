"""Real processes that end in every way: whoever waits for them hears which one ended, and how."""

import re
import subprocess
import sys
import time

import pytest
import warmed
from checkout import GUARD_S, WORKERS

from datarax_tfds.cli import launching

# These wait for 10 to 30 s, nearly all of it without work.
LONG = [("thread", 1), ("SystemExit", 1), ("end", 0), ("end early", 1), ("SystemExit early", 1)]


def run(cases, folder):
    """Runs pairs of processes at once, one of which ends in its way.

    Returns, by case, the exit statuses, and what the other process said.
    """
    jobs, found = {}, {}
    try:
        for number, (how, who) in enumerate(cases):
            logs = folder / str(number)
            logs.mkdir()
            command = [sys.executable, str(WORKERS / "ends.py"), how, str(who)]
            log = logs / f"process-{1 - who}.log"
            # What forks is a new process, since a copy is the child of a fork itself.
            popen = subprocess.Popen if "children" in how else warmed.Popen
            jobs[how, who] = launching.start(2, command, logs, popen), log
        deadline = time.monotonic() + GUARD_S
        for case, (processes, log) in jobs.items():
            while any(process.poll() is None for process in processes):
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.05)
            found[case] = [process.returncode for process in processes], log.read_text()
    finally:
        for processes, _ in jobs.values():
            launching.end(processes)
    return found


@pytest.fixture(scope="module")
def of_long(tmp_path_factory):
    return run(LONG, tmp_path_factory.mktemp("long"))


@pytest.fixture
def ended(request, tmp_path, how, who):
    """The exit statuses of two processes, one of which ends so, and what the other one said."""
    if (how, who) in LONG:
        return request.getfixturevalue("of_long")[how, who]
    return run([(how, who)], tmp_path)[how, who]


if sys.version_info >= (3, 12):
    HEARD_OF_SYSTEM_EXIT = ((70, 1), r"process 1 .*has failed(.|\n)*bad flag \(exit status 1\)")
else:  # nothing shows the status of one that sys.exit() did not raise
    HEARD_OF_SYSTEM_EXIT = ((70, 70), r"PeerFailedError(.|\n)*process 1 .*ended: by a SystemExit")


@pytest.mark.parametrize(
    ("how", "who", "statuses", "heard"),
    [
        ("sys.exit text", 1, (70, 1), r"process 1 .*has failed(.|\n)*bad flag \(exit status 1\)"),
        ("sys.exit 3", 0, (3, 70), r"process 0 .*has failed(.|\n)*exit status 3"),
        ("another hook", 1, (70, 1), r"ValueError: what the user met"),
        ("another hook, apart", 1, (1, 1), r"process 1 .*has failed(.|\n)*what the user met"),
        ("SIGKILL", 1, (70, -9), r"process.* has died.*SIGKILL|process.* has died.*it is gone"),
        ("os._exit", 1, (70, 3), r"process.* has died.*(exit status 3|it is gone)"),
        ("thread", 1, (70, 70), r"no progress since thread 'loader' ended by ValueError"),
        ("SystemExit", 1, *HEARD_OF_SYSTEM_EXIT),
        ("end", 0, (70, 70), r"PeerFailedError(.|\n)*process 0 .*has ended"),
        ("end apart", 1, (1, 0), r"process 1 .*has ended, and did not come here"),
    ],
)
def test_whoever_waits_for_a_process_that_ended_hears_which_and_how(ended, statuses, heard):
    found, log = ended
    assert re.search(heard, log), log[-3000:]
    assert tuple(found) == statuses


@pytest.mark.parametrize(
    ("how", "who"),
    [
        ("end early", 1),  # the other is in one call of its own for longer than it would wait
        ("exit hook", 1),  # an exception in an exit hook changes no exit status
        ("SystemExit early", 1),
        ("children", 0),  # forked, they inherit hooks, and the coordinator itself
        ("children", 1),
    ],
)
def test_a_process_that_is_not_missed_disturbs_nobody(ended):
    found, log = ended
    assert found == [0, 0], log[-3000:]
    assert "finished" in log
    assert log.count("has ended") <= 1, log[-3000:]
