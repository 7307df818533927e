"""Converts records to the dtypes on the devices, and refuses values that do not fit them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from sharding.checks import refused


def require_same_widths(spec: Mapping[str, Any], subject: str) -> None:
    """Raises if 64-bit types were on when the spec was made, and are off now.

    Raises:
        RuntimeError: JAX would cut the values of a feature.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(spec):
        if leaf.dtype.itemsize == 8 and leaf.dtype.kind in "iuf":
            now = jax.dtypes.canonicalize_dtype(leaf.dtype)
            if now != leaf.dtype:
                raise refused(
                    RuntimeError,
                    subject,
                    f"feature {path_name(path)!r} would be cut, because 64-bit types have been"
                    " turned off.",
                    dtype=f"{leaf.dtype} when the source was built, {now} now",
                    fix="leave jax_enable_x64 as it was, or build the source anew",
                )


def to_device_dtype(column: np.ndarray, dtype: np.dtype, where: Callable[[int], str]) -> np.ndarray:
    """Converts a column of a batch to its dtype on the devices.

    Args:
        column: The values as read, `[rows, ...]`.
        dtype: The dtype on the devices.
        where: Names the value in a row, for messages.

    Raises:
        OverflowError: An integer does not fit, or a finite float would become infinite.
    """
    if column.dtype == dtype or column.dtype.kind == "O":  # text, or arrays of several shapes
        return column
    with np.errstate(over="ignore"):
        result = column.astype(dtype)
    if dtype.kind in "iu":
        lost = (column < np.iinfo(dtype).min) | (column > np.iinfo(dtype).max)
    else:
        lost = np.isinf(result) & np.isfinite(column)
    if lost.any():
        place = tuple(np.argwhere(lost)[0])
        raise refused(
            OverflowError,
            where(int(place[0])),
            f"the value does not fit {dtype}.",
            value=f"{column[place]!s} ({column.dtype})",
            fix="turn on 64-bit types with jax.config.update('jax_enable_x64', True), keep"
            " the feature on the host with host_keys, cast it in map_fn, or leave it out with"
            " exclude_keys",
        )
    return result


def path_name(path: Any) -> str:
    """The path of a nested feature, as `objects/label`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
