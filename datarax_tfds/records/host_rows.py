"""Holds features that stay on the host: text and ids to match predictions with."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from datarax_tfds.decoding.record_spec import Unbatched

HostRows = dict[str, np.ndarray]  # by feature: `[rows, ...]`, text as bytes


def padding(spec: Mapping[str, Unbatched], rows: int) -> HostRows:
    """Returns rows of zeros and empty texts, for the padding of a batch."""
    rows_of: HostRows = {}
    for name, leaf in spec.items():
        shape: tuple[Any, ...] = (rows, *leaf.shape)
        rows_of[name] = np.full(shape, b"" if leaf.dtype.kind == "O" else 0, leaf.dtype)
    return rows_of


def joined(parts: Iterable[HostRows]) -> HostRows:
    """Concatenates the rows of several parts of a batch."""
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def fill_rows(columns: Any, rows: np.ndarray, values: Any) -> None:
    """Writes values into these rows of columns, which have the same structure."""

    def fill(column: np.ndarray, some: np.ndarray) -> None:
        column[rows] = some

    jax.tree.map(fill, columns, values)


class HostTable:
    """The host features of every record of a split, by number.

    Args:
        spec: Shape and dtype of each feature.
        length: Number of records N.

    Attributes:
        features: The names of the features.
    """

    def __init__(self, spec: Mapping[str, Unbatched], length: int):
        self.features = frozenset(spec)
        # One row more, for padding.
        self._columns = padding(spec, length + 1)
        self._filled = np.zeros(length, bool)

    def fill(self, numbers: np.ndarray, columns: Mapping[str, Any]) -> None:
        """Stores the features of these records; `columns` may hold other features, too."""
        for name, kept in self._columns.items():
            kept[numbers] = columns[name]
        self._filled[numbers] = True

    @property
    def missing(self) -> np.ndarray:
        """The records that were not passed to `fill`; empty if nothing stays on the host."""
        return np.flatnonzero(~self._filled) if self.features else np.empty(0, np.int64)

    def take(self, numbers: np.ndarray) -> HostRows:
        """Returns the rows of these records; the number N stands for padding."""
        return {name: column[numbers] for name, column in self._columns.items()}
