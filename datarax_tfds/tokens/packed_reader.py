"""Reads rows of tokens, each of which is made of pieces of documents."""

from typing import Any

import jax
import numpy as np

from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.tokens.documents import Documents
from datarax_tfds.tokens.rows import Pieces, Rows
from datarax_tfds.tokens.token_counts import TokenCounts
from sharding.checks import refused

COLUMNS = ("tokens", "segment_ids", "positions")


@not_copied
class PackedReader:
    """Reads rows by number, as a `RecordReader` reads records.

    Args:
        documents: The documents.
        counts: The number of tokens of each document.
        rows: Which pieces of documents are in each row.
        length: The tokens of a row.
        pad_id: The token of padding.
        kept_in: Where the counts are kept, for messages.
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
        rows: Rows,
        *,
        length: int,
        pad_id: int,
        kept_in: str,
        subject: str,
    ):
        self._documents = documents
        self._counts = counts
        self._rows = rows
        self._row_tokens = length
        self._pad_id = pad_id
        self._kept_in = kept_in
        self.subject = subject
        self.length = rows.count
        self.reach = max(1, documents.reader.reach * rows.count // len(documents))
        row = jax.ShapeDtypeStruct((length,), np.int32)
        self.spec: dict[str, Any] = dict.fromkeys(COLUMNS, row)
        self.host_spec: dict[str, Any] = {}
        self.record_bytes = 4 * len(COLUMNS) * length

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
        """Begins to read the documents of rows from a store."""
        self._documents.reader.prefetch(np.unique(self._rows.pieces(numbers).document))

    def read(self, numbers: np.ndarray, keys: np.ndarray | None = None, /) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Reads and encodes the documents of rows.

        Args:
            numbers: Those of the rows, `[n]`.
            keys: Not used.

        Returns:
            For each of `COLUMNS`, int32 `[n, length]`.

        Raises:
            ValueError: A document has another number of tokens than when they were counted.
        """
        pieces = self._rows.pieces(numbers)
        found, place = np.unique(pieces.document, return_inverse=True)
        tokens = self._documents.tokens(found)
        self.require_counted(found, tokens)
        lengths = np.array([len(ids) for ids in tokens], np.int64)
        source = (np.cumsum(lengths) - lengths)[place] + pieces.start
        return self._filled(len(numbers), pieces, np.concatenate(tokens), source)

    def require_counted(self, numbers: np.ndarray, tokens: list[np.ndarray]) -> None:
        """Raises unless documents have as many tokens as when they were counted."""
        counted = self._counts.counts[numbers].tolist()
        for number, ids, count in zip(numbers.tolist(), tokens, counted, strict=True):
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

    def _filled(
        self, count: int, pieces: Pieces, tokens: np.ndarray, source: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Copies each piece, whose tokens are from `source` on in `tokens`, into its row."""
        shape = count, self._row_tokens
        columns = {name: np.zeros(shape, np.int32) for name in COLUMNS}
        columns["tokens"].fill(self._pad_id)
        before = np.cumsum(pieces.count) - pieces.count
        heads = np.searchsorted(pieces.row, pieces.row)  # the first piece of the row of each
        segment = np.arange(len(before)) - heads + 1
        target = pieces.row * self._row_tokens + before - before[heads]
        position = np.arange(int(pieces.count.sum())) - np.repeat(before, pieces.count)
        into = np.repeat(target, pieces.count) + position
        columns["tokens"].ravel()[into] = tokens[np.repeat(source, pieces.count) + position]
        columns["segment_ids"].ravel()[into] = np.repeat(segment, pieces.count)
        columns["positions"].ravel()[into] = position
        return columns
