"""Counts the tokens of all documents, or the like, once, in all threads of all processes."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.runtime.threads import ThreadPool, decoding_threads
from datarax_tfds.tokens.count_files import CountFiles
from sharding.hosts.agreement import extend_deadlines
from sharding.hosts.waits import result_of

_MIN_PART, _MAX_PARTS = 256, 1024  # documents in a file of counts, and such files
_CALL_BYTES, _CALL_DOCUMENTS = 4 << 20, 256  # of stored records, in one call
_PROGRESS_DELAY_S = 2.0


class Countable(Protocol):
    """Records of which something is counted: documents, of which the tokens are.

    Attributes:
        reader: Reads the records.
        counted_as: What is counted, for messages.
    """

    reader: RecordReader
    counted_as: str

    def __len__(self) -> int: ...

    def counted(self, numbers: np.ndarray, /) -> np.ndarray:
        """The counts of the records with these numbers: uint32 `[n]`, or `[n, columns]`."""
        ...


class Share(NamedTuple):
    """Which of `of` equal parts of the work is that of this process."""

    number: int
    of: int


class Counting:
    """Counts the tokens of documents that no file has the counts of.

    Args:
        documents: The documents, or other records.
        files: Where the counts are kept.
        subject: The source that counts, for messages.
    """

    def __init__(self, documents: Countable, files: CountFiles, subject: str):
        self._documents = documents
        self._files = files
        self._subject = subject
        size = max(_MIN_PART, -(-len(documents) // _MAX_PARTS))
        self._parts = [
            (start, min(start + size, len(documents))) for start in range(0, len(documents), size)
        ]

    def count_share(self, share: Share) -> None:
        """Counts the documents of this process, unless all are counted, and keeps the counts."""
        if self._files.load(0, len(self._documents)) is None:
            self._counted(self._parts[share.number :: share.of], keep=True)

    def all_counts(self) -> np.ndarray:
        """The tokens of all documents, after all processes have counted theirs. Those that another
        process has counted, and that this one does not find, are counted here, too.
        """
        counts = self._files.load(0, len(self._documents))
        if counts is None:
            parts = self._counted(self._parts, keep=False)
            counts = self._files.load(0, len(self._documents))
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
        """Counts the tokens of parts, one part after the other, in all threads."""
        if not parts:
            return
        record_bytes = self._documents.reader.split.record_bytes
        size = max(1, min(_CALL_DOCUMENTS, int(_CALL_BYTES / record_bytes)))
        calls = [
            np.arange(first, min(first + size, stop))
            for start, stop in parts
            for first in range(start, stop, size)
        ]
        progress = tqdm(
            total=sum(map(len, calls)),
            desc=f"{self._subject}: counting {self._documents.counted_as}",
            unit=" records",
            delay=_PROGRESS_DELAY_S,
            disable=None,
        )
        counted = self._documents.counted_as
        working = extend_deadlines(f"counting the {counted} of {self._subject}", measured=True)
        pool = ThreadPool(decoding_threads(), "datarax_tfds_tokens")
        try:
            with working as advance, progress:
                results = self._in_order(pool, calls)
                for start, stop in parts:
                    counts: list[np.ndarray] = []
                    while sum(map(len, counts)) < stop - start:
                        counts.append(next(results))
                        advance()
                        progress.update(len(counts[-1]))
                    yield np.concatenate(counts)
        finally:
            pool.close()

    def _in_order(self, pool: ThreadPool, calls: list[np.ndarray]) -> Iterator[np.ndarray]:
        """The counts of each call. Some calls are under way, also while the caller works."""
        reader = self._documents.reader
        ahead = reader.records_ahead(shuffled=False)
        running: deque[Future[np.ndarray]] = deque()
        requested, wanted = 0, iter(calls)
        for call in calls:
            while requested < ahead and (some := next(wanted, None)) is not None:
                reader.prefetch(some)
                requested += len(some)
            requested -= len(call)
            running.append(pool.submit(self._documents.counted, call))
            if len(running) > 4 * decoding_threads():
                yield result_of(running.popleft(), self._subject, reader.slowest)
        while running:
            yield result_of(running.popleft(), self._subject, reader.slowest)


def sampled(length: int, most: int) -> np.ndarray:
    """The numbers of some documents from all over a split, the first one included."""
    return np.unique(np.arange(most) * (length - 1) // max(most - 1, 1))
