"""Keeps decoded records on the host, so that they are read and decoded once."""

import math
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from datarax_tfds.runtime.copying import not_copied


@not_copied
class RecordCache:
    """Keeps the first records that are read, as many as fit, in arrays.

    It never evicts. With a split larger than the cache, each epoch hits the same cached part; an
    LRU cache would never hit. Safe to use from several threads.

    Args:
        read: Reads the records of these numbers `[n]` as arrays `[n, ...]`.
        spec: One record.
        length: Number of records N.
        max_bytes: How much memory of the host the cache may take.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], dict[str, Any]],
        spec: dict[str, Any],
        *,
        length: int,
        max_bytes: int,
    ):
        self._read = read
        self._spec = spec
        self._length = length
        row_bytes = sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(spec)
        )
        table_bytes = np.dtype(np.int32).itemsize * length
        self._capacity = max(0, min(length, (max_bytes - table_bytes) // max(row_bytes, 1)))
        self._lock = threading.RLock()
        self.clear()

    def clear(self) -> None:
        """Forgets all records, and frees their memory."""
        with self._lock:
            self._used = 0
            self._kept: tuple[np.ndarray, Any] | None = None

    def read(self, numbers: np.ndarray, _keys: Any = None, /) -> dict[str, Any]:
        """The records of these numbers `[n]`: NumPy arrays `[n, ...]`. Do not write to them."""
        if not self._capacity:
            return self._read(numbers)
        places, columns = self._opened()
        rows = places[numbers]
        missing = np.flatnonzero(rows < 0)
        if not len(missing):
            return jax.tree.map(lambda column: column[rows], columns)
        fresh = self._read(numbers[missing])
        self._keep(numbers[missing], fresh)
        if len(missing) == len(numbers):
            return fresh
        found = np.flatnonzero(rows >= 0)

        def joined(column: np.ndarray, new: np.ndarray) -> np.ndarray:
            out = np.empty((len(numbers), *column.shape[1:]), column.dtype)
            out[found], out[missing] = column[rows[found]], new
            return out

        return jax.tree.map(joined, columns, fresh)

    def _opened(self) -> tuple[np.ndarray, Any]:
        """The row of each record in the arrays (-1: not kept), and the arrays."""
        with self._lock:
            if self._kept is None:
                empty = lambda leaf: np.empty((self._capacity, *leaf.shape), leaf.dtype)  # noqa: E731
                places = np.full(self._length, -1, np.int32)
                self._kept = places, jax.tree.map(empty, self._spec)
            return self._kept

    def _keep(self, numbers: np.ndarray, fresh: dict[str, Any]) -> None:
        with self._lock:
            places, columns = self._opened()
            # A batch may hold a record twice.
            _, firsts = np.unique(numbers, return_index=True)
            new = firsts[places[numbers[firsts]] < 0][: self._capacity - self._used]
            stop = self._used + len(new)
            for column, rows in zip(jax.tree.leaves(columns), jax.tree.leaves(fresh), strict=True):
                column[self._used : stop] = rows[new]
            # Last: without a lock, other threads read the rows to which this points.
            places[numbers[new]] = np.arange(self._used, stop)
            self._used = stop
