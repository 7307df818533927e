"""Points that several processes have to reach, where each learns what all of them say."""

import hashlib
import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from sharding.checks import refused
from sharding.errors import PeerFailedError, WaitTimeoutError
from sharding.hosts import coordination
from sharding.hosts.job import Attendance, Job
from sharding.hosts.waits import Wait

_log = logging.getLogger(f"datarax_tfds.{__name__}")

_POLLS_S = [0.005 * 2**n for n in range(6)]  # of the process that collects, ever longer
_NOTES_PER_S = 5_000  # that it reads, with thousands of processes
_LOOK_S = 2.0  # between two looks at the time, and at whether another process has failed
_GRACE_S = 1.5  # how long a verdict may take to reach the processes that were in time
_ERRORS = {kind.__name__: kind for kind in (PeerFailedError, WaitTimeoutError)}

Result = TypeVar("Result")


class Speakers(NamedTuple):
    """The processes that said one text."""

    total: int
    first: Sequence[tuple[int, str]]  # numbers and hosts of those that a message names


Said = dict[str, Speakers]


class Rendezvous:
    """The rendezvous of a group of processes, one after the other.

    At each, the process with the lowest number collects what all of them say, and publishes a
    verdict: what was said, or the error that all have to raise. The others send what they say and
    one request for the verdict, which is answered when it is there.

    Verdicts are numbered, not calls, so a process that left one rendezvous by an exception meets
    the others at their next one, whether it tries again or does something else.
    """

    def __init__(self, job: Job, processes: Sequence[int]):
        self._job, self._coordinator = job, job.coordinator
        self._processes = sorted(set(processes))
        self._mine, self._lowest = self._coordinator.process, self._processes[0]
        group = hashlib.sha256(repr(self._processes).encode()).hexdigest()[:8]
        self._folder = f"agree/{group}"
        self._attendance = job.attendances.setdefault(
            group, Attendance(leads=self._mine == self._lowest)
        )

    def exchange(self, subject: str, text: str, most: int = coordination.MAX_LISTED) -> Said:
        """Says `text` to the others; returns each text that was said, in the order of processes.

        Every process is sent all of this, so it must not grow with their number.

        Args:
            subject: The rendezvous, for messages.
            text: What this process says.
            most: How many different texts are returned. Others are left out.

        Raises:
            PeerFailedError: One of the processes has failed or ended.
            WaitTimeoutError: Some did not come in time.
        """
        verdict = self._missed(text) or self._met(subject, text, most)
        if self._mine in verdict["absent"]:  # and perhaps in later ones, too
            verdict = self._coordinator.note(f"{self._folder}/last") or verdict
        self._attendance.number, self._attendance.unanswered = verdict["number"], None
        if verdict["error"] is not None:
            kind, message = verdict["error"]
            error = _ERRORS[kind](message)
            raise error
        return {said: Speakers(*speakers) for said, speakers in verdict["said"].items()}

    def _missed(self, text: str) -> dict[str, Any] | None:
        """The verdict on a call that an exception ended here, if it is one on this call, too."""
        if self._attendance.unanswered is None and not self._attendance.leads:
            return None
        last = self._coordinator.note(f"{self._folder}/last")
        if last is None or last["number"] == self._attendance.number:
            return None
        if self._mine in last["absent"] or text == self._attendance.unanswered:
            return last
        self._attendance.number = last["number"]  # a verdict on a call that was given up
        return None

    def _met(self, subject: str, text: str, most: int) -> dict[str, Any]:
        number = self._attendance.number + 1
        self._attendance.unanswered = text
        place = f"{self._folder}/said/{self._mine}"
        try:
            note = {"host": self._coordinator.host, "text": text, "number": number}
            self._coordinator.put(place, note)
            if self._mine == self._lowest:
                return self._published_verdict(number, subject, most)
            verdict = self._coordinator.arrival(f"{self._folder}/verdict/{number}")
            limit_s = self._job.limits.timeout_s + _GRACE_S
            return arrived(self._job, verdict, limit_s, subject, self._lowest)
        except BaseException:
            # Takes the note back, so that the others do not go on without this process.
            with suppress(ConnectionError):
                self._coordinator.put(place, {"number": None})
            raise

    def _published_verdict(self, number: int, subject: str, most: int) -> dict[str, Any]:
        came: dict[int, Any] = {}

        def all_notes() -> dict[int, Any] | None:
            nonlocal came
            notes = self._coordinator.notes(f"{self._folder}/said")
            came = {process: note for process, note in notes.items() if note["number"] == number}
            return came if len(came) == len(self._processes) else None

        def absent() -> list[int]:
            return [process for process in self._processes if process not in came]

        verdict = {"number": number, "absent": [], "said": {}, "error": None}
        try:
            limit_s = self._job.limits.timeout_s
            notes = _collected(self._job, all_notes, limit_s, subject, absent)
            verdict["said"] = _grouped(notes, most)
        except (PeerFailedError, WaitTimeoutError) as error:
            # All processes raise it in the same words, even those that come too late.
            verdict |= {"absent": absent(), "error": [type(error).__name__, str(error)]}
        _publish(self._job, self._folder, verdict)
        return verdict


def _publish(job: Job, folder: str, verdict: Mapping[str, Any]) -> None:
    job.coordinator.put(f"{folder}/last", verdict)
    job.coordinator.put(f"{folder}/verdict/{verdict['number']}", verdict)


def end_all(job: Job, note: Mapping[str, Any]) -> None:
    """Gives those that wait, or will wait, for a verdict of this process one: that it has ended."""
    for group, attendance in job.attendances.items():
        if attendance.leads:
            error = _ended_too_soon(job.coordinator.process, note, "agree")
            verdict = {"number": attendance.number + 1, "absent": [], "said": {}}
            _publish(job, f"agree/{group}", verdict | {"error": ["PeerFailedError", str(error)]})


def _grouped(notes: Mapping[int, Any], most: int) -> Said:
    by_text: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for process, note in sorted(notes.items()):
        by_text[note["text"]].append((process, note["host"]))
    return {
        text: Speakers(len(who), who[: coordination.MAX_LISTED])
        for text, who in itertools.islice(by_text.items(), most)
    }


def arrived(job: Job, told: Future[Result], limit_s: float, subject: str, by: int) -> Result:
    """Waits for a note of process `by`, which comes by itself; the log says how long.

    Raises:
        PeerFailedError: A process has failed.
        WaitTimeoutError: The note did not come in time.
    """
    return _awaited(
        job,
        lambda: told.result() if told.done() else None,
        limit_s,
        subject,
        missing=lambda: [by],
        pause=lambda: futures.wait([told], timeout=min(_LOOK_S, limit_s / 10)),
    )


def _collected(
    job: Job,
    found: Callable[[], Result | None],
    limit_s: float,
    subject: str,
    missing: Callable[[], Sequence[int]],
) -> Result:
    """Polls `found`, which only the process with the lowest number does.

    Raises:
        PeerFailedError: A process has failed, or a missing one has ended.
        WaitTimeoutError: Some processes did not come in time.
    """
    longest_s = max(_POLLS_S[-1], job.coordinator.count / _NOTES_PER_S)
    polls_s = itertools.chain(_POLLS_S, itertools.repeat(longest_s))

    def found_or_ended() -> Result | None:
        # Ends are read first, because a process may speak and end between the two requests.
        ended = job.coordinator.notes("ended")
        result = found()
        for process in ended.keys() & set(missing()) if result is None else ():
            raise _ended_too_soon(process, ended[process], subject)
        return result

    return _awaited(
        job, found_or_ended, limit_s, subject, missing, lambda: time.sleep(next(polls_s))
    )


def _awaited(
    job: Job,
    found: Callable[[], Result | None],
    limit_s: float,
    subject: str,
    missing: Callable[[], Sequence[int]],
    pause: Callable[[], object],
) -> Result:
    """Waits longer than the limit for processes that do slow one-off work and make progress."""
    job.progress.at_rendezvous = True
    wait, deadline = Wait(), time.monotonic() + limit_s
    before: Mapping[int, Any] = {}
    try:
        while True:
            result = found()
            if result is not None:
                return result
            if job.failure is not None:
                raise _failed(job.failure, subject)
            if wait.is_due():
                who = coordination.listed(_described(job, missing()), "; ")
                _log.warning("%s: waiting for %.0f s for %s", subject, wait.seconds, who)
            if time.monotonic() > deadline:
                absent = missing()
                under_way = _under_way(job, absent)
                measured = all(note["done"] is not None for note, _ in under_way.values())
                if not under_way or (measured and under_way == before):
                    raise _timeout(job, absent, subject)
                before, deadline = under_way, time.monotonic() + limit_s
            pause()
    finally:
        job.progress.at_rendezvous = False


def _under_way(job: Job, absent: Sequence[int]) -> dict[int, tuple[Any, Any]]:
    """The slow work of each process, and how much of it is done.

    A process that waits for a verdict asks only for the one that collects: while that is at the
    rendezvous, it is the one that decides how long all wait.
    """
    coordinator = job.coordinator
    if absent[0] > coordinator.process:
        alive, busy = coordinator.notes("alive"), coordinator.notes("busy")
        return {who: (note, alive.get(who, {}).get("done")) for who, note in busy.items() if note}
    found = {}
    for process in absent:
        alive, busy = _progress_of(job, process)
        if alive.get("at_rendezvous"):
            busy = {"what": "waiting", "done": None}
        if busy:
            found[process] = busy, alive.get("done")
    return found


def _progress_of(job: Job, process: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """How far a process is, and its slow work; empty if it has told nothing."""
    alive, busy = (job.coordinator.note(f"{folder}/{process}") for folder in ("alive", "busy"))
    return alive or {}, busy or {}


def _described(job: Job, processes: Sequence[int]) -> list[str]:
    """Names processes for a message, the first ones with what each is doing if that is known."""

    def described(process: int) -> str:
        alive, busy = _progress_of(job, process)
        who = coordination.named(process, alive["host"]) if alive else f"process {process}"
        activity = alive.get("activity") or busy.get("what")
        return who if activity is None else f"{who}, which is {activity}"

    asked = processes[: coordination.MAX_LISTED]
    return [*map(described, asked), *(f"process {each}" for each in processes[len(asked) :])]


def _timeout(job: Job, absent: Sequence[int], subject: str) -> WaitTimeoutError:
    return refused(
        WaitTimeoutError,
        subject,
        "not every process came here in time.",
        late=coordination.listed(_described(job, absent), "; "),
        waited_s=job.limits.timeout_s,
        fix="look in the logs of those processes for what they wait for; if they only need"
        " longer, set a larger timeout_s in initialize()",
    )


def _failed(failure: Mapping[str, Any], subject: str) -> PeerFailedError:
    return refused(
        PeerFailedError,
        subject,
        f"{coordination.named(failure['process'], failure['host'])} has failed.",
        error=failure["error"],
        fix="correct that error, and start the job again",
    )


def _ended_too_soon(process: int, note: Mapping[str, Any], subject: str) -> PeerFailedError:
    if note["error"] is not None:
        return _failed({"process": process, **note}, subject)
    known = {"error": note.get("thread_error"), "end": note.get("exit")}
    return refused(
        PeerFailedError,
        subject,
        f"{coordination.named(process, note['host'])} has ended, and did not come here.",
        **{name: value for name, value in known.items() if value is not None},
        fix="let all processes take the same steps; the log of that process says why it ended"
        " first",
    )
