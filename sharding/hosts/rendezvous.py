"""Points that several processes have to reach, where each learns what all of them say."""

import hashlib
import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import jax

from sharding.checks import refused
from sharding.errors import PeerFailedError, WaitTimeoutError
from sharding.hosts import coordination
from sharding.hosts.job import Attendance, job
from sharding.hosts.waits import Wait

_log = logging.getLogger(f"datarax_tfds.{__name__}")

_POLLS_S = [0.005 * 2**n for n in range(6)]  # ever longer, because a thousand processes may ask
_GRACE_S = 1.5  # how long a verdict may take to reach the processes that were in time
_ERRORS = {kind.__name__: kind for kind in (PeerFailedError, WaitTimeoutError)}

Result = TypeVar("Result")
Said = dict[str, list[tuple[int, str]]]


class Rendezvous:
    """The rendezvous of a group of processes, one after the other.

    At each, the process with the lowest number collects what all of them say, and publishes a
    verdict: what was said, or the error that all have to raise. Verdicts are numbered, not calls,
    so a process that left one rendezvous by an exception meets the others at their next one,
    whether it tries again or does something else.
    """

    def __init__(self, processes: Sequence[int]):
        self._processes = sorted(set(processes))
        self._mine, self._lowest = jax.process_index(), self._processes[0]
        group = hashlib.sha256(repr(self._processes).encode()).hexdigest()[:8]
        self._said_folder, self._verdict_folder = f"agree/{group}/said", f"agree/{group}/verdict"
        self._attendance = job.attendances.setdefault(group, Attendance())

    def exchange(self, subject: str, text: str) -> Said:
        """Says `text` to the others; returns each text that was said, and by which processes.

        If all say the same, the processes are left out, so that a verdict is short.

        Raises:
            PeerFailedError: One of the processes has failed or ended.
            WaitTimeoutError: Some did not come in time.
        """
        verdict = self._missed(text) or self._met(subject, text)
        self._attendance.number, self._attendance.unanswered = verdict["number"], None
        if verdict["error"] is not None:
            kind, message = verdict["error"]
            error = _ERRORS[kind](message)
            raise error
        return verdict["said"]

    def _missed(self, text: str) -> dict[str, Any] | None:
        """The last verdict, if this process came too late or left too soon to take it."""
        last = self._last()
        if last is None or last["number"] == self._attendance.number:
            return None
        if self._mine in last["absent"] or text == self._attendance.unanswered:
            return last
        self._attendance.number = last["number"]  # a verdict on a call that was given up
        return None

    def _met(self, subject: str, text: str) -> dict[str, Any]:
        number = self._attendance.number + 1
        self._attendance.unanswered = text
        place = f"{self._said_folder}/{self._mine}"

        def verdict() -> dict[str, Any] | None:
            last = self._last()
            # A larger number means that this process was late for it.
            return last if last is not None and last["number"] >= number else None

        try:
            note = {"host": coordination.host(), "text": text, "number": number}
            coordination.put(place, note)
            if self._mine == self._lowest:
                return self._published_verdict(number, subject)
            limit_s = job.limits.timeout_s + _GRACE_S
            return awaited(verdict, limit_s, subject, lambda: [self._lowest])
        except BaseException:
            # Takes the note back, so that the others do not go on without this process.
            with suppress(ConnectionError):
                coordination.put(place, {"number": None})
            raise

    def _last(self) -> dict[str, Any] | None:
        return coordination.notes(self._verdict_folder).get("last")

    def _published_verdict(self, number: int, subject: str) -> dict[str, Any]:
        came: dict[int, Any] = {}

        def all_notes() -> dict[int, Any] | None:
            nonlocal came
            notes = coordination.notes_by_process(self._said_folder)
            came = {process: note for process, note in notes.items() if note["number"] == number}
            return came if len(came) == len(self._processes) else None

        def absent() -> list[int]:
            return [process for process in self._processes if process not in came]

        verdict = {"number": number, "absent": [], "said": {}, "error": None}
        try:
            verdict["said"] = _grouped(awaited(all_notes, job.limits.timeout_s, subject, absent))
        except (PeerFailedError, WaitTimeoutError) as error:
            # All processes raise it in the same words, even those that come too late.
            verdict |= {"absent": absent(), "error": [type(error).__name__, str(error)]}
        coordination.put(f"{self._verdict_folder}/last", verdict)
        return verdict


def _grouped(notes: Mapping[int, Any]) -> Said:
    said: Said = defaultdict(list)
    for process, note in notes.items():
        said[note["text"]].append((process, note["host"]))
    return said if len(said) > 1 else {text: [] for text in said}


def awaited(
    found: Callable[[], Result | None],
    limit_s: float,
    subject: str,
    missing: Callable[[], Sequence[int]],
) -> Result:
    """Polls `found` until it returns something; the log says which processes are `missing`.

    It waits longer than the limit for processes that do slow one-off work and make progress.

    Raises:
        PeerFailedError: A process has failed, or a missing one has ended.
        WaitTimeoutError: Some processes did not come in time.
    """
    job.progress.at_rendezvous = True
    wait, deadline = Wait(), time.monotonic() + limit_s
    polls_s = itertools.chain(_POLLS_S, itertools.repeat(_POLLS_S[-1]))
    before: Mapping[str, Any] = {}
    try:
        while True:
            # Ends are read first, because a process may speak and end between the two requests.
            ended = coordination.notes_by_process("ended")
            result = found()
            if result:
                return result
            absent = missing()
            _raise_if_ended(ended, absent, subject)
            if wait.is_due():
                who = coordination.listed(_described(absent), "; ")
                _log.warning("%s: waiting for %.0f s for %s", subject, wait.seconds, who)
            if absent and time.monotonic() > deadline:
                under_way = _under_way()
                measured = all(note["done"] is not None for note, _ in under_way.values())
                if not under_way or (measured and under_way == before):
                    raise _timeout(absent, subject)
                before, deadline = under_way, time.monotonic() + limit_s
            time.sleep(next(polls_s))
    finally:
        job.progress.at_rendezvous = False


def _under_way() -> dict[str, tuple[Any, Any]]:
    """The slow work of each process, and how much of it is done."""
    alive, busy = coordination.notes("alive"), coordination.notes("busy")
    return {who: (note, alive.get(who, {}).get("done")) for who, note in busy.items() if note}


def _timeout(absent: Sequence[int], subject: str) -> WaitTimeoutError:
    return refused(
        WaitTimeoutError,
        subject,
        "not every process came here in time.",
        late=coordination.listed(_described(absent), "; "),
        waited_s=job.limits.timeout_s,
        fix="look in the logs of those processes for what they wait for; if they only need"
        " longer, set a larger timeout_s in initialize()",
    )


def _described(processes: Sequence[int]) -> list[str]:
    """Names processes for a message, with what each is doing if that is known."""
    alive, busy = coordination.notes_by_process("alive"), coordination.notes_by_process("busy")

    def described(process: int) -> str:
        note, work = alive.get(process, {}), busy.get(process) or {}
        who = coordination.named(process, note["host"]) if note else f"process {process}"
        activity = note.get("activity") or work.get("what")
        return who if activity is None else f"{who}, which is {activity}"

    return list(map(described, processes))


def _raise_if_ended(ended: Mapping[int, Any], absent: Sequence[int], subject: str) -> None:
    for process, note in ended.items():
        who = coordination.named(process, note["host"])
        if note["error"] is not None:
            raise refused(
                PeerFailedError,
                subject,
                f"{who} has failed.",
                error=note["error"],
                fix="correct that error, and start the job again",
            )
        if process in absent:
            known = {"error": note.get("thread_error"), "end": note.get("exit")}
            raise refused(
                PeerFailedError,
                subject,
                f"{who} has ended, and did not come here.",
                **{name: value for name, value in known.items() if value is not None},
                fix="let all processes take the same steps; the log of that process says why it"
                " ended first",
            )
