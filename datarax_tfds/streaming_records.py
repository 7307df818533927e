"""A split left on disk: how its records become batches on the mesh, decoded ahead of their use."""

import bisect
import itertools
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from datarax_tfds.decoding import LEAST_TOGETHER, MOST_TOGETHER, decoded_together
from datarax_tfds.eager_records import EagerRecords
from datarax_tfds.layout import EASY_SHARE, free_host_bytes
from datarax_tfds.read_ahead import Begin, ReadAhead
from datarax_tfds.record_cache import RecordCache
from datarax_tfds.records import RecordReader
from datarax_tfds.selection import AtCursor, Chosen, Selection
from datarax_tfds.spec import require_arrays, require_same_widths
from datarax_tfds.threads import DecodingPool, decoding_threads
from sharding import global_batch, local_rows
from sharding.messages import explain
from sharding.waits import result_of

_GROUP_BYTES = 16 << 20  # of batches that are read together: larger ones gain nothing by it

Result = TypeVar("Result")


class StreamingRecords:
    """The records of a split as batches, read and decoded when they are needed.

    Each process reads the rows of a batch that its devices hold, and no others. Decoding runs in
    threads of its own; all that JAX does, it does in the caller's.

    Args:
        reader: Reads records from the files.
        batch: How batches lie on the mesh.
        prefetch_buffer: That of the config.
        cacheable: Likewise.

    Raises:
        ValueError: `cacheable` with a random `map_fn`.
    """

    def __init__(
        self,
        reader: RecordReader,
        *,
        batch: NamedSharding,
        prefetch_buffer: int,
        cacheable: bool,
    ):
        self.length = reader.length
        self.spec = reader.spec
        self._reader = reader
        self._batch = batch
        self._everywhere = NamedSharding(batch.mesh, PartitionSpec())
        self._cache = _cache_of(reader) if cacheable else None
        self._decoded: RecordReader | RecordCache = self._cache or reader
        self._pool = DecodingPool()
        weakref.finalize(self, self._pool.close)
        # Beside the batches that wait decoded, one is being decoded.
        self._depth = prefetch_buffer + 1 if prefetch_buffer else 0
        self._batches = ReadAhead(self._begin_batches, self._depth, self._together)
        self._blocks = ReadAhead(self._begin_blocks, self._depth, lambda _: 1)

    def fetch(self, selection: Selection) -> dict[str, Any]:
        """What `build` needs: the batch itself, on the mesh.

        Raises:
            ValueError: Records that cannot be rows of an array.
        """
        require_arrays(self.spec, self._reader.subject)
        require_same_widths(self.spec, self._reader.subject)

        def placed(rows: _Rows) -> dict[str, Any]:
            return global_batch(rows.stacked, selection.batch_size, self._batch)

        if isinstance(selection, AtCursor):
            return _sound(self._batches, self._begin_batches, selection, placed)
        return placed(self._begin_batches([selection], awaited=True)[0])

    def build(self, fetched: dict[str, Any]) -> dict[str, Any]:
        """The batch of what `fetch` returned: that itself."""
        return fetched

    def take(self, selection: Selection) -> dict[str, Any]:
        """The records of a selection, as a batch `[batch_size, ...]`."""
        return self.fetch(selection)

    def take_within(self, numbers: Any) -> NoReturn:
        """Not to be had: a stream is read on the host."""
        raise NotImplementedError(
            explain(
                self._reader.subject,
                "a stream cannot be read within a compiled function.",
                batch_size=len(numbers),
                fix="take the batch outside and pass it in, or use a TFDSEagerSource",
            )
        )

    fetch_steps = take_within

    def arrays(self, keep: bool) -> dict[str, Any]:
        """All records in stored order, `[N, ...]`, on the devices; the next call reads them again,
        whatever `keep` says: they are more than a stream may hold.
        """
        return EagerRecords(self._reader, batch=self._batch, layout="auto").arrays(keep)

    def reset_cache(self) -> None:
        """Forgets decoded records."""
        if self._cache is not None:
            self._cache.clear()

    def take_one(self, selection: Chosen) -> dict[str, Any]:
        """One record, without a batch axis; text as bytes, all else on every device of the mesh."""
        return next(self._singly(self._begin_blocks([selection], awaited=True)[0]))

    def each(self, block: AtCursor) -> Iterator[dict[str, Any]]:
        """The records of a block, one by one, as `take_one`."""
        return iter(
            _sound(self._blocks, self._begin_blocks, block, lambda rows: list(self._singly(rows)))
        )

    def _singly(self, rows: "_Rows") -> Iterator[dict[str, Any]]:
        def placed(value: Any) -> Any:
            if isinstance(value, bytes) or value.dtype == object:
                return value
            return jax.make_array_from_callback(value.shape, self._everywhere, lambda _: value)

        require_same_widths(self.spec, self._reader.subject)
        for record in rows.singly():
            yield jax.tree.map(placed, record)

    def _begin_batches(self, batches: Sequence[Selection], *, awaited: bool) -> list["_Rows"]:
        return self._begin(batches, self._slices(batches[0].batch_size), awaited)

    def _begin_blocks(self, blocks: Sequence[Selection], *, awaited: bool) -> list["_Rows"]:
        return self._begin(blocks, [(0, blocks[0].batch_size)], awaited)

    def _begin(
        self, selections: Sequence[Selection], slices: Sequence[tuple[int, int]], awaited: bool
    ) -> list["_Rows"]:
        """Begins to read those slices of each, many records in one call, whichever they are of.

        What is awaited, and not read ahead of its use, is cut finely enough for all threads.
        """
        numbers, keys, ends = [], [], [0]
        for selection in selections:
            for start, stop in slices:
                wanted = selection.numbers(slice(start, stop))
                records = int(np.count_nonzero(wanted < self.length))  # the rest is padding
                numbers.append(wanted[:records])
                if self._reader.stochastic:
                    keys.append(selection.keys(slice(start, stop))[:records])
                ends.append(ends[-1] + records)
        share = ends[-1] * (1 if awaited else self._depth) // decoding_threads()
        every_key = np.concatenate(keys) if keys else None
        chunks = self._submitted(np.concatenate(numbers), every_key, share)
        places = itertools.pairwise(ends)
        return [
            _Rows(chunks, dict(zip(slices, places, strict=False)), self._reader) for _ in selections
        ]

    def _submitted(self, numbers: np.ndarray, keys: np.ndarray | None, share: int) -> "_Chunks":
        chunks: _Chunks = []
        start = 0
        while start < len(numbers):
            most = min(max(share, LEAST_TOGETHER), len(numbers) - start)
            size = decoded_together(most) if self._reader.holds_arrays else 1
            rows = slice(start, start + size)
            work = numbers[rows], None if keys is None else keys[rows]
            chunks.append((start, self._pool.submit(self._decoded.read, *work)))
            start += size
        return chunks

    def _together(self, batch: Selection) -> int:
        """How many batches make a group that keeps all threads at the largest size of a call."""
        rows = sum(stop - start for start, stop in self._slices(batch.batch_size))
        if not self._reader.holds_arrays:
            return 1
        wanted = MOST_TOGETHER * decoding_threads() / self._depth
        within_reach = self._reader.reach // ((self._depth + 1) * batch.batch_size)
        batch_bytes = rows * sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.spec)
        )
        return max(1, min(math.ceil(wanted / rows), within_reach, _GROUP_BYTES // batch_bytes))

    def _slices(self, batch_size: int) -> list[tuple[int, int]]:
        return list(local_rows(self._batch, batch_size))


def _sound(
    ahead: ReadAhead["_Rows"],
    begin: Begin["_Rows"],
    selection: AtCursor,
    finish: Callable[["_Rows"], Result],
) -> Result:
    """What is made of a batch that was read ahead; its own error, not that of one read with it."""
    rows = ahead(selection)
    try:
        return finish(rows)
    except Exception:
        # Whatever it was: nothing that was read beside it is to fail later on.
        ahead.clear()
        return finish(begin([selection], awaited=True)[0])


def _cache_of(reader: RecordReader) -> RecordCache | None:
    if reader.stochastic:
        raise ValueError(
            explain(
                reader.subject,
                "records that are kept could not change from epoch to epoch, as map_fn asks.",
                cacheable=True,
                map_fn="takes a seed",
                fix="use cacheable=False, or a random stage of the Pipeline in place of map_fn",
            )
        )
    if not reader.holds_arrays:
        return None
    most_bytes = int(EASY_SHARE * free_host_bytes())
    return RecordCache(reader.read, reader.spec, length=reader.length, most_bytes=most_bytes)


# Consecutive records under way: the number of the first, and the columns of some.
_Chunks = list[tuple[int, Future[dict[str, Any]]]]


class _Rows:
    """The rows of a batch that one process reads.

    Args:
        chunks: Records under way, those of other batches among them.
        places: Where among those each slice of the batch is: `[start, stop)`.
        reader: Who reads them.
    """

    def __init__(
        self,
        chunks: _Chunks,
        places: Mapping[tuple[int, int], tuple[int, int]],
        reader: RecordReader,
    ):
        self._chunks = chunks
        self._places = places
        self._reader = reader

    def stacked(self, rows: slice) -> dict[str, Any]:
        """All rows of a slice, as NumPy arrays `[rows, ...]`; zeros where it is padding."""
        start, stop = self._places[rows.start, rows.stop]
        parts = list(self._columns(start, stop))
        padding = (rows.stop - rows.start) - (stop - start)
        if padding:
            zeros = lambda leaf: np.zeros((padding, *leaf.shape), leaf.dtype)  # noqa: E731
            parts.append(jax.tree.map(zeros, self._reader.spec))
        if len(parts) == 1:
            return parts[0]  # TensorFlow's own memory, which JAX may take over as it is
        return jax.tree.map(lambda *columns: np.concatenate(columns), *parts)

    def singly(self) -> Iterator[dict[str, Any]]:
        """The records one by one, without padding."""
        for start, stop in self._places.values():
            for columns in self._columns(start, stop):
                for row in range(_length(columns)):
                    yield jax.tree.map(lambda column, row=row: column[row], columns)

    def cancel(self) -> None:
        for start, stop in self._places.values():
            for _, future in self._overlapping(start, stop):
                future.cancel()

    def _columns(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        for first, future in self._overlapping(start, stop):
            rows = slice(max(start - first, 0), stop - first)
            columns = result_of(future, self._reader.subject, self._reader.files.slowest)
            yield jax.tree.map(lambda column, rows=rows: column[rows], columns)

    def _overlapping(self, start: int, stop: int) -> _Chunks:
        """The chunks with any of these records."""
        firsts = [first for first, _ in self._chunks]
        return self._chunks[
            bisect.bisect_right(firsts, start) - 1 : bisect.bisect_left(firsts, stop)
        ]


def _length(columns: dict[str, Any]) -> int:
    return len(jax.tree.leaves(columns)[0])
