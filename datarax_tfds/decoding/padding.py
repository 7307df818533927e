"""Finds what `pad_to` of a config means for the records of a dataset."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import numpy as np

from datarax_tfds.config.config import AnyConfig
from datarax_tfds.decoding.array_advice import dense_code, padding_code
from datarax_tfds.decoding.device_dtypes import path_name
from datarax_tfds.decoding.plan import nearest_feature
from sharding.checks import refused


@dataclass(frozen=True)
class Leaf:
    """An array of a record.

    Args:
        path: Its place, as JAX names it.
        spec: Its type spec of TensorFlow; other than a `TensorSpec` if it is not an array.
        entry: The name in `pad_to` that stands for it; None if it is not padded.
        shape: Its shape in a batch; None for sizes that vary.
        padded: Which axes are padded.
    """

    path: Any
    spec: Any
    entry: str | None
    shape: tuple[Any, ...]
    padded: tuple[bool, ...]

    @classmethod
    def unpadded(cls, path: Any, spec: Any) -> Self:
        shape = tuple(spec.shape.as_list())
        return cls(path, spec, None, shape, (False,) * len(shape))

    @property
    def name(self) -> str:
        return path_name(self.path)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.spec.dtype.as_numpy_dtype)

    def column(self, rows: int) -> np.ndarray | None:
        """Zeros, or empty texts, `[rows, ...]`; None if its shape varies."""
        if None in self.shape:
            return None
        return np.full((rows, *self.shape), b"" if self.dtype.kind == "O" else 0, self.dtype)

    def fits(self, value: np.ndarray) -> bool:
        """Whether a value has the dtype and the shape of the others, but for what is padded."""
        if value.dtype != self.dtype or value.ndim != len(self.shape):
            return False
        axes = zip(value.shape, self.shape, self.padded, strict=True)
        return all(padded or want in (None, size) for size, want, padded in axes)


@dataclass(frozen=True)
class Entry:
    """A name in `pad_to`, with the leaves that it stands for and where their true size goes."""

    name: str
    sizes: int | tuple[int | None, ...]
    truncate: bool
    leaves: tuple[int, ...]
    place: tuple[str, ...]

    @property
    def noted(self) -> tuple[int, ...]:
        """The shape of what notes the true size of a record."""
        return () if isinstance(self.sizes, int) else (len(self.sizes),)


class PadTo:
    """The parts of a record, with the sizes to which some of them are padded.

    A part that is padded to a length gets an int32 `<name>_length` beside it: how many of its first
    rows are not padding. One that is padded to a shape gets an int32 `<name>_shape`.

    Args:
        tf: TensorFlow.
        outputs: TensorFlow's type specs of a record, nested.
        config: Says what is padded to which size, and what may be cut.
        subject: The source that reads, for messages.

    Attributes:
        leaves: The arrays of a record.
        entries: The names in `pad_to`.
        structure: The tree of the leaves.
        outputs: The type specs of a padded record.

    Raises:
        ValueError: `pad_to` names what a record does not have or what cannot be padded, or leaves a
            size of it open.
    """

    def __init__(self, tf: Any, outputs: Mapping[str, Any], config: AnyConfig, subject: str):
        self._subject = subject
        found, self.structure = jax.tree_util.tree_flatten_with_path(dict(outputs))
        self.leaves = [Leaf.unpadded(path, spec) for path, spec in found]
        truncate = config.truncate or frozenset()
        self.entries = [
            self._resolved(name, sizes, name in truncate)
            for name, sizes in sorted((config.pad_to or {}).items())
        ]
        specs = [
            leaf.spec if leaf.entry is None else tf.TensorSpec(leaf.shape, leaf.spec.dtype)
            for leaf in self.leaves
        ]
        self.outputs: dict[str, Any] = self.structure.unflatten(specs)
        for entry in self.entries:
            self._require_free(entry.place)
            self.outputs = with_value(
                self.outputs, entry.place, tf.TensorSpec(entry.noted, tf.int32)
            )

    @property
    def fixes_all(self) -> bool:
        """Whether a padded record has one shape."""
        return all(None not in leaf.shape for leaf in self.leaves)

    def in_graph(self, tf: Any, record: Any) -> dict[str, Any]:
        """Pads and cuts a record of tensors; returns it with the shapes that its parts had."""
        leaves, shapes = self.structure.flatten_up_to(record), []
        for place, leaf in enumerate(self.leaves):
            shapes.append(tf.shape(leaves[place]))
            if leaf.entry is not None:
                part = leaves[place][tuple(slice(size) for size in leaf.shape)]
                missing = tf.constant(leaf.shape) - tf.shape(part)
                padded = tf.pad(part, tf.stack([tf.zeros_like(missing), missing], axis=1))
                leaves[place] = tf.ensure_shape(padded, leaf.shape)
        return {"record": self.structure.unflatten(leaves), "shapes": shapes}

    def _resolved(self, name: str, sizes: Any, truncate: bool) -> Entry:
        """Finds the leaves of a name, and sets their sizes."""
        places, paths = [], []
        for place, leaf in enumerate(self.leaves):
            depths = range(1, len(leaf.path) + 1)
            for path in [leaf.path[:depth] for depth in depths]:
                if path_name(path) == name:
                    places.append(place)
                    paths.append(path)
        if not places:
            names = [leaf.name for leaf in self.leaves]
            raise refused(
                ValueError,
                self._subject,
                f"pad_to must name features of a record, got {name!r}.",
                features=", ".join(names),
                fix=f"use {nearest_feature(name, names)!r} in place of {name!r}",
            )
        keys = [getattr(key, "key", None) for key in paths[0]]
        if not all(isinstance(key, str) for key in keys):
            raise refused(
                ValueError,
                self._subject,
                f"{name!r} is a part of a tuple, so there is no place for its length beside it.",
                features=", ".join(leaf.name for leaf in self.leaves),
                fix="let map_fn return a dict in place of the tuple, or read the features by their"
                " names, without as_supervised",
            )
        for place in places:
            self.leaves[place] = self._sized(self.leaves[place], name, sizes)
        suffix = "length" if isinstance(sizes, int) else "shape"
        beside = (*map(str, keys[:-1]), f"{keys[-1]}_{suffix}")
        return Entry(name, sizes, truncate, tuple(places), beside)

    def _sized(self, leaf: Leaf, name: str, sizes: int | tuple[int | None, ...]) -> Leaf:
        if leaf.entry is not None:
            raise refused(
                ValueError,
                self._subject,
                f"pad_to names {leaf.name!r} twice.",
                pad_to=f"{leaf.entry!r}, {name!r}",
                fix=f"leave {leaf.entry!r} out of pad_to, or leave {name!r} out of it",
            )
        if type(leaf.spec).__name__ != "TensorSpec":
            raise refused(
                ValueError,
                self._subject,
                f"feature {leaf.name!r} varies in length within a record, which pad_to cannot pad.",
                shape=leaf.spec.shape,
                fix=f"leave {name!r} out of pad_to, and let map_fn return an array for"
                f" {leaf.name!r}, as {dense_code(leaf.spec)}",
            )
        declared = leaf.shape
        given = (sizes, *declared[1:]) if isinstance(sizes, int) else sizes
        if declared and len(given) == len(declared):
            full = tuple(map(lambda size, known: known if size is None else size, given, declared))
            if None not in full:
                first = (True, *(False for _ in full[1:]))
                padded = (
                    first if isinstance(sizes, int) else tuple(size is not None for size in sizes)
                )
                return replace(leaf, entry=name, shape=full, padded=padded)
        fix = f"leave {name!r} out of pad_to"
        if declared:
            fix = f"give each axis that varies its size, as {padding_code(leaf.name, declared)}"
        raise refused(
            ValueError,
            self._subject,
            f"pad_to does not fit the axes of {leaf.name!r}.",
            pad_to=repr(sizes),
            shape=leaf.spec.shape,
            fix=fix,
        )

    def _require_free(self, place: tuple[str, ...]) -> None:
        nest: Any = self.outputs
        for name in place[:-1]:
            nest = nest[name]
        if place[-1] in nest:
            raise refused(
                ValueError,
                self._subject,
                f"pad_to adds {'/'.join(place)!r}, and the record has a feature of that name.",
                features=", ".join(leaf.name for leaf in self.leaves),
                fix="let map_fn leave that feature out, or name it otherwise",
            )


def with_value(nest: Any, place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of nested dicts with one more value."""
    first, *deeper = place
    return {**nest, first: with_value(nest[first], tuple(deeper), value) if deeper else value}
