"""A split left on disk: how its records become batches on the mesh, decoded ahead of their use."""

import itertools
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from datarax_tfds.decoding import DECODED_TOGETHER
from datarax_tfds.read_ahead import ReadAhead
from datarax_tfds.records import RecordReader
from datarax_tfds.selection import AtCursor, Chosen, Selection
from datarax_tfds.spec import require_arrays, require_same_widths
from datarax_tfds.threads import DecodingPool, decoding_threads
from sharding import global_batch, local_rows


class StreamingRecords:
    """The records of a split as batches, read and decoded when they are needed.

    Each process reads the rows of a batch that its devices hold, and no others. Decoding runs in
    threads of its own; all that JAX does, it does in the caller's.

    Args:
        reader: Reads records from the files.
        batch: How batches lie on the mesh.
        prefetch_buffer: How many batches may wait decoded.
    """

    def __init__(self, reader: RecordReader, *, batch: NamedSharding, prefetch_buffer: int):
        self.length = reader.length
        self.spec = reader.spec
        self._reader = reader
        self._batch = batch
        self._everywhere = NamedSharding(batch.mesh, PartitionSpec())
        self._pool = DecodingPool()
        weakref.finalize(self, self._pool.close)
        # Beside the batches that wait decoded, one is being decoded.
        self._depth = prefetch_buffer + 1 if prefetch_buffer else 0
        self._batches = ReadAhead(self._begin_batch, self._depth)
        self._blocks = ReadAhead(self._begin_block, self._depth)

    def fetch(self, selection: Selection) -> dict[str, Any]:
        """What `build` needs: the batch itself, on the mesh.

        Raises:
            ValueError: Records that cannot be rows of an array.
        """
        require_arrays(self.spec, self._reader.subject)
        require_same_widths(self.spec, self._reader.subject)
        ahead = isinstance(selection, AtCursor)
        parts = self._batches(selection) if ahead else self._begin_batch(selection)
        try:
            return global_batch(parts.stacked, selection.batch_size, self._batch)
        except Exception:
            # Whatever it was, what was read beside it is not to be trusted, nor to fail later on.
            self._batches.clear()
            raise

    def build(self, fetched: dict[str, Any]) -> dict[str, Any]:
        """The batch of what `fetch` returned: that itself."""
        return fetched

    def take(self, selection: Selection) -> dict[str, Any]:
        """The records of a selection, as a batch `[batch_size, ...]`."""
        return self.fetch(selection)

    def take_one(self, selection: Chosen) -> dict[str, Any]:
        """One record, without a batch axis; text as bytes, all else on every device of the mesh."""
        return next(self._singly(self._begin_block(selection)))

    def each(self, block: AtCursor) -> Iterator[dict[str, Any]]:
        """The records of a block, one by one, as `take_one`."""
        try:
            yield from self._singly(self._blocks(block))
        except Exception:
            self._blocks.clear()  # as in `fetch`
            raise

    def _singly(self, parts: "_Parts") -> Iterator[dict[str, Any]]:
        def placed(value: Any) -> Any:
            if isinstance(value, bytes) or value.dtype == object:
                return value
            return jax.make_array_from_callback(value.shape, self._everywhere, lambda _: value)

        require_same_widths(self.spec, self._reader.subject)
        for record in parts.singly():
            yield jax.tree.map(placed, record)

    def _begin_batch(self, selection: Selection) -> "_Parts":
        return self._begin(selection, list(local_rows(self._batch, selection.batch_size)))

    def _begin_block(self, selection: Selection) -> "_Parts":
        return self._begin(selection, [(0, selection.batch_size)])

    def _begin(self, selection: Selection, slices: list[tuple[int, int]]) -> "_Parts":
        chunk = self._chunk(sum(stop - start for start, stop in slices))
        parts: dict[tuple[int, int], list[Future[dict[str, Any]]]] = {}
        for start, stop in slices:
            numbers = selection.numbers(slice(start, stop))
            keys = selection.keys(slice(start, stop)) if self._reader.stochastic else None
            records = int(np.count_nonzero(numbers < self.length))  # the rest is padding
            parts[start, stop] = [
                self._pool.submit(
                    self._reader.read,
                    numbers[first : min(first + chunk, records)],
                    None if keys is None else keys[first : min(first + chunk, records)],
                )
                for first in range(0, records, chunk)
            ]
        return _Parts(parts, self.spec)

    def _chunk(self, rows: int) -> int:
        """How many records to decode in one call: many, but so that every thread has some."""
        if not self._reader.holds_arrays:
            return 1
        share = rows * max(self._depth, 1) / decoding_threads()
        return max(size for size in DECODED_TOGETHER if size <= max(share, DECODED_TOGETHER[0]))


class _Parts:
    """The rows of a batch that one process reads, by slices, each under way in chunks."""

    def __init__(
        self, parts: Mapping[tuple[int, int], list[Future[dict[str, Any]]]], spec: dict[str, Any]
    ):
        self._parts = parts
        self._spec = spec

    def stacked(self, rows: slice) -> dict[str, Any]:
        """All rows of a slice, as NumPy arrays `[rows, ...]`; zeros where it is padding."""
        chunks = [part.result() for part in self._parts[rows.start, rows.stop]]
        padding = rows.stop - rows.start - sum(map(_length, chunks))
        if padding:
            zeros = lambda leaf: np.zeros((padding, *leaf.shape), leaf.dtype)  # noqa: E731
            chunks.append(jax.tree.map(zeros, self._spec))
        if len(chunks) == 1:
            return chunks[0]  # TensorFlow's own memory, which JAX may take over as it is
        return jax.tree.map(lambda *columns: np.concatenate(columns), *chunks)

    def singly(self) -> Iterator[dict[str, Any]]:
        """The records one by one, without padding."""
        for part in itertools.chain.from_iterable(self._parts.values()):
            columns = part.result()
            for row in range(_length(columns)):
                yield jax.tree.map(lambda column, row=row: column[row], columns)

    def cancel(self) -> None:
        for part in itertools.chain.from_iterable(self._parts.values()):
            part.cancel()


def _length(columns: dict[str, Any]) -> int:
    return len(jax.tree.leaves(columns)[0])
