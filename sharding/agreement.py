"""Whether all processes of a job are about to do the same: asked before any collective."""

import functools
import hashlib
import itertools
import json
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import jax

from sharding import coordination
from sharding.errors import DisagreementError, PeerFailedError, WaitTimeoutError
from sharding.messages import explain
from sharding.waits import limits

_POLLS_S = [0.005 * 2**n for n in range(6)]  # ever longer: a thousand processes ask
_GRACE_S = 1.5  # for the verdict on who is late to reach those who are not

Result = TypeVar("Result")

_turns: Counter[tuple[int, ...]] = Counter()


def agree(subject: str, fields: Mapping[str, Any], processes: Sequence[int]) -> None:
    """Goes on only where all processes say the same of every field; all of them raise if not.

    Every process has to come here, in the same order of calls. The lowest compares what they said,
    so that N processes take O(N) messages; a few milliseconds.

        agree("Pipeline of mnist:train", {"batch_size": 128, "seed": 7}, mesh_processes)

    Args:
        subject: What they are about to do, which is compared, too.
        fields: What must be alike, in JSON types.
        processes: Who has to agree; without effect for one alone.

    Raises:
        DisagreementError: Each field that differs, with the value of each process.
        WaitTimeoutError: Who did not come within the limit.
        PeerFailedError: One of them has failed, and with what.
    """
    processes, mine = sorted(set(processes)), jax.process_index()
    if len(processes) < 2 or mine not in processes:
        return
    group = hashlib.sha256(repr(processes).encode()).hexdigest()[:8]
    turn = _turns[tuple(processes)]
    _turns[tuple(processes)] += 1
    place, before = (f"agree/{group}-{number}" for number in (turn, turn - 1))
    said = json.dumps({"about": subject, **fields}, sort_keys=True)
    coordination.put(f"{place}/said/{mine}", {"host": coordination.host(), "fields": said})
    if mine == processes[0]:
        verdict = _verdict(place, processes, subject)
        coordination.put(f"{place}/verdict/all", verdict)
        coordination.remove(before)  # all have read that, or they would not be here
    else:
        wait_s = limits.agree_s + _GRACE_S
        told = _awaited(lambda: coordination.notes(f"{place}/verdict"), wait_s, subject)
        verdict = told["all"] if told else _late(processes[:1], subject)
    if verdict["kind"] is not None:
        raise _refusal(verdict)


@functools.cache
def run_id() -> str:
    """A name of this run of the job, the same on every process of it."""
    if jax.process_count() == 1:
        return uuid.uuid4().hex
    if jax.process_index() == 0:
        coordination.put("run/id", uuid.uuid4().hex)
    subject = "run_id"
    told = _awaited(lambda: coordination.notes("run"), limits.agree_s, subject)
    if told is None:
        raise _refusal(_late([0], subject))
    return told["id"]


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Bids the others wait for this process for as long as it does something that is done once."""
    place = f"busy/{jax.process_index()}"
    if jax.process_count() > 1:
        coordination.put(place, what)
    yield
    # Not where it fails: then the job ends.
    if jax.process_count() > 1:
        coordination.put(place, None)


def done_by_others(what: str) -> list[str]:
    """Notes that this process did what is done once on a shared file system, and names the others
    that did it in this run, too: they share none with it.
    """
    if jax.process_count() < 2:
        return []
    mine, folder = jax.process_index(), f"done/{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    coordination.put(f"{folder}/{mine}", coordination.host())
    found = coordination.notes(folder)
    return [coordination.named(int(n), host) for n, host in found.items() if int(n) != mine]


def _verdict(place: str, processes: Sequence[int], subject: str) -> dict[str, Any]:
    """What the lowest process finds."""

    def all_said() -> dict[str, Any] | None:
        said = coordination.notes(f"{place}/said")
        return said if len(said) == len(processes) else None

    said = _awaited(all_said, limits.agree_s, subject)
    if said is None:
        came = coordination.notes(f"{place}/said")
        return _late([process for process in processes if str(process) not in came], subject)
    return _comparison(said, subject)


def _awaited(found: Callable[[], Result | None], limit_s: float, subject: str) -> Result | None:
    """What is found in time; raises if another process fails meanwhile."""
    deadline = time.monotonic() + limit_s
    result = None
    for poll_s in itertools.chain(_POLLS_S, itertools.repeat(_POLLS_S[-1])):
        result = found()
        if result:
            break
        if time.monotonic() > deadline:
            if not any(coordination.notes("busy").values()):
                break
            deadline = time.monotonic() + limit_s
        _raise_failures(subject)
        time.sleep(poll_s)
    return result or None


def _comparison(said: Mapping[str, Any], subject: str) -> dict[str, Any]:
    by_field: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for process, note in sorted(said.items(), key=lambda item: int(item[0])):
        who = coordination.named(int(process), note["host"])
        for name, value in json.loads(note["fields"]).items():
            by_field[name][json.dumps(value)].append(who)
    differing = {
        name: "; ".join(f"{coordination.listed(who)}: {value}" for value, who in values.items())
        for name, values in by_field.items()
        if len(values) > 1 or sum(map(len, values.values())) < len(said)
    }
    kind = DisagreementError.__name__ if differing else None
    return {"kind": kind, "subject": subject, "facts": differing}


def _late(processes: Sequence[int], subject: str) -> dict[str, Any]:
    late = coordination.listed([f"process {process}" for process in processes])
    return {"kind": WaitTimeoutError.__name__, "subject": subject, "facts": {"late": late}}


def _refusal(verdict: Mapping[str, Any]) -> Exception:
    """The error of a verdict: the same words on every process."""
    subject, facts = verdict["subject"], verdict["facts"]
    if verdict["kind"] == DisagreementError.__name__:
        return DisagreementError(
            explain(
                subject,
                f"the processes do not agree on {', '.join(facts)}.",
                **facts,
                fix="start every process with the same arguments, data and versions",
            )
        )
    return WaitTimeoutError(
        explain(
            subject,
            "not every process came here in time.",
            **facts,
            waited_s=limits.agree_s,
            fix="look after those processes; if they only need longer, set a larger timeout_s in"
            " initialize()",
        )
    )


def _raise_failures(subject: str) -> None:
    for process, failure in coordination.notes("failed").items():
        raise PeerFailedError(
            explain(
                subject,
                f"{coordination.named(int(process), failure['host'])} has failed.",
                error=failure["error"],
                fix="mend what that process met, and start the job again",
            )
        )
