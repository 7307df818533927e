"""Counts something of all records once, in all threads and processes."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from typing import NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from datarax_tfds.counts.count_files import CountFiles
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.runtime.threads import ThreadPool, decoding_threads
from sharding.hosts.agreement import extend_deadlines
from sharding.hosts.waits import result_of

MIN_PART, _MAX_PARTS = 256, 1024  # records that are counted together, and such parts
_CALL_BYTES, _CALL_RECORDS = 4 << 20, 256  # of stored records, in one call
_PROGRESS_DELAY_S = 2.0


def part_size(records: int) -> int:
    """How many records are counted together."""
    return max(MIN_PART, -(-records // _MAX_PARTS))


class Counted(NamedTuple):
    """The counts of some records.

    Args:
        counts: uint32 `[n]`, or `[n, columns]` if a record has several.
        made: What was made to count them, if it is to be kept: for each record in turn, `[...]`.
    """

    counts: np.ndarray
    made: np.ndarray | None = None


class Countable(Protocol):
    """Records of which something is counted: the tokens of texts, or the lengths of features.

    Attributes:
        counted_as: What is counted, for messages.
    """

    counted_as: str

    @property
    def reader(self) -> RecordReader: ...

    def __len__(self) -> int: ...

    def counted(self, numbers: np.ndarray, /) -> Counted:
        """The counts of the records with these numbers `[n]`."""
        ...

    def keep(self, start: int, part: Counted, /) -> None:
        """Keeps what was made of the consecutive records of a part, of which `start` is the first.

        None of them was found to be corrupt.
        """
        ...


class Share(NamedTuple):
    """Which of `of` equal parts of the work is that of this process."""

    number: int
    of: int


class Counting:
    """Counts those records whose counts no file has.

    Args:
        records: The records.
        files: Where the counts are kept.
        subject: The source that counts, for messages.
    """

    def __init__(self, records: Countable, files: CountFiles, subject: str):
        self._records = records
        self._files = files
        self._subject = subject
        size = part_size(len(records))
        self._parts = [
            (start, min(start + size, len(records))) for start in range(0, len(records), size)
        ]

    def count_share(self, share: Share) -> None:
        """Counts the records of this process, unless all are counted, and keeps the counts."""
        if self._files.load(0, len(self._records)) is None:
            self._counted(self._parts[share.number :: share.of], keep=True)

    def all_counts(self) -> np.ndarray:
        """The counts of all records, after all processes have counted their share. Where this
        process does not find what another one has counted, it counts that, too.
        """
        counts = self._files.load(0, len(self._records))
        if counts is None:
            parts = self._counted(self._parts, keep=False)
            counts = self._files.load(0, len(self._records))
            if counts is None:
                counts = np.concatenate(parts)
                self._files.keep(0, counts)
        return counts

    def _counted(self, parts: list[tuple[int, int]], *, keep: bool) -> list[np.ndarray]:
        """The counts of parts, of which those that no file has are counted."""
        found = [self._files.load(*part) for part in parts]
        missing = [part for part, counts in zip(parts, found, strict=True) if counts is None]
        made = self._made(missing)
        counted: list[np.ndarray] = []
        for (start, _), counts in zip(parts, found, strict=True):
            if counts is None:
                counts = next(made)
                if keep:
                    self._files.keep(start, counts)
            counted.append(counts)
        return counted

    def _made(self, parts: list[tuple[int, int]]) -> Iterator[np.ndarray]:
        """The counts of each part, one part after the other, made in all threads."""
        if not parts:
            return
        record_bytes = self._records.reader.split.record_bytes
        size = max(1, min(_CALL_RECORDS, int(_CALL_BYTES / record_bytes)))
        calls = [
            np.arange(first, min(first + size, stop))
            for start, stop in parts
            for first in range(start, stop, size)
        ]
        counted = self._records.counted_as
        progress = tqdm(
            total=sum(map(len, calls)),
            desc=f"{self._subject}: counting {counted}",
            unit=" records",
            delay=_PROGRESS_DELAY_S,
            disable=None,
        )
        working = extend_deadlines(f"counting the {counted} of {self._subject}", measured=True)
        threads = closing(ThreadPool(decoding_threads(), "datarax_tfds_counts"))
        with threads as pool, working as advance, progress:
            results = self._in_order(pool, calls)
            for start, stop in parts:
                calls_of_part: list[Counted] = []
                while sum(len(call.counts) for call in calls_of_part) < stop - start:
                    calls_of_part.append(next(results))
                    advance()
                    progress.update(len(calls_of_part[-1].counts))
                part = _joined(calls_of_part)
                if self._sound(start, stop):
                    self._records.keep(start, part)
                yield part.counts

    def _sound(self, start: int, stop: int) -> bool:
        """Whether none of these records was found to be corrupt."""
        return not any(start <= x < stop for x in self._records.reader.corrupt.replacements)

    def _in_order(self, pool: ThreadPool, calls: list[np.ndarray]) -> Iterator[Counted]:
        """The counts of each call. Some calls are under way, also while the caller works."""
        reader = self._records.reader
        ahead = reader.records_ahead(shuffled=False)
        running: deque[Future[Counted]] = deque()
        requested, wanted = 0, iter(calls)
        for call in calls:
            while requested < ahead and (some := next(wanted, None)) is not None:
                reader.prefetch(some)
                requested += len(some)
            requested -= len(call)
            running.append(pool.submit(self._records.counted, call))
            if len(running) > 4 * decoding_threads():
                yield result_of(running.popleft(), self._subject, reader.slowest)
        while running:
            yield result_of(running.popleft(), self._subject, reader.slowest)


def _joined(calls: list[Counted]) -> Counted:
    made = [call.made for call in calls if call.made is not None]
    counts = np.concatenate([call.counts for call in calls])
    return Counted(counts, np.concatenate(made) if made else None)


def sampled(length: int, most: int) -> np.ndarray:
    """The numbers of some records from all over a split, the first one included."""
    return np.unique(np.arange(most) * (length - 1) // max(most - 1, 1))
