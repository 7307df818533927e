"""How records lie in memory: rows of plain unsigned integers, one array for each width."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_ALIGNMENT = 64  # bytes; a buffer that starts there is taken over by the CPU backend, not copied

Rows = dict[int, Any]  # by bytes of an integer: `[n, columns]`


@dataclass(frozen=True)
class _Field:
    """One array of a record: columns `[start, stop)` of the rows of `width` bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    width: int
    start: int
    stop: int


class Packing:
    """Lays the arrays of a record side by side in rows.

    A dataset of any number of features is then a few arrays: a batch is as many gathers and
    exchanges between devices, and they are exact for every dtype, since they move plain integers.
    Rows keep the width of their values: to turn words into bytes after the gather, XLA takes
    five times as long on a CPU as for the gather itself.

    Args:
        spec: `jax.ShapeDtypeStruct` leaves in nested dicts: one record.
    """

    def __init__(self, spec: Mapping[str, Any]):
        leaves, self._structure = jax.tree.flatten(dict(spec))
        self._fields: list[_Field] = []
        self._columns: dict[int, int] = {}
        for leaf in leaves:
            dtype = np.dtype(leaf.dtype)
            parts = 2 if dtype.kind == "c" else 1
            width = dtype.itemsize // parts
            start = self._columns.get(width, 0)
            stop = start + math.prod(leaf.shape) * parts
            self._fields.append(_Field(leaf.shape, dtype, width, start, stop))
            self._columns[width] = stop

    @property
    def row_bytes(self) -> int:
        """Bytes of one record."""
        return sum(width * columns for width, columns in self._columns.items())

    def empty(self, rows: int) -> Rows:
        """Aligned buffers of zeros, their pages untouched."""
        return {width: _aligned(rows, columns, width) for width, columns in self._columns.items()}

    def pack(self, columns: Any, out: Rows) -> None:
        """Writes columns `[n, *shape]` of the dtypes of the spec into buffers of `n` rows."""
        for field, column in zip(self._fields, self._structure.flatten_up_to(columns), strict=True):
            values = np.ascontiguousarray(column).reshape(len(column), math.prod(field.shape))
            out[field.width][:, field.start : field.stop] = values.view(f"u{field.width}")

    def unpack(self, rows: Rows) -> dict[str, Any]:
        """The arrays `[n, *shape]` of rows; traceable."""
        return self._structure.unflatten(
            _values(rows[field.width][:, field.start : field.stop], field) for field in self._fields
        )


def _aligned(rows: int, columns: int, width: int) -> np.ndarray:
    size = rows * columns * width
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(f"u{width}").reshape(rows, columns)


def _values(bits: jax.Array, field: _Field) -> jax.Array:
    shape = (bits.shape[0], *field.shape)
    if field.dtype.kind == "c":
        parts = lax.bitcast_convert_type(bits, np.dtype(f"f{field.width}"))
        return lax.complex(parts[:, ::2], parts[:, 1::2]).reshape(shape)
    if field.dtype.kind == "b":
        return (bits != 0).reshape(shape)
    if jnp.issubdtype(field.dtype, jnp.integer) and jnp.iinfo(field.dtype).bits < 8:
        return bits.astype(field.dtype).reshape(shape)
    return lax.bitcast_convert_type(bits, field.dtype).reshape(shape)
