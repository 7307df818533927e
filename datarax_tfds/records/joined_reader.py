"""Reads the records of several streams by one range of numbers."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from datarax_tfds.order.mixture import located
from datarax_tfds.records.host_rows import fill_rows
from datarax_tfds.records.readers import DecodedRecords, Reader
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.timings import Timings


@not_copied
class JoinedReader:
    """Reads records of several splits, whose numbers are concatenated, as one `RecordReader`.

    Args:
        parts: What reads and what decodes each part; None for a part that is read elsewhere.
        starts: The number of the first record of each part, and at the end the number of records.
        subject: The source that reads, for messages.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Reader, DecodedRecords] | None],
        starts: tuple[int, ...],
        subject: str,
    ):
        readers = [part[0] for part in parts if part is not None]
        self._decoded = [None if part is None else part[1] for part in parts]
        self._stochastic = [part is not None and part[0].stochastic for part in parts]
        self._readers = readers
        self.timings = Timings([reader.timings for reader in readers])
        self.fan_out = len(readers)
        self.max_calls = max(reader.max_calls for reader in readers)
        self._starts = starts
        self._is_read = np.array([part is not None for part in parts])
        self.length = starts[-1]
        self.subject = subject
        self.spec, self.host_spec = readers[0].spec, readers[0].host_spec
        self.record_bytes = readers[0].record_bytes
        self.holds_arrays = readers[0].holds_arrays
        self.random_by = next((by for reader in readers if (by := reader.random_by)), None)
        self.reach = min(reader.reach for reader in readers)
        self.mapped_by = next((by for reader in readers if (by := reader.mapped_by)), None)
        self.stochastic = any(self._stochastic)

    @property
    def parallel(self) -> int:
        """How many calls to have under way at once."""
        return max(reader.parallel for reader in self._readers)

    def holds(self, numbers: np.ndarray) -> np.ndarray:
        """Which of these numbers, bool `[n]`, are those of records that are read here."""
        parts, _ = located(self._starts, numbers)
        return (numbers < self.length) & self._is_read[parts]

    def slowest(self) -> str:
        """What the threads that read have waited for longest, for messages."""
        says = [reader.slowest() for reader in self._readers]
        return next((each for each in says if each.startswith("reading")), says[0])

    def records_ahead(self, *, shuffled: bool) -> int:
        """How many records to `prefetch`, as in `RecordReader`; 0 if no part is in a store."""
        ahead = [reader.records_ahead(shuffled=shuffled) for reader in self._readers]
        return min(filter(None, ahead), default=0)

    def prefetch(self, numbers: np.ndarray, /) -> None:
        """Begins to read records of those parts that are in a store."""
        owners, within = located(self._starts, numbers)
        for owner in np.unique(owners).tolist():
            decoded = self._decoded[owner]
            if decoded is not None:
                decoded.prefetch(within[owners == owner])

    def read(self, numbers: np.ndarray, keys: np.ndarray | None = None, /) -> dict[str, Any]:
        """Reads and decodes records, as `RecordReader.read` does, in one call for each part."""
        owners, within = located(self._starts, numbers)
        found: dict[str, Any] | None = None
        for owner in np.unique(owners).tolist():
            rows = np.flatnonzero(owners == owner)
            decoded = self._decoded[owner]
            assert decoded is not None
            own_keys = keys[rows] if keys is not None and self._stochastic[owner] else None
            columns = decoded.read(within[rows], own_keys)
            if len(rows) == len(numbers):
                return columns
            if found is None:
                empty = lambda column: np.empty((len(numbers), *column.shape[1:]), column.dtype)  # noqa: E731
                found = jax.tree.map(empty, columns)
            fill_rows(found, rows, columns)
        assert found is not None
        return found
