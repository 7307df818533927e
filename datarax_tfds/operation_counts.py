"""How many records a source has handed out, told from how far its cursor has come."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax_tfds.cursor import Cursor


class OperationCounts(nnx.Module):
    """Counts without counting: a step costs nothing, and one inside a compiled function counts too.

    What was handed out is the way of the cursor, less its jumps and less what a remainder policy
    left out.

    Args:
        length: Number of records N.
    """

    def __init__(self, length: int):
        self._length = length
        # Epochs and positions that the cursor jumped, and records left out: three that stay small.
        self._apart = nnx.Variable[Any](np.zeros(3, np.int32))

    def jumped(self, before: Cursor, after: Cursor) -> None:
        """Leaves out the way between two cursors."""
        self._add(after.epoch - before.epoch, after.index - before.index, 0)

    def left_out(self, records: Any) -> None:
        """Notes records that the cursor passed, and that nobody gets; traceable."""
        self._add(0, 0, records)

    def reset(self, cursor: Cursor) -> None:
        """Counts from here."""
        self._apart.set_value(np.array([cursor.epoch, cursor.index, 0], np.int32))

    def at(self, cursor: Cursor) -> dict[str, int]:
        """The counts of a source which has come to a cursor."""
        epochs, positions, skipped = map(int, self._apart.get_value())
        passed = (cursor.epoch - epochs) * self._length + cursor.index - positions
        return {"applied_count": passed - skipped, "skipped_count": skipped}

    def _add(self, epochs: Any, positions: Any, records: Any) -> None:
        apart = self._apart.get_value()
        traced = any(isinstance(v, jax.core.Tracer) for v in (apart, epochs, positions, records))
        array = jnp if traced else np
        sums = array.asarray(apart) + array.asarray([epochs, positions, records], np.int32)
        # Whole epochs are carried over, else jumps to and fro would overflow in the end.
        carried = sums[1] // self._length
        carry = array.asarray([1, -self._length, 0], np.int32)
        self._apart.set_value(sums + carried * carry)
