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

    A record has one place, its number modulo the number of places, and the first record that comes
    to a place stays there. So nothing is kept for the records that are not in memory. It never
    evicts: with a split larger than the cache, each epoch hits the same cached part; an LRU cache
    would never hit. Safe to use from several threads.

    Args:
        read: Reads the records of these numbers `[n]` as arrays `[n, ...]`.
        prefetch: Begins to read the bytes of these records `[n]` from a store.
        spec: One record.
        length: Number of records N.
        max_bytes: How much memory of the host the cache may take.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], dict[str, Any]],
        prefetch: Callable[[np.ndarray], None],
        spec: dict[str, Any],
        *,
        length: int,
        max_bytes: int,
    ):
        self._read = read
        self._prefetch = prefetch
        self._spec = spec
        row_bytes = np.dtype(np.int64).itemsize + sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(spec)
        )
        self._capacity = max(0, min(length, max_bytes // row_bytes))
        self._lock = threading.RLock()
        self.clear()

    def clear(self) -> None:
        """Forgets all records, and frees their memory."""
        with self._lock:
            self._kept: tuple[np.ndarray, Any] | None = None

    def prefetch(self, numbers: np.ndarray) -> None:
        """Begins to read the bytes of those of these records that are not kept."""
        if self._capacity:
            owners, _ = self._opened()
            numbers = numbers[owners[numbers % self._capacity] != numbers]
        self._prefetch(numbers)

    def read(self, numbers: np.ndarray, _keys: Any = None, /) -> dict[str, Any]:
        """The records of these numbers `[n]`: NumPy arrays `[n, ...]`. Do not write to them."""
        if not self._capacity:
            return self._read(numbers)
        owners, columns = self._opened()
        places = numbers % self._capacity
        missing = np.flatnonzero(owners[places] != numbers)
        if not len(missing):
            return jax.tree.map(lambda column: column[places], columns)
        fresh = self._read(numbers[missing])
        self._keep(numbers[missing], fresh)
        if len(missing) == len(numbers):
            return fresh
        found = np.setdiff1d(np.arange(len(numbers)), missing, assume_unique=True)

        def joined(column: np.ndarray, new: np.ndarray) -> np.ndarray:
            out = np.empty((len(numbers), *column.shape[1:]), column.dtype)
            out[found], out[missing] = column[places[found]], new
            return out

        return jax.tree.map(joined, columns, fresh)

    def _opened(self) -> tuple[np.ndarray, Any]:
        """The number of the record at each place (-1: none), and the arrays."""
        with self._lock:
            if self._kept is None:
                empty = lambda leaf: np.empty((self._capacity, *leaf.shape), leaf.dtype)  # noqa: E731
                owners = np.full(self._capacity, -1, np.int64)
                self._kept = owners, jax.tree.map(empty, self._spec)
            return self._kept

    def _keep(self, numbers: np.ndarray, fresh: dict[str, Any]) -> None:
        with self._lock:
            owners, columns = self._opened()
            # Records of a batch may share a place, and a batch may hold a record twice.
            places, firsts = np.unique(numbers % self._capacity, return_index=True)
            free = owners[places] < 0
            places, firsts = places[free], firsts[free]
            for column, rows in zip(jax.tree.leaves(columns), jax.tree.leaves(fresh), strict=True):
                column[places] = rows[firsts]
            # Last: without a lock, other threads read the rows of these records.
            owners[places] = numbers[firsts]
