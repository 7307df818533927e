"""Reads the bytes of files from the local or mounted file system.

TFRecord files are read only through `StoredFile`. To read from another store, write a class with
the same methods, and choose the class by the path.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import final

from datarax_tfds.runtime.copying import not_copied


@final
@not_copied
class StoredFile:
    """A file that is open for reading at any place, by several threads at once.

    It is closed exactly once: by `close`, or when nothing refers to it any more.
    """

    _descriptor = -1  # for `close`, if the file cannot be opened

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_RDONLY)

    def size(self) -> int:
        """The present size of the file in bytes."""
        return os.fstat(self._descriptor).st_size

    def read_at(self, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, or fewer at the end of the file."""
        return os.pread(self._descriptor, length, start)

    # An argument, because the module `os` may be gone when the interpreter exits.
    def close(self, close_descriptor: Callable[[int], None] = os.close) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            close_descriptor(descriptor)

    __del__ = close
