"""Which records a batch takes: those at a cursor, or any that are selected by number."""

import dataclasses
import functools
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from datarax_tfds.order.cursor import Cursor, Schedule
from datarax_tfds.order.growing import AnySchedule, GrowingSchedule
from datarax_tfds.order.keys import record_keys
from datarax_tfds.order.record_order import RecordOrder
from datarax_tfds.order.wide_numbers import computed_wide, is_wide, number_dtype
from sharding.checks import refused


class Selection(Protocol):
    """The records of a batch, in the order of its rows."""

    @property
    def batch_size(self) -> int:
        """Rows over all processes."""
        ...

    def record_numbers(self, rows: slice = slice(None)) -> Any:
        """The numbers of the records in these rows, `[rows]`; for padding, that of all records."""
        ...

    def keys(self, rows: slice = slice(None)) -> Any:
        """Two words for each of these rows, for a random `map_fn` or stage: `[rows, 2]` int32."""
        ...


@dataclass(frozen=True)
class BatchAt:
    """The batch at a cursor. It is hashable, so that a batch that is read ahead is found by it.

    Args:
        order: Which record stands at which position.
        schedule: How epochs are cut into batches.
        cursor: The position of the first row.
        seed: The seed of the keys.
    """

    order: RecordOrder
    schedule: AnySchedule
    cursor: Cursor
    seed: int

    @property
    def batch_size(self) -> int:
        return self.schedule.at(self.cursor).batch_size

    @property
    def records(self) -> np.int32:
        """How many rows are records; the others, at the end, are padding."""
        return np.int32(sum(span.stop - span.start for span in self.schedule.spans(self.cursor)))

    @property
    def following(self) -> Self:
        """The batch after this one."""
        after = self.schedule.after(self.cursor)
        return type(self)(self.order, self.schedule, after, self.seed)

    def record_numbers(self, rows: slice = slice(None)) -> np.ndarray:
        """Computes only these rows."""
        if self.schedule.strata > 1 and rows != slice(None):
            return self.record_numbers()[rows]
        parts = [
            self.order.host_numbers(epoch, start, stop, stride=self.batch_size)
            for epoch, start, stop in self._spans(rows)
        ]
        start, stop, _ = rows.indices(self.batch_size)
        padding = stop - start - sum(map(len, parts))
        if padding or not parts:
            parts.append(np.full(padding, self.order.records))
        numbers = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.schedule.strata == 1:
            return numbers
        index = self.schedule.normalized(self.cursor).index
        schedule = self.schedule.at(self.cursor)
        return numbers[schedule.steps_to_rows(index, np.arange(schedule.batch_size))]

    def keys(self, rows: slice = slice(None)) -> np.ndarray:
        numbers = self.record_numbers(rows)
        epochs = np.zeros(len(numbers), np.int64)
        filled = 0
        for epoch, start, stop in self._spans(rows):
            epochs[filled : filled + stop - start] = self.order.host_epochs(epoch, start, stop)
            filled += stop - start
        return _keys(self.order, self.seed, epochs, numbers)

    def _spans(self, rows: slice) -> Iterator[tuple[int, int, int]]:
        """The positions of these rows, as (epoch, first position, last position + 1)."""
        first, last, _ = rows.indices(self.batch_size)
        row = 0
        for epoch, start, stop in self.schedule.spans(self.cursor):
            lower, upper = max(first - row, 0), min(last - row, stop - start)
            if lower < upper:
                yield epoch, start + lower, start + upper
            row += stop - start


@dataclass(frozen=True, eq=False)
class ByNumber:
    """Records by number.

    Args:
        order: The order of the source.
        numbers: The numbers of the records, `[batch_size]`.
        epoch: The epoch of the keys.
        seed: The seed of the keys.
    """

    order: RecordOrder
    numbers: np.ndarray
    epoch: int
    seed: int

    @property
    def batch_size(self) -> int:
        return len(self.numbers)

    def record_numbers(self, rows: slice = slice(None)) -> np.ndarray:
        return self.numbers[rows]

    def keys(self, rows: slice = slice(None)) -> np.ndarray:
        return _keys(self.order, self.seed, self.epoch, self.numbers[rows])


@dataclass(frozen=True, eq=False)
class Traced:
    """A batch within a program of the caller, which computes its numbers when it runs.

    Args:
        order: The order of the source.
        epochs: The epochs of the keys: one, or `[batch_size]` int32.
        numbers: The numbers of the records, `[batch_size]`; for padding, that of all records. With
            2**31 records and more, as `as_device_numbers` makes them.
        seed: The seed of the keys.
        records: How many rows are records; None if all of them are.
    """

    order: RecordOrder
    epochs: Any
    numbers: Any
    seed: int
    records: Any = None

    @property
    def batch_size(self) -> int:
        return len(self.numbers)

    def record_numbers(self, rows: slice = slice(None)) -> Any:
        return self.numbers[rows]

    def keys(self, rows: slice = slice(None)) -> Any:
        return _keys(self.order, self.seed, self.epochs, self.numbers)[rows]


