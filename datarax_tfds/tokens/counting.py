"""Counts the tokens of all documents, or the lengths of all records, once, in all threads and
processes.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.runtime.threads import ThreadPool, decoding_threads
from datarax_tfds.tokens.count_files import CountFiles
from datarax_tfds.tokens.documents import Documents, lengths_of
from datarax_tfds.tokens.token_files import TokenFiles, narrowed
from sharding.hosts.agreement import extend_deadlines
from sharding.hosts.waits import result_of

_MIN_PART, _MAX_PARTS = 256, 1024  # documents that are counted together, and such parts
_CALL_BYTES, _CALL_DOCUMENTS = 4 << 20, 256  # of stored records, in one call
_PROGRESS_DELAY_S = 2.0

Counted = tuple[np.ndarray, np.ndarray | None]  # the counts, and the tokens if they are kept


def part_size(documents: int) -> int:
    """How many documents are counted together, and have one file of tokens."""
    return max(_MIN_PART, -(-documents // _MAX_PARTS))


class Countable(Protocol):
    """Records of which something is counted: the tokens of documents, or the lengths of features.

    Attributes:
        counted_as: What is counted, for messages.
    """

    counted_as: str

    @property
    def reader(self) -> RecordReader: ...

    def __len__(self) -> int: ...

    def counted(self, numbers: np.ndarray, /) -> np.ndarray:
        """The counts of the records with these numbers: uint32 `[n]`, or `[n, columns]`."""
        ...


class Share(NamedTuple):
    """Which of `of` equal parts of the work is that of this process."""

    number: int
    of: int


class Counting:
    """Counts those documents, or other records, whose counts no file has.

    Args:
        documents: The documents, or other records.
        files: Where the counts are kept.
        subject: The source that counts, for messages.
        token_files: Where the tokens of `Documents` are kept; None to keep counts alone.
        part_documents: How many documents are counted together; `part_size` by default.
    """

    def __init__(
        self,
        documents: Countable,
        files: CountFiles,
        subject: str,
        *,
        token_files: TokenFiles | None = None,
        part_documents: int | None = None,
    ):
        self._documents = documents
        self._files = files
        self._subject = subject
        self._token_files = token_files
        size = part_documents or part_size(len(documents))
        self._parts = [
            (start, min(start + size, len(documents))) for start in range(0, len(documents), size)
        ]

    def count_share(self, share: Share) -> None:
        """Counts the documents of this process, unless all are counted, and keeps the counts."""
        if self._files.load(0, len(self._documents)) is None:
            self._counted(self._parts[share.number :: share.of], keep=True)

    def all_counts(self) -> np.ndarray:
        """The counts of all records, after all processes have counted their share. Where this
        process does not find what another one has counted, it counts that, too.
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
        """The counts of each part, one part after the other, made in all threads."""
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
                    tokens: list[np.ndarray] = []
                    while sum(map(len, counts)) < stop - start:
                        some, ids = next(results)
                        counts.append(some)
                        if ids is not None:
                            tokens.append(ids)
                        advance()
                        progress.update(len(some))
                    of_part = np.concatenate(counts)
                    if self._token_files is not None and self._sound(start, stop):
                        self._token_files.keep(start, of_part, np.concatenate(tokens))
                    yield of_part
        finally:
            pool.close()

    def _sound(self, start: int, stop: int) -> bool:
        """Whether none of these documents was found to be that of a corrupt record."""
        return not any(start <= x < stop for x in self._documents.reader.corrupt.replacements)

    def _in_order(self, pool: ThreadPool, calls: list[np.ndarray]) -> Iterator[Counted]:
        """The counts of each call. Some calls are under way, also while the caller works."""
        reader = self._documents.reader
        ahead = reader.records_ahead(shuffled=False)
        running: deque[Future[Counted]] = deque()
        requested, wanted = 0, iter(calls)
        for call in calls:
            while requested < ahead and (some := next(wanted, None)) is not None:
                reader.prefetch(some)
                requested += len(some)
            requested -= len(call)
            running.append(pool.submit(self._count, call))
            if len(running) > 4 * decoding_threads():
                yield result_of(running.popleft(), self._subject, reader.slowest)
        while running:
            yield result_of(running.popleft(), self._subject, reader.slowest)

    def _count(self, numbers: np.ndarray) -> Counted:
        if self._token_files is None:
            return self._documents.counted(numbers), None
        assert isinstance(self._documents, Documents)
        tokens = self._documents.encoded(numbers)
        return lengths_of(tokens), narrowed(np.concatenate(tokens))


def sampled(length: int, most: int) -> np.ndarray:
    """The numbers of some documents from all over a split, the first one included."""
    return np.unique(np.arange(most) * (length - 1) // max(most - 1, 1))
