"""Makes batches on the mesh from records that are left on disk."""

from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np

from datarax_tfds.decoding.device_dtypes import require_same_widths
from datarax_tfds.decoding.record_spec import require_arrays
from datarax_tfds.lengths.batch_shapes import BatchShapes
from datarax_tfds.order.sampler import Selection, Traced
from datarax_tfds.records.cache import RecordCache
from datarax_tfds.records.chunks import PendingRows
from datarax_tfds.records.eager import EagerRecords
from datarax_tfds.records.host_rows import HostRows, joined
from datarax_tfds.records.memory import EAGER_MEMORY_FRACTION, free_host_bytes
from datarax_tfds.records.read_ahead import ReadAhead
from datarax_tfds.records.readers import DecodedRecords, Reader
from datarax_tfds.records.records import BatchInputs
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.threads import ThreadPool
from datarax_tfds.runtime.timings import PLACING
from sharding import global_batch, local_rows
from sharding.checks import refused
from sharding.placement import Placement, on_mesh


@not_copied
class StreamingRecords:
    """The records of a split as batches, read and decoded when they are needed.

    Each process reads only the rows of a batch that its devices hold. Decoding runs in threads of
    its own; JAX runs in the thread of the caller.

    Args:
        reader: Reads and decodes records.
        batch: The placement of batches on the mesh.
        prefetch_buffer: How many batches may wait decoded, as in the config.
        cacheable: Whether decoded records are kept, as in the config.
        shapes: The shape of each batch, if they differ; otherwise records are as they are read.

    Attributes:
        decoded: Returns the records that the reader reads, or those that are kept.

    Raises:
        ValueError: `cacheable` is set, and `map_fn` or `transform` is random.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        batch: Placement,
        prefetch_buffer: int,
        cacheable: bool,
        shapes: BatchShapes | None = None,
    ):
        self.length = reader.length
        self.spec, self.host_spec = reader.spec, reader.host_spec
        self.reader = reader
        self.timings = reader.timings
        self.prefetch_buffer = prefetch_buffer
        self._batch = batch
        self._shapes = shapes
        self._cache = _cache_of(reader) if cacheable else None
        self._pool = ThreadPool(reader.max_calls, "datarax_tfds")
        self.decoded: DecodedRecords = self._cache or reader
        # One more: a batch is being decoded while the others wait.
        depth = prefetch_buffer + 1 if prefetch_buffer else 0
        slices = lambda batch_size: list(local_rows(batch, batch_size))  # noqa: E731
        self._batches = ReadAhead(reader, self.decoded, self._pool, slices, depth=depth)
        whole = lambda batch_size: [(0, batch_size)]  # noqa: E731
        self._single = ReadAhead(reader, self.decoded, self._pool, whole, depth=depth)

    def inputs(self, selection: Selection) -> BatchInputs:
        """Reads the batch itself, on the mesh, and the part of it that stays on the host.

        Raises:
            ValueError: The records cannot be rows of an array.
        """
        require_arrays(self.spec, self.reader.subject, mapped_by=self.reader.mapped_by)
        require_same_widths(self.spec, self.reader.subject)

        cut = None if self._shapes is None else self._shapes.cut(selection)

        def placed(rows: PendingRows) -> BatchInputs:
            on_host: dict[int, HostRows] = {}
            clock, stacked_s = self.timings.clock, 0.0
            begun = clock()

            def on_devices(part: slice) -> dict[str, Any]:
                nonlocal stacked_s
                asked = clock()
                columns = rows.stacked(part, cut)
                stacked_s += clock() - asked
                on_host[part.start] = {name: columns.pop(name) for name in self.reader.host_spec}
                return columns

            batch = global_batch(on_devices, selection.batch_size, self._batch)
            self.timings.add(PLACING, clock() - begun - stacked_s)
            return BatchInputs(batch, joined(on_host[start] for start in sorted(on_host)))

        return self._batches.read(selection, placed)

    def assemble(self, on_devices: dict[str, Any]) -> dict[str, Any]:
        """Returns the batch of `inputs` unchanged."""
        return on_devices

    def batch(self, selection: Selection) -> dict[str, Any]:
        """The records of a selection as a batch `[batch_size, ...]`."""
        if isinstance(selection, Traced):
            refuse_compiled(self.reader.subject, batch_size=selection.batch_size)
        on_devices, on_host = self.inputs(selection)
        return on_devices | on_host

    def scan_inputs(self, numbers: np.ndarray) -> NoReturn:
        """Raises an error: a stream is read on the host, between compiled steps."""
        refuse_compiled(self.reader.subject, batch_size=numbers.shape[-1])

    def all_records(self, keep: bool) -> dict[str, Any]:  # noqa: ARG002
        """Returns all records in stored order, `[N, ...]`, on the devices. They are read again at
        each call, and `keep` is ignored: a stream must not hold all records in memory.
        """
        return EagerRecords(self.reader, batch=self._batch, layout="auto").all_records(keep=False)

    def reset_cache(self) -> None:
        """Forgets decoded records."""
        if self._cache is not None:
            self._cache.clear()

    def each_record(self, selection: Selection) -> Iterator[dict[str, Any]]:
        """Yields the records of a selection one by one: text as bytes, arrays on every device."""
        use = lambda rows: list(self._placed_singly(selection, rows))  # noqa: E731
        return iter(self._single.read(selection, use))

    def _placed_singly(self, selection: Selection, rows: PendingRows) -> Iterator[dict[str, Any]]:
        require_same_widths(self.spec, self.reader.subject)
        numbers = selection.record_numbers()
        held = numbers[self.reader.holds(numbers)]
        for number, record in zip(held.tolist(), rows.singly(), strict=True):
            if self._shapes is not None:
                record = self._shapes.cut_alone(number, record)
            on_host = {name: record.pop(name) for name in self.reader.host_spec}
            leaves, structure = jax.tree.flatten(record)
            placed = iter(on_mesh([leaf for leaf in leaves if not _is_text(leaf)], self._batch))
            yield (
                structure.unflatten(leaf if _is_text(leaf) else next(placed) for leaf in leaves)
                | on_host
            )


def refuse_compiled(subject: str, batch_size: Any) -> NoReturn:
    """Raises the error of reading a stream within a compiled function."""
    raise refused(
        NotImplementedError,
        subject,
        "a stream cannot be read within a compiled function.",
        batch_size=batch_size,
        fix="take the batch outside and pass it in, or use a TFDSEagerSource",
    )


def _cache_of(reader: Reader) -> RecordCache | None:
    if reader.stochastic:
        raise refused(
            ValueError,
            reader.subject,
            f"records that are kept cannot change from epoch to epoch, as {reader.random_by} asks.",
            cacheable=True,
            fix="use cacheable=False, or a random stage of the Pipeline in place of"
            f" {reader.random_by}",
        )
    if not reader.holds_arrays:
        return None
    max_bytes = int(EAGER_MEMORY_FRACTION * free_host_bytes())
    spec = reader.spec | reader.host_spec
    return RecordCache(
        reader.read, reader.prefetch, spec, length=reader.length, max_bytes=max_bytes
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, bytes) or value.dtype == object
