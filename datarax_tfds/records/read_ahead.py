"""Reads batches in other threads, also the next ones while the current one is in use."""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from datarax_tfds.decoding.decoder import MAX_CHUNK, decode_chunk_size
from datarax_tfds.order.sampler import BatchAt, Selection
from datarax_tfds.records.chunks import Chunks, PendingRows, Places
from datarax_tfds.records.readers import DecodedRecords, Reader
from datarax_tfds.runtime.threads import ThreadPool

_MAX_GROUP_BYTES = 16 << 20  # grouping larger batches gains nothing
_PREFETCHED_GROUPS = 2  # of batches whose bytes are requested together

Result = TypeVar("Result")


class ReadAhead:
    """Reads the rows of batches in other threads ahead of their use, also past an epoch's end.

    Small batches are read in groups, which costs less than one by one. Pending work is looked up by
    batch. After a seek, or with another batch size, read-ahead pauses until two consecutive batches
    are requested. It serves two streams of batches at once, such as those of a source and a clone.

    From a store, the bytes of the batches after those are read, too, until they take 64 MiB: so
    that the threads that decode do not wait, and enough requests are under way.

    Only the thread of the caller may use it.

    Args:
        reader: Describes the records.
        decoded: Reads and decodes the records.
        pool: The threads that call `decoded`.
        slices: For a batch size, the slices `[start, stop)` of a batch that this process reads.
        depth: How many groups to read ahead of the current one.
    """

    def __init__(
        self,
        reader: Reader,
        decoded: DecodedRecords,
        pool: ThreadPool,
        slices: Callable[[int], list[tuple[int, int]]],
        *,
        depth: int,
    ):
        self._reader = reader
        self._decoded = decoded
        self._pool = pool
        self._slices = slices
        self._depth = depth
        # The rows of a batch, and the batch that follows its group.
        self._pending: OrderedDict[BatchAt, tuple[PendingRows, BatchAt]] = OrderedDict()
        self._expected: deque[BatchAt] = deque(maxlen=2)  # the successors of the last two batches
        # The batches whose bytes are being read, with the batch that follows their group.
        self._prefetched: OrderedDict[BatchAt, BatchAt] = OrderedDict()

    def read(self, selection: Selection, use: Callable[[PendingRows], Result]) -> Result:
        """Returns `use(rows)` for the rows of a selection.

        If reading fails, the rows are read again alone, so that an error raised by a batch decoded
        in the same call is not reported here.
        """
        if not isinstance(selection, BatchAt):
            return use(self._begun([selection], awaited=True)[0])
        rows = self._rows(selection)
        try:
            return use(rows)
        except Exception:  # any kind: drop the batches read ahead, which may hold the same error
            for unwanted, _ in self._pending.values():
                unwanted.cancel()
            self._pending.clear()
            return use(self._begun([selection], awaited=True)[0])

    def _rows(self, batch: BatchAt) -> PendingRows:
        """Returns the rows of a batch, forgets them, and begins to read the batches after it."""
        follows = batch in self._expected
        self._expected.append(batch.following)
        self._prefetched.pop(batch, None)
        begun = self._pending.pop(batch, None)
        rows, end = begun or (self._begun([batch], awaited=True)[0], batch.following)
        if follows and self._depth:
            size = self._group_size(batch)
            for _ in range(self._depth):
                if end not in self._pending:
                    self._begin_group(end, size)
                _, end = self._pending[end]
            while len(self._pending) > 2 * (self._depth + 1) * size:
                _, (unwanted, _) = self._pending.popitem(last=False)
                unwanted.cancel()
            self._prefetch(end)
        return rows

    def _prefetch(self, batch: BatchAt) -> None:
        """Begins to read the bytes of the batches from this one on, as far as the budget goes."""
        records = self._reader.records_ahead(shuffled=batch.order.seed is not None)
        if not records:
            return
        batches = max(1, records // self._rows_of(batch))
        size = math.ceil(batches / _PREFETCHED_GROUPS)
        for _ in range(batches // size):
            if batch not in self._prefetched:
                self._prefetch_group(batch, size)
            batch = self._prefetched[batch]
        while len(self._prefetched) > 2 * (batches + size):
            self._prefetched.popitem(last=False)

    def _prefetch_group(self, batch: BatchAt, size: int) -> None:
        group, numbers = [], []
        while len(group) < size and batch not in self._prefetched:
            group.append(batch)
            slices = self._slices(batch.batch_size)
            numbers += [batch.record_numbers(slice(start, stop)) for start, stop in slices]
            batch = batch.following
        wanted = np.concatenate(numbers)
        self._decoded.prefetch(wanted[self._reader.holds(wanted)])
        self._prefetched |= dict.fromkeys(group, batch)

    def _rows_of(self, batch: BatchAt) -> int:
        return sum(stop - start for start, stop in self._slices(batch.batch_size))

    def _begin_group(self, batch: BatchAt, size: int) -> None:
        group = []
        while len(group) < size and batch not in self._pending:
            group.append(batch)
            batch = batch.following
        # The caller waits soon for the first group of a stream.
        begun = self._begun(group, awaited=not self._pending)
        for member, rows in zip(group, begun, strict=True):
            self._pending[member] = rows, batch

    def _group_size(self, batch: BatchAt) -> int:
        """How many batches to read together so that all threads get calls of the largest size."""
        if not self._reader.holds_arrays:
            return 1
        rows = self._rows_of(batch)
        wanted = MAX_CHUNK * self._reader.fan_out * self._reader.parallel / self._depth
        within_reach = self._reader.reach // ((self._depth + 1) * batch.batch_size)
        light = _MAX_GROUP_BYTES // max(rows * self._reader.record_bytes, 1)
        return max(1, min(math.ceil(wanted / rows), within_reach, light))

    def _begun(self, selections: Sequence[Selection], *, awaited: bool) -> list[PendingRows]:
        """Begins to read selections, with many records in each call.

        Rows for which the caller waits are split finely enough to use all threads.
        """
        slices = [self._slices(selection.batch_size) for selection in selections]
        numbers, keys, ends, held = [], [], [0], []
        for selection, parts in zip(selections, slices, strict=True):
            for start, stop in parts:
                wanted = selection.record_numbers(slice(start, stop))
                here = self._reader.holds(wanted)
                held.append(here)
                numbers.append(wanted[here])
                if self._reader.stochastic:
                    keys.append(selection.keys(slice(start, stop))[here])
                ends.append(ends[-1] + len(numbers[-1]))
        share = ends[-1] * (1 if awaited else self._depth) // self._reader.parallel
        every_key = np.concatenate(keys) if keys else None
        chunks = self._submitted(np.concatenate(numbers), every_key, share)
        places = map(Places, ends, ends[1:], held)
        return [
            PendingRows(chunks, dict(zip(parts, places, strict=False)), self._reader)
            for parts in slices
        ]

    def _submitted(self, numbers: np.ndarray, keys: np.ndarray | None, share: int) -> Chunks:
        """Submits the records in calls of about equal length, at most `share` in each."""
        size = 1
        if self._reader.holds_arrays:
            fan_out = self._reader.fan_out
            size = fan_out * decode_chunk_size(share // fan_out, self._reader.record_bytes)
        size = math.ceil(len(numbers) / max(math.ceil(len(numbers) / size), 1)) or 1
        chunks = [slice(start, start + size) for start in range(0, len(numbers), size)]
        works = [(numbers[rows], None if keys is None else keys[rows]) for rows in chunks]
        return Chunks([self._pool.submit(self._decoded.read, *work) for work in works], size)
