"""Files in memory that two processes map: one writes into them, the other one reads.

A file that was read is used again, because its pages are there already: writing 5 MB into a new
file takes three times as long.
"""

import contextlib
import mmap
import os
import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np


class Loan(NamedTuple):
    """What the other process needs to read a file. It is sent as a JSON array.

    Args:
        number: Names the file.
        token: Differs if the file was replaced by another one.
        size: How many bytes were written.
    """

    number: int
    token: str
    size: int


class LentFile:
    """A file that this process writes and lends to the other one.

    Args:
        number: Names the file to the other process.

    Attributes:
        descriptor: Of the open file.
        loan: What to send to the other process.
        is_new: Whether the other process has not opened it yet.
    """

    def __init__(self, number: int):
        self.descriptor = -1
        self.loan = Loan(number, "", 0)
        self.is_new = True
        self._memory = np.empty(0, np.uint8)

    @property
    def capacity(self) -> int:
        """How many bytes it has room for."""
        return len(self._memory)

    def write(self, buffers: Sequence[memoryview]) -> None:
        """Writes buffers, one after the other, into a new file if this one has no room for them."""
        size = sum(map(len, buffers))
        self.is_new = size > self.capacity
        if self.is_new:
            self.close()
            token = secrets.token_hex(8)
            self.descriptor = os.memfd_create(_name(token))
            os.truncate(self.descriptor, size)
            self._memory = np.frombuffer(mmap.mmap(self.descriptor, size), np.uint8)
            self.loan = self.loan._replace(token=token)
        self.loan = self.loan._replace(size=size)
        start = 0
        for buffer in buffers:
            stop = start + len(buffer)
            self._memory[start:stop] = buffer  # without the interpreter's lock
            start = stop

    def close(self) -> None:
        """Closes the file, so that it is never written again. Others may still read it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        self._memory = np.empty(0, np.uint8)


class LentFiles:
    """The files that this process lends. Any thread may lend."""

    def __init__(self):
        self._lock = threading.Lock()
        self._files: list[LentFile] = []  # by number
        self._free: list[LentFile] = []

    def lend(self, buffers: Sequence[memoryview]) -> LentFile:
        """Writes buffers into a file that the other process does not read.

        Raises:
            OSError: The system has no room for the file.
        """
        file = self._taken(sum(map(len, buffers)))
        try:
            file.write(buffers)
        except BaseException:
            self.take_back([~file.loan.number])
            raise
        return file

    def _taken(self, size: int) -> LentFile:
        """The smallest free file with room for so many bytes; else the largest, to replace it."""
        with self._lock:
            if not self._free:
                self._files.append(LentFile(len(self._files)))
                return self._files[-1]
            self._free.sort(key=attrgetter("capacity"))
            large = [file for file in self._free if file.capacity >= size]
            file = large[0] if large else self._free[-1]
            self._free.remove(file)
            return file

    def take_back(self, numbers: Sequence[int]) -> None:
        """Frees files that the other process has read. `numbers` are what its
        `BorrowedFiles.read` returned.
        """
        with self._lock:
            for number in numbers:
                file = self._files[number if number >= 0 else ~number]
                if number < 0:
                    file.close()
                self._free.append(file)

    def close(self) -> None:
        """Closes the files."""
        with self._lock:
            for file in self._files:
                file.close()


class BorrowedFiles:
    """The files that another process lends. One thread borrows."""

    def __init__(self):
        self._memory: dict[int, tuple[str, np.ndarray]] = {}
        # A view may end in any thread and in the middle of anything, so that no lock is taken.
        self._read: queue.SimpleQueue[int] = queue.SimpleQueue()

    def borrow(self, loan: Loan, opened: Callable[[], int]) -> np.ndarray:
        """The bytes of a file, uint8 `[size]`. It goes back with the last view of them.

        Args:
            loan: Which file.
            opened: Opens the file, and returns a descriptor, which is closed here. It is called if
                the file is not known yet.

        Raises:
            OSError: The file cannot be opened.
        """
        number, token, size = loan
        if number not in self._memory or self._memory[number][0] != token:
            descriptor = opened()
            try:
                whole = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            finally:
                os.close(descriptor)
            self._memory[number] = token, np.frombuffer(whole, np.uint8)
        return np.asarray(_Borrowed(self._memory[number][1][:size], number, self._read))

    def read(self) -> list[int]:
        """The files that have been read since the last call. Any thread may ask.

        Returns:
            Their numbers; `~number` for a file that a forked child may still read, so that the next
            rows need a new one.
        """
        numbers = []
        # Never `get`: another thread may take the last number after `empty`, and this one would
        # wait until the next view ends, which may be never.
        with contextlib.suppress(queue.Empty):
            while True:
                numbers.append(self._read.get_nowait())
        return numbers


class _Borrowed:
    """What views of a file hold, so that it is known when the last of them is gone."""

    def __init__(self, memory: np.ndarray, number: int, read: "queue.SimpleQueue[int]"):
        self._number, self._read = number, read
        self._memory = memory
        self._forks = _forks
        self.__array_interface__ = memory.__array_interface__

    def __del__(self):
        self._read.put(self._number if self._forks == _forks else ~self._number)


_forks = 0  # of this process, whose children share the memory of the files that it reads


def _count_fork() -> None:
    global _forks
    _forks += 1


# Both, so that a view which another thread makes in between counts as older than the fork.
os.register_at_fork(before=_count_fork, after_in_parent=_count_fork)


def opened_in(pid: int, descriptor: int, token: str) -> int:
    """Opens a lent file of another process on this machine, and returns a descriptor.

    Raises:
        OSError: The file is not there, or not to be opened by this process.
    """
    opened = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    name = os.readlink(f"/proc/self/fd/{opened}")
    if _name(token) not in name:
        from sharding.checks import refused  # here, because the child process imports no JAX

        os.close(opened)
        raise refused(
            FileNotFoundError,
            f"descriptor {descriptor} of process {pid}",
            "it is not the file that was lent.",
            fix="let that process write the file again",
            got=name,
        )
    return opened


def views(buffers: Sequence[Any]) -> list[memoryview]:
    """Buffers as plain bytes."""
    return [memoryview(buffer).cast("B") for buffer in buffers]


def _name(token: str) -> str:
    return f"datarax_tfds {token}"
