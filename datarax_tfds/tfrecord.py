"""The TFRecord format: where its records begin, and reading them from any place."""

import itertools
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from datarax_tfds.errors import DataLossError
from sharding.messages import explain

# A frame: length, masked CRC-32C of the length, the record, masked CRC-32C of the record.
_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4
_LARGE = 1 << 14  # bytes; larger records are skipped when their places are looked for
_MOST_AT_ONCE = 1 << 30  # bytes; Linux reads at most 2 GiB in one call
FRAME_BYTES = _HEADER.size + _FOOTER_BYTES


def scanned_starts(path: Path) -> np.ndarray:
    """Where the frames of a file begin, found by reading every length, each with its checksum.

    A million records take about a second.

    Returns:
        `[records + 1]` int64, bytes; the last is the end of the file.

    Raises:
        DataLossError: The file is cut short, or a length is not what was written.
    """
    size = os.path.getsize(path)
    starts = [0]
    with open(path, "rb", buffering=0) as file:
        window, window_start = b"", 0
        while (start := starts[-1]) < size:
            place = start - window_start
            if place + _HEADER.size > len(window):
                # Many headers of small records at a time; behind a large one, only the next.
                small = start - (starts[-2] if len(starts) > 1 else start) < _LARGE
                size_read = 1 << 19 if small else _HEADER.size
                window, window_start, place = os.pread(file.fileno(), size_read, start), start, 0
            if len(window) - place < _HEADER.size:
                raise _loss(path, "the file is cut short.", len(starts) - 1, start)
            length, checksum = _HEADER.unpack_from(window, place)
            if checksum != _masked(google_crc32c.value(window[place : place + 8])):
                raise _loss(path, "a length fails its checksum.", len(starts) - 1, start)
            starts.append(start + length + FRAME_BYTES)
    if starts[-1] > size:
        raise _loss(path, "the file is cut short.", len(starts) - 2, starts[-2])
    return np.array(starts)


class TFRecordFile:
    """A TFRecord file, open for reading records by their places; every checksum is verified.

    Args:
        path: The file.
        starts: What `scanned_starts` says of it.

    Raises:
        DataLossError: The file is no longer of that size.
    """

    def __init__(self, path: Path, starts: np.ndarray):
        self._path = path
        self._starts = starts
        self._descriptor = os.open(path, os.O_RDONLY)
        size = os.fstat(self._descriptor).st_size
        if size != starts[-1]:
            raise DataLossError(
                explain(
                    str(path),
                    "the file has changed since its records were counted.",
                    bytes=f"{starts[-1]} then, {size} now",
                    fix="restore the file, or build the source anew",
                )
            )

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __del__(self):
        # By its last user, of which there may be several threads.
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def where(self, place: int) -> str:
        return f"byte {self._starts[place]}"

    def read(self, places: Sequence[int]) -> list[bytes]:
        index = np.asarray(places, np.int64)
        starts, stops = self._starts[index], self._starts[index + 1]
        frames = self._frames(index, starts.tolist(), stops.tolist())
        cut = np.flatnonzero(np.fromiter(map(len, frames), np.int64) < stops - starts)
        if len(cut):
            problem = "the file was cut while it was read."
            raise _loss(self._path, problem, int(index[cut[0]]), int(starts[cut[0]]))
        records = [frame[_HEADER.size : -_FOOTER_BYTES] for frame in frames]
        crcs = np.fromiter(map(google_crc32c.value, records), np.uint32)
        written = np.frombuffer(b"".join([frame[-_FOOTER_BYTES:] for frame in frames]), "<u4")
        damaged = np.flatnonzero(_masked(crcs) != written)
        if len(damaged):
            problem = "a record fails its checksum."
            raise _loss(self._path, problem, int(index[damaged[0]]), int(starts[damaged[0]]))
        return records

    def _frames(self, index: np.ndarray, starts: list[int], stops: list[int]) -> list[bytes]:
        """The frames at these places; consecutive ones are read in one go."""
        breaks = (np.flatnonzero(np.diff(index) != 1) + 1).tolist()
        if len(breaks) >= len(starts) - 1 or sum(stops) - sum(starts) > _MOST_AT_ONCE:
            descriptor = self._descriptor
            return [
                os.pread(descriptor, stop - start, start)
                for start, stop in zip(starts, stops, strict=True)
            ]
        frames = []
        for first, last in itertools.pairwise([0, *breaks, len(starts)]):
            base = starts[first]
            run = os.pread(self._descriptor, stops[last - 1] - base, base)
            frames += [run[starts[row] - base : stops[row] - base] for row in range(first, last)]
        return frames


def _loss(path: Path, problem: str, place: int, offset: int) -> DataLossError:
    return DataLossError(
        explain(
            str(path),
            problem,
            record=place,
            offset=f"byte {offset} of {os.path.getsize(path)}",
            fix="restore the file, or remove the dataset and prepare it again",
        )
    )


def _masked(crc: Any) -> Any:
    """CRC-32C as TFRecord keeps it, of an integer or of uint32 arrays."""
    return (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF
