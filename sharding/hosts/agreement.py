"""Compares what the processes of a job are about to do, before they enter a collective."""

import functools
import hashlib
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
from sharding.hosts.rendezvous import Rendezvous, Said, arrived

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
        said = _exchanged(subject, fields, processes)
        if len(said) > 1:
            raise _disagreement(said, fixes or {})


def gathered(subject: str, value: Any, processes: Sequence[int]) -> list[Any]:
    """Returns the values that all processes pass, in the order of the processes.

    All processes must call it, with a value in JSON types. It raises `WaitTimeoutError` and
    `PeerFailedError` as `agree` does.
    """
    if len(set(processes)) < 2 or jax.process_index() not in processes:
        return [value]
    said = _exchanged(subject, {"value": value}, processes)
    if len(said) == 1:
        return [value] * len(set(processes))
    by_process = {
        process: json.loads(text)["value"] for text, who in said.items() for process, _ in who
    }
    return [by_process[process] for process in sorted(by_process)]


def _exchanged(subject: str, fields: Mapping[str, Any], processes: Sequence[int]) -> Said:
    text = json.dumps({"about": subject, **fields}, sort_keys=True)
    with job.rendezvous_turn:
        return Rendezvous(job, processes).exchange(subject, text)


def _disagreement(said: Said, fixes: Mapping[str, str]) -> DisagreementError:
    by_field: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    speakers = sorted((process, host, text) for text, who in said.items() for process, host in who)
    for process, host, text in speakers:
        for name, value in json.loads(text).items():
            by_field[name][json.dumps(value)].append(coordination.named(process, host))
    facts = {
        name: "; ".join(f"{coordination.listed(who)}: {value}" for value, who in values.items())
        for name, values in by_field.items()
        if len(values) > 1 or sum(map(len, values.values())) < len(speakers)
    }
    return refused(
        DisagreementError,
        json.loads(speakers[0][-1])["about"],
        f"the processes do not agree on {', '.join(facts)}.",
        **facts,
        fix=next((fixes[field] for field in facts if field in fixes), "")
        or "start every process with the same arguments, data and versions",
    )


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
    place, told_at = f"busy/{jax.process_index()}", float("-inf")
    several = jax.process_count() > 1

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
