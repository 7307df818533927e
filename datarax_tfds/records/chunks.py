"""Holds records that other threads are decoding, and finds the rows of a batch in them."""

import bisect
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.records.host_rows import padding
from sharding.hosts.waits import result_of

# Records that are being decoded, in chunks: the place of the first record, and all columns.
Chunks = list[tuple[int, Future[dict[str, Any]]]]


class PendingRows:
    """The rows of a batch that this process reads; they may still be being decoded.

    Args:
        chunks: The records that are being decoded, perhaps for several batches.
        places: For each slice of the batch, the places `[start, stop)` of its records in `chunks`.
        reader: Reads the records.
    """

    def __init__(
        self,
        chunks: Chunks,
        places: Mapping[tuple[int, int], tuple[int, int]],
        reader: RecordReader,
    ):
        self._chunks = chunks
        self._places = places
        self._reader = reader

    def stacked(self, rows: slice) -> dict[str, Any]:
        """All rows of a slice, as NumPy arrays `[rows, ...]`; padding is zeros."""
        start, stop = self._places[rows.start, rows.stop]
        parts = list(self._columns(start, stop))
        missing = (rows.stop - rows.start) - (stop - start)
        if missing:
            zeros = lambda leaf: np.zeros((missing, *leaf.shape), leaf.dtype)  # noqa: E731
            on_devices = jax.tree.map(zeros, self._reader.spec)
            parts.append(on_devices | padding(self._reader.host_spec, missing))
        if len(parts) == 1:
            return parts[0]  # TensorFlow's own memory, which JAX may use without a copy
        return jax.tree.map(lambda *columns: np.concatenate(columns), *parts)

    def singly(self) -> Iterator[dict[str, Any]]:
        """The records one by one, without padding."""
        for start, stop in self._places.values():
            for columns in self._columns(start, stop):
                for row in range(len(jax.tree.leaves(columns)[0])):
                    yield jax.tree.map(lambda column, row=row: column[row], columns)

    def cancel(self) -> None:
        """Cancels the chunks that no thread has begun to decode."""
        for start, stop in self._places.values():
            for _, future in self._overlapping(start, stop):
                future.cancel()

    def _columns(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        for first, future in self._overlapping(start, stop):
            rows = slice(max(start - first, 0), stop - first)
            columns = result_of(future, self._reader.subject, self._reader.files.slowest)
            yield jax.tree.map(lambda column, rows=rows: column[rows], columns)

    def _overlapping(self, start: int, stop: int) -> Chunks:
        """The chunks that hold some of these records."""
        firsts = [first for first, _ in self._chunks]
        return self._chunks[
            bisect.bisect_right(firsts, start) - 1 : bisect.bisect_left(firsts, stop)
        ]
