"""The TFRecord format: finds where the records of a file begin, and reads any of them."""

import functools
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path, PurePath
from typing import Any

import google_crc32c
import numpy as np

from datarax_tfds.errors import RESTORE, RESTORE_OR_SKIP, DataLossError
from datarax_tfds.files.mapped_file import MappedFile
from datarax_tfds.files.record_index import RecordIndex
from datarax_tfds.files.stored_file import Readable, StoredFile
from datarax_tfds.runtime.copying import not_copied
from sharding.checks import refused
from sharding.hosts.job import job

# A frame: length, masked CRC-32C of the length, the record, masked CRC-32C of the record.
_LENGTH = struct.Struct("<Q")
_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4
_WINDOW_BYTES = 1 << 20  # what the scan reads at once: with 2^18, it takes a third longer
_FEW = 8  # checksums, which take less time one by one
_LARGE_BYTES = 1 << 14  # after a record of at least this size, the scan reads only a header
_MAX_READ_BYTES = 1 << 30  # Linux reads at most 2 GiB in one call
FRAME_BYTES = _HEADER.size + _FOOTER_BYTES


def scanned_starts(path: PurePath, file: Readable | None = None) -> np.ndarray:
    """Finds where the records of a file begin: reads each length and verifies its checksum.

    Two to five million records take about a second. The lengths are followed in Python, because
    each says where the next one is; the checksums of many are verified at once.

    Args:
        path: The file.
        file: The open file, if it is not on a file system. It is read from front to back.

    Returns:
        The offset of each record, `[records + 1]` int64; the last one is the size of the file.

    Raises:
        DataLossError: The file is cut short, or a length fails its checksum.
    """
    if file is None:
        with closing(StoredFile(Path(path))) as opened:
            return _scanned(path, opened, opened.version().size)
    return _scanned(path, file, None)


def _scanned(path: PurePath, file: Readable, size: int | None) -> np.ndarray:
    """The starts in an open file, of which the size may not be known before its end is read."""
    found = [np.zeros(0, np.int64)]
    start = count = record_bytes = 0
    while size is None or start < size:
        # Reads many small records at once, but only a header after a large record.
        small = record_bytes < _LARGE_BYTES
        window = file.read_at(start, _WINDOW_BYTES if small else _HEADER.size)
        if size is None and not window:
            break
        job.progress.pieces += 1  # so that the other processes keep waiting for this one
        places, end = _places_in(window)
        if (damaged := _first_damaged(window, places)) is not None:
            place = count + damaged, start + places[damaged]
            raise _loss(path, file, "a length fails its checksum.", *place, fix=RESTORE)
        if not places:
            raise _loss(path, file, "the file is cut short.", count, start, fix=RESTORE)
        found.append(np.add(places, start))
        count += len(places)
        record_bytes = end - places[-1]
        start += end
    starts = np.append(np.concatenate(found), start)
    if start > file.version().size:
        problem = "the file is cut short."
        raise _loss(path, file, problem, count - 1, int(starts[-2]), fix=RESTORE)
    return starts


def _places_in(window: bytes) -> tuple[list[int], int]:
    """The places of the headers that a window holds whole, and of the one that follows them."""
    places, place, last = [], 0, len(window) - _HEADER.size
    note, length_at = places.append, _LENGTH.unpack_from  # a third of the time of the loop
    while place <= last:
        note(place)
        place += length_at(window, place)[0] + FRAME_BYTES
    return places, place


def _first_damaged(window: bytes, places: list[int]) -> int | None:
    """Which of the headers at these places is the first whose checksum does not match."""
    if len(places) < _FEW:
        for row, place in enumerate(places):
            _, checksum = _HEADER.unpack_from(window, place)
            if checksum != _masked(google_crc32c.value(window[place : place + _LENGTH.size])):
                return row
        return None
    content = np.frombuffer(window, np.uint8)
    headers = content[np.array(places)[:, None] + np.arange(_HEADER.size)]
    crcs = np.zeros(len(places), np.uint32)
    for table, column in zip(_crc_tables(), headers.T, strict=False):
        crcs ^= table[column]
    written = np.ascontiguousarray(headers[:, _LENGTH.size :]).view("<u4")[:, 0]
    damaged = np.flatnonzero(_masked(crcs) != written)
    return int(damaged[0]) if len(damaged) else None


@functools.cache
def _crc_tables() -> np.ndarray:
    """What each value of each byte of a length contributes to its CRC-32C: `[8, 256]` uint32.

    A CRC is linear: that of a word is the XOR of those of its bytes, each among zeros.
    """
    words = np.arange(256, dtype="<u8") << 8 * np.arange(8, dtype="<u8")[:, None]
    crcs = np.array([[google_crc32c.value(w.tobytes()) for w in row] for row in words], np.uint32)
    crcs[1:] ^= crcs[0, 0]  # that of zeros counts once
    return crcs


def first_record(file: Readable) -> bytes | None:
    """The first record of a file, for which no index is needed; None if it is damaged."""
    head = file.read_at(0, _HEADER.size)
    if len(head) < _HEADER.size:
        return None
    length, crc = _HEADER.unpack(head)
    if _masked(google_crc32c.value(head[: _LENGTH.size])) != crc or length > _MAX_READ_BYTES:
        return None
    frame = file.read_at(0, FRAME_BYTES + length)
    record, written = frame[_HEADER.size : -_FOOTER_BYTES], frame[-_FOOTER_BYTES:]
    if len(frame) < FRAME_BYTES + length:
        return None
    sound = _masked(google_crc32c.value(record)) == int.from_bytes(written, "little")
    return record if sound else None