@dataclass(frozen=True)
class Sampler:
    """Makes batches from an order, and from the seed of all that is random in a source.

    Args:
        order: Which record stands at which position of an epoch.
        seed: The seed of the keys, even if records come in the order of the files.
    """

    order: RecordOrder
    seed: int

    @property
    def shuffled(self) -> bool:
        return self.order.seed is not None

    def at(self, schedule: AnySchedule, cursor: Cursor) -> BatchAt:
        """The batch at a cursor."""
        return BatchAt(self.order, schedule, cursor, self.seed)

    def select(self, schedule: AnySchedule, cursor: Cursor) -> BatchAt | Traced:
        """The batch at a cursor, which may be traced."""
        if not isinstance(cursor.index, jax.core.Tracer):
            return self.at(schedule, cursor)
        if isinstance(schedule, GrowingSchedule):
            raise refused(
                NotImplementedError,
                "batch_size",
                "a compiled function has one batch size, and here it depends on the cursor.",
                batch_size=schedule.batch_size,
                fix="take the batch outside of the function and pass it in, or use scan",
            )
        cursor = schedule.normalized(cursor)
        batch = self._traced(schedule, cursor.epoch, cursor.index)
        if schedule.remainder != "pad":
            return batch
        records = jnp.minimum(schedule.length - cursor.index, schedule.batch_size)
        is_record = jnp.arange(schedule.batch_size) < records
        numbers = jnp.where(is_record, batch.numbers, self.order.records)
        epochs = jnp.where(is_record, batch.epochs, 0)
        return dataclasses.replace(batch, epochs=epochs, numbers=numbers, records=records)

    def by_number(self, numbers: Any, epoch: Any) -> ByNumber | Traced:
        """Records by number, which may be traced; `epoch` is that of the keys."""
        if isinstance(numbers, jax.Array):
            return Traced(self.order, epoch, numbers, self.seed)
        return ByNumber(self.order, numbers, epoch, self.seed)

    def positions(
        self, epoch: int, start: int, size: int, key: jax.Array | None = None
    ) -> BatchAt | ByNumber | Traced:
        """The records at consecutive positions.

        Args:
            epoch: The epoch of position 0.
            start: The first position. Positions beyond the length belong to the next epochs, or
                wrap around if there is a key.
            size: The number of positions.
            key: The key of another random order, to use in place of this one if it is shuffled.
        """
        length = self.order.length
        if key is not None:
            places = (start % length + np.arange(size)) % length
            return self.by_number(self._keyed(places, key), epoch)
        epochs, index = divmod(start, length)
        return self.at(self._schedule(size), Cursor(epoch + epochs, index))

    def traced_positions(
        self, epoch: Any, start: Any, size: int, key: jax.Array | None = None
    ) -> Traced:
        """The same as `positions`, traceable in all but `size`."""
        schedule = self._schedule(size) if key is None else Schedule(self.order.length, size)
        return self._traced(schedule, epoch, start, key)

    def _traced(
        self, schedule: Schedule, epoch: Any, start: Any, key: jax.Array | None = None
    ) -> Traced:
        length = self.order.length
        signed = number_dtype(length)
        # Unsigned, because a position beyond the epoch may need one bit more.
        unsigned = np.uint64 if is_wide(length) else np.uint32

        def compute(start: Any) -> tuple[jax.Array, jax.Array]:
            if getattr(start, "dtype", np.dtype(np.int32)).itemsize < 4:
                start = start.astype(jnp.int32)
            first, place = divmod(start, length)
            place = jnp.asarray(place).astype(signed)
            steps = schedule.steps_to_rows(place, jnp.arange(schedule.batch_size, dtype=signed))
            positions = place.astype(unsigned) + steps.astype(unsigned)
            places = (positions % length).astype(signed)
            later = jnp.asarray(first).astype(jnp.int32) + (positions // length).astype(jnp.int32)
            epochs = jnp.asarray(epoch, jnp.int32) + later
            if key is None:
                numbers = self.order.device_numbers(epochs, places)
                return self.order.device_epochs(epochs, places), numbers
            return epochs, self._keyed(places, key)

        widest = max(length, self.order.records)
        epochs, numbers = computed_wide(widest, compute, start)
        return Traced(self.order, epochs, numbers, self.seed)

    def _schedule(self, size: int) -> Schedule:
        return Schedule(self.order.length, size, strata=self.order.strata)

    def _keyed(self, places: Any, key: jax.Array) -> Any:
        return self.order.keyed_numbers(places, key_word(key) if self.shuffled else None)


def _keys(order: RecordOrder, seed: int, epochs: Any, numbers: Any) -> Any:
    salts, within = order.salted(numbers)
    return record_keys(seed, epochs, within, salts)


def key_word(key: jax.Array) -> Any:
    """A PRNG key, typed or raw, as one 32-bit word; an integer unless the key is traced."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    words = jax.random.key_data(key) if typed else key
    traced = isinstance(words, jax.core.Tracer)
    if not traced:
        words = jax.device_get(words)
    word = functools.reduce(operator.xor, [words[i] for i in range(words.shape[-1])])
    return word if traced else int(word)
