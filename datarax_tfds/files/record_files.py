"""The files of a split as one sequence of records, read by number."""

import errno
import logging
import os
import resource
import shlex
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import PurePath
from typing import NamedTuple, TypeVar

import numpy as np

from datarax_tfds.errors import RESTORE, DataLossError
from datarax_tfds.files.formats import FileOpener, RecordFile
from datarax_tfds.files.stored_file import size_in_words
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.threads import ThreadPool, bounded
from sharding.checks import refused
from sharding.hosts.waits import result_of

_log = logging.getLogger(__name__)

_OPEN_BYTES = 1 << 30  # of memory for open files

# Errors of network file systems that may pass once the file is opened again.
_TRANSIENT = frozenset({errno.EAGAIN, errno.EIO, errno.ENOENT, errno.ESTALE, errno.ETIMEDOUT})

Result = TypeVar("Result")


class Piece(NamedTuple):
    """Consecutive records of one file: `take` records after the first `skip`.

    `length` is the number of records in the file according to the metadata.
    """

    path: PurePath
    skip: int
    take: int
    length: int


@not_copied
class RecordFiles:
    """Reads the records of a split by number, from any of its files.

    A file is opened when the first of its records is read, and its number of records is then
    compared with the metadata. So a process needs only the files whose records it reads.
    After an error that may pass, as on a network, a file is opened and read again. Several threads
    may read at once.

    Args:
        pieces: The parts of the split, in the order of the numbers.
        opener: Opens the files.
        max_open: How many files stay open, those used last. By default, a sixth of the files that
            the process may have open (`ulimit -n`), since a file, its mapping and its index take
            three; and no more than 1 GiB of memory can hold.
        opening_threads: With how many threads `build_indexes` opens files. On a remote file system,
            opening a file takes a round trip or two.
        reading_threads: With how many threads a read goes to several files at once; with 0, it goes
            to one after the other. For stores, where each file takes a round trip.
        retry_waits_s: How long to wait before each further try after a transient error.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        opener: FileOpener,
        *,
        max_open: int | None = None,
        opening_threads: int = 8,
        reading_threads: int = 0,
        retry_waits_s: Sequence[float] = (0.1, 0.5, 2.0),
    ):
        self._pieces = tuple(pieces)
        self._ends = np.cumsum([piece.take for piece in pieces])
        self._opener = opener
        most = max(piece.length for piece in pieces)
        self._max_open = max_open or _open_limit(opener.index_bytes * most)
        self._opening_threads = opening_threads
        self._pool = ThreadPool(reading_threads, "datarax_tfds_store") if reading_threads else None
        self._retry_waits_s = retry_waits_s
        self._open: OrderedDict[PurePath, RecordFile] = OrderedDict()
        self._lock = threading.Lock()
        self._opening = {piece.path: threading.Lock() for piece in pieces}
        # By thread: the file that it reads, and since when.
        self._busy: dict[int, tuple[PurePath, float]] = {}
        self._requests = 0

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def requests(self) -> int:
        """How many places of the files were read so far: records in a row share one."""
        return self._requests

    @property
    def paths(self) -> list[PurePath]:
        """The files, each once, in the order of their first records."""
        return list(dict.fromkeys(piece.path for piece in self._pieces))

    def build_indexes(self, share: int = 0, shares: int = 1) -> Iterator[PurePath]:
        """Opens the files that have no index yet, which counts their records and builds it.

        Args:
            share: Which files to open, in `[0, shares)`: every process of a job opens others, and
                finds the indexes that the others have built when it reads those files.
            shares: The number of processes.

        Yields:
            Each file, once it is indexed.

        Raises:
            DataLossError: A file holds another number of records than the metadata say, is cut
                short, or cannot be read.
            WaitTimeoutError: Opening or indexing a file takes longer than `stall_timeout_s`.
        """
        pieces = {piece.path: piece for piece in self._pieces}
        paths = bounded(
            lambda: self._opener.unindexed(list(pieces)[share::shares]),
            "finding records",
            lambda: f"looking for the indexes of the files in {self._pieces[0].path.parent}",
        )
        # The garbage collector closes the pool if the caller stops early.
        with closing(ThreadPool(self._opening_threads, "datarax_tfds_open")) as pool:
            for counted in [pool.submit(self._counted, pieces[path]) for path in paths]:
                yield result_of(counted, "finding records", self.slowest)

    def read(self, numbers: np.ndarray) -> list[bytes]:
        """The serialized records of these numbers, in this order.

        Raises:
            DataLossError: A file holds another number of records than the metadata say, is cut
                short, cannot be read, or a checksum fails; the message names file, record and
                offset.
        """
        owners = np.searchsorted(self._ends, numbers, side="right")
        if len(numbers) and (owners == owners[0]).all():
            return self._read_file(numbers, int(owners[0]), slice(None))
        records: list[bytes] = [b""] * len(numbers)
        in_files = np.argsort(owners, kind="stable")
        parts = np.split(in_files, np.flatnonzero(np.diff(owners[in_files])) + 1)
        read = [self._begun(numbers, int(owners[rows[0]]), rows) for rows in parts]
        for rows, found in zip(parts, read, strict=True):
            for row, record in zip(rows.tolist(), found(), strict=True):
                records[row] = record
        return records

    def read_one(self, number: int) -> bytes:
        """The serialized record of one number; raises as `read`.

        The first record of a file may be read before its index is built.
        """
        first = self._pieces[0]
        if number == 0 and first.skip == 0 and (record := self._opener.first_record(first.path)):
            return record
        return self.read(np.array([number]))[0]

    def _begun(
        self, numbers: np.ndarray, owner: int, rows: np.ndarray
    ) -> Callable[[], list[bytes]]:
        """Begins to read the records in one file; returns what waits for them."""
        if self._pool is None:
            return partial(self._read_file, numbers, owner, rows)
        return self._pool.submit(self._read_file, numbers, owner, rows).result

    def _read_file(self, numbers: np.ndarray, owner: int, rows: np.ndarray | slice) -> list[bytes]:
        piece = self._pieces[owner]
        first = int(self._ends[owner]) - piece.take
        asked = numbers[rows] - first + piece.skip
        with self._lock:
            self._requests += 1 + int(np.count_nonzero(np.diff(asked) != 1))
        places = asked.tolist()
        try:
            with self._noted(piece.path):
                return self._tried(piece, lambda file: file.read(places))
        except DataLossError as error:
            if error.record is not None:  # the place in the file becomes the number
                error.record = int(numbers[rows][places.index(error.record)])
            raise

    def slowest(self) -> str:
        """Says what takes long: reading the file that a thread has been reading for longest, or
        decoding if no thread reads.
        """
        busy = list(self._busy.values())
        if not busy:
            return "decoding records"
        path, since = min(busy, key=lambda reading: reading[1])
        return f"reading {path} ({time.monotonic() - since:.0f} s)"

    def where(self, number: int) -> str:
        """Describes a record for a message: its file, its place there, and its `tfds_id`."""
        owner = int(np.searchsorted(self._ends, number, side="right"))
        piece = self._pieces[owner]
        place = int(number - self._ends[owner]) + piece.take + piece.skip
        within = self._tried(piece, lambda file: file.where(place))
        return f"record {place} of {piece.path} ({within}, tfds_id {piece.path.name}__{place})"

    def _counted(self, piece: Piece) -> PurePath:
        with self._noted(piece.path):
            self._tried(piece, len)
        return piece.path

    @contextmanager
    def _noted(self, path: PurePath) -> Iterator[None]:
        """Lets `slowest` name the file while this thread reads it."""
        thread = threading.get_ident()
        self._busy[thread] = path, time.monotonic()
        try:
            yield
        finally:
            del self._busy[thread]

    def _tried(self, piece: Piece, read: Callable[[RecordFile], Result]) -> Result:
        """The result of `read`; tries again if the index was wrong or the error may pass."""
        waits_s = list(self._retry_waits_s)
        while True:
            file = None
            try:
                file = self._opened(piece)
                return read(file)
            except DataLossError:
                if not self._had_a_wrong_index(piece, file):
                    raise
                continue
            except OSError as error:
                if error.errno not in _TRANSIENT:
                    raise
                if not waits_s:
                    raise refused(
                        DataLossError,
                        str(piece.path),
                        "the file cannot be read.",
                        error=error,
                        tries=len(self._retry_waits_s) + 1,
                        fix="see with ls -l whether the file is there and its file system"
                        " answers; mount that anew, or put back the file, and start again",
                    ) from error
                _log.warning("%s: %s; trying again in %.1f s", piece.path, error, waits_s[0])
            with self._lock:
                self._open.pop(piece.path, None)
            time.sleep(waits_s.pop(0))

    def _had_a_wrong_index(self, piece: Piece, file: RecordFile | None) -> bool:
        """Whether the file was opened with a wrong index, which is now replaced."""
        with self._opening[piece.path]:
            with self._lock:
                now = self._open.get(piece.path)
            if file is not None and now is not file:
                return True  # another thread has replaced the index, or has closed the file
            if not self._opener.rebuild_index(piece.path):
                return False
            with self._lock:
                self._open.pop(piece.path, None)
            return True

    def _opened(self, piece: Piece) -> RecordFile:
        # A lock for each file, so that others can be opened while a large one is indexed.
        with self._opening[piece.path]:
            with self._lock:
                if piece.path in self._open:
                    self._open.move_to_end(piece.path)
                    return self._open[piece.path]
            try:
                file = self._opener(piece.path)
            except PermissionError as error:
                if error.errno is None:
                    raise  # of a store, which says what is wrong
                raise refused(
                    PermissionError,
                    str(piece.path),
                    "this process may not read the file.",
                    user=os.geteuid(),
                    fix=f"let its owner run: chmod a+r {shlex.quote(str(piece.path))}",
                ) from error
            if len(file) != piece.length:
                raise refused(
                    DataLossError,
                    str(piece.path),
                    f"the file holds {len(file)} records, dataset_info.json says {piece.length}.",
                    bytes=size_in_words(piece.path),
                    fix=RESTORE,
                )
            with self._lock:
                self._open[piece.path] = file
                while len(self._open) > self._max_open:
                    # Not closed here, because another thread may be reading it.
                    self._open.popitem(last=False)
            return file


def _open_limit(file_bytes: int) -> int:
    """How many files may stay open, if each takes so much memory."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = soft // 6 if soft > 0 else 1 << 16
    return max(1, min(descriptors, _OPEN_BYTES // max(file_bytes, 1)))
