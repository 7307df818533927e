"""The index of a file: a small file that says where the records begin, and is read by pages.

The index of a billion records takes 4 GB. So it is never in memory as a whole: a read takes the
pages that it needs from the page cache of the system, which all processes of a host share. The
pages used last are kept, since reading and verifying one takes a few microseconds.

The content of an index, little-endian:

    32 bytes       SHA-256 of the head, which is all that follows up to the pages
    5 int64        format; size and modification time of the file; number of offsets; bytes of each
    n uint32       the CRC-32C of each page
    n pages        the offsets of the records, and the size of the file; 4,096 bytes a page
"""

import functools
import hashlib
import struct
import weakref
from collections.abc import Callable, Iterable
from typing import Self

import google_crc32c
import numpy as np

from datarax_tfds.errors import DataLossError
from datarax_tfds.files.stored_file import FileVersion
from datarax_tfds.runtime.copying import not_copied
from sharding.checks import refused

FORMAT = 2
_HEAD = struct.Struct("<32s5q")
_DIGEST_BYTES = 32
_CRC_BYTES = 4
_PAGE_BYTES = 4096
_SHORTEST = 16  # bytes of an empty record in a TFRecord file

ReadAt = Callable[[int, int], bytes]


def index_content(starts: np.ndarray, version: FileVersion) -> bytes:
    """The content of the index of a file.

    Args:
        starts: The offset of each record, and the size of the file: `[records + 1]`.
        version: The version of the file.
    """
    pages = starts.astype("<u4" if starts[-1] < 1 << 32 else "<u8")
    word_bytes, content = pages.itemsize, pages.tobytes()
    words = FORMAT, version.size, version.modified_ns, len(starts), word_bytes
    crcs = np.array(_crcs(content), "<u4").tobytes()
    head = _HEAD.pack(b"", *words)[_DIGEST_BYTES:] + crcs
    return hashlib.sha256(head).digest() + head + content


def reader_of(content: bytes) -> ReadAt:
    """Reads an index that is in memory."""
    return lambda start, length: content[start : start + length]


def size_in_index(read_at: ReadAt) -> int:
    """The size of the file that an index says it is of; 0 if it is no index."""
    head = read_at(0, _HEAD.size)
    return _HEAD.unpack(head)[2] if len(head) == _HEAD.size else 0


@not_copied
class RecordIndex:
    """An open index, which reads and verifies the pages that are asked for.

    Attributes:
        digest: The SHA-256 of the head, which two indexes share only if they are equal.
    """

    def __init__(self, subject: str, read_at: ReadAt, head: bytes):
        self._subject = subject
        self._read_at = read_at
        self.digest, _, self._size, _, count, word_bytes = _HEAD.unpack_from(head)
        self._length = count - 1
        self._dtype = np.dtype(f"<u{word_bytes}")
        self._per_page = _PAGE_BYTES // word_bytes
        self._crcs = np.frombuffer(head, "<u4", offset=_HEAD.size)
        self._first_page = len(head)

    @classmethod
    def opened(
        cls, read_at: ReadAt, index_bytes: int, version: FileVersion, subject: str
    ) -> Self | None:
        """Opens an index; None if it is damaged, of an earlier format, or of another file.

        Args:
            read_at: Reads the content of the index: `length` bytes from `start` on.
            index_bytes: The size of the index.
            version: The version of the file.
            subject: The file, for messages.
        """
        head = read_at(0, _PAGE_BYTES)
        if len(head) < _HEAD.size:
            return None
        digest, *of, count, word_bytes = _HEAD.unpack_from(head)
        if of != [FORMAT, version.size, version.modified_ns] or word_bytes not in (4, 8):
            return None
        if not 0 < count <= version.size // _SHORTEST + 1:
            return None
        first_page = _HEAD.size + _CRC_BYTES * -(-count * word_bytes // _PAGE_BYTES)
        if len(head) < first_page:
            head += read_at(len(head), first_page - len(head))
        head = head[:first_page]
        if hashlib.sha256(head[_DIGEST_BYTES:]).digest() != digest:
            return None
        if index_bytes != first_page + count * word_bytes:
            return None
        return cls(subject, read_at, head)

    def __len__(self) -> int:
        """The number of records."""
        return self._length

    @property
    def file_bytes(self) -> int:
        """The size of the file."""
        return self._size

    def bounds(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the records at these places begin and end in the file: two arrays `[n]`, int64.

        Raises:
            DataLossError: A page of the index is damaged.
            OSError: The file system failed.
        """
        if not len(places):
            return places, places
        index, entries = weakref.ref(self), np.stack([places, places + 1])
        pages = entries // self._per_page
        first = int(pages[0, 0])
        if (pages == first).all():  # as of one record; then this takes half of the time
            starts, stops = _verified_page(index, first)[entries - first * self._per_page]
        else:
            needed, rows = np.unique(pages, return_inverse=True)
            words = np.concatenate([_verified_page(index, page) for page in needed.tolist()])
            rows = rows.reshape(pages.shape) * self._per_page
            starts, stops = words[rows + entries % self._per_page]
        starts, stops = starts.astype(np.int64), stops.astype(np.int64)
        if (stops - starts < _SHORTEST).any() or (stops > self._size).any():
            raise self._damaged(np.unique(pages))
        return starts, stops

    def read_page(self, page: int) -> np.ndarray:
        """The offsets in a page, which is read from the file."""
        content = self._read_at(self._first_page + page * _PAGE_BYTES, _PAGE_BYTES)
        if _crcs(content) != self._crcs[page : page + 1].tolist():
            raise self._damaged([page])
        return np.frombuffer(content, self._dtype)

    def _damaged(self, pages: Iterable[int]) -> DataLossError:
        return refused(
            DataLossError,
            self._subject,
            "the index of the file is damaged again, after it was built anew.",
            pages=", ".join(map(str, pages)),
            fix="see whether the disk under .record_index is sound, delete that directory, and"
            " start again",
        )


@functools.lru_cache(maxsize=8192)  # 32 MiB, for all files of the process
def _verified_page(index: "weakref.ref[RecordIndex]", page: int) -> np.ndarray:
    # The reference is weak, so that an index can be closed while its pages are kept.
    opened = index()
    assert opened is not None
    return opened.read_page(page)


def _crcs(pages: bytes) -> list[int]:
    starts = range(0, len(pages), _PAGE_BYTES)
    return [google_crc32c.value(pages[start : start + _PAGE_BYTES]) for start in starts]
