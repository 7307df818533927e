"""Reads and writes our small files safely in directories that others may write to.

Temporary files of killed processes are removed by the next process. The owner of a file holds a
lock on it, which ends with the process, so an unlocked file was left by a process that died. This
does not compare times, because the clocks of hosts may differ.
"""

import fcntl
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO


def cache_directory(kind: str) -> Path | None:
    """Where the user's cache has the files of one kind; None for a user without a home."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # `expanduser` leaves `~` in the path of a user without a home.
    return Path(home) / "datarax_tfds" / kind if os.path.isabs(home) else None


def name_in_cache(path: PurePath, version: bytes = b"") -> str:
    """The name in the cache of a file that is made of one at `path`."""
    return hashlib.sha256(str(path).encode() + version).hexdigest()[:32]


def read_plain_file(path: Path, max_bytes: int) -> bytes | None:
    """The content of a regular file of at most `max_bytes`; None for anything else.

    A link at `path` itself is not followed, and a pipe is not waited for.

    Raises:
        OSError: The file cannot be read.
    """
    with open(
        os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb"
    ) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > max_bytes:
            return None
        return file.read(found.st_size)


@contextmanager
def draft_of(path: Path) -> Iterator[BinaryIO]:
    """A temporary file that is renamed to `path` when the context ends without an error.

    So nobody reads a partial file. Drafts of `path` that dead processes have left are removed. The
    directory is made if it is missing.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(path.parent, f".{path.name}.") as file:
        yield file
        file.flush()
        os.replace(file.name, path)


@contextmanager
def temporary_file(directory: Path, prefix: str) -> Iterator[BinaryIO]:
    """A new file that is removed when the context ends.

    Files of this prefix that dead processes have left are removed, except empty ones.

    Args:
        directory: The directory of the file.
        prefix: The beginning of its name; 32 hexadecimal digits follow.

    Raises:
        OSError: The file cannot be written.
    """
    path = directory / f"{prefix}{uuid.uuid4().hex}"
    try:
        with open(path, "xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in os.listdir(directory):
                if name.startswith(prefix) and len(name) == len(path.name):
                    _remove_if_unlocked(directory / name)
            yield file
    finally:
        path.unlink(missing_ok=True)


def _remove_if_unlocked(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return  # its owner has renamed or removed it, or it is not a file
    try:
        # The owner of an empty file may have created it just now, and be about to lock it.
        if os.fstat(descriptor).st_size:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except OSError:
        return  # it is in use
    finally:
        os.close(descriptor)
