"""Which records a batch takes: those at a cursor, or any that were chosen."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from datarax_tfds.block_order import BlockOrder
from datarax_tfds.cursor import Cursor, Schedule
from datarax_tfds.hashing import record_keys
from datarax_tfds.order import Order


class Selection(Protocol):
    """The records of a batch, in the order of its rows."""

    @property
    def batch_size(self) -> int:
        """Rows over all processes."""
        ...

    def numbers(self, rows: slice = slice(None)) -> np.ndarray:
        """The numbers of the records in those rows: `[rows]`, N where a row is padding."""
        ...

    def keys(self, rows: slice = slice(None)) -> np.ndarray:
        """A seed for each of those rows, for a random `map_fn`: `[rows, 2]` int32."""
        ...


@dataclass(frozen=True)
class AtCursor:
    """The batch at a cursor. A value: what is read ahead of its use is found again by it.

    Args:
        order: Which record stands at which position.
        schedule: How epochs are cut into batches.
        cursor: The position of the first row.
        seed: Of the keys.
    """

    order: Order | BlockOrder
    schedule: Schedule
    cursor: Cursor
    seed: int

    @property
    def batch_size(self) -> int:
        return self.schedule.batch_size

    @property
    def records(self) -> int:
        """How many rows are records; the others, at the end, are padding."""
        return sum(span.stop - span.start for span in self.schedule.spans(self.cursor))

    @property
    def following(self) -> Self:
        """The batch after this one."""
        after = self.schedule.after(self.cursor)
        return type(self)(self.order, self.schedule, after, self.seed)

    def numbers(self, rows: slice = slice(None)) -> np.ndarray:
        """Costs what those rows cost, however many others there are."""
        parts = [
            self.order.span(epoch, start, stop, stride=self.batch_size)
            for epoch, start, stop in self._spans(rows)
        ]
        start, stop, _ = rows.indices(self.batch_size)
        padding = stop - start - sum(map(len, parts))
        if padding or not parts:
            parts.append(np.full(padding, self.schedule.length))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def keys(self, rows: slice = slice(None)) -> np.ndarray:
        numbers = self.numbers(rows)
        epochs = np.zeros(len(numbers), np.int64)
        filled = 0
        for epoch, start, stop in self._spans(rows):
            epochs[filled : filled + stop - start] = epoch
            filled += stop - start
        return record_keys(self.seed, epochs, numbers)

    def _spans(self, rows: slice) -> Iterator[tuple[int, int, int]]:
        """What those rows take, as (epoch, first position, last position + 1)."""
        first, last, _ = rows.indices(self.batch_size)
        row = 0
        for epoch, start, stop in self.schedule.spans(self.cursor):
            lower, upper = max(first - row, 0), min(last - row, stop - start)
            if lower < upper:
                yield epoch, start + lower, start + upper
            row += stop - start


@dataclass(frozen=True, eq=False)
class Chosen:
    """Records by number.

    Args:
        chosen: Their numbers, `[batch_size]`.
        epoch: Of the keys.
        seed: Of the keys.
    """

    chosen: np.ndarray
    epoch: int
    seed: int

    @property
    def batch_size(self) -> int:
        return len(self.chosen)

    def numbers(self, rows: slice = slice(None)) -> np.ndarray:
        return self.chosen[rows]

    def keys(self, rows: slice = slice(None)) -> np.ndarray:
        return record_keys(self.seed, self.epoch, self.chosen[rows])
