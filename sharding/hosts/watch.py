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
import sys
import threading
import time
from typing import Any

import jax

from sharding.checks import error_message
from sharding.hosts import coordination, endings
from sharding.hosts.exit_cause import ExitCause
from sharding.hosts.job import job
from sharding.hosts.local_peers import LocalPeers
from sharding.hosts.main_thread import MainThread
from sharding.hosts.stragglers import Stragglers

_log = logging.getLogger(f"datarax_tfds.{__name__}")

_MIN_POLL_S = 0.4
_LAST_POLL_S = 0.05
_DEATH_S = 0.3  # from the loss of a connection until the kernel reports the death
_PREEMPTION_BEATS = 5


class Watch:
    """The thread that monitors the other processes. It starts at once.

    Args:
        exit_cause: Knows the errors that ended threads of this process.
        fail_fast: Whether an error that ends another process ends this one.
    """

    def __init__(self, exit_cause: ExitCause, *, fail_fast: bool):
        self.process, self.count = jax.process_index(), jax.process_count()
        # The coordinator answers a few thousand requests a second, so a large job sends fewer.
        self.poll_s = max(_MIN_POLL_S, self.count / 500)
        self.has_finished = False
        """Whether this process has come to its end, and so waits for nobody in a computation."""
        self._exit_cause, self._fail_fast = exit_cause, fail_fast
        self._beat = 0
        self._ended: dict[int, Any] = {}
        self._stragglers = Stragglers(self.process, self.count, self.poll_s)
        self._local_peers = LocalPeers()
        self._main_thread = MainThread()
        self._has_told_of_preemption = self._has_told_of_missed = False
        # A sentinel in a SimpleQueue: an exit hook must not wait for a lock.
        self._stop: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="datarax_tfds watch", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Stops the thread."""
        self._stop.put(None)
        self.thread.join(timeout=2 * self.poll_s)

    def cause(self) -> str:
        """Names the processes whose death may have caused an error in this process."""
        with contextlib.suppress(ConnectionError):
            self._local_peers.find()  # they may have died before the first look
        deadline = time.monotonic() + _DEATH_S
        while not (dead := self._local_peers.dead()) and time.monotonic() < deadline:
            time.sleep(_LAST_POLL_S)
        return "".join(
            f"\nprocess {process} has died before that: {how}" for process, how in dead.items()
        )

    def _run(self) -> None:
        try:
            while not self._is_stopped():
                self._tell()
                self._report_deaths()
                self._hear_endings()
                self._report_stragglers()
                self._report_preemption()
        except ConnectionError:
            # The coordinator, or our link to it, is gone: JAX ends this process, and says so.
            _log.debug("the coordinator does not answer", exc_info=True)
            dead = self._local_peers.dead()
            if dead and self._fail_fast:
                sys.stderr.write(self._failure_of(0, dead.get(0, "its coordinator is gone")))
                sys.stderr.flush()
                os._exit(endings.FAILED)

    def _is_stopped(self) -> bool:
        try:
            self._stop.get(timeout=self.poll_s)
        except queue.Empty:
            return False
        return True

    def _tell(self) -> None:
        self._beat += 1
        note = {
            "host": coordination.host(),
            "beat": self._beat,
            "steps": job.progress.steps,
            "done": job.progress.pieces,
            "activity": job.progress.activity,
            "thread_error": self._exit_cause.thread_error,
        }
        coordination.put(f"alive/{self.process}", note)

    def _report_deaths(self) -> None:
        """Reports processes on this machine that were killed before they could report it."""
        self._local_peers.find()
        dead = self._local_peers.dead()
        if dead.keys() - self._ended.keys():
            for process in dead.keys() - coordination.notes_by_process("ended").keys():
                how = f"the process has died: {dead[process]}"
                endings.publish_failure(process, how, told_by=self.process)

    def _hear_endings(self) -> None:
        self._ended = coordination.notes_by_process("ended")
        finished = {}
        for process, note in self._ended.items():
            if process == self.process:
                continue
            if note["error"] is None:
                finished[process] = note
            elif self._fail_fast:
                coordination.put(f"heard/{self.process}", True)
                endings.end_now(self._failure_of(process, note["error"]), self.process)
        if finished and not self.has_finished:
            self._report_missed(finished)

    def _report_missed(self, finished: dict[int, Any]) -> None:
        # A call on our own devices may take long, too. So a call may last as long as any wait for
        # another process, and is ended only if arrays that span processes take part in it.
        stuck_s = self._main_thread.seconds_in_call()
        if stuck_s < job.limits.timeout_s or not self._main_thread.waits_for_other_processes():
            return
        who = [endings.described(process, note) for process, note in sorted(finished.items())]
        message = error_message(
            f"process {self.process}",
            f"no progress for {stuck_s:.0f} s, because this process waits for one that has ended.",
            ended=coordination.listed(who, "; "),
            waits_at=self._main_thread.where(),
            fix="let all processes take the same steps; the log of that process says why it ended"
            " first; if one step takes so long, set a larger timeout_s in initialize()",
        )
        if self._fail_fast:
            endings.publish_failure(self.process, message)
            endings.end_now(f"sharding.errors.PeerFailedError: {message}\n", self.process)
        elif not self._has_told_of_missed:
            self._has_told_of_missed = True
            _log.warning("%s", message)

    def _failure_of(self, process: int, error: str) -> str:
        host = self._ended.get(process, {}).get("host", "of the coordinator")
        message = error_message(
            f"process {self.process}",
            f"it ends, because {coordination.named(process, host)} has failed.",
            error=error,
            fix="correct that error, and start the job again",
        )
        return f"sharding.errors.PeerFailedError: {message}\n"

    def _report_stragglers(self) -> None:
        message = self._stragglers.check(self._ended)
        if message is not None:
            faulthandler.dump_traceback(all_threads=True)
            endings.publish_failure(self.process, message)
            endings.end_now(f"sharding.errors.WaitTimeoutError: {message}\n", self.process)

    def _report_preemption(self) -> None:
        """Warns once if JAX has swallowed a SIGTERM that the program never asks about."""
        told = self._has_told_of_preemption or job.handles_preemption
        if told or self._beat % _PREEMPTION_BEATS or not coordination.preemption_noticed():
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
