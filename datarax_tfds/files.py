"""How the bytes of a record are found and read: random access to TFRecord and ArrayRecord."""

import itertools
import os
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import google_crc32c
import numpy as np

from datarax_tfds.errors import DataLossError
from sharding.messages import explain

# A TFRecord frame: length, masked CRC-32C of the length, the record, masked CRC-32C of the record.
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_FRAME_BYTES = _HEADER.size + _FOOTER.size


class RecordFile(Protocol):
    """One shard of a split, as bytes by place."""

    def __len__(self) -> int: ...

    def read(self, places: Sequence[int]) -> list[bytes]: ...


class Piece(NamedTuple):
    """Consecutive records of one file: `take` of them after the first `skip`.

    `length` is how many the file holds by the metadata of the dataset.
    """

    path: Path
    skip: int
    take: int
    length: int


class RecordFiles:
    """The records of a split by number, wherever its files put them.

    Files are opened at first use, and counted against the metadata then. Safe to use from
    several threads.

    Args:
        pieces: In the order of the numbers.
        open_file: `TFRecordFile` or `ArrayRecordFile`.
    """

    def __init__(self, pieces: Sequence[Piece], open_file: Callable[[Path], RecordFile]):
        self._pieces = tuple(pieces)
        self._ends = np.cumsum([piece.take for piece in pieces])
        self._open_file = open_file
        self._opened: dict[Path, RecordFile] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, numbers: np.ndarray) -> list[bytes]:
        """The serialized records of these numbers, in their order.

        Raises:
            DataLossError: A file holds another number of records than the metadata say, is cut
                short, or fails a checksum; the message names file, record and offset.
        """
        owners = np.searchsorted(self._ends, numbers, side="right")
        records: list[bytes] = [b""] * len(numbers)
        for owner in np.unique(owners):
            piece = self._pieces[owner]
            rows = np.flatnonzero(owners == owner)
            first = int(self._ends[owner]) - piece.take
            places = (numbers[rows] - first + piece.skip).tolist()
            for row, record in zip(rows, self._file(piece).read(places), strict=True):
                records[row] = record
        return records

    def where(self, number: int) -> str:
        """Names a record for a message: its file and its place in it."""
        owner = int(np.searchsorted(self._ends, number, side="right"))
        piece = self._pieces[owner]
        place = number - int(self._ends[owner]) + piece.take + piece.skip
        return f"record {place} of {piece.path}"

    def _file(self, piece: Piece) -> RecordFile:
        with self._lock:
            if piece.path not in self._opened:
                file = self._open_file(piece.path)
                if len(file) != piece.length:
                    raise DataLossError(
                        explain(
                            str(piece.path),
                            f"the file holds {len(file)} records, dataset_info.json says"
                            f" {piece.length}.",
                            bytes=os.path.getsize(piece.path),
                            fix="restore the file, or remove the dataset and prepare it again",
                        )
                    )
                self._opened[piece.path] = file
            return self._opened[piece.path]


class TFRecordFile:
    """A TFRecord file with the offsets that the format itself does not keep.

    Opening reads the length headers, once through; every checksum is verified.
    """

    def __init__(self, path: Path):
        self._path = path
        self._starts = self._scanned()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, places: Sequence[int]) -> list[bytes]:
        with open(self._path, "rb", buffering=0) as file:
            return [
                record
                for first, count in _runs(places)
                for record in self._read_run(file.fileno(), first, count)
            ]

    def _read_run(self, descriptor: int, first: int, count: int) -> list[bytes]:
        starts = self._starts[first : first + count + 1].tolist()
        frames = os.pread(descriptor, starts[-1] - starts[0], starts[0])
        if len(frames) < starts[-1] - starts[0]:
            raise self._loss("the file was cut while it was read.", first, starts[0])
        records = []
        for place, (start, stop) in enumerate(itertools.pairwise(starts), first):
            frame = frames[start - starts[0] : stop - starts[0]]
            record = frame[_HEADER.size : -_FOOTER.size]
            if _masked_crc(record) != _FOOTER.unpack_from(frame, len(frame) - _FOOTER.size)[0]:
                raise self._loss("a record fails its checksum.", place, start)
            records.append(record)
        return records

    def _scanned(self) -> np.ndarray:
        """Offsets of the frames, and the end of the file behind them: `[records + 1]` int64."""
        size = os.path.getsize(self._path)
        starts = [0]
        with open(self._path, "rb", buffering=0) as file:
            window, window_start = b"", 0
            while (start := starts[-1]) < size:
                place = start - window_start
                if place + _HEADER.size > len(window):
                    # Half a MiB at a time: nearly all headers of small records are in it, and
                    # large records are skipped.
                    window, window_start, place = os.pread(file.fileno(), 1 << 19, start), start, 0
                if len(window) - place < _HEADER.size:
                    raise self._loss("the file is cut short.", len(starts) - 1, start)
                length, checksum = _HEADER.unpack_from(window, place)
                if checksum != _masked_crc(window[place : place + 8]):
                    raise self._loss("a length fails its checksum.", len(starts) - 1, start)
                starts.append(start + length + _FRAME_BYTES)
        if starts[-1] > size:
            raise self._loss("the file is cut short.", len(starts) - 2, starts[-2])
        return np.array(starts)

    def _loss(self, problem: str, place: int, offset: int) -> DataLossError:
        return DataLossError(
            explain(
                str(self._path),
                problem,
                record=place,
                offset=f"byte {offset} of {os.path.getsize(self._path)}",
                fix="restore the file, or remove the dataset and prepare it again",
            )
        )


class ArrayRecordFile:
    """An ArrayRecord file, through its own random access; it verifies its own checksums."""

    def __init__(self, path: Path):
        # A compiled module without stubs.
        from array_record.python import array_record_module  # pyright: ignore

        self._path = path
        try:
            # Read-ahead is for one sequential reader; we come with many places at once.
            self._reader = array_record_module.ArrayRecordReader(
                str(path), "readahead_buffer_size:0,max_parallelism:0"
            )
            self._length = self._reader.num_records()
        except (RuntimeError, ValueError) as error:
            raise self._loss(error) from error

    def __len__(self) -> int:
        return self._length

    def read(self, places: Sequence[int]) -> list[bytes]:
        try:
            return self._reader.read(list(places))
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._loss(error) from error

    def _loss(self, error: Exception) -> DataLossError:
        return DataLossError(
            explain(
                str(self._path),
                "the file cannot be read.",
                error=error,
                fix="restore the file, or remove the dataset and prepare it again",
            )
        )


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive places as (first, count), each to be read in one go."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and place == runs[-1][0] + runs[-1][1]:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((place, 1))
    return runs


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
