"""Compares what the processes of a job are about to do, before they enter a collective."""

import functools
import hashlib
import itertools
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import jax

from sharding.checks import refused
from sharding.errors import DisagreementError
from sharding.hosts import coordination
from sharding.hosts.job import job
from sharding.hosts.rendezvous import Rendezvous, Said, Speakers, arrived

_TELL_S = 1.0  # between two notes of progress


def agree(
    subject: str,
    fields: Mapping[str, Any],
    processes: Sequence[int],
    fixes: Mapping[str, str] | None = None,
) -> None:
    """Raises on every process unless all processes pass an equal `subject` and equal `fields`.

    All processes must call it, in the same order of calls. The process with the lowest number
    collects the fields, so N processes send O(N) messages; a call takes a few milliseconds. If an
    error or an interrupt ends a call on some processes, the next calls are compared as usual.

        agree("Pipeline of mnist:train", {"batch_size": 128, "seed": 7}, mesh_processes)

    Args:
        subject: What the processes are about to do.
        fields: The values that must be equal, in JSON types.
        processes: The processes that must agree. All others, and a single one, return at once.
        fixes: What to do about each field if it differs.

    Raises:
        DisagreementError: Fields differ; the message gives their values on each process.
        WaitTimeoutError: Some processes did not call this in time; the message names them.
        PeerFailedError: A process has failed; the message quotes its error.
    """
    if len(set(processes)) > 1 and jax.process_index() in processes:
        text = _text(subject, fields)
        with job.rendezvous_turn:
            said = Rendezvous(job, processes).exchange(subject, text)
        if len(said) > 1:
            raise _disagreement(said, fixes or {}, len(set(processes)))


def gathered(subject: str, value: Any, processes: Sequence[int]) -> list[Any]:
    """Returns the different values that the processes pass, that of the lowest one first.

    All processes must call it, with a value in JSON types. It raises `WaitTimeoutError` and
    `PeerFailedError` as `agree` does.
    """
    if len(set(processes)) < 2 or jax.process_index() not in processes:
        return [value]
    text = _text(subject, {"value": value})
    with job.rendezvous_turn:
        said = Rendezvous(job, processes).exchange(subject, text, most=len(processes))
    return [json.loads(text)["value"] for text in said]


def _text(subject: str, fields: Mapping[str, Any]) -> str:
    return json.dumps({"about": subject, **fields}, sort_keys=True)


def _disagreement(said: Said, fixes: Mapping[str, str], count: int) -> DisagreementError:
    by_field: dict[str, dict[str, list[Speakers]]] = defaultdict(lambda: defaultdict(list))
    for text, speakers in said.items():
        for name, value in json.loads(text).items():
            by_field[name][json.dumps(value)].append(speakers)
    facts = {
        name: "; ".join(f"{_listed(who)}: {value}" for value, who in values.items())
        for name, values in by_field.items()
        if len(values) > 1 or sum(map(len, values.values())) < len(said)
    }
    others = count - sum(speakers.total for speakers in said.values())
    return refused(
        DisagreementError,
        json.loads(next(iter(said)))["about"],
        f"the processes do not agree on {', '.join(facts)}.",
        **facts,
        **({"others": f"{others} processes with yet other values"} if others else {}),
        fix=next((fixes[field] for field in facts if field in fixes), "")
        or "start every process with the same arguments, data and versions",
    )


def _listed(groups: Sequence[Speakers]) -> str:
    first = sorted(itertools.chain.from_iterable(each.first for each in groups))
    names = [coordination.named(process, host) for process, host in first]
    return coordination.listed(names, more=sum(each.total for each in groups) - len(names))


@functools.cache
def run_id() -> str:
    """A unique name for this run of the job, the same on every process."""
    if jax.process_count() == 1:
        return uuid.uuid4().hex
    if jax.process_index() == 0:
        return job.coordinator.put_first("run/id", uuid.uuid4().hex)  # unless interrupted here once
    told = job.coordinator.arrival("run/id")
    return arrived(job, told, job.limits.timeout_s, "run_id", by=0)


@contextmanager
def extend_deadlines(doing: str, *, measured: bool = False) -> Iterator[Callable[[], None]]:
    """Makes the other processes wait longer for this one while it does slow one-off work.

        with extend_deadlines("indexing files", measured=True) as advance:
            for _ in files.build_indexes():
                advance()

    Args:
        doing: The work, as messages name it.
        measured: Whether finished pieces of the work are counted, in `job.progress.pieces` or by
            calls of the function that the context returns. The others then give up `timeout_s`
            after the last piece. If it is not measured, they wait until the work ends.
    """
    # Asked first, because the other question starts JAX's devices, which a process that only reads
    # for another library must not take.
    several = jax.distributed.is_initialized() and jax.process_count() > 1
    place, told_at = f"busy/{jax.process_index() if several else 0}", float("-inf")

    def advance() -> None:
        nonlocal told_at
        job.progress.pieces += 1
        if several and time.monotonic() - told_at > _TELL_S:
            told_at = time.monotonic()
            done = job.progress.pieces if measured else None
            job.coordinator.put(place, {"what": doing, "done": done})

    advance()
    try:
        yield advance
    finally:
        if several:
            # If the coordinator is gone, the next request to it raises.
            with suppress(ConnectionError):
                job.coordinator.put(place, None)


def also_done_by(what: str) -> str | None:
    """Notes that this process did some work; names one that did it before in this run, too.

    If the processes share a file system, one of them does such work for all.
    """
    if jax.process_count() < 2:
        return None
    mine = coordination.named(jax.process_index(), job.coordinator.host)
    first = job.coordinator.put_first(f"done/{hashlib.sha256(what.encode()).hexdigest()}", mine)
    return None if first == mine else first
