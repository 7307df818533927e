"""Looks after the other processes of a job: an error of one ends all, and who is late is named.

A collective waits for ever for a process that does not come. So each process has a thread that
tells the others, through JAX's coordinator, that it is alive and how far it is, and hears of their
errors. It makes no collective, and no JAX call but for those notes.
"""

import atexit
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Set
from typing import Any

import jax

from sharding import coordination
from sharding.messages import explain
from sharding.waits import activity, limits

_log = logging.getLogger(__name__)

FAILED = 70  # exit status; EX_SOFTWARE of sysexits.h
_LEAST_POLL_S = 0.4
_MOST_TOLD = 2000  # characters of an error
_LAST_POLL_S = 0.05
_LAST_WORDS_S = 3.0  # for the others to hear of an error before the coordinator may be gone

_watch: "_Watch | None" = None


def start(*, end_together: bool) -> None:
    """Begins to look after the others, once.

    Args:
        end_together: Whether an error that ends this process, or another one, ends all.
    """
    global _watch
    if _watch is None:
        _watch = _Watch(end_together)
        if end_together:
            _end_all_with_this(_watch)


class _Watch:
    def __init__(self, end_together: bool):
        self._process, self._count = jax.process_index(), jax.process_count()
        self._end_together = end_together
        # The coordinator answers thousands of notes a second: a large job beats more slowly.
        self._poll_s = max(_LEAST_POLL_S, self._count / 500)
        self._beat = 0
        self._steps, self._stalled_since = -1, time.monotonic()
        self._heard: dict[str, tuple[Any, float]] = {}
        self._late_since: float | None = None
        self._warned = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="datarax_tfds watch", daemon=True)
        atexit.register(self._end)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ended.wait(self._poll_s):
                self._tell(ended=False)
                if self._end_together:
                    self._hear_errors()
                self._look_who_is_late()
        except ConnectionError:
            # The coordinator, or our link to it, is gone: JAX ends this process, and says so.
            _log.debug("the coordinator does not answer", exc_info=True)

    def _tell(self, ended: bool) -> None:
        self._beat += 1
        note = {
            "host": coordination.host(),
            "beat": self._beat,
            "steps": activity.steps,
            "waiting_for": activity.waiting_for,
            "ended": ended,
        }
        coordination.put(f"alive/{self._process}", note)

    def _hear_errors(self) -> None:
        for process, failure in coordination.notes("failed").items():
            if int(process) == self._process:
                continue
            message = explain(
                f"process {self._process}",
                f"ended, since {coordination.named(int(process), failure['host'])} has failed.",
                error=failure["error"],
                fix="mend what that process met, and start the job again",
            )
            coordination.put(f"heard/{self._process}", True)
            _end_now(f"sharding.errors.PeerFailedError: {message}\n", self._process)

    def _look_who_is_late(self) -> None:
        now = time.monotonic()
        if activity.steps != self._steps:
            self._steps, self._stalled_since, self._warned = activity.steps, now, 0
            self._heard, self._late_since = {}, None
            return
        stalled = now - self._stalled_since
        # What the others say is read only then: a beat unheard of between two readings is late.
        bound = limits.warn_s if limits.end_s is None else min(limits.warn_s, limits.end_s)
        if stalled < bound / 2:
            return
        for process, note in coordination.notes("alive").items():
            known = self._heard.get(process)
            if known is None or known[0]["beat"] != note["beat"]:
                self._heard[process] = note, now
        if stalled < bound:
            return
        late = self._late(now, bound)
        if not late:
            self._late_since = None
            return
        if self._late_since is None:
            self._late_since = self._stalled_since
        if limits.end_s is not None and now - self._late_since > limits.end_s:
            message = explain(
                f"process {self._process}",
                f"no batch for {stalled:.0f} s, and others are late.",
                late=coordination.listed(list(late.values()), "; "),
                fix="look after those processes; if they only need longer, set a larger"
                " stall_timeout_s in initialize()",
            )
            faulthandler.dump_traceback(all_threads=True)
            _publish(self._process, message)
            # Who is late may never hear of it.
            _end_now(f"sharding.errors.WaitTimeoutError: {message}\n", self._process, set(late))
        if stalled > (self._warned + 1) * limits.warn_s:
            self._warned += 1
            _log.warning(
                "process %d: no batch for %.0f s; %s",
                self._process,
                stalled,
                coordination.listed(list(late.values()), "; "),
            )

    def _late(self, now: float, bound: float) -> dict[str, str]:
        """Who holds this process up, and what is known of it."""
        found = {}
        for process in map(str, range(self._count)):
            if int(process) == self._process:
                continue
            note, heard = self._heard.get(process, (None, self._stalled_since))
            who = f"process {process}" if note is None else f"process {process} ({note['host']})"
            silent = now - heard > max(bound / 2 - self._poll_s, 2 * self._poll_s)
            if note is not None and note["ended"]:
                found[process] = f"{who} has ended"
            elif note is None or silent:
                found[process] = f"{who} has not been heard of"
            elif note["waiting_for"] is not None:
                found[process] = f"{who} waits for {note['waiting_for']}"
            elif note["steps"] < activity.steps:
                behind = activity.steps - note["steps"]
                found[process] = f"{who} is behind by {behind} of our batches"
        return found

    def stop(self) -> None:
        """Looks after nobody any more."""
        self._ended.set()
        self._thread.join(timeout=2 * self._poll_s)

    def _end(self) -> None:
        self.stop()
        try:
            self._tell(ended=True)
        except ConnectionError:
            _log.debug("the coordinator does not answer", exc_info=True)


def _end_all_with_this(watch: _Watch) -> None:
    """Tells the others of an error that ends this process, and ends it without waiting for them.

    Otherwise it waits for 300 s at JAX's exit barrier, and the others in a collective.
    """
    report = sys.excepthook

    def end_all(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        watch.stop()
        report(kind, error, trace)
        process = jax.process_index()
        try:
            _publish(process, f"{kind.__name__}: {error}")
        except ConnectionError:
            _log.debug("nobody can be told", exc_info=True)
        _end_now("", process)

    sys.excepthook = end_all


def _publish(process: int, error: str) -> None:
    told = error[:_MOST_TOLD].replace("\n", "\n  ")
    coordination.put(f"failed/{process}", {"host": coordination.host(), "error": told})


def _end_now(message: str, process: int, late: Set[str] = frozenset()) -> None:
    """Ends this process, when the others know why; that of the coordinator last."""
    sys.stderr.write(message)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    deadline = time.monotonic() + _LAST_WORDS_S
    everyone = {str(number) for number in range(jax.process_count())} - {str(process)} - late
    try:
        while time.monotonic() < deadline:
            if coordination.notes("heard").keys() | coordination.notes("failed").keys() >= everyone:
                break
            time.sleep(_LAST_POLL_S)
        if process == 0:
            time.sleep(4 * _LAST_POLL_S)
    except ConnectionError:
        _log.debug("nobody can be told", exc_info=True)
    os._exit(FAILED)
