"""Reads records of a split here or on workers, as one reader."""

from typing import Any

import jax
import numpy as np

from datarax_tfds.decoding.device_dtypes import path_name
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.decoding.record_spec import Unbatched
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.service.admission import Admission
from datarax_tfds.service.dispatcher import MAX_CALLS, Dispatcher
from datarax_tfds.service.executor import Rows


def facts_of(reader: RecordReader) -> dict[str, str]:
    """What must be equal where the same records are read, by name. Nothing is said of a filter,
    because workers are asked for records by their numbers in the whole split.
    """
    return {
        **reader.versions,
        "dataset": reader.split.dataset,
        "fingerprint of the files": reader.split.fingerprint_of_all,
        "functions of the user": reader.user_code or "none, or not known",
    }


@not_copied
class ServedReader:
    """Reads records by number, as a `RecordReader` does, with the help of workers.

    Args:
        reader: Reads the records here.
        late_s: See `Dispatcher`.
        threads: See `Dispatcher`.

    Attributes:
        reader: The same.
        dispatcher: Gives calls to threads and workers.
        max_calls: How many threads may wait for calls.
    """

    max_calls = MAX_CALLS

    def __init__(self, reader: RecordReader, *, late_s: float, threads: int | None = None):
        self.reader = reader
        self.length, self.reach, self.subject = reader.length, reader.reach, reader.subject
        self.spec, self.host_spec = reader.spec, reader.host_spec
        self.record_bytes, self.holds_arrays = reader.record_bytes, reader.holds_arrays
        self.fan_out, self.mapped_by = reader.fan_out, reader.mapped_by
        self.random_by, self.stochastic = reader.random_by, reader.stochastic
        self.timings = reader.timings
        self.holds, self.slowest = reader.holds, reader.slowest
        self.records_ahead, self.prefetch = reader.records_ahead, reader.prefetch
        admission = Admission(
            reader.read_intact, self.length, stochastic=self.stochastic, facts=facts_of(reader)
        )
        spec = reader.spec | reader.host_spec
        self.dispatcher = Dispatcher(
            reader.read,
            lambda rows, count: misfit(rows, spec, count),
            admission,
            reader.subject,
            reader.timings,
            late_s=late_s,
            threads=threads,
        )
        self.read = self.dispatcher.read

    @property
    def parallel(self) -> int:
        """How many calls keep the threads here and the workers busy."""
        return min(self.dispatcher.team.parallel, self.max_calls)


def misfit(rows: Rows, spec: dict[str, Any], count: int) -> str | None:
    """What is wrong with the structure, the shapes or the dtypes of `count` rows."""
    if jax.tree.structure(rows) != jax.tree.structure(spec):
        return f"the features differ: it sent {sorted(map(str, rows))}"
    leaves = jax.tree_util.tree_leaves_with_path(spec)
    for (path, leaf), column in zip(leaves, jax.tree.leaves(rows), strict=True):
        got = f"{getattr(column, 'dtype', type(column).__name__)}{np.shape(column)}"
        shape = leaf.shape
        wanted = f"{leaf.dtype}{(count, *shape)}"
        if isinstance(leaf, Unbatched):
            good = isinstance(column, np.ndarray) and len(column) == count
        else:
            good = got == wanted
        if not good:
            return f"{path_name(path)} differs: it sent {got}, not {wanted}"
    return None
