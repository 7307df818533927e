"""The TFRecord format: where its records begin, and reading them from any place."""

import itertools
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np

from datarax_tfds.errors import DataLossError
from sharding.messages import explain

# A frame: length, masked CRC-32C of the length, the record, masked CRC-32C of the record.
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
FRAME_BYTES = _HEADER.size + _FOOTER.size


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
                # Half a MiB at a time: nearly all headers of small records are in it, and
                # large records are skipped.
                window, window_start, place = os.pread(file.fileno(), 1 << 19, start), start, 0
            if len(window) - place < _HEADER.size:
                raise _loss(path, "the file is cut short.", len(starts) - 1, start)
            length, checksum = _HEADER.unpack_from(window, place)
            if checksum != _masked_crc(window[place : place + 8]):
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
        if not len(index):
            return []
        # Consecutive places are read in one go.
        cuts = [0, *(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
        starts, stops = self._starts[index].tolist(), self._starts[index + 1].tolist()
        records = []
        for first, last in itertools.pairwise(cuts):
            base = starts[first]
            run = os.pread(self._descriptor, stops[last - 1] - base, base)
            for row in range(first, last):
                frame = run[starts[row] - base : stops[row] - base] if last > first + 1 else run
                record = frame[_HEADER.size : -_FOOTER.size]
                if len(frame) < stops[row] - starts[row]:
                    problem = "the file was cut while it was read."
                    raise _loss(self._path, problem, int(index[row]), starts[row])
                if frame[-_FOOTER.size :] != _FOOTER.pack(_masked_crc(record)):
                    problem = "a record fails its checksum."
                    raise _loss(self._path, problem, int(index[row]), starts[row])
                records.append(record)
        return records


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


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
