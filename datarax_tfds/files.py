"""The files of a split as one sequence of records, read by number."""

import errno
import itertools
import logging
import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from datarax_tfds.errors import DataLossError
from sharding.messages import explain

_log = logging.getLogger(__name__)

_THREADS = 8  # that open files: on a remote store it takes a round trip or two each
_MOST_OPEN = 1024
# Errors that a file system over a network gets over, once a file is opened anew; and the waits.
_PASSING = frozenset({errno.EAGAIN, errno.EIO, errno.ENOENT, errno.ESTALE, errno.ETIMEDOUT})
_WAITS_S = (0.1, 0.5, 2.0)

Result = TypeVar("Result")


class RecordFile(Protocol):
    """One shard of a split, as bytes by place."""

    def __len__(self) -> int: ...

    def read(self, places: Sequence[int]) -> list[bytes]: ...

    def where(self, place: int) -> str: ...


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

    Files are opened at first use, and counted against the metadata then. A fixed number of them,
    a quarter of what the process may have open, stay so. Safe to use from several threads. After
    an error that may pass, as on a network, a file is opened anew and read again.

    Args:
        pieces: In the order of the numbers.
        open_file: Opens a file of their format.
    """

    def __init__(self, pieces: Sequence[Piece], open_file: Callable[[Path], RecordFile]):
        self._pieces = tuple(pieces)
        self._ends = np.cumsum([piece.take for piece in pieces])
        self._open_file = open_file
        self._most_open = _open_limit()
        self._open: OrderedDict[Path, RecordFile] = OrderedDict()
        self._lock = threading.Lock()
        self._opening = {piece.path: threading.Lock() for piece in pieces}
        self._under_way: dict[int, tuple[Path, float]] = {}  # by thread: what it reads, since when

    def __len__(self) -> int:
        return int(self._ends[-1])

    def check(self, share: int = 0, shares: int = 1) -> Iterator[Path]:
        """Opens every file once, so that each is counted, and its index kept for the next time.

        Args:
            share: Which files come first. Processes of one job begin with different ones, and find
                those of the others indexed.
            shares: How many processes there are.

        Yields:
            The files, as they are done.

        Raises:
            DataLossError: A file holds another number of records than the metadata say, is cut
                short, or cannot be read.
        """
        pieces = list({piece.path: piece for piece in self._pieces}.values())
        turns = [pieces[(share + turn) % shares :: shares] for turn in range(shares)]
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="datarax_tfds")
        try:
            yield from pool.map(self._counted, itertools.chain.from_iterable(turns))
        finally:
            pool.shutdown(cancel_futures=True)

    def read(self, numbers: np.ndarray) -> list[bytes]:
        """The serialized records of these numbers, in their order.

        Raises:
            DataLossError: A file holds another number of records than the metadata say, is cut
                short, fails a checksum, or cannot be read; the message names file, record and
                offset.
        """
        owners = np.searchsorted(self._ends, numbers, side="right")
        records: list[bytes] = [b""] * len(numbers)
        for owner in np.unique(owners):
            piece = self._pieces[owner]
            rows = np.flatnonzero(owners == owner)
            first = int(self._ends[owner]) - piece.take
            places = (numbers[rows] - first + piece.skip).tolist()
            thread = threading.get_ident()
            self._under_way[thread] = piece.path, time.monotonic()
            try:
                found = self._tried(piece, lambda file, places=places: file.read(places))
            finally:
                del self._under_way[thread]
            for row, record in zip(rows.tolist(), found, strict=True):
                records[row] = record
        return records

    def slowest(self) -> str:
        """Names the file that is being read for longest, and for how long."""
        under_way = list(self._under_way.values())
        if not under_way:
            return "records to be decoded"
        path, since = min(under_way, key=lambda reading: reading[1])
        return f"{path} ({time.monotonic() - since:.0f} s)"

    def where(self, number: int) -> str:
        """Names a record for a message: its file, its place in it, and its `tfds_id`."""
        owner = int(np.searchsorted(self._ends, number, side="right"))
        piece = self._pieces[owner]
        place = int(number - self._ends[owner]) + piece.take + piece.skip
        within = self._opened(piece).where(place)
        return f"record {place} of {piece.path} ({within}, tfds_id {piece.path.name}__{place})"

    def _counted(self, piece: Piece) -> Path:
        self._tried(piece, len)
        return piece.path

    def _tried(self, piece: Piece, read: Callable[[RecordFile], Result]) -> Result:
        """What is read of a file, if need be at the second try, or the fourth."""
        waits = list(_WAITS_S)
        while True:
            try:
                return read(self._opened(piece))
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
                if not waits:
                    raise DataLossError(
                        explain(
                            str(piece.path),
                            "the file cannot be read.",
                            error=error,
                            tries=len(_WAITS_S) + 1,
                            fix="look after that file system, and restore the file if it is gone",
                        )
                    ) from error
                _log.warning("%s: %s; tried again in %.1f s", piece.path, error, waits[0])
            with self._lock:
                self._open.pop(piece.path, None)
            time.sleep(waits.pop(0))

    def _opened(self, piece: Piece) -> RecordFile:
        # To find the records of a large file takes a while: others go on meanwhile.
        with self._opening[piece.path]:
            with self._lock:
                if piece.path in self._open:
                    self._open.move_to_end(piece.path)
                    return self._open[piece.path]
            try:
                file = self._open_file(piece.path)
            except PermissionError as error:
                raise PermissionError(
                    explain(
                        str(piece.path),
                        "this process may not read the file.",
                        user=os.geteuid(),
                        fix="change the owner or the mode of the file",
                    )
                ) from error
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
            with self._lock:
                self._open[piece.path] = file
                while len(self._open) > self._most_open:
                    # Closed by its last user: another thread may be reading it.
                    self._open.popitem(last=False)
            return file


def _open_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(soft // 4, _MOST_OPEN)) if soft > 0 else _MOST_OPEN
