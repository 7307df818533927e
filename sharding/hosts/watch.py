"""Monitors the other processes of a job: an error of one ends all, and stragglers are named.

A collective waits for ever for a process that does not come. So a thread of each process tells the
others, through JAX's coordinator, that the process is alive and how far it is, and hears how the
others end. The thread runs no collective, and calls JAX only for these notes.
"""

import contextlib
import faulthandler
import logging
import os
import queue
import random
import sys
import threading
import time
from collections.abc import Mapping
from concurrent import futures
from concurrent.futures import Future
from typing import Any

from sharding.checks import error_message
from sharding.hosts import coordination, endings
from sharding.hosts.exit_cause import ExitCause
from sharding.hosts.job import Job
from sharding.hosts.local_peers import LocalPeers
from sharding.hosts.main_thread import MainThread
from sharding.hosts.stragglers import Reporter, Stall, reported
from sharding.hosts.waits import Wait

_log = logging.getLogger(f"datarax_tfds.{__name__}")

_EXIT_POLL_S = 0.05
_NOTES_PER_S = 5_000  # that process 0 reads to see who has ended
_LOOK_S = 5.0
_POLL_S = 0.4  # of what costs no request
_BEATS_PER_S = 300  # of all processes together, each with one to three requests
_DEATH_POLL_S = 0.05
_DEATH_S = 0.3  # from the loss of a connection until the kernel reports the death
_PREEMPTION_BEATS = 5


class Watch:
    """The thread that monitors the other processes.

    Args:
        job: The job of this process.
        exit_cause: Knows the errors that ended threads of this process.
        fail_fast: Whether an error that ends another process ends this one.
    """

    def __init__(self, job: Job, exit_cause: ExitCause, *, fail_fast: bool):
        self._job, self.coordinator = job, job.coordinator
        self.process = self.coordinator.process
        self._exit_cause, self._fail_fast = exit_cause, fail_fast
        self.has_finished = False
        """Whether this process has come to its end, and so waits for nobody in a computation."""
        self.beat_s = max(_POLL_S, self.coordinator.count / _BEATS_PER_S)
        self._beats = 0
        self._reporter = Reporter(job, self.beat_s) if self.process == 0 else None
        self._stall = Stall(job)
        self._local_peers = LocalPeers(job)
        self._dead: set[int] = set()
        self._main_thread = MainThread()
        self._has_told_of_preemption = self._has_told_of_missed = False
        # A sentinel in a SimpleQueue: an exit hook must not wait for a lock.
        self._stop: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_stopped = False
        self.outcome = self.coordinator.arrival(endings.OUTCOME)
        self.outcome.add_done_callback(self._hear_outcome)
        self.thread = threading.Thread(target=self._run, name="datarax_tfds watch", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self.thread.start()

    def stop(self) -> None:
        """Stops the thread, and hears of no failure any more."""
        self._is_stopped = True
        self._stop.put(None)
        self.thread.join(timeout=2 * _POLL_S)

    def cause(self) -> str:
        """Names the processes whose death may have caused an error in this process."""
        with contextlib.suppress(ConnectionError):
            self._local_peers.find()  # they may have died before the first look
        deadline = time.monotonic() + _DEATH_S
        while not (dead := self._local_peers.dead()) and time.monotonic() < deadline:
            time.sleep(_DEATH_POLL_S)
        return "".join(
            f"\nprocess {process} has died before that: {how}" for process, how in dead.items()
        )

    def wait_for_the_others(self) -> None:
        """Waits until all have ended. JAX's exit barrier would not tell us of their errors, and
        would fail after 300 s even if they are only writing a checkpoint.
        """
        self.has_finished = True
        wait, count = Wait(), self.coordinator.count
        # Only process 0 asks the coordinator; the others look at what they have heard.
        poll_s = max(_EXIT_POLL_S, count / _NOTES_PER_S) if self.process == 0 else _LOOK_S
        while not self.outcome.done():
            missing = ["the others"]
            if self.process == 0:
                ended = self.coordinator.notes("ended")
                missing = [f"process {number}" for number in range(count) if number not in ended]
            if not missing:
                self.coordinator.put_first(endings.OUTCOME, {})
            if wait.is_due():
                _log.warning(
                    "process %d has finished, and has waited %.0f s for %s to end",
                    self.process,
                    wait.seconds,
                    coordination.listed(missing),
                )
            futures.wait([self.outcome], timeout=poll_s)
        if self.outcome.done() and self.outcome.exception() is None and self.outcome.result():
            # Another process has failed, and the thread that has heard of it ends this one.
            time.sleep(2 * endings.last_words_s(count))

    def _run(self) -> None:
        due = time.monotonic() + self.beat_s * random.random()  # noqa: S311  # not all at once
        try:
            while not self._is_stopped:
                with contextlib.suppress(queue.Empty):
                    self._stop.get(timeout=_POLL_S)
                    return
                self._report_deaths()
                if time.monotonic() >= due:
                    due = time.monotonic() + self.beat_s - _POLL_S
                    self.beat()
        except ConnectionError:
            # The coordinator, or our link to it, is gone: JAX ends this process, and says so.
            _log.debug("the coordinator does not answer", exc_info=True)
            dead = self._local_peers.dead()
            if dead and self._fail_fast and not self._is_stopped:
                host, error = "of the coordinator", dead.get(0, "its coordinator is gone")
                sys.stderr.write(self._message_of({"process": 0, "host": host, "error": error}))
                sys.stderr.flush()
                os._exit(endings.FAILED)

    def beat(self) -> None:
        """Tells the others how far this process is, and looks whether they hold it up."""
        self._beats += 1
        self._tell()
        if self._beats.bit_count() == 1:  # ever more seldom, for a process that starts late
            self._local_peers.find()
        if self._reporter is not None:
            self._reporter.report()
        self._report_stragglers()
        self._report_missed()
        self._report_preemption()

    def _tell(self) -> None:
        progress = self._job.progress
        note = {
            "host": self.coordinator.host,
            "beat": self._beats,
            "steps": progress.steps,
            "done": progress.pieces,
            "activity": progress.activity,
            "at_rendezvous": progress.at_rendezvous,
            "thread_error": self._exit_cause.thread_error,
        }
        self.coordinator.put(f"alive/{self.process}", note)

    def _report_deaths(self) -> None:
        """Reports processes on this machine that were killed before they could report it."""
        dead = self._local_peers.dead()
        for process in dead.keys() - self._dead:
            self._dead.add(process)
            if self.coordinator.note(f"ended/{process}") is None:
                how = f"the process has died: {dead[process]}"
                endings.publish_failure(self.coordinator, process, how, told_by=self.process)

    def _hear_outcome(self, told: Future[Any]) -> None:
        """Runs in another thread as soon as the first process fails, or all have ended."""
        failure = None if self._is_stopped or told.exception() is not None else told.result()
        if not failure:
            return
        self._job.failure = failure
        if self._fail_fast and failure["process"] != self.process:
            endings.end_now(self.coordinator, self._message_of(failure), failure)

    def _report_missed(self) -> None:
        # A call on our own devices may take long, too. So a call may last as long as any wait for
        # another process, and is ended only if arrays that span processes take part in it.
        stuck_s = self._main_thread.seconds_in_call()
        if stuck_s < self._job.limits.timeout_s or self.has_finished:
            return
        if not self._main_thread.waits_for_other_processes():
            return
        _, ended = reported(self._job)
        if not ended.texts:
            return
        message = error_message(
            f"process {self.process}",
            f"no progress for {stuck_s:.0f} s, because this process waits for one that has ended.",
            ended=ended,
            waits_at=self._main_thread.where(),
            fix="let all processes take the same steps; the log of that process says why it ended"
            " first; if one step takes so long, set a larger timeout_s in initialize()",
        )
        if self._fail_fast:
            self._end("PeerFailedError", message)
        elif not self._has_told_of_missed:
            self._has_told_of_missed = True
            _log.warning("%s", message)

    def _report_stragglers(self) -> None:
        message = self._stall.check()
        if message is not None:
            faulthandler.dump_traceback(all_threads=True)
            self._end("WaitTimeoutError", message)

    def _end(self, kind: str, message: str) -> None:
        failure = endings.publish_failure(self.coordinator, self.process, message)
        endings.end_now(self.coordinator, f"sharding.errors.{kind}: {message}\n", failure)

    def _message_of(self, failure: Mapping[str, Any]) -> str:
        message = error_message(
            f"process {self.process}",
            f"it ends, because {coordination.named(failure['process'], failure['host'])} has"
            " failed.",
            error=failure["error"],
            fix="correct that error, and start the job again",
        )
        return f"sharding.errors.PeerFailedError: {message}\n"

    def _report_preemption(self) -> None:
        """Warns once if JAX has swallowed a SIGTERM that the program never asks about."""
        told = self._has_told_of_preemption or self._job.handles_preemption
        if told or self._beats % _PREEMPTION_BEATS or not self.coordinator.preemption_noticed():
            return
        self._has_told_of_preemption = True
        message = error_message(
            f"process {self.process}",
            "a process of this job received SIGTERM, and does not end: JAX takes the signal as a"
            " notice of preemption, and this program has built no Preemption that would stop it.",
            signal="SIGTERM",
            fix="build datarax_tfds.Preemption() and ask reached(step) at every step; or set"
            " JAX_ENABLE_PREEMPTION_SERVICE=0 before the start, so that SIGTERM ends the process;"
            " nothing is to be done if another library, such as Orbax, asks JAX for the notice",
        )
        _log.warning("%s", message)
