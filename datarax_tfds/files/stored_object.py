"""Reads the bytes of objects of a store, as `StoredFile` reads those of files.

An object is pinned to its generation: when it is replaced, reading it raises an error.
"""

import hashlib
from collections import deque
from collections.abc import Sequence

from datarax_tfds.errors import DataLossError
from datarax_tfds.files.stored_file import FileVersion
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.stores.object_path import ObjectPath
from datarax_tfds.stores.object_store import PendingRanges, read_object, read_ranges
from sharding.checks import refused

_WINDOW_BYTES = 4 << 20
_WINDOWS_AHEAD = 4  # so many are under way while one is used: with 30 ms, 500 MB/s


def version_of(generation: bytes, size: int) -> FileVersion:
    """The version of an object, with its generation in the place of a modification time."""
    digest = hashlib.sha256(generation).digest()
    return FileVersion(size, int.from_bytes(digest[:8], "little") >> 1, 0, 0)


def require_same(path: ObjectPath, before: bytes, now: bytes) -> None:
    """Raises a `DataLossError` if an object has another generation than before."""
    if now != before:
        problem = "the object was replaced after its records were counted."
        raise refused(
            DataLossError,
            str(path),
            problem,
            bucket=path.bucket,
            fix="put back the object as it was, or build the source anew",
        ).of_file(problem)


@not_copied
class StoredObject:
    """An object of which any ranges can be read, by several threads at once.

    Args:
        path: The object.
        generation: The generation to read; reading another one raises.
        size: The size of the object in bytes.
    """

    def __init__(self, path: ObjectPath, generation: bytes, size: int):
        self._path = path
        self._generation = generation
        self._size = size

    def version(self) -> FileVersion:
        """The version that is read."""
        return version_of(self._generation, self._size)

    def read_at(self, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, or fewer at the end of the object."""
        return self.read_each([start], [start + length])[0]

    def read_each(self, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
        """The bytes of several ranges `[start, stop)`, all requested at once.

        Raises:
            DataLossError: The object is gone, or was replaced.
            PermissionError: The store does not let this process read it.
            ConnectionError: The store does not answer, or not as it should.
        """
        contents = read_ranges(self._path, list(zip(starts, stops, strict=True)))
        for each in contents:
            if each.content:
                require_same(self._path, self._generation, each.generation)
        return [each.content for each in contents]


@not_copied
class ObjectStream:
    """An object that is read once, from front to back, with the next bytes already under way.

    Args:
        path: The object.
        generation: The generation to read; reading another one raises.
    """

    def __init__(self, path: ObjectPath, generation: bytes):
        self._path = path
        self._generation = generation
        self._start = 0  # of the bytes that are held
        self._held = b""
        self._requested = 0
        self._ahead: deque[PendingRanges] = deque()
        self._ended = False

    def version(self) -> FileVersion:
        """The version of the object; the rest of it is read to learn its size."""
        while self._extended():
            self._start, self._held = self._start + len(self._held), b""
        return version_of(self._generation, self._start + len(self._held))

    def read_at(self, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, or fewer at the end; `start` never becomes smaller.

        Raises: as `StoredObject.read_each`.
        """
        while start + length > self._start + len(self._held) and self._extended():
            gone = min(start - self._start, len(self._held))
            self._start, self._held = self._start + gone, self._held[gone:]
        place = start - self._start
        return self._held[place : place + length]

    def read_each(self, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
        return [self.read_at(a, b - a) for a, b in zip(starts, stops, strict=True)]

    def _extended(self) -> bool:
        """Holds another window of the object; False at its end."""
        if not self._requested and self._is_short():
            return True
        while not self._ended and len(self._ahead) <= _WINDOWS_AHEAD:
            window = self._requested, self._requested + _WINDOW_BYTES
            self._ahead.append(PendingRanges(self._path, [window]))
            self._requested += _WINDOW_BYTES
        if not self._ahead:
            return False
        (window,) = self._ahead.popleft().result()
        if window.content:
            require_same(self._path, self._generation, window.generation)
        self._ended = self._ended or len(window.content) < _WINDOW_BYTES
        if self._ended:
            self._ahead.clear()
        self._held += window.content
        return bool(window.content)

    def _is_short(self) -> bool:
        """Whether the object has less than a window, which then is held as a whole.

        The answer to a range beyond the end of an object is thrown away by TensorStore, and is
        requested again. So a short object would cross the network twice.
        """
        (end,) = read_ranges(self._path, [(_WINDOW_BYTES - 1, _WINDOW_BYTES)])
        if end.content:
            return False
        found = read_object(self._path)
        if found is None:
            return False  # what follows says so
        require_same(self._path, self._generation, found.generation)
        self._held, self._requested, self._ended = found.content, _WINDOW_BYTES, True
        return True