def record_faults(file: Readable) -> Iterator[tuple[int, str | None]]:
    """Reads a file from front to back, and verifies both checksums of each record.

    Yields:
        For each record, its offset, and what is wrong with it; None if nothing is. If the length of
        a record is damaged, that is the last one, because where the next one begins is not known.
    """
    held, base, start = b"", 0, 0  # the bytes from `base` on, and where the next record begins
    while True:
        if len(held) < start - base + _HEADER.size:
            held, base = file.read_at(start, _WINDOW_BYTES), start
            if not held:
                return
        header = held[start - base : start - base + _HEADER.size]
        if len(header) < _HEADER.size:
            yield start, "the file is cut short."
            return
        length, crc = _HEADER.unpack(header)
        if crc != _masked(google_crc32c.value(header[: _LENGTH.size])):
            yield start, "a length fails its checksum."
            return
        frame_bytes = length + FRAME_BYTES
        if len(held) < start - base + frame_bytes:
            held, base = file.read_at(start, max(frame_bytes, _WINDOW_BYTES)), start
            if len(held) < frame_bytes:
                yield start, "the file is cut short."
                return
        frame = held[start - base : start - base + frame_bytes]
        written = int.from_bytes(frame[-_FOOTER_BYTES:], "little")
        sound = written == _masked(google_crc32c.value(frame[_HEADER.size : -_FOOTER_BYTES]))
        yield start, None if sound else "a record fails its checksum."
        start += frame_bytes


@not_copied
class TFRecordFile:
    """An open TFRecord file; every checksum is verified.

    Args:
        path: The file, for messages.
        file: The open file.
        index: Where its records are.
        mapped: The same file, if it is on a file system, to read many small records at once.
    """

    def __init__(
        self,
        path: PurePath,
        file: Readable,
        index: RecordIndex,
        mapped: MappedFile | None = None,
    ):
        self._path = path
        self._file = file
        self._index = index
        self._mapped = mapped

    def __len__(self) -> int:
        return len(self._index)

    def where(self, place: int) -> str:
        return f"byte {self._index.bounds(np.array([place]))[0][0]}"

    def read(self, places: Sequence[int]) -> list[bytes]:
        index = np.asarray(places, np.int64)
        starts, stops = self._index.bounds(index)
        return self._read_at_once(index, starts, stops) or self._read_each(index, starts, stops)

    def _read_at_once(
        self, index: np.ndarray, starts: np.ndarray, stops: np.ndarray
    ) -> list[bytes] | None:
        """The records, if they are many small ones; None if there may be anything wrong with them,
        which `_read_each` then says.
        """
        firsts = np.flatnonzero(np.diff(index, prepend=-2) != 1)  # of consecutive records
        sizes = stops - starts
        if self._mapped is None or len(firsts) < _FEW or sizes.sum() > _LARGE_BYTES * len(firsts):
            return None
        lasts = np.append(firsts[1:], len(index)) - 1
        content = self._mapped.copied(starts[firsts].tolist(), stops[lasts].tolist())
        if content is None:
            return None
        ends = np.cumsum(sizes)
        begins, footers = ends - sizes + _HEADER.size, ends - _FOOTER_BYTES
        records = [content[a:b] for a, b in zip(begins.tolist(), footers.tolist(), strict=True)]
        written = np.frombuffer(content, np.uint8)[footers[:, None] + np.arange(_FOOTER_BYTES)]
        sound = (_masked(_crcs(records)) == written.view("<u4")[:, 0]).all()
        return records if sound else None

    def _read_each(self, index: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> list[bytes]:
        frames = self._frames(index, starts.tolist(), stops.tolist())
        cut = np.flatnonzero(np.fromiter(map(len, frames), np.int64) < stops - starts)
        if len(cut):
            place, start = int(index[cut[0]]), int(starts[cut[0]])
            problem = "the file was cut while it was read."
            raise _loss(self._path, self._file, problem, place, start, fix=RESTORE)
        records = [frame[_HEADER.size : -_FOOTER_BYTES] for frame in frames]
        written = np.frombuffer(b"".join([frame[-_FOOTER_BYTES:] for frame in frames]), "<u4")
        damaged = np.flatnonzero(_masked(_crcs(records)) != written)
        if len(damaged):
            place, start = int(index[damaged[0]]), int(starts[damaged[0]])
            problem = "a record fails its checksum."
            error = _loss(self._path, self._file, problem, place, start, fix=RESTORE_OR_SKIP)
            error.of_record(place, problem)
            raise error
        return records

    def _frames(self, index: np.ndarray, starts: list[int], stops: list[int]) -> list[bytes]:
        """The frames at these places. Consecutive frames are read in one call."""
        breaks = (np.flatnonzero(np.diff(index) != 1) + 1).tolist()
        if len(breaks) >= len(starts) - 1 or sum(stops) - sum(starts) > _MAX_READ_BYTES:
            return self._file.read_each(starts, stops)
        firsts, ends = [0, *breaks], [*breaks, len(starts)]
        runs = self._file.read_each(
            [starts[first] for first in firsts], [stops[end - 1] for end in ends]
        )
        frames = []
        for run, first, end in zip(runs, firsts, ends, strict=True):
            base = starts[first]
            frames += [run[starts[row] - base : stops[row] - base] for row in range(first, end)]
        return frames


def _loss(
    path: PurePath, file: Readable, problem: str, place: int, offset: int, *, fix: str
) -> DataLossError:
    return refused(
        DataLossError,
        str(path),
        problem,
        record=place,
        offset=f"byte {offset} of {file.version().size}",
        fix=fix,
    )


def _crcs(records: Sequence[bytes]) -> np.ndarray:
    return np.fromiter(map(google_crc32c.value, records), np.uint32)


def _masked(crc: Any) -> Any:
    """Masks a CRC-32C, an integer or a uint32 array, as TFRecord stores it."""
    return (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF
