"""A whole split on the mesh: how it gets there, and how batches are taken from it."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.experimental import layout as memory_layout
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from datarax_tfds import config
from datarax_tfds.decoding import LEAST_TOGETHER, decoded_together
from datarax_tfds.layout import choose_layout
from datarax_tfds.packing import Packing, Rows
from datarax_tfds.records import RecordReader
from datarax_tfds.selection import AtCursor, Selection
from datarax_tfds.spec import require_arrays
from datarax_tfds.threads import decoding_threads
from sharding import Layout, global_batch, local_rows, row_axes, storage_sharding, take_rows
from sharding.messages import explain
from sharding.waits import result_of

_PROGRESS_DELAY_S = 2.0


class EagerRecords:
    """The records of a split as one array of rows, replicated or sharded over a mesh.

    Each process reads and decodes the rows that its devices hold, and no others.

    Args:
        reader: Reads records from the files.
        batch: How batches lie on the mesh.
        layout: That of the config.

    Raises:
        ValueError: Records that cannot be rows of an array, that differ from epoch to epoch, or
            that do not fit the devices.
    """

    def __init__(self, reader: RecordReader, *, batch: NamedSharding, layout: config.Layout):
        require_arrays(reader.spec, reader.subject)
        if reader.stochastic:
            raise ValueError(
                explain(
                    reader.subject,
                    "records are decoded once, so that a random map_fn could not change them from"
                    " epoch to epoch.",
                    map_fn="takes a seed",
                    fix="use a TFDSStreamingSource, or a random stage of the Pipeline",
                )
            )
        self.length = reader.length
        self.spec = reader.spec
        self._batch = batch
        self._packing = Packing(reader.spec)
        self.layout: Layout = choose_layout(
            layout, self.length, self._packing.row_bytes, batch, reader.subject
        )
        self._rows = self._loaded(reader)
        self._kept: dict[str, Any] | None = None
        finish = _row_major if batch.mesh.size == 1 else lambda columns: columns
        self._take = jax.jit(lambda *fetched: finish(self.build(fetched)))
        self._take_one = jax.jit(self._built_alone)
        storage = storage_sharding(batch, self.layout)
        self._unpack_all = jax.jit(_on_each_device(self._packing.unpack, storage))

    def fetch(self, selection: Selection) -> tuple[Rows, np.ndarray]:
        """What `build` needs for a batch: on the host, without computing anything."""
        return self._rows, selection.numbers().astype(np.int32, copy=False)

    def build(self, fetched: tuple[Rows, Any]) -> dict[str, Any]:
        """The batch of what `fetch` returned; traceable, with the rows as an argument.

        Args:
            fetched: All records, and the numbers of those to take: `[n]` int32, alike on every
                process, `n` a multiple of the row shards; N stands for a row of zeros.

        Returns:
            Arrays `[n, ...]`, placed as batches are.
        """
        rows, numbers = fetched
        taken = take_rows(rows, numbers, self._batch, self.layout)
        return _on_each_device(self._packing.unpack, self._batch)(taken)

    def take(self, selection: Selection) -> dict[str, Any]:
        """The records of a selection, as a batch: `build` of `fetch`, compiled."""
        return self._take(*self.fetch(selection))

    def take_within(self, numbers: jax.Array) -> dict[str, Any]:
        """`take` of traced numbers, in a program of the caller's."""
        rows = {width: reference[...] for width, reference in self._referenced_rows.items()}
        return self.build((rows, numbers))

    def fetch_steps(self, numbers: np.ndarray) -> tuple[Rows, np.ndarray]:
        """What `build` needs for many batches, whose numbers are `[steps, n]`: all records, which
        the batches share, and the numbers.
        """
        return self._rows, numbers.astype(np.int32, copy=False)

    def take_one(self, selection: Selection) -> dict[str, Any]:
        """The first record of a selection, without a batch axis, on every device of the mesh."""
        return self._take_one(*self.fetch(selection))

    def each(self, block: AtCursor) -> Iterator[dict[str, Any]]:
        """The records of a block, one by one, as `take_one`."""
        for number in block.numbers()[: block.records]:
            yield self._take_one(self._rows, np.full(1, number, np.int32))

    def arrays(self, keep: bool) -> dict[str, Any]:
        """All records in stored order, `[N, ...]`, placed as the rows are: a copy.

        With layout `sharded`, rows of zeros fill up the last shards.

        Args:
            keep: Whether the next call is to return the same arrays.
        """
        if keep and self._kept is not None:
            return self._kept
        arrays = self._unpack_all(self._rows)
        if keep:
            self._kept = arrays
        return arrays

    def reset_cache(self) -> None:
        """Forgets the arrays of all records, but for those that it serves."""
        self._kept = None

    @cached_property
    def _referenced_rows(self) -> Rows:
        # Any transformation may close over a `Ref`, on several processes too, and it reaches the
        # compiled program as an argument. An array would become a constant of the program (5 s
        # to compile for 256 MiB), and raise where it spans processes. The price is a second
        # copy of the rows, so it is made only once a caller's own jit asks for it.
        with jax.ensure_compile_time_eval():
            return jax.tree.map(jax.new_ref, self._rows)

    def _built_alone(self, rows: Rows, numbers: jax.Array) -> dict[str, Any]:
        everywhere = NamedSharding(self._batch.mesh, PartitionSpec())
        taken = take_rows(rows, numbers, everywhere, self.layout)
        record = _on_each_device(self._packing.unpack, everywhere)(taken)
        return jax.tree.map(lambda column: column[0], record)

    def _loaded(self, reader: RecordReader) -> Rows:
        """Reads this process's rows and places them, padded to whole shards."""
        storage = storage_sharding(self._batch, self.layout)
        shards = 1 if self.layout == "replicated" else self._batch.mesh.size
        rows = math.ceil(self.length / shards) * shards
        mine = [range(start, min(stop, self.length)) for start, stop in local_rows(storage, rows)]

        def read(part: slice) -> Rows:
            buffers = self._packing.empty(part.stop - part.start)
            real = range(part.start, min(part.stop, self.length))
            # Small enough that all threads end at about the same time.
            share = len(real) // (4 * decoding_threads())
            chunk = decoded_together(max(share, LEAST_TOGETHER))

            def fill(start: int) -> None:
                numbers = np.arange(start, min(start + chunk, real.stop))
                place = slice(start - real.start, start - real.start + len(numbers))
                out = {width: buffer[place] for width, buffer in buffers.items()}
                self._packing.pack(reader.read(numbers), out)
                progress.update(len(numbers))

            pool = ThreadPoolExecutor(decoding_threads(), thread_name_prefix="datarax_tfds")
            try:
                for filled in [pool.submit(fill, start) for start in real[::chunk]]:
                    result_of(filled, reader.subject, reader.files.slowest)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
            return buffers

        with tqdm(
            total=sum(map(len, mine)),
            desc=reader.subject,
            unit=" records",
            delay=_PROGRESS_DELAY_S,
            # Absent: shown on a terminal only.
            disable=None if jax.process_index() == 0 else True,
        ) as progress:
            return global_batch(read, rows, storage)


def _row_major(columns: Any) -> Any:
    """Columns laid out as callers get them anyway.

    On one device, jax 0.12 copies single-channel images to that layout byte by byte unless told
    (175 us for 128 of 28x28, against 55). Over several devices, jax 0.10 makes a copy when told
    (64x64x3, batch 1024, 8 devices: 22 ms against 9).
    """
    return jax.tree.map(
        lambda column: memory_layout.with_layout_constraint(
            column, memory_layout.Layout(tuple(range(column.ndim)))
        ),
        columns,
    )


def _on_each_device(function: Callable[..., Any], rows: NamedSharding) -> Callable[..., Any]:
    """`function` of rows, run by every device on those that it holds."""
    spec = PartitionSpec(row_axes(rows))
    return jax.shard_map(function, mesh=rows.mesh, in_specs=spec, out_specs=spec)
