"""Holds records that other threads are decoding, and finds the rows of a batch in them."""

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.records.host_rows import padding
from sharding.hosts.waits import result_of


class Chunks(NamedTuple):
    """Records that are being decoded, `size` of them in each call; the last call has the rest."""

    calls: list[Future[dict[str, Any]]]
    size: int


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
        """Cancels the calls that no thread has begun."""
        for start, stop in self._places.values():
            for call in self._numbers(start, stop):
                self._chunks.calls[call].cancel()

    def _columns(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        calls, size = self._chunks
        for call in self._numbers(start, stop):
            rows = slice(max(start - call * size, 0), stop - call * size)
            columns = result_of(calls[call], self._reader.subject, self._reader.files.slowest)
            yield jax.tree.map(lambda column, rows=rows: column[rows], columns)

    def _numbers(self, start: int, stop: int) -> range:
        """Which calls decode some of these records."""
        return range(start // self._chunks.size, math.ceil(stop / self._chunks.size))
