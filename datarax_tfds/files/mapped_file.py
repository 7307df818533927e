"""Copies many small ranges of a file in one system call.

With `os.pread`, a thread lets go of the interpreter's lock for each range, and has to get it back.
Here it does so once for all ranges, however many threads there are.
"""

import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import final

from datarax_tfds.files.stored_file import StoredFile
from datarax_tfds.runtime.copying import not_copied

_MAX_BYTES = 4 << 20  # in one call; each thread that reads keeps a buffer of its largest call
_MAX_RANGES = 1024  # in one system call of Linux

# Descriptors of files in memory that no thread uses.
_buffers: deque[int] = deque()


def _forget_buffers() -> None:
    """A forked child must not use buffers that its parent uses, too."""
    while _buffers:
        os.close(_buffers.pop())


os.register_at_fork(after_in_child=_forget_buffers)


@final
@not_copied
class MappedFile:
    """An open file from which many small ranges are copied at once.

    The file is mapped into memory, and the kernel writes the ranges from there to a file in memory.
    Python never touches the mapping itself, which would end the process by a signal (SIGBUS) where
    the disk fails, or where the file has become shorter. The kernel just copies less.

    Args:
        file: The file.
        size: Its size in bytes.
    """

    def __init__(self, file: StoredFile, size: int):
        self._file = file
        self._size = size
        self._mapped: memoryview | None = None
        self._lock = threading.Lock()

    def copied(self, starts: Sequence[int], stops: Sequence[int]) -> bytes | None:
        """The bytes of many ranges `[start, stop)`, one after the other.

        Returns:
            None if the ranges have to be read one by one: because they are large, because this
            system cannot copy them at once, or because reading them fails.
        """
        length = sum(stops) - sum(starts)
        if length > _MAX_BYTES or not hasattr(os, "memfd_create"):
            return None
        try:
            mapped = self._mapping()
            ranges = [mapped[a:b] for a, b in zip(starts, stops, strict=True)]
            content = _written(ranges)
        except (OSError, ValueError):  # whoever reads one by one learns which range fails
            return None
        return content if len(content) == length else None

    def _mapping(self) -> memoryview:
        with self._lock:
            if self._mapped is None:
                self._mapped = memoryview(self._file.mapped(self._size))
            return self._mapped


def _written(ranges: Sequence[memoryview]) -> bytes:
    """The bytes of these ranges, up to the first that cannot be read."""
    try:
        buffer = _buffers.pop()
    except IndexError:
        buffer = os.memfd_create("datarax_tfds")
    try:
        length = 0
        for start in range(0, len(ranges), _MAX_RANGES):
            length += os.pwritev(buffer, ranges[start : start + _MAX_RANGES], length)
        return os.pread(buffer, length, 0)
    finally:
        _buffers.append(buffer)
