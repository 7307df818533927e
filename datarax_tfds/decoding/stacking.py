"""Stacks records as the columns of a batch, and pads what varies in size."""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from datarax_tfds.decoding.array_advice import padding_code
from datarax_tfds.decoding.device_dtypes import path_name
from datarax_tfds.decoding.padding import Entry, Leaf, PadTo, with_value
from sharding.checks import refused

_Where = Callable[[int], str]


class Stack:
    """Stacks records as columns. What `pad_to` names is padded with zeros, or with empty texts.

    Args:
        pad_to: The parts of a record, and their sizes.
    """

    def __init__(self, pad_to: PadTo):
        self._leaves, self._entries = pad_to.leaves, pad_to.entries
        self._structure = pad_to.structure

    def __call__(self, records: Iterable[Any], rows: int, where: _Where) -> dict[str, Any]:
        """Stacks `rows` records; only one if the shape of some part still varies.

        Args:
            records: NumPy arrays and texts, nested as they were before they are padded.
            rows: How many there are.
            where: Names the record in a row, for messages.

        Returns:
            Arrays `[rows, ...]`, nested as `pad_to.outputs`.

        Raises:
            ValueError: A record is larger than `pad_to`, or has other names, dtypes or shapes than
                the first one.
        """
        columns: list[Any] = [leaf.column(rows) for leaf in self._leaves]
        sizes = [np.zeros((rows, *entry.noted), np.int32) for entry in self._entries]
        for row, record in enumerate(records):
            values = self._checked(record, where, row)
            for place, (leaf, value) in enumerate(zip(self._leaves, values, strict=True)):
                if (column := columns[place]) is None:
                    columns[place] = value[np.newaxis]
                elif leaf.entry is None:
                    column[row] = value[()]
            for entry, noted in zip(self._entries, sizes, strict=True):
                shapes = [values[place].shape for place in entry.leaves]
                noted[row] = self._size(entry, shapes, where, row)
                for place in entry.leaves:
                    kept = tuple(
                        map(slice, map(min, values[place].shape, self._leaves[place].shape))
                    )
                    columns[place][(row, *kept)] = values[place][kept]
        return self._with_sizes(self._structure.unflatten(columns), sizes)

    def checked(self, columns: Any, rows: int, where: _Where) -> dict[str, Any]:
        """Records that `PadTo.in_graph` has padded, `[rows, ...]`, with their true sizes.

        Raises:
            ValueError: A record is larger than `pad_to`.
        """
        shapes = [of_leaf.tolist() for of_leaf in columns["shapes"]]
        sizes = [np.zeros((rows, *entry.noted), np.int32) for entry in self._entries]
        for row in range(rows):
            for entry, noted in zip(self._entries, sizes, strict=True):
                own = [tuple(shapes[place][row]) for place in entry.leaves]
                noted[row] = self._size(entry, own, where, row)
        return self._with_sizes(columns["record"], sizes)

    def lengths(
        self, names: Sequence[str], shapes: Iterable[Sequence[tuple[int, ...]]], where: _Where
    ) -> np.ndarray:
        """The lengths of parts that are padded to a length, before they are padded or cut.

        Args:
            names: Those of the parts in `pad_to`.
            shapes: For each record, the shapes of its arrays.
            where: Names the record in a row, for messages.

        Returns:
            int64 `[rows, names]`.
        """
        by_name = {entry.name: entry for entry in self._entries}
        entries = [by_name[name] for name in names]
        found = [
            [
                self._common(entry, [of_record[place] for place in entry.leaves], where, row)
                for entry in entries
            ]
            for row, of_record in enumerate(shapes)
        ]
        return np.array(found, np.int64).reshape(-1, len(entries))

    def _with_sizes(self, columns: Any, sizes: list[np.ndarray]) -> dict[str, Any]:
        for entry, noted in zip(self._entries, sizes, strict=True):
            columns = with_value(columns, entry.place, noted)
        return columns

    def _size(
        self, entry: Entry, shapes: list[tuple[int, ...]], where: _Where, row: int
    ) -> int | tuple[int, ...]:
        """The size of a record to note, given the shapes of the parts of an entry."""
        for place, shape in zip(entry.leaves, shapes, strict=True):
            leaf = self._leaves[place]
            if not entry.truncate and any(map(operator.gt, shape, leaf.shape)):
                raise self._too_large(entry, leaf, shape, where(row))
        size = self._common(entry, shapes, where, row)
        return min(size, entry.sizes) if isinstance(entry.sizes, int) else size

    def _common(self, entry: Entry, shapes: list[tuple[int, ...]], where: _Where, row: int) -> Any:
        """The length that the parts of an entry have in common, or the shape that is kept."""
        found: dict[str, Any] = {}
        for place, shape in zip(entry.leaves, shapes, strict=True):
            leaf = self._leaves[place]
            kept = tuple(map(min, shape, leaf.shape))
            found[leaf.name] = shape[0] if entry.noted == () else kept
        if len(set(found.values())) > 1:
            raise refused(
                ValueError,
                where(row),
                f"the parts of {entry.name!r} differ in length.",
                lengths=", ".join(f"{name} {length}" for name, length in found.items()),
                fix=f"in place of {entry.name!r}, name {' and '.join(map(repr, found))}, each with"
                " its size",
            )
        return next(iter(found.values()))

    def shapes(self, record: Any, where: _Where, row: int) -> list[tuple[int, ...]]:
        """The shapes of the arrays of a record, which is checked as it is stacked."""
        return [value.shape for value in self._checked(record, where, row)]

    def _checked(self, record: Any, where: _Where, row: int) -> list[np.ndarray]:
        """The arrays of a record, which must have the names, dtypes and shapes of the first one."""
        values, structure = jax.tree.flatten(record)
        if structure != self._structure:
            names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(record)]
            first = [leaf.name for leaf in self._leaves]
            facts = {"features": ", ".join(names), "first": ", ".join(first)}
            raise self._other(where(row), "other names", facts, padding_code("x", (None,)))
        for leaf, value in zip(self._leaves, values, strict=True):
            if not leaf.fits(value):
                facts = {
                    "feature": leaf.name,
                    "got": f"{value.dtype}{list(value.shape)}",
                    "first": f"{leaf.dtype}{leaf.spec.shape.as_list()}",
                }
                raise self._other(
                    where(row), "another dtype or shape", facts, _padded(leaf, value.shape)
                )
        return values

    def _other(self, where: str, what: str, facts: dict[str, str], padded: str) -> ValueError:
        return refused(
            ValueError,
            where,
            f"transform gives this record {what} than the first one.",
            **facts,
            fix="let transform return the same names, dtypes and shapes for every record, as"
            f" np.asarray(x, np.float32); pad what varies in size, as {padded}",
        )

    def _too_large(
        self, entry: Entry, leaf: Leaf, shape: tuple[int, ...], where: str
    ) -> ValueError:
        large = {"shape": shape} if entry.noted else {"length": shape[0]}
        needed = tuple(map(max, shape, leaf.shape)) if entry.noted else shape[0]
        return refused(
            ValueError,
            where,
            f"feature {leaf.name!r} is larger than pad_to allows.",
            **large,
            pad_to=f"{{{entry.name!r}: {entry.sizes}}}",
            fix=f"use pad_to={{{entry.name!r}: {needed}}} or more, or cut what is longer, with"
            f" truncate={{{entry.name!r}}}",
        )


def _padded(leaf: Leaf, shape: tuple[int, ...]) -> str:
    """The argument that pads a part in those axes in which a record differs."""
    axes: list[int | None] = [None]
    if len(shape) == len(leaf.shape) and shape != leaf.shape:
        both = zip(shape, leaf.shape, strict=True)
        axes = [size if size == first else None for size, first in both]
    return padding_code(leaf.name, axes)
