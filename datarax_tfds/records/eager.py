"""Loads a whole split onto the mesh, and takes batches from it."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import layout as memory_layout
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from datarax_tfds.config.config import LayoutChoice
from datarax_tfds.decoding.decoder import decode_chunk_size
from datarax_tfds.decoding.record_spec import require_arrays
from datarax_tfds.order.sampler import Selection, Traced
from datarax_tfds.order.strata import Strata
from datarax_tfds.records.host_rows import HostRows, HostTable
from datarax_tfds.records.memory import choose_layout
from datarax_tfds.records.packing import Packed, PackedRows, Packing
from datarax_tfds.records.readers import Reader
from datarax_tfds.records.records import BatchInputs
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.threads import ThreadPool, decoding_threads
from datarax_tfds.runtime.untraced import is_traced, untraced
from sharding import Layout, global_batch, local_rows, row_axes, storage_sharding, take_rows
from sharding.checks import refused
from sharding.gathers import collect_rows, on_each_device
from sharding.hosts.agreement import extend_deadlines
from sharding.hosts.waits import result_of
from sharding.jax_context import OwnContext, without_mesh
from sharding.placement import (
    Placement,
    as_arguments,
    context_within,
    device_of,
    on_mesh,
)

_PROGRESS_DELAY_S = 2.0


@not_copied
class EagerRecords:
    """The records of a split as one array of rows, replicated or sharded over a mesh.

    Each process reads and decodes only the rows that its devices hold.

    Args:
        reader: Reads records from the files.
        batch: The placement of batches on the mesh.
        layout: The layout that the config asks for.
        strata: The number of parts of the split that no two devices should share, or 1.

    Raises:
        ValueError: The records cannot be rows of an array, differ from epoch to epoch, or do not
            fit the devices.
    """

    def __init__(self, reader: Reader, *, batch: Placement, layout: LayoutChoice, strata: int = 1):
        require_arrays(reader.spec, reader.subject, mapped_by=reader.mapped_by)
        if reader.stochastic:
            raise refused(
                ValueError,
                reader.subject,
                f"records are decoded once, so a random {reader.random_by} cannot change them from"
                " epoch to epoch.",
                random=f"{reader.random_by} takes random numbers",
                fix="use a TFDSStreamingSource, or a random stage of the Pipeline",
            )
        self.length = reader.length
        self.timings = reader.timings
        self.spec, self.host_spec = reader.spec, reader.host_spec
        self._batch = batch
        self._packing = Packing(reader.spec)
        self.layout: Layout = choose_layout(
            layout, self.length, self._packing.row_bytes, batch, reader.subject
        )
        self._strata = Strata(self.length, strata if self.layout == "sharded" else 1)
        self._host = HostTable(reader.host_spec, reader.length)
        self.packed = Packed(self._loaded(reader), on_mesh(self._packing.starts, batch))
        self._kept: dict[str, Any] | None = None
        self._references: dict[Any, Packed] = {}
        finish = row_major if batch.num_devices == 1 else lambda columns: columns
        self._compiled_batch = jax.jit(lambda *on_devices: finish(self.assemble(on_devices)))
        self._compiled_record = jax.jit(self._assembled_record)
        self._unpack_all = jax.jit(self._unpacked_copies)

    def inputs(self, selection: Selection) -> BatchInputs:
        """Returns all records, and the numbers `[n]` of those to take: int32, the same on every
        process, `n` a multiple of the row shards. The number N stands for a row of zeros.
        """
        numbers = selection.record_numbers()
        on_devices = self.packed, numbers.astype(np.int32, copy=False)
        return BatchInputs(on_devices, self.on_host(numbers))

    def assemble(self, on_devices: tuple[Packed, Any]) -> dict[str, Any]:
        """Gathers records by number into a batch `[n, ...]`; traceable."""
        return self._assembled(*on_devices, self._batch)

    def batch(self, selection: Selection) -> dict[str, Any]:
        """Returns the records of a selection as a batch: by one compiled program or, for a `Traced`
        selection, inside the program of the caller.
        """
        if isinstance(selection, Traced):
            with context_within(self._batch):
                return self.assemble((self.referenced(), selection.record_numbers()))
        (packed, numbers), on_host = self.inputs(selection)
        with OwnContext(device_of(self._batch)):
            return self._compiled_batch(packed, as_arguments(numbers, self._batch)) | on_host

    def scan_inputs(self, numbers: np.ndarray) -> tuple[Packed, np.ndarray]:
        """Returns all records, which the batches share, and the numbers `[steps, n]`."""
        return self.packed, numbers.astype(np.int32, copy=False)

    def each_record(self, selection: Selection) -> Iterator[dict[str, Any]]:
        """Yields the records of a selection one by one, on every device."""
        numbers = selection.record_numbers()
        for number in numbers[numbers < self.length, np.newaxis]:
            on_host = {name: rows[0] for name, rows in self._host.take(number).items()}
            with OwnContext(device_of(self._batch)):
                alone = as_arguments(number.astype(np.int32), self._batch)
                record = self._compiled_record(self.packed, alone)
            yield record | on_host

    def all_records(self, keep: bool) -> dict[str, Any]:
        """Returns a copy of all records in stored order, `[N, ...]`, placed like the rows.

        With layout `sharded`, rows of zeros fill up the last shards.

        Args:
            keep: Whether the next call returns the same arrays.
        """
        kept = self._kept
        # The caller may have donated them.
        if keep and kept and not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept)):
            return kept
        with OwnContext(device_of(self._batch)):
            arrays = self._unpack_all(self.packed)
        if keep and not is_traced():
            self._kept = arrays
        return arrays

    def reset_cache(self) -> None:
        """Forgets the arrays that `all_records` has kept."""
        self._kept = None

    def on_host(self, numbers: np.ndarray) -> HostRows:
        """The features that stay on the host, of the rows of a batch that this process holds."""
        return self._host.take(self.local(numbers)) if self._host.features else {}

    def local(self, numbers: np.ndarray) -> np.ndarray:
        """Those of the numbers `[n]` of a batch whose rows this process holds."""
        slices = sorted(local_rows(self._batch, len(numbers)))
        return np.concatenate([numbers[start:stop] for start, stop in slices])

    def taken(self, packed: Packed, numbers: jax.Array) -> PackedRows:
        """Gathers the rows of any records by number; N gives a row of zeros. Traceable."""
        return take_rows(packed.rows, self._strata.places_of(numbers), self._batch, self.layout)

    def referenced(self) -> Packed:
        """All records, for a compiled function of the caller."""
        return jax.tree.map(lambda reference: reference[...], self._references_of_mesh())

    def _references_of_mesh(self) -> Packed:
        # Any transformation may close over a `Ref`, also on several processes, and it reaches the
        # compiled program as an argument. An array would become a constant of the program (5 s to
        # compile for 256 MiB), and would raise if it spans processes. The price is a second copy of
        # the rows, so it is made only when a caller's own jit asks for it.
        # A `Ref` is committed, so uncommitted rows get one for each mesh that the caller sets.
        committed = isinstance(self._batch, NamedSharding)
        mesh = None if committed else jax.sharding.get_abstract_mesh()
        if mesh not in self._references:

            def make() -> Packed:
                with without_mesh() if mesh is None else nullcontext():
                    return jax.tree.map(jax.new_ref, self.packed)

            self._references[mesh] = untraced(make)
        return self._references[mesh]

    def _assembled(self, packed: Packed, numbers: jax.Array, batch: Placement) -> dict[str, Any]:
        places = self._strata.places_of(numbers)
        aligned = self._strata.parts > 1
        taken = take_rows(packed.rows, places, batch, self.layout, aligned=aligned)
        return self.unpacked(Packed(taken, packed.starts), batch)

    def _assembled_record(self, packed: Packed, numbers: jax.Array) -> dict[str, Any]:
        record = self._assembled(packed, numbers, storage_sharding(self._batch, "replicated"))
        return jax.tree.map(lambda column: column[0], record)

    def unpacked(self, packed: Packed, rows: Placement) -> dict[str, Any]:
        """The arrays of rows with the placement `rows`."""
        by_row = PartitionSpec(row_axes(rows))
        unpack = on_each_device(self._packing.unpack, rows, in_specs=(by_row, PartitionSpec()))
        return unpack(*packed)

    def _unpacked_copies(self, packed: Packed) -> dict[str, Any]:
        storage = storage_sharding(self._batch, self.layout)
        if isinstance(storage, NamedSharding) and self._strata.places > self.length:
            # Without the empty places between the strata.
            packed = packed._replace(
                rows=collect_rows(packed.rows, self.length, self._strata.places_of, storage)
            )
        arrays = self.unpacked(packed, storage)
        # Without the copy, JAX would return our rows themselves, and they would be gone if the
        # caller donated them to another program.
        return jax.tree.map(jnp.copy, arrays)

    def _loaded(self, reader: Reader) -> PackedRows:
        """Reads this process's rows and places them, padded to whole shards."""
        storage = storage_sharding(self._batch, self.layout)
        shards = 1 if self.layout == "replicated" else self._batch.num_devices
        rows = math.ceil(self._strata.places / shards) * shards

        def numbers_at(start: int, stop: int) -> np.ndarray:
            numbers = self._strata.numbers_at(np.arange(start, stop))
            return numbers[numbers < self.length]

        mine = sum(len(numbers_at(*part)) for part in local_rows(storage, rows))

        def load(numbers: np.ndarray, keep: Callable[[np.ndarray, Any], None]) -> None:
            # The chunks are so small that all threads finish at about the same time.
            share = len(numbers) // (4 * decoding_threads())
            chunk = decode_chunk_size(share, self._packing.row_bytes)
            ahead = reader.records_ahead(shuffled=False)
            reader.prefetch(numbers[:ahead])

            def load_chunk(start: int) -> None:
                reader.prefetch(numbers[start + ahead : start + ahead + chunk])
                some = numbers[start : start + chunk]
                columns = reader.read(some)
                self._host.fill(some, columns)
                keep(some, {name: columns[name] for name in reader.spec})
                progress.update(len(some))
                advance()

            pool = ThreadPool(decoding_threads(), "datarax_tfds_load")
            try:
                for loaded in [pool.submit(load_chunk, at) for at in range(0, len(numbers), chunk)]:
                    result_of(loaded, reader.subject, reader.slowest)
            finally:
                pool.close()

        def read(part: slice) -> PackedRows:
            buffers = self._packing.empty(part.stop - part.start)

            def pack(numbers: np.ndarray, columns: Any) -> None:
                places = self._strata.places_of(numbers) - part.start
                # One piece, unless there is an empty place between strata.
                for at in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) > 1) + 1):
                    piece = slice(places[at[0]], places[at[-1]] + 1)
                    out = {width: buffer[piece] for width, buffer in buffers.items()}
                    self._packing.pack(
                        jax.tree.map(lambda x, at=at: x[at[0] : at[-1] + 1], columns), out
                    )

            load(numbers_at(part.start, part.stop), pack)
            return buffers

        loading = extend_deadlines(f"loading records of {reader.subject}", measured=True)
        with (
            loading as advance,
            tqdm(
                total=mine,
                desc=reader.subject,
                unit=" records",
                delay=_PROGRESS_DELAY_S,
                # None: shown on a terminal only.
                disable=None if jax.process_index() == 0 else True,
            ) as progress,
        ):
            placed = global_batch(read, rows, storage)
            load(self._host.missing, lambda *_: None)
            return placed


def row_major(columns: Any) -> Any:
    """Asks XLA for the row-major memory layout, which callers get anyway.

    Used on one device only. Without it, jax 0.12 copies single-channel images to that layout byte
    by byte (128 of 28x28: 175 us instead of 55 us). Over several devices, jax 0.10 would make a
    copy with it (64x64x3, batch 1024, 8 devices: 22 ms instead of 9 ms).
    """
    return jax.tree.map(
        lambda column: memory_layout.with_layout_constraint(
            column, memory_layout.Layout(tuple(range(column.ndim)))
        ),
        columns,
    )
