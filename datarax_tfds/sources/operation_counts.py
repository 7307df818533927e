"""Counts the records that a source has handed out, from how far its cursor has moved."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax_tfds.order.cursor import Cursor
from datarax_tfds.order.wide_numbers import as_device_numbers, computed_wide, join_words


class OperationCounts(nnx.Module):
    """Derives the counts from the movement of the cursor, so that a step needs no counter:
    delivered = distance moved - seeks - records skipped by `drop`. Steps inside a compiled function
    count, too.

    Args:
        length: Number of records N.
    """

    def __init__(self, length: int):
        self._length = length
        # The epochs and positions moved by seeks, and the records skipped.
        self._not_delivered = nnx.Variable[Any](as_device_numbers(np.zeros(3, np.int64), length))

    def count_seek(self, before: Cursor, after: Cursor) -> None:
        """Subtracts the distance of a seek."""
        self._add(after.epoch - before.epoch, after.index, before.index, 0)

    def count_skipped(self, before: Cursor, after: Cursor, delivered: int) -> None:
        """Subtracts the records between two cursors that were not delivered; traceable."""
        passed = (after.epoch - before.epoch) * self._length + after.index - before.index
        self._add(0, 0, 0, passed - delivered)

    def reset(self, cursor: Cursor) -> None:
        """Counts from this cursor on."""
        counts = np.array([cursor.epoch, cursor.index, 0])
        self._not_delivered.set_value(as_device_numbers(counts, self._length))

    @property
    def mark(self) -> Any:
        """A snapshot of the counts, for `restore`."""
        return self._not_delivered.get_raw_value()

    def restore(self, mark: Any) -> None:
        """Undoes everything that was counted after a `mark`."""
        self._not_delivered.set_raw_value(mark)

    def at(self, cursor: Cursor) -> dict[str, int]:
        """The counts of a source at this cursor."""
        epochs, positions, skipped = join_words(self._not_delivered.get_value()).tolist()
        passed = (cursor.epoch - epochs) * self._length + cursor.index - positions
        return {"applied_count": passed - skipped, "skipped_count": skipped}

    def _add(self, epochs: Any, after: Any, before: Any, records: Any) -> None:
        held = self._not_delivered.get_value()
        change = (epochs, after, before, records)
        if any(isinstance(value, jax.core.Tracer) for value in (held, *change)):
            sums = computed_wide(self._length, self._sums, held, *change)
        else:
            sums = as_device_numbers(self._sums(join_words(held), *change), self._length)
        self._not_delivered.set_value(sums)

    def _sums(self, held: Any, epochs: Any, after: Any, before: Any, records: Any) -> Any:
        array = np if isinstance(held, np.ndarray) else jnp
        sums = held + array.asarray([epochs, after - before, records], held.dtype)
        # Full epochs of positions are carried over. Otherwise many seeks would overflow.
        carried = sums[1] // self._length
        return sums + carried * array.asarray([1, -self._length, 0], held.dtype)
