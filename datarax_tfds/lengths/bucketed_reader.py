"""Reads records, and makes sure that they are in the buckets in which they were when counted."""

from typing import Any

import jax
import numpy as np

from datarax_tfds.decoding.device_dtypes import path_name
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.lengths.declared_lengths import DeclaredLengths
from datarax_tfds.order.bucket_order import Buckets
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.service.served_reader import ServedReader
from sharding.checks import refused


@not_copied
class BucketedReader:
    """Reads records by number, as a `RecordReader` does, which pads them to the longest bucket.

    Args:
        reader: Reads the records, and notes how long they are.
        lengths: The lengths of the buckets.
        buckets: The bucket of each record.
        kept_in: Where the lengths are kept, for messages.
    """

    def __init__(
        self,
        reader: RecordReader | ServedReader,
        lengths: DeclaredLengths,
        buckets: Buckets,
        kept_in: str,
    ):
        self._reader = reader
        self.max_calls = reader.max_calls
        self._files = (reader.reader if isinstance(reader, ServedReader) else reader).files
        self._lengths = lengths
        self._buckets = buckets
        self._kept_in = kept_in
        self.length, self.reach, self.subject = reader.length, reader.reach, reader.subject
        self.spec, self.host_spec = reader.spec, reader.host_spec
        self.timings = reader.timings
        self.record_bytes, self.holds_arrays = reader.record_bytes, reader.holds_arrays
        self.fan_out, self.mapped_by = reader.fan_out, reader.mapped_by
        self.random_by, self.stochastic = reader.random_by, reader.stochastic
        self.holds, self.slowest = reader.holds, reader.slowest
        self.records_ahead, self.prefetch = reader.records_ahead, reader.prefetch
        noted = {f"{name}_length": place for place, name in enumerate(lengths.by_name)}
        leaves = jax.tree_util.tree_leaves_with_path(reader.spec | reader.host_spec)
        places = {noted[path_name(path)]: path for path, _ in leaves if path_name(path) in noted}
        self._places = [places[place] for place in range(len(noted))]

    @property
    def parallel(self) -> int:
        """How many calls to have under way at once."""
        return self._reader.parallel

    def read(self, numbers: np.ndarray, keys: np.ndarray | None = None, /) -> dict[str, Any]:
        """Reads records, padded to the longest bucket.

        Raises:
            ValueError: A record is in another bucket than when the lengths were counted.
        """
        columns = self._reader.read(numbers, keys)
        noted = np.stack([_at(columns, path) for path in self._places], axis=1)
        found = self._lengths.buckets(noted)
        if np.array_equal(found, counted := self._buckets.of(numbers)):
            return columns
        row = int(np.flatnonzero(found != counted)[0])
        now = dict(zip(self._lengths.by_name, noted[row].tolist(), strict=True))
        then = {name: of[counted[row]] for name, of in self._lengths.by_name.items()}
        number = int(numbers[row])
        raise refused(
            ValueError,
            self.subject,
            "a record has another length than when the lengths were counted.",
            record=f"{number}: {self._files.where(number)}",
            now=now,
            bucket=then,
            kept_in=self._kept_in,
            fix="let the functions that make the records give the same lengths in each call; if you"
            " changed them or the data on purpose, delete the directory in which the lengths are"
            " kept, and build the source anew",
        )


def _at(columns: Any, path: Any) -> np.ndarray:
    for key in path:
        columns = columns[key.key]
    return columns
