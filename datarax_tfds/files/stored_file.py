"""Reads the names and the bytes of files of the local or mounted file system.

Files of records and their indexes are listed, measured and read only by what is in this module, or
by `stored_object.py` if they are objects of a store.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple, Protocol, final

from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.stores.object_path import ObjectPath
from datarax_tfds.stores.object_store import names

# For our own files, in directories that others may write to: follows no link, waits for no pipe.
_OWN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FileVersion(NamedTuple):
    """What changes when a file is written or replaced; in an object store, its generation."""

    size: int
    modified_ns: int
    device: int
    inode: int


class Readable(Protocol):
    """The part of `StoredFile` that reads."""

    def version(self) -> FileVersion: ...

    def read_at(self, start: int, length: int, /) -> bytes: ...

    def read_each(self, starts: Sequence[int], stops: Sequence[int], /) -> list[bytes]: ...


@final
@not_copied
class StoredFile:
    """A file that is open for reading at any place, by several threads at once.

    It is closed exactly once: by `close`, or when nothing refers to it any more.

    Args:
        path: The file.
        own: Whether it is a file that we have written. A link in its place is refused, and a pipe
            is not waited for.

    Raises:
        OSError: The file cannot be opened.
    """

    _descriptor = -1  # for `close`, if the file cannot be opened

    def __init__(self, path: Path, *, own: bool = False):
        self._descriptor = os.open(path, _OWN if own else os.O_RDONLY)

    def version(self) -> FileVersion:
        """The present version of the file, with its size in bytes."""
        found = os.fstat(self._descriptor)
        return FileVersion(found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino)

    def read_at(self, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, or fewer at the end of the file."""
        return os.pread(self._descriptor, length, start)

    def read_each(self, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
        """The bytes of several ranges `[start, stop)`, or fewer at the end of the file."""
        read, descriptor = os.pread, self._descriptor
        return [read(descriptor, b - a, a) for a, b in zip(starts, stops, strict=True)]

    def mapped(self, size: int) -> mmap.mmap:
        """The first bytes of the file, mapped into memory. Raises a `ValueError` if it has fewer.

        Touching a byte that cannot be read would end the process, so only system calls may read it.
        """
        mapping = mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ)
        if hasattr(mmap, "MADV_RANDOM"):
            mapping.madvise(mmap.MADV_RANDOM)  # otherwise 128 KiB are read for a record
        return mapping

    # An argument, because the module `os` may be gone when the interpreter exits.
    def close(self, close_descriptor: Callable[[int], None] = os.close) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            close_descriptor(descriptor)

    __del__ = close


def file_names(directory: PurePath) -> set[str]:
    """The names of the files in a directory, from one listing; empty if there is no directory.

    Only links, whose targets may be missing, are looked at one by one.
    """
    if isinstance(directory, ObjectPath):
        return set(names(directory))
    try:
        with os.scandir(directory) as entries:
            return {
                entry.name
                for entry in entries
                # A loop of links is no file, and an error of `is_file`.
                if (os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file())
            }
    except (FileNotFoundError, NotADirectoryError):
        return set()


def file_size(path: PurePath) -> int:
    """The size of a file in bytes, without opening it."""
    return os.stat(path).st_size


def size_in_words(path: PurePath) -> str:
    """The size of a file for a message; a store does not say that of an object."""
    return "unknown" if isinstance(path, ObjectPath) else str(file_size(path))
