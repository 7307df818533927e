"""The notes that processes of a job leave each other: in the key-value store of JAX's coordinator.

What is put there is short JSON: digests, positions, names, error texts. The coordinator asks
nobody for a password: keep it on a private network.
"""

import json
import platform
from collections.abc import Sequence
from typing import Any

import jax

# JAX offers its store to no one by a public name; Orbax goes the same way to it.
from jax._src import distributed

from sharding.messages import explain

_ROOT = "datarax_tfds"
_MOST_LISTED = 8


def put(place: str, note: Any) -> None:
    """Leaves a note, in place of one that was there."""
    _asked("key_value_set", f"{_ROOT}/{place}", json.dumps(note), allow_overwrite=True)


def notes(folder: str) -> dict[str, Any]:
    """All notes in a folder, by their names in it; without waiting."""
    found = _asked("key_value_dir_get", f"{_ROOT}/{folder}/")
    return {place.rpartition("/")[2]: json.loads(text) for place, text in found}


def remove(folder: str) -> None:
    """Removes a folder with its notes."""
    _asked("key_value_delete", f"{_ROOT}/{folder}/")


def _asked(request: str, *args: Any, **options: Any) -> Any:
    client = distributed.global_state.client
    reason: object = "jax.distributed has not begun, or has ended"
    if client is not None:
        try:
            return getattr(client, request)(*args, **options)
        except jax.errors.JaxRuntimeError as error:
            reason = error
    raise ConnectionError(
        explain(
            "jax.distributed",
            "the coordinator of the job does not answer.",
            error=reason,
            fix="call initialize() first; else look after process 0, which runs the coordinator",
        )
    )


def listed(who: Sequence[str], separator: str = ", ") -> str:
    """Some of many processes, for a message."""
    more = len(who) - _MOST_LISTED
    return separator.join(who[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def named(process: int, host: str) -> str:
    """A process as messages name it."""
    return f"process {process} ({host})"


def host() -> str:
    """The name of this machine."""
    return platform.node()
