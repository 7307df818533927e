"""Makes batches of the records of several sources, each of which keeps its own records."""

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from datarax_tfds.order.mixture import MixtureOrder, located
from datarax_tfds.order.sampler import ByNumber, Selection, Traced
from datarax_tfds.order.wide_numbers import is_wide
from datarax_tfds.records.eager import EagerRecords, row_major
from datarax_tfds.records.host_rows import HostRows, fill_rows
from datarax_tfds.records.joined_reader import JoinedReader
from datarax_tfds.records.packing import Packed
from datarax_tfds.records.records import BatchInputs
from datarax_tfds.records.streaming import StreamingRecords, refuse_compiled
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.timings import Timings
from sharding import row_axes, row_shards, take_rows
from sharding.gathers import on_each_device
from sharding.jax_context import OwnContext
from sharding.placement import Placement, as_arguments, context_within, device_of, on_mesh

AnyRecords = EagerRecords | StreamingRecords


@not_copied
class MixtureRecords:
    """The records of several sources with one element spec, by concatenated numbers.

    The rows of an eager part are gathered from its own arrays; other rows of that gather are zeros,
    so that `|` joins the packed rows of all parts. All streams are read together, as one stream.

    Args:
        parts: The records of each part; None for a part that has none.
        order: The order of the mixture, which says where the numbers of each part start.
        batch: The placement of batches on the mesh.
        subject: The source, for messages.
        part_column: The name of the column with the number of the part; None for no such column.
    """

    def __init__(
        self,
        parts: Sequence[AnyRecords | None],
        order: MixtureOrder,
        *,
        batch: Placement,
        subject: str,
        part_column: str | None,
    ):
        self._parts = parts
        self._order = order
        self._starts = order.starts
        self._batch = batch
        self._subject = subject
        self._column = part_column
        self._eager = {n: part for n, part in enumerate(parts) if isinstance(part, EagerRecords)}
        streams = {n: part for n, part in enumerate(parts) if isinstance(part, StreamingRecords)}
        self._is_streamed = np.array([number in streams for number in range(len(parts))])
        self._streams: StreamingRecords | None = None
        if streams:
            readers = [
                (part.reader, part.decoded) if isinstance(part, StreamingRecords) else None
                for part in parts
            ]
            self._streams = StreamingRecords(
                JoinedReader(readers, self._starts, subject),
                batch=batch,
                prefetch_buffer=max(part.prefetch_buffer for part in streams.values()),
                cacheable=False,  # the parts keep theirs
            )
        self.timings = Timings() if self._streams is None else self._streams.timings
        first = next(part for part in parts if part is not None)
        column = {} if part_column is None else {part_column: jax.ShapeDtypeStruct((), np.int32)}
        self.spec, self.host_spec = first.spec | column, first.host_spec
        finish = row_major if batch.num_devices == 1 else lambda columns: columns
        self._compiled_batch = jax.jit(lambda *on_devices: finish(self.assemble(on_devices)))

    @property
    def traceable(self) -> bool:
        """Whether all records are on the devices."""
        return self._streams is None

    def inputs(self, selection: Selection) -> BatchInputs:
        """Returns the packed rows of the eager parts; and the numbers of the records, with the rows
        that were read from the streams.
        """
        numbers = selection.record_numbers()
        streamed, on_host = None, {}
        if self._streams is not None:
            streamed, on_host = self._streams.inputs(selection)
        if self.host_spec:
            drawn = self._drawn(numbers)
            for part, records in self._eager.items():
                on_host = self._host_rows(on_host, records, drawn, part)
        packed = tuple(records.packed for records in self._eager.values())
        return BatchInputs((packed, (self._on_devices(numbers), streamed)), on_host)

    def assemble(self, on_devices: tuple[tuple[Packed, ...], tuple[Any, Any]]) -> dict[str, Any]:
        """Gathers the rows of the eager parts, and adds those of the streams; traceable."""
        packed, (drawn, streamed) = on_devices
        part, within = drawn if drawn.ndim > 1 else self._drawn(drawn)
        batch = streamed
        if self._eager:
            rows = [
                records.taken(of_part, jnp.where(part == number, within, records.length))
                for (number, records), of_part in zip(self._eager.items(), packed, strict=True)
            ]
            joined = reduce(lambda one, other: jax.tree.map(jnp.bitwise_or, one, other), rows)
            first = next(iter(self._eager.values()))
            batch = first.unpacked(Packed(joined, packed[0].starts), self._batch)
        by_row = PartitionSpec(row_axes(self._batch))
        if self._eager and streamed is not None:
            is_streamed = jnp.asarray(self._is_streamed)[part] & (part >= 0)
            each = on_each_device(_chosen, self._batch, in_specs=(by_row, by_row, by_row))
            batch = each(self._placed(is_streamed), streamed, batch)
        if self._column is not None:
            batch = batch | {self._column: self._placed(part)}
        return batch

    def batch(self, selection: Selection) -> dict[str, Any]:
        """Returns the records of a selection as a batch, as in `EagerRecords`; one that is `Traced`
        only if all parts are eager.
        """
        if isinstance(selection, Traced):
            if self._streams is not None:
                refuse_compiled(self._subject, batch_size=selection.batch_size)
            with context_within(self._batch):
                packed = tuple(records.referenced() for records in self._eager.values())
                return self.assemble((packed, (self._drawn(selection.record_numbers()), None)))
        if self._streams is not None and not self._eager and self._column is None:
            return self._streams.batch(selection)
        (packed, rows), on_host = self.inputs(selection)
        with OwnContext(device_of(self._batch)):
            return self._compiled_batch(packed, as_arguments(rows, self._batch)) | on_host

    def scan_inputs(self, numbers: np.ndarray) -> tuple[tuple[Packed, ...], Any]:
        """Returns the packed rows, which the batches share, and what each of them takes."""
        if self._streams is not None:
            refuse_compiled(self._subject, batch_size=numbers.shape[-1])
        packed = tuple(records.packed for records in self._eager.values())
        return packed, (self._on_devices(numbers), None)

    def each_record(self, selection: Selection) -> Iterator[dict[str, Any]]:
        """Yields the records of a selection one by one, as the parts do."""
        numbers = selection.record_numbers()
        drawn = self._drawn(numbers[numbers < self._starts[-1]])
        streams = iter(()) if self._streams is None else self._streams.each_record(selection)
        for part, within in drawn.T.tolist():
            record = next(streams) if self._is_streamed[part] else self._single(part, within)
            if self._column is not None:
                record = record | on_mesh({self._column: np.int32(part)}, self._batch)
            yield record

    def _single(self, part: int, number: int) -> dict[str, Any]:
        alone = ByNumber(self._order, np.array([number]), epoch=0, seed=0)
        return next(self._eager[part].each_record(alone))

    def all_records(self, keep: bool) -> dict[str, Any]:  # noqa: ARG002
        """Returns all records, part by part, in stored order, placed like a batch; zeros may follow
        them. They are gathered and read again at each call, and `keep` is ignored.
        """
        shards = row_shards(self._batch)
        count = self._starts[-1]
        numbers = np.minimum(np.arange(-(-count // shards) * shards), count)
        inputs = self.inputs(ByNumber(self._order, numbers, epoch=0, seed=0))
        with OwnContext(device_of(self._batch)):
            return self._compiled_batch(*as_arguments(inputs.on_devices, self._batch))

    def reset_cache(self) -> None:
        """Forgets what the parts keep."""
        for part in self._parts:
            if part is not None:
                part.reset_cache()

    def _on_devices(self, numbers: np.ndarray) -> np.ndarray:
        """What a compiled program takes for these records: their numbers, from which it finds the
        parts in less time than NumPy; or, where numbers do not fit int32, what `_drawn` returns.
        """
        if is_wide(self._starts[-1]):
            return self._drawn(numbers)
        return numbers.astype(np.int32, copy=False)

    def _drawn(self, numbers: Any) -> Any:
        """The part of each row, -1 for padding, and the number in the part: `[..., 2, n]` int32."""
        xp: Any = jnp if isinstance(numbers, jax.Array) else np
        part, within = located(self._starts, numbers)
        part = xp.where(numbers < self._starts[-1], part, -1)
        return xp.stack([part, within], axis=-2).astype(np.int32)

    def _host_rows(
        self, on_host: HostRows, records: EagerRecords, drawn: np.ndarray, part: int
    ) -> HostRows:
        """The features that stay on the host, with those of an eager part in its rows."""
        numbers = np.where(drawn[0] == part, drawn[1], records.length)
        own = records.on_host(numbers)
        if not on_host:
            return own
        held = np.flatnonzero(records.local(numbers) < records.length)
        fill_rows(on_host, held, {name: rows[held] for name, rows in own.items()})
        return on_host

    def _placed(self, values: jax.Array) -> jax.Array:
        every = jnp.arange(values.shape[0], dtype=jnp.int32)
        return take_rows(values, every, self._batch, "replicated")


def _chosen(first: jax.Array, one: Any, other: Any) -> Any:
    """The rows of `one` where `first` is true, else those of `other`."""

    def choose(one: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.where(first.reshape(-1, *[1] * (one.ndim - 1)), one, other)

    return jax.tree.map(choose, one, other)
