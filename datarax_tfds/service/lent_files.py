"""Files in memory that two processes map: one writes into them, the other one reads.

A file that was read is used again, because its pages are there already: writing 5 MB into a new
file takes three times as long.
"""

import itertools
import mmap
import os
import queue
import threading
from collections.abc import Iterable, Sequence

import numpy as np


class LentFile:
    """A file that this process writes and lends to the other one.

    Attributes:
        number: Names the file to the other process.
        descriptor: To be sent to the other process, because the file has been made or has grown;
            else None.
    """

    def __init__(self, number: int):
        self.number = number
        self.descriptor: int | None = None
        self._memory = np.empty(0, np.uint8)

    @property
    def size(self) -> int:
        """How many bytes it has room for."""
        return len(self._memory)

    def write(self, buffers: Iterable[memoryview], size: int) -> None:
        """Writes buffers of so many bytes, one after the other."""
        if size > self.size:
            self.close()
            self.descriptor = os.memfd_create("datarax_tfds")
            os.truncate(self.descriptor, size)
            self._memory = np.frombuffer(mmap.mmap(self.descriptor, size), np.uint8)
        start = 0
        for buffer in buffers:
            stop = start + len(buffer)
            self._memory[start:stop] = buffer  # without the interpreter's lock
            start = stop

    def close(self) -> None:
        """Closes the descriptor, once it has been sent."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class LentFiles:
    """The files that this process lends. Any thread may lend."""

    def __init__(self):
        self._lock = threading.Lock()
        self._free: list[LentFile] = []
        self._numbers = itertools.count()
        self._by_number: dict[int, LentFile] = {}

    def lend(self, size: int) -> LentFile:
        """A file that the other process does not read: the smallest that is large enough, else the
        largest.
        """
        with self._lock:
            if not self._free:
                number = next(self._numbers)
                file = self._by_number[number] = LentFile(number)
                return file
            large = [file for file in self._free if file.size >= size]
            key = lambda file: file.size  # noqa: E731
            file = min(large, key=key) if large else max(self._free, key=key)
            self._free.remove(file)
            return file

    def take_back(self, numbers: Sequence[int]) -> None:
        """Uses these files again: the other process has read them."""
        with self._lock:
            self._free += [self._by_number[number] for number in numbers]


class BorrowedFiles:
    """The files that the other process lends. One thread borrows."""

    def __init__(self):
        self._memory: dict[int, np.ndarray] = {}
        # A view may end in any thread and in the middle of anything, so that no lock is taken.
        self._read: queue.SimpleQueue[int] = queue.SimpleQueue()

    def borrow(self, number: int, size: int, descriptor: int | None = None) -> np.ndarray:
        """The first bytes of a file, uint8 `[size]`. It goes back with the last view of them."""
        if descriptor is not None:
            whole = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            self._memory[number] = np.frombuffer(whole, np.uint8)
        return np.asarray(_Borrowed(self._memory[number][:size], number, self._read))

    def read(self) -> list[int]:
        """The files that have been read since the last call."""
        numbers = []
        while not self._read.empty():
            numbers.append(self._read.get())
        return numbers


class _Borrowed:
    """What views of a file hold, so that it is known when the last of them is gone."""

    def __init__(self, memory: np.ndarray, number: int, read: "queue.SimpleQueue[int]"):
        self._number, self._read = number, read
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self):
        self._read.put(self._number)
