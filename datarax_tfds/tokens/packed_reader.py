"""Reads rows of tokens, each of which is made of pieces of documents."""

from typing import Any

import jax
import numpy as np

from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.timings import READING
from datarax_tfds.tokens.documents import Documents
from datarax_tfds.tokens.kept_tokens import KeptTokens
from datarax_tfds.tokens.rows import Pieces, Rows, counted, starts_of
from datarax_tfds.tokens.served_tokens import ServedTokens
from datarax_tfds.tokens.token_counts import TokenCounts
from sharding.checks import refused

COLUMNS = ("tokens", "segment_ids", "positions")


@not_copied
class PackedReader:
    """Reads rows by number, as a `RecordReader` reads records.

    Args:
        documents: The documents.
        counts: The number of tokens of each document.
        kept: The tokens that are on the disk; None to encode all documents again.
        served: Encodes documents with the help of workers; None to do it here alone.
        rows: Which pieces of documents are in each row.
        length: The tokens of a row.
        pad_id: The token of padding.
        kept_in: Where counts and tokens are kept, for messages.
        subject: The source that reads, for messages.
    """

    fan_out = 1
    holds_arrays = True
    mapped_by: str | None = None
    random_by: str | None = None
    stochastic = False

    def __init__(
        self,
        documents: Documents,
        counts: TokenCounts,
        kept: KeptTokens | None,
        served: ServedTokens | None,
        rows: Rows,
        *,
        length: int,
        pad_id: int,
        kept_in: str,
        subject: str,
    ):
        self._documents = documents
        self._counts = counts
        self._kept = kept
        self._rows = rows
        self._row_tokens = length
        self._pad_id = pad_id
        self._makes = documents if served is None else served
        self.max_calls = self._makes.max_calls
        self._kept_in = kept_in
        self.subject = subject
        self.timings = documents.reader.timings
        self.length = rows.count
        self.reach = max(1, documents.reader.reach * rows.count // len(documents))
        row = jax.ShapeDtypeStruct((length,), np.int32)
        self.spec: dict[str, Any] = dict.fromkeys(COLUMNS, row)
        self.host_spec: dict[str, Any] = {}
        self.record_bytes = 4 * len(COLUMNS) * length

    @property
    def parallel(self) -> int:
        """How many calls to have under way at once."""
        return self._makes.parallel

    def holds(self, numbers: np.ndarray) -> np.ndarray:
        """Which of these numbers, bool `[n]`, are those of rows; others are padding."""
        return numbers < self.length

    def slowest(self) -> str:
        """What the threads that read have waited for longest, for messages."""
        return self._documents.reader.slowest()

    def records_ahead(self, *, shuffled: bool) -> int:
        """How many rows to `prefetch`, as in `RecordReader`; 0 if they are in a file system."""
        ahead = self._documents.reader.records_ahead(shuffled=shuffled)
        return -(-ahead * self.length // len(self._documents))

    def prefetch(self, numbers: np.ndarray, /) -> None:
        """Begins to read the documents of rows from a store, unless their tokens are kept."""
        documents = np.unique(self._rows.pieces(numbers).document)
        if self._kept is not None:
            documents = documents[~self._kept.has(documents)]
        self._documents.reader.prefetch(documents)

    def read(self, numbers: np.ndarray, keys: np.ndarray | None = None, /) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Reads the tokens of rows, or encodes the documents whose tokens are not on the disk.

        Args:
            numbers: Those of the rows, `[n]`.
            keys: Not used.

        Returns:
            For each of `COLUMNS`, int32 `[n, length]`.

        Raises:
            ValueError: A document has another number of tokens than when they were counted.
        """
        pieces = self._rows.pieces(numbers)
        return self._filled(len(numbers), pieces, self._tokens(pieces))

    def require_same(self, numbers: np.ndarray, tokens: list[np.ndarray]) -> None:
        """Raises unless documents have as many tokens as were counted, and those that are kept."""
        self._require_counted(numbers, tokens)
        if self._kept is None:
            return
        for number, ids in zip(numbers.tolist(), tokens, strict=True):
            kept = ids.copy()
            whole = Pieces(*(np.array([value]) for value in (0, number, 0, len(ids))))
            if len(ids) and self._kept.read(whole, kept).all() and not np.array_equal(kept, ids):
                raise refused(
                    ValueError,
                    self.subject,
                    "encode gives other tokens than those that are kept.",
                    record=self._documents.where(number),
                    differ=f"{np.count_nonzero(kept != ids)} of {len(ids)}",
                    kept_in=self._kept_in,
                    fix="let encode return the same ids in each call; if you changed the tokenizer"
                    " on purpose, pass another encode_name, or delete the directory in which the"
                    " tokens are kept, and build the source anew",
                )

    def _tokens(self, pieces: Pieces) -> np.ndarray:
        """The tokens of all pieces, one after the other, int32."""
        tokens = np.empty(int(pieces.count.sum()), np.int32)
        found = np.zeros(len(pieces.count), bool)
        if self._kept is not None:
            with self.timings.timed(READING):
                found = self._kept.read(pieces, tokens)
        if not found.all():
            tokens[np.repeat(~found, pieces.count)] = self._encoded(pieces.where(~found))
        return tokens

    def _encoded(self, pieces: Pieces) -> np.ndarray:
        """The same, from documents that are encoded now."""
        numbers, place = np.unique(pieces.document, return_inverse=True)
        encoded = self._documents.tokens(numbers, self._makes.encoded)
        self._require_counted(numbers, encoded)
        first = starts_of(np.array([len(ids) for ids in encoded]))[place] + pieces.start
        return np.concatenate(encoded)[np.repeat(first, pieces.count) + counted(pieces.count)]

    def _require_counted(self, numbers: np.ndarray, tokens: list[np.ndarray]) -> None:
        expected = self._counts.counts[numbers].tolist()
        for number, ids, count in zip(numbers.tolist(), tokens, expected, strict=True):
            if len(ids) != count:
                raise refused(
                    ValueError,
                    self.subject,
                    "encode gives another number of tokens than when they were counted.",
                    record=self._documents.where(number),
                    counted=count,
                    now=len(ids),
                    kept_in=self._kept_in,
                    fix="let encode return the same ids in each call; if you changed the tokenizer"
                    " or the data on purpose, delete the directory in which the counts are kept,"
                    " and build the source anew",
                )

    def _filled(self, count: int, pieces: Pieces, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Copies the tokens of all pieces, one after the other, into their rows."""
        shape = count, self._row_tokens
        columns = {name: np.zeros(shape, np.int32) for name in COLUMNS}
        columns["tokens"].fill(self._pad_id)
        before = starts_of(pieces.count)
        heads = np.searchsorted(pieces.row, pieces.row)  # the first piece of the row of each
        segment = np.arange(len(before)) - heads + 1
        target = pieces.row * self._row_tokens + before - before[heads]
        position = counted(pieces.count)
        into = np.repeat(target, pieces.count) + position
        columns["tokens"].ravel()[into] = tokens
        columns["segment_ids"].ravel()[into] = np.repeat(segment, pieces.count)
        columns["positions"].ravel()[into] = position
        return columns
