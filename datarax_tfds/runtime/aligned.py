"""Arrays in memory that JAX may use on the CPU without a copy."""

import math
from collections.abc import Callable, Sequence

import numpy as np

ALIGNMENT = 64  # bytes, of what XLA takes as it is


def aligned(
    shape: Sequence[int],
    dtype: np.dtype,
    allocate: Callable[[int, type[np.uint8]], np.ndarray] = np.empty,
) -> np.ndarray:
    """An array of this shape and dtype, which must not be of objects.

    Args:
        shape: Its shape.
        dtype: Its dtype.
        allocate: `np.zeros` for zeros, whose pages are not touched.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = allocate(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def concatenated(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Joins arrays `[n, ...]` of one dtype along their first axis, as `np.concatenate` does."""
    first = columns[0]
    if first.dtype.hasobject:
        return np.concatenate(columns)
    shape = (sum(map(len, columns)), *first.shape[1:])
    return np.concatenate(columns, out=aligned(shape, first.dtype))
