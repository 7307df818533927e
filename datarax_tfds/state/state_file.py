"""The file of a state in a checkpoint: synced to disk when written, verified when read."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from datarax_tfds.errors import StateMismatchError
from datarax_tfds.stores.object_path import ObjectPath
from datarax_tfds.stores.object_store import read_object, write_object
from sharding.checks import refused

NAME = "data_state.json"
_MAX_BYTES = 1 << 16  # a state has under 2 KB


def write(directory: os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Writes a state into a directory that does not have one, and syncs it to the disk.

    Raises:
        OSError: The file exists, or cannot be written. A partial file is removed.
    """
    if (store := ObjectPath.parse(os.fspath(directory))) is not None:
        write_object(store / NAME, _text(state))
        return
    if is_remote(directory):
        epath.Path(directory).joinpath(NAME).write_bytes(_text(state))  # atomic
        return
    path = Path(directory) / NAME
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        with open(descriptor, "wb") as file:
            file.write(_text(state))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink()
        raise
    for folder in (path.parent, path.parent.parent):
        _sync(folder)


def read(directory: os.PathLike[str]) -> dict[str, Any]:
    """The state in a directory.

    Raises:
        StateMismatchError: There is no file, or it is not what `write` wrote.
        ConnectionError: The store does not answer.
        PermissionError: The store does not let this process read.
    """
    store = ObjectPath.parse(os.fspath(directory))
    where = epath.Path(directory) / NAME if store is None else store / NAME
    content = _content(where)
    try:
        state = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _refused(where, "the saved state is damaged: it is not JSON.", error) from error
    if not isinstance(state, dict) or _text(state) != content:
        raise _refused(where, "the saved state is damaged.", "not the bytes that were written")
    return state


def is_remote(directory: os.PathLike[str]) -> bool:
    """Whether a path is in an object store, which has neither links nor fsync."""
    return "://" in os.fspath(directory)


def _content(where: epath.Path | ObjectPath) -> bytes:
    problem = "no saved state can be read there."
    if isinstance(where, ObjectPath):
        if (found := read_object(where)) is None:
            raise _refused(where, problem, "there is no such object")
        return found.content
    try:
        return where.read_bytes() if is_remote(where) else _bytes(Path(where))
    except OSError as error:
        raise _refused(where, problem, error) from error


def _bytes(path: Path) -> bytes:
    if path.parent.is_symlink():
        raise _refused(
            path, "no saved state can be read there.", "its directory is a symbolic link"
        )
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        return file.read(_MAX_BYTES)


def _refused(path: os.PathLike[str], problem: str, reason: object) -> StateMismatchError:
    return refused(
        StateMismatchError,
        os.fspath(path),
        problem,
        error=reason,
        fix="restore the step that latest_valid_step(manager) finds",
    )


def _text(state: Mapping[str, Any]) -> bytes:
    return json.dumps(state, indent=1).encode("ascii")


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
