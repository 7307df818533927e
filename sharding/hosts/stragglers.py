"""Finds which processes hold the others up, from their notes of progress.

Process 0 reads the notes of all, and writes one short report. The others read that, and only while
they get no batch: with N processes this is N short answers, not N of length N.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sharding.checks import error_message
from sharding.hosts import coordination, endings
from sharding.hosts.job import Job, Limits
from sharding.hosts.waits import Wait

_log = logging.getLogger(f"datarax_tfds.{__name__}")

_PLACE = "report"
_MAX_REPORTED = 9  # one more than a message lists, because a process leaves itself out


def _patience_s(limits: Limits) -> float:
    limit_s = float("inf") if limits.stall_timeout_s is None else limits.stall_timeout_s
    return min(limits.stall_warn_s, limit_s)


@dataclass
class _Peer:
    """The last note of a process, when it came, and when that process last made progress."""

    note: Mapping[str, Any]
    heard_at: float
    progress_at: float

    def update(self, note: Mapping[str, Any], now: float) -> None:
        if note["beat"] != self.note["beat"]:
            self.heard_at = now
        if (note["steps"], note["done"]) != (self.note["steps"], self.note["done"]):
            self.progress_at = now
        self.note = note


class Reporter:
    """Process 0 when it writes which processes are late, and which have ended.

    Args:
        poll_s: How often the processes leave a note, and this is called.
    """

    def __init__(self, job: Job, poll_s: float):
        self._job, self._poll_s = job, poll_s
        self._begun = time.monotonic()
        self._peers: dict[int, _Peer] = {}

    def report(self) -> None:
        """Writes the report. Times in it are as of now."""
        coordinator, now = self._job.coordinator, time.monotonic()
        ended = coordinator.notes("ended")
        for process, note in coordinator.notes("alive").items():
            self._peers.setdefault(process, _Peer(note, now, now)).update(note, now)
        late = self._late(now, ended)
        ends = {process: endings.described(process, note) for process, note in ended.items()}
        coordinator.put(_PLACE, {"late": _first(late), "ended": _first(ends)})

    def _late(self, now: float, ended: Mapping[int, Any]) -> dict[int, str]:
        """The processes that hold others up, each described for a message."""
        found = {}
        patience_s = _patience_s(self._job.limits)
        silence_s = max(patience_s / 2 - self._poll_s, 2 * self._poll_s)
        front = max((peer.note["steps"] for peer in self._peers.values()), default=0)
        for process in range(self._job.coordinator.count):
            peer = self._peers.get(process)
            if process in ended:
                continue
            if peer is None:
                if now - self._begun > silence_s:
                    found[process] = f"process {process} has not been heard of"
                continue
            who = coordination.named(process, peer.note["host"])
            silent_s, idle_s = now - peer.heard_at, now - peer.progress_at
            if silent_s > silence_s:
                found[process] = f"{who} has not been heard of for {silent_s:.0f} s"
            elif idle_s > patience_s / 2 and (what := _what_delays(peer.note, front, idle_s)):
                found[process] = f"{who} {what}"
        return found


def _first(texts: Mapping[int, str]) -> dict[str, Any]:
    shown = sorted(texts)[:_MAX_REPORTED]
    return {"shown": {number: texts[number] for number in shown}, "more": len(texts) - len(shown)}


def _what_delays(note: Mapping[str, Any], front: int, idle_s: float) -> str | None:
    """Why a process that makes no progress holds others up; None if it does not."""
    if note["activity"] is not None:
        return f"has been {note['activity']} for {idle_s:.0f} s"
    if note["steps"] < front:
        return f"is {front - note['steps']} batches behind"
    if note["thread_error"]:
        return f"has made no progress since {note['thread_error']}"
    return None


class Named:
    """Processes of a report, without this one.

    Args:
        said: The part of the report.
        process: The number of this process.
    """

    def __init__(self, said: Mapping[str, Any], process: int):
        shown = {int(number): text for number, text in said["shown"].items()}
        self.texts = {number: text for number, text in shown.items() if number != process}
        self._more = said["more"]

    def __str__(self) -> str:
        return coordination.listed(list(self.texts.values()), "; ", self._more)


class Stall:
    """How long this process has had no batch, and who holds it up."""

    def __init__(self, job: Job):
        self._job, self._process = job, job.coordinator.process
        self._steps, self._wait = -1, Wait()
        self._ends_told: set[int] = set()

    def check(self) -> str | None:
        """Logs who holds this process up; returns the error that must end it, or None."""
        if self._job.progress.steps != self._steps:
            self._steps, self._wait = self._job.progress.steps, Wait()
            return None
        stalled_s, limits = self._wait.seconds, self._job.limits
        if stalled_s < _patience_s(limits):
            return None
        late, ended = reported(self._job)
        # A process that came to its end is no straggler: the watch checks whether it is missed.
        if late.texts and stalled_s > (limits.stall_timeout_s or float("inf")):
            return error_message(
                f"process {self._process}",
                f"it has had no batch for {stalled_s:.0f} s, and waits for other processes.",
                late=late,
                fix="look in the logs of those processes for what they wait for; if they only need"
                " longer, set a larger stall_timeout_s in initialize()",
            )
        if not self._job.progress.at_rendezvous:  # a rendezvous logs itself who is late
            self._log(late, ended, stalled_s)
        return None

    def _log(self, late: Named, ended: Named, stalled_s: float) -> None:
        # An ended process is reported only once, because often nobody needs it.
        new = ended.texts.keys() - self._ends_told
        if (late.texts or new) and self._wait.is_due():
            self._ends_told |= new
            who = "; ".join(str(some) for some in (late, ended) if some.texts)
            _log.warning(
                "%s; process %d is waiting for %s, and has had no batch for %.0f s",
                who,
                self._process,
                "it" if len(late.texts) + len(ended.texts) == 1 else "them",
                stalled_s,
            )


def reported(job: Job) -> tuple[Named, Named]:
    """The processes that are late, and those that have ended, as process 0 reports them."""
    said = job.coordinator.note(_PLACE) or {part: _first({}) for part in ("late", "ended")}
    return tuple(Named(said[part], job.coordinator.process) for part in ("late", "ended"))  # pyright: ignore[reportReturnType]
