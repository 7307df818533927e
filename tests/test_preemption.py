"""Signals that ask a job to save and stop: all processes stop at one step, no handler is lost."""

import os
import re
import signal
import subprocess
import sys

import pytest
from checkout import GUARD_S, WORKERS

from datarax_tfds import Preemption
from datarax_tfds.cli import launching


@pytest.fixture
def called():
    """What the handlers that the program had before were called with."""
    numbers = []
    signals = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.signal(number, lambda got, _: numbers.append(got)) for number in signals]
    yield numbers
    for number, handler in zip(signals, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("signals", "sent", "stops"),
    [
        ((signal.SIGTERM,), signal.SIGTERM, True),
        ((signal.SIGTERM, signal.SIGUSR1), signal.SIGUSR1, True),
        ((signal.SIGTERM,), signal.SIGUSR1, False),
    ],
)
def test_a_signal_stops_the_job_and_reaches_the_handler_of_before(called, signals, sent, stops):
    with Preemption(signals=signals) as preemption:
        signal.raise_signal(sent)
        assert preemption.reached(1) is stops
        assert called == [sent]


def test_closed_it_gives_the_signals_back(called):
    handler = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert signal.getsignal(signal.SIGTERM) is not handler
    assert signal.getsignal(signal.SIGTERM) is handler
    signal.raise_signal(signal.SIGTERM)
    assert not preemption.reached(1)


def test_several_are_all_told_in_whichever_order_they_are_closed(called):
    one = Preemption()
    other = Preemption()
    signal.raise_signal(signal.SIGTERM)
    assert one.reached(1)
    assert other.reached(1)
    one.close()
    other.close()
    signal.raise_signal(signal.SIGTERM)
    assert called == [signal.SIGTERM] * 2


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_signal_that_was_ignored_or_fatal_stops_the_job(called, before):
    signal.signal(signal.SIGUSR1, before)
    with Preemption(signals=[signal.SIGUSR1]) as preemption:
        signal.raise_signal(signal.SIGUSR1)
        assert preemption.reached(1)
    assert signal.getsignal(signal.SIGUSR1) is before


OF_CHILDREN = """
import os, signal
from datarax_tfds import Preemption

for before, status in (
    (signal.SIG_DFL, -signal.SIGTERM),
    (signal.SIG_IGN, 5),
    (lambda *_: os._exit(6), 6),
):
    signal.signal(signal.SIGTERM, before)
    with Preemption() as preemption:
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(5)
        found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert found == status, (before, found)
        assert not preemption.reached(1)
"""


def test_a_signal_to_a_forked_child_does_there_what_it_did_before():
    """Otherwise `multiprocessing` would wait for ever for a child that it has terminated."""
    done = subprocess.run(
        [sys.executable, "-c", OF_CHILDREN], capture_output=True, text=True, timeout=GUARD_S
    )
    assert done.returncode == 0, done.stderr


def test_a_handler_that_is_set_later_is_told_of(called, caplog):
    with Preemption() as preemption:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        preemption.reached(1)
        preemption.reached(2)
    assert caplog.text.count("another handler was set for SIGTERM") == 1


def test_a_blocked_signal_is_told_of(called, caplog):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        Preemption(signals=[signal.SIGUSR1]).close()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    assert "SIGUSR1 cannot arrive" in caplog.text


def test_a_number_that_is_no_signal_is_refused():
    with pytest.raises(ValueError, match=r"signals that a process can handle(.|\n)*SIGUSR1"):
        Preemption(signals=(4000,))


@pytest.mark.parametrize("how", ["SIGTERM", "SIGUSR1", "nobody asks"])
def test_a_signal_to_one_process_stops_all_at_one_step_or_says_that_nobody_asks(tmp_path, how):
    processes = launching.start(2, [sys.executable, str(WORKERS / "preempted.py"), how], tmp_path)
    try:
        # The status that asks a launcher to start the job again: no process takes it for a failure.
        status = 0 if how == "nobody asks" else os.EX_TEMPFAIL
        assert [process.wait(GUARD_S) for process in processes] == [status] * 2
    finally:
        launching.end(processes)
    logs = [(tmp_path / f"process-{number}.log").read_text() for number in (0, 1)]
    if how == "nobody asks":
        assert [log.count("has built no Preemption") for log in logs] == [1, 1], logs
        return
    steps = [re.findall(r"stopped at (\d+)", log) for log in logs]
    assert steps[0] == steps[1] != []
    assert "the user's handler" in logs[1]
