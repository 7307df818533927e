"""Finds which processes hold this one up, from their notes of progress."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sharding.checks import error_message
from sharding.hosts import coordination, endings
from sharding.hosts.job import job
from sharding.hosts.waits import Wait

_log = logging.getLogger(f"datarax_tfds.{__name__}")


@dataclass
class _Peer:
    """The last note of another process, when it came, and when that process last made progress."""

    note: Mapping[str, Any]
    heard_at: float
    progress_at: float

    def update(self, note: Mapping[str, Any], now: float) -> None:
        if note["beat"] != self.note["beat"]:
            self.heard_at = now
        if (note["steps"], note["done"]) != (self.note["steps"], self.note["done"]):
            self.progress_at = now
        self.note = note


class Stragglers:
    """Names the stragglers when process `process` of `count` gets no batch for a long time.

    Args:
        poll_s: How often the processes leave a note.
    """

    def __init__(self, process: int, count: int, poll_s: float):
        self._process, self._poll_s = process, poll_s
        self._others = [other for other in range(count) if other != process]
        self._steps, self._stall = -1, Wait()
        self._peers: dict[int, _Peer] = {}
        self._ends_told: set[int] = set()

    def check(self, ended: Mapping[int, Any]) -> str | None:
        """Logs who holds this process up; returns the error that must end it, or None."""
        now, limits = time.monotonic(), job.limits
        if job.progress.steps != self._steps:
            self._steps, self._stall, self._peers = job.progress.steps, Wait(), {}
            return None
        stalled_s = self._stall.seconds
        limit_s = float("inf") if limits.stall_timeout_s is None else limits.stall_timeout_s
        patience_s = min(limits.stall_warn_s, limit_s)
        # While batches come, the notes of the others are not read.
        if stalled_s < patience_s / 2:
            return None
        for process, note in coordination.notes_by_process("alive").items():
            peer = self._peers.setdefault(process, _Peer(note, now, now - stalled_s))
            peer.update(note, now)
        if stalled_s < patience_s:
            return None
        late = self._late(now, patience_s, ended)
        # A process that came to its end is no straggler: the watch checks whether it is missed.
        if late.keys() - ended.keys() and stalled_s > limit_s:
            return error_message(
                f"process {self._process}",
                f"it has had no batch for {stalled_s:.0f} s, and waits for other processes.",
                late=coordination.listed(list(late.values()), "; "),
                fix="look in the logs of those processes for what they wait for; if they only need"
                " longer, set a larger stall_timeout_s in initialize()",
            )
        if not job.progress.at_rendezvous:  # a rendezvous logs itself who is late
            self._log(late, ended, stalled_s)
        return None

    def _log(self, late: Mapping[int, str], ended: Mapping[int, Any], stalled_s: float) -> None:
        # An ended process is reported only once, because often nobody needs it.
        if late.keys() - self._ends_told and self._stall.is_due():
            self._ends_told |= late.keys() & ended.keys()
            _log.warning(
                "%s; process %d is waiting for %s, and has had no batch for %.0f s",
                coordination.listed(list(late.values()), "; "),
                self._process,
                "it" if len(late) == 1 else "them",
                stalled_s,
            )

    def _late(self, now: float, patience_s: float, ended: Mapping[int, Any]) -> dict[int, str]:
        """The processes that hold this one up, each described for a message."""
        found = {}
        silence_s = max(patience_s / 2 - self._poll_s, 2 * self._poll_s)
        for process in self._others:
            peer = self._peers.get(process)
            if process in ended:
                found[process] = endings.described(process, ended[process])
            elif peer is None:
                found[process] = f"process {process} has not been heard of"
            else:
                who = coordination.named(process, peer.note["host"])
                silent_s, idle_s = now - peer.heard_at, now - peer.progress_at
                if silent_s > silence_s:
                    found[process] = f"{who} has not been heard of for {silent_s:.0f} s"
                elif idle_s > patience_s / 2 and (what := self._what_delays(peer.note, idle_s)):
                    found[process] = f"{who} {what}"
        return found

    def _what_delays(self, note: Mapping[str, Any], idle_s: float) -> str | None:
        """Why a process that makes no progress holds this one up; None if it does not."""
        if note["activity"] is not None:
            return f"has been {note['activity']} for {idle_s:.0f} s"
        if note["steps"] < self._steps:
            return f"is {self._steps - note['steps']} batches behind"
        if note["thread_error"]:
            return f"has made no progress since {note['thread_error']}"
        return None
