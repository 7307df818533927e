"""Packs records into rows of plain unsigned integers, one array for each width."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from datarax_tfds.runtime.aligned import aligned

# With at least this many fields of one shape and dtype, their places are program arguments.
_MIN_ALIKE = 16

PackedRows = dict[int, Any]  # for each width of integers in bytes: `[n, columns]`


class Packed(NamedTuple):
    """Packed records, with what a program needs to unpack them."""

    rows: PackedRows
    starts: tuple[Any, ...]  # `Packing.starts`, on the devices


@dataclass(frozen=True)
class _Field:
    """One array of a record: columns `[start, stop)` of the rows of `width` bytes.

    If `terms` is set, those two elements of `Packing.starts` add up to `start`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    width: int
    start: int
    stop: int
    terms: tuple[int, int] | None = None


class Packing:
    """Lays the arrays of a record side by side in rows.

    A dataset with any number of features is then a few arrays, so a batch takes only a few gathers
    and exchanges between devices. They are exact for every dtype, because they move plain integers.
    Each width of values has its own array: turning words into bytes after the gather would take XLA
    on a CPU five times as long as the gather itself.

    XLA compiles one kernel for each slice at a fixed place (10 to 20 ms), but a single kernel for
    all slices of equal size whose places are arguments of the program. So the places of the columns
    of wide tables are arguments: 400 columns then compile in 0.3 s instead of 4 s. A place is the
    sum of two arguments, so that C columns need about 2 * sqrt(C) of them.

    Args:
        spec: `jax.ShapeDtypeStruct` leaves in nested dicts: one record.

    Attributes:
        starts: An argument of `unpack`; empty unless many fields are alike.
    """

    def __init__(self, spec: Mapping[str, Any]):
        leaves, self._structure = jax.tree.flatten(dict(spec))
        self._columns: dict[int, int] = {}
        self.starts: tuple[np.uint32, ...] = ()
        kinds = [(leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves]
        fields = {kind: self._alike(*kind, count) for kind, count in Counter(kinds).items()}
        self._fields = [next(fields[kind]) for kind in kinds]

    def _alike(self, shape: tuple[int, ...], dtype: np.dtype, count: int) -> Iterator[_Field]:
        """Makes room for `count` fields of one shape and dtype, side by side."""
        parts = 2 if dtype.kind == "c" else 1
        width, size = dtype.itemsize // parts, math.prod(shape) * parts
        first = self._columns.get(width, 0)
        self._columns[width] = first + count * size
        starts = range(first, first + count * size, size) if size else [first] * count
        terms: list[tuple[int, int] | None] = [None] * count
        if count >= _MIN_ALIKE and size:
            side = math.isqrt(count - 1) + 1
            base = len(self.starts)
            self.starts += tuple(np.uint32(start) for start in starts[::side])
            coarse = len(self.starts)
            self.starts += tuple(np.uint32(n * size) for n in range(side))
            terms = [(base + n // side, coarse + n % side) for n in range(count)]
        return (
            _Field(shape, dtype, width, start, start + size, of_field)
            for start, of_field in zip(starts, terms, strict=True)
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of one record."""
        return sum(width * columns for width, columns in self._columns.items())

    def empty(self, rows: int) -> PackedRows:
        """Returns aligned buffers of zeros, without touching their memory pages."""
        return {
            width: aligned((rows, columns), np.dtype(f"u{width}"), np.zeros)
            for width, columns in self._columns.items()
        }

    def pack(self, columns: Any, out: PackedRows) -> None:
        """Writes columns `[n, *shape]` of the dtypes of the spec into buffers of `n` rows."""
        for field, column in zip(self._fields, self._structure.flatten_up_to(columns), strict=True):
            values = np.ascontiguousarray(column).reshape(len(column), math.prod(field.shape))
            out[field.width][:, field.start : field.stop] = values.view(f"u{field.width}")

    def unpack(self, rows: PackedRows, starts: tuple[Any, ...]) -> dict[str, Any]:
        """Returns the arrays `[n, *shape]` of rows; traceable.

        Args:
            rows: As `pack` wrote them.
            starts: `self.starts`, passed as arguments of the compiled program, not as constants.
        """
        return self._structure.unflatten(
            _values(_bits(rows[field.width], starts, field), field) for field in self._fields
        )


def _bits(rows: jax.Array, starts: tuple[Any, ...], field: _Field) -> jax.Array:
    if field.terms is None:
        return rows[:, field.start : field.stop]
    # Unsigned: otherwise JAX adds code for negative starts to each slice.
    coarse, fine = field.terms
    place = np.uint32(0), starts[coarse] + starts[fine]
    return lax.dynamic_slice(rows, place, (rows.shape[0], field.stop - field.start))


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
