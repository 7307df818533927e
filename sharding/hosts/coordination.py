"""Exchanges notes between the processes of a job, in the key-value store of JAX's coordinator.

A note is short JSON: digests, positions, names, error texts. The coordinator does not ask for a
password: keep it on a private network.
"""

import datetime
import json
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax

# JAX has no public name for its store; Orbax uses this one, too.
from jax._src import distributed

from sharding.checks import refused
from sharding.hosts.job import job

_ROOT = "datarax_tfds"
# The key that JAX's preemption service reads (XLA: preemption_sync_manager).
_PREEMPTION = "RECEIVED_PREEMPTION_NOTICE"
_MAX_LISTED = 8


def _note_fork() -> None:
    job.is_forked_child = distributed.global_state.client is not None


os.register_at_fork(after_in_child=_note_fork)


def put(place: str, note: Any) -> None:
    """Writes a note, which replaces an earlier one at the same place."""
    _asked("key_value_set", f"{_ROOT}/{place}", json.dumps(note), allow_overwrite=True)


def notes(folder: str) -> dict[str, Any]:
    """All notes that are in a folder now, by name."""
    found = _asked("key_value_dir_get", f"{_ROOT}/{folder}/")
    return {place.rpartition("/")[2]: json.loads(text) for place, text in found}


def notes_by_process(folder: str) -> dict[int, Any]:
    """The notes in a folder with one note of each process, by process number."""
    return {int(process): note for process, note in notes(folder).items()}


def notify_preemption() -> None:
    """Notifies JAX's preemption service, as SIGTERM otherwise does."""
    now = datetime.datetime.now(datetime.UTC).isoformat()
    _asked("key_value_set", _PREEMPTION, now, allow_overwrite=True)


def preemption_noticed() -> bool:
    """Whether JAX's preemption service has been notified on any process."""
    client = distributed.global_state.client
    try:
        return client is not None and bool(client.key_value_try_get(_PREEMPTION))
    except jax.errors.JaxRuntimeError:
        return False  # there is no such note


def _asked(request: str, *args: Any, **options: Any) -> Any:
    if job.is_forked_child:
        # A request of a child would break the connection of its parent (seen as "Missing
        # :authority header"), and the child would wait for the answer for ever.
        raise refused(
            ConnectionError,
            "jax.distributed",
            "a forked child cannot ask the coordinator of the job.",
            process=os.getpid(),
            fix="do this in the process that called initialize(); start others with"
            " multiprocessing.get_context('spawn')",
        )
    client = distributed.global_state.client
    reason: object = "jax.distributed has not begun, or has ended"
    if client is not None:
        try:
            return getattr(client, request)(*args, **options)
        except jax.errors.JaxRuntimeError as error:
            reason = error
    raise refused(
        ConnectionError,
        "jax.distributed",
        "the coordinator of the job does not answer.",
        error=reason,
        fix="call initialize() first; if that was done, look in the log of process 0, which"
        " runs the coordinator, for why it ended, and start the job again",
    )


def listed(who: Sequence[str], separator: str = ", ") -> str:
    """Joins names of processes for a message; those after the eighth are only counted."""
    more = len(who) - _MAX_LISTED
    return separator.join(who[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def named(process: int, host: str) -> str:
    """The name of a process in messages."""
    return f"process {process} (host {host})"


def host() -> str:
    """The name of this machine."""
    return platform.node()
