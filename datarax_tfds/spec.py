"""Which features become arrays, under which name, and of which shape and dtype on the device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from datarax_tfds.config import AnyConfig
from sharding.messages import explain


def select_features(info: Any, config: AnyConfig, subject: str) -> dict[str, str]:
    """The names of a record's arrays, each with the feature that it is made of.

    Args:
        info: The `tfds.core.DatasetInfo`.
        config: Its key filters, and `as_supervised`.
        subject: Who selects, for messages.

    Raises:
        ValueError: A key that the dataset does not have, nothing left, or `as_supervised` for a
            dataset without an (input, target) pair.
    """
    features = set(info.features)
    filtered = config.include_keys if config.include_keys is not None else config.exclude_keys
    unknown = set(filtered or ()) - features
    if unknown:
        raise ValueError(
            explain(
                subject,
                f"the dataset has no feature {', '.join(map(repr, sorted(unknown)))}.",
                features=", ".join(sorted(features)),
                fix="name features of this dataset in include_keys or exclude_keys",
            )
        )
    if config.include_keys is not None:
        features &= config.include_keys
    elif config.exclude_keys is not None:
        features -= config.exclude_keys
    if not features:
        raise ValueError(
            explain(
                subject,
                "the key filter leaves no feature.",
                features=", ".join(sorted(info.features)),
                fix="include at least one, or leave the filter out",
            )
        )
    if not config.as_supervised:
        return {name: name for name in sorted(features)}
    keys = info.supervised_keys
    pair = isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(key, str) for key in keys)
    if not pair or not set(keys) <= features:
        raise ValueError(
            explain(
                subject,
                "as_supervised needs an input and a target feature.",
                supervised_keys=keys,
                features=", ".join(sorted(features)),
                fix="read the features by their names, with as_supervised=False",
            )
        )
    return {"image": keys[0], "label": keys[1]}


@dataclass(frozen=True)
class Unbatched:
    """A part of a record that no batch can hold: text, or an array whose shape varies.

    Args:
        shape: As of an array; None for a length that varies from record to record.
        dtype: As of an array; `object` for text and bytes.
    """

    shape: tuple[int | None, ...]
    dtype: np.dtype


def element_spec(outputs: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """What one record is on the device, nested as what is decoded.

    Args:
        outputs: TensorFlow's type specs of a decoded record, in nested dicts.
        subject: Who reads, for messages.

    Returns:
        A `jax.ShapeDtypeStruct` for each array, without a batch axis, and `Unbatched` for what no
        batch can hold. 64-bit types are 32-bit ones unless `jax_enable_x64` is on.

    Raises:
        ValueError: A feature that is no array even in a single record.
    """

    def spec(path: Any, output: Any) -> jax.ShapeDtypeStruct | Unbatched:
        shape = getattr(output, "shape", None)
        if type(output).__name__ != "TensorSpec" or shape is None or shape.rank is None:
            raise _no_array(path, "is no array of a known rank", output, subject)
        dtype = np.dtype(output.dtype.as_numpy_dtype)
        if dtype.kind != "O":
            dtype = jax.dtypes.canonicalize_dtype(dtype)
        of = Unbatched if dtype.kind == "O" or None in shape.as_list() else jax.ShapeDtypeStruct
        return of(tuple(shape.as_list()), dtype)

    return jax.tree_util.tree_map_with_path(spec, dict(outputs))


def require_arrays(spec: Mapping[str, Any], subject: str) -> None:
    """Refuses records that cannot be rows of a `jax.Array`.

    Raises:
        ValueError: A feature holds text or bytes, or its shape varies from record to record. The
            message names it, and the remedies.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(spec):
        if isinstance(leaf, Unbatched):
            problem = "varies in shape from record to record"
            if leaf.dtype.kind == "O":
                problem = "holds no numbers, so that no jax.Array can hold it"
            raise _no_array(path, problem, leaf, subject)


def require_same_widths(spec: Mapping[str, Any], subject: str) -> None:
    """Refuses to go on where 64-bit types were on when the spec was made, and are off now.

    Raises:
        RuntimeError: JAX would cut the values of a feature.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(spec):
        if leaf.dtype.itemsize == 8 and leaf.dtype.kind in "iuf":
            now = jax.dtypes.canonicalize_dtype(leaf.dtype)
            if now != leaf.dtype:
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                raise RuntimeError(
                    explain(
                        subject,
                        f"feature {where!r} would be cut: 64-bit types have been turned off.",
                        dtype=f"{leaf.dtype} when the source was built, {now} now",
                        fix="leave jax_enable_x64 as it was, or build the source anew",
                    )
                )


def holds_arrays(spec: Mapping[str, Any]) -> bool:
    """Whether records can be rows of a `jax.Array`."""
    return not any(isinstance(leaf, Unbatched) for leaf in jax.tree.leaves(spec))


def _no_array(path: Any, problem: str, spec: Any, subject: str) -> ValueError:
    where = jax.tree_util.keystr(path, simple=True, separator="/")
    return ValueError(
        explain(
            subject,
            f"feature {where!r} {problem}.",
            shape=getattr(spec, "shape", None),
            dtype=getattr(spec, "dtype", type(spec).__name__),
            fix=f"leave it out with exclude_keys={{{where.split('/')[0]!r}}}, or turn it into"
            " numbers of one shape with map_fn",
        )
    )


def narrowed(column: np.ndarray, dtype: np.dtype, where: Callable[[int], str]) -> np.ndarray:
    """A column of a batch in the dtype of the device, with no value lost unseen.

    Args:
        column: `[rows, ...]` as read.
        dtype: That of `element_spec`.
        where: Names the value in a row, for messages.

    Raises:
        OverflowError: An integer that does not fit, or a finite float that would become infinite.
    """
    if column.dtype == dtype:
        return column
    with np.errstate(over="ignore"):
        result = column.astype(dtype)
    if dtype.kind in "iu":
        lost = (column < np.iinfo(dtype).min) | (column > np.iinfo(dtype).max)
    else:
        lost = np.isinf(result) & np.isfinite(column)
    if lost.any():
        place = tuple(np.argwhere(lost)[0])
        raise OverflowError(
            explain(
                where(int(place[0])),
                f"the value does not fit {dtype}.",
                value=f"{column[place]!s} ({column.dtype})",
                fix="turn on 64-bit types with jax.config.update('jax_enable_x64', True), cast it"
                " in map_fn, or leave the feature out with exclude_keys",
            )
        )
    return result
