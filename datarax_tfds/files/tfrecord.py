"""The TFRecord format: finds where the records of a file begin, and reads any of them."""

import itertools
import os
import struct
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from datarax_tfds.errors import RESTORE, RESTORE_OR_SKIP, DataLossError
from datarax_tfds.files.stored_file import StoredFile
from datarax_tfds.runtime.copying import not_copied
from sharding.checks import refused
from sharding.hosts.job import job

# A frame: length, masked CRC-32C of the length, the record, masked CRC-32C of the record.
_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4
_LARGE_BYTES = 1 << 14  # after a record of at least this size, the scan reads only a header
_MAX_READ_BYTES = 1 << 30  # Linux reads at most 2 GiB in one call
FRAME_BYTES = _HEADER.size + _FOOTER_BYTES


def scanned_starts(path: Path) -> np.ndarray:
    """Finds where the records of a file begin: reads each length and verifies its checksum.

    A million records take about a second.

    Returns:
        The offset of each record, `[records + 1]` int64; the last one is the size of the file.

    Raises:
        DataLossError: The file is cut short, or a length fails its checksum.
    """
    starts = [0]
    with closing(StoredFile(path)) as file:
        size = file.size()
        window, window_start = b"", 0
        while (start := starts[-1]) < size:
            place = start - window_start
            if place + _HEADER.size > len(window):
                # Reads many small records at once, but only a header after a large record.
                small = start - (starts[-2] if len(starts) > 1 else start) < _LARGE_BYTES
                window = file.read_at(start, 1 << 19 if small else _HEADER.size)
                window_start, place = start, 0
                job.progress.pieces += 1  # so that the other processes keep waiting for this one
            if len(window) - place < _HEADER.size:
                problem = "the file is cut short."
                raise _loss(path, problem, len(starts) - 1, start, fix=RESTORE)
            length, checksum = _HEADER.unpack_from(window, place)
            if checksum != _masked(google_crc32c.value(window[place : place + 8])):
                problem = "a length fails its checksum."
                raise _loss(path, problem, len(starts) - 1, start, fix=RESTORE)
            starts.append(start + length + FRAME_BYTES)
    if starts[-1] > size:
        raise _loss(path, "the file is cut short.", len(starts) - 2, starts[-2], fix=RESTORE)
    return np.array(starts)


@not_copied
class TFRecordFile:
    """An open TFRecord file; every checksum is verified.

    Args:
        path: The file.
        starts: The offsets that `scanned_starts` returned.

    Raises:
        DataLossError: The file now has another size.
    """

    def __init__(self, path: Path, starts: np.ndarray):
        self._path = path
        self._starts = starts
        self._file = StoredFile(path)
        size = self._file.size()
        if size != starts[-1]:
            self._file.close()
            raise refused(
                DataLossError,
                str(path),
                "the file has changed since its records were counted.",
                bytes=f"{starts[-1]} then, {size} now",
                fix="put back the file as it was, or build the source anew",
            )

    def __len__(self) -> int:
        return len(self._starts) - 1

    def where(self, place: int) -> str:
        return f"byte {self._starts[place]}"

    def read(self, places: Sequence[int]) -> list[bytes]:
        index = np.asarray(places, np.int64)
        starts, stops = self._starts[index], self._starts[index + 1]
        frames = self._frames(index, starts.tolist(), stops.tolist())
        cut = np.flatnonzero(np.fromiter(map(len, frames), np.int64) < stops - starts)
        if len(cut):
            problem = "the file was cut while it was read."
            raise _loss(self._path, problem, int(index[cut[0]]), int(starts[cut[0]]), fix=RESTORE)
        records = [frame[_HEADER.size : -_FOOTER_BYTES] for frame in frames]
        crcs = np.fromiter(map(google_crc32c.value, records), np.uint32)
        written = np.frombuffer(b"".join([frame[-_FOOTER_BYTES:] for frame in frames]), "<u4")
        damaged = np.flatnonzero(_masked(crcs) != written)
        if len(damaged):
            place, start = int(index[damaged[0]]), int(starts[damaged[0]])
            problem = "a record fails its checksum."
            error = _loss(self._path, problem, place, start, fix=RESTORE_OR_SKIP)
            error.of_record(place, problem)
            raise error
        return records

    def _frames(self, index: np.ndarray, starts: list[int], stops: list[int]) -> list[bytes]:
        """The frames at these places. Consecutive frames are read in one call."""
        read_at = self._file.read_at
        breaks = (np.flatnonzero(np.diff(index) != 1) + 1).tolist()
        if len(breaks) >= len(starts) - 1 or sum(stops) - sum(starts) > _MAX_READ_BYTES:
            return [read_at(start, stop - start) for start, stop in zip(starts, stops, strict=True)]
        frames = []
        for first, last in itertools.pairwise([0, *breaks, len(starts)]):
            base = starts[first]
            run = read_at(base, stops[last - 1] - base)
            frames += [run[starts[row] - base : stops[row] - base] for row in range(first, last)]
        return frames


def _loss(path: Path, problem: str, place: int, offset: int, *, fix: str) -> DataLossError:
    return refused(
        DataLossError,
        str(path),
        problem,
        record=place,
        offset=f"byte {offset} of {os.path.getsize(path)}",
        fix=fix,
    )


def _masked(crc: Any) -> Any:
    """Masks a CRC-32C, an integer or a uint32 array, as TFRecord stores it."""
    return (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF
