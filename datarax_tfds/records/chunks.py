"""Holds records that other threads are decoding, and finds the rows of a batch in them."""

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

from datarax_tfds.records.host_rows import fill_rows, padding
from datarax_tfds.records.readers import Reader
from datarax_tfds.runtime.aligned import aligned, concatenated
from sharding.hosts.waits import result_of

Cut = Callable[[dict[str, Any]], dict[str, Any]]  # of columns `[rows, ...]`


class Chunks(NamedTuple):
    """Records that are being decoded, `size` of them in each call; the last call has the rest."""

    calls: list[Future[dict[str, Any]]]
    size: int


class Places(NamedTuple):
    """Where the rows of a slice of a batch are.

    Args:
        start: The place of the first record among all that are being decoded.
        stop: The place after the last one.
        held: Which of the rows are these records, `[rows]`; others are padding, or of other data.
    """

    start: int
    stop: int
    held: np.ndarray


class PendingRows:
    """The rows of a batch that this process reads; they may still be being decoded.

    Args:
        chunks: The records that are being decoded, perhaps for several batches.
        places: For each slice of the batch, the places of its records in `chunks`.
        reader: Reads the records.
    """

    def __init__(
        self,
        chunks: Chunks,
        places: Mapping[tuple[int, int], Places],
        reader: Reader,
    ):
        self._chunks = chunks
        self._places = places
        self._reader = reader

    def stacked(self, rows: slice, cut: Cut | None = None) -> dict[str, Any]:
        """All rows of a slice, as NumPy arrays `[rows, ...]`; rows that are not held are zeros.

        `cut` leaves out a part of the columns that the batch does not need.
        """
        cut = cut or (lambda columns: columns)
        places = self._places[rows.start, rows.stop]
        parts = list(map(cut, self._columns(places)))
        if places.held.all():
            if len(parts) == 1:
                return parts[0]  # TensorFlow's own memory, which JAX may use without a copy
            return jax.tree.map(lambda *columns: concatenated(columns), *parts)
        size = len(places.held)
        zeros = lambda leaf: aligned((size, *leaf.shape), leaf.dtype, np.zeros)  # noqa: E731
        padded = jax.tree.map(zeros, self._reader.spec) | padding(self._reader.host_spec, size)
        empty = cut(padded)
        filled, held = 0, np.flatnonzero(places.held)
        for part in parts:
            count = len(jax.tree.leaves(part)[0])
            fill_rows(empty, held[filled : filled + count], part)
            filled += count
        return empty

    def singly(self) -> Iterator[dict[str, Any]]:
        """The records one by one, without padding."""
        for places in self._places.values():
            for columns in self._columns(places):
                for row in range(len(jax.tree.leaves(columns)[0])):
                    yield jax.tree.map(lambda column, row=row: column[row], columns)

    def cancel(self) -> None:
        """Cancels the calls that no thread has begun."""
        for start, stop, _ in self._places.values():
            for call in self._numbers(start, stop):
                self._chunks.calls[call].cancel()

    def _columns(self, places: Places) -> Iterator[dict[str, Any]]:
        start, stop, _ = places
        calls, size = self._chunks
        for call in self._numbers(start, stop):
            rows = slice(max(start - call * size, 0), stop - call * size)
            columns = result_of(calls[call], self._reader.subject, self._reader.slowest)
            yield jax.tree.map(lambda column, rows=rows: column[rows], columns)

    def _numbers(self, start: int, stop: int) -> range:
        """Which calls decode some of these records."""
        return range(start // self._chunks.size, math.ceil(stop / self._chunks.size))
