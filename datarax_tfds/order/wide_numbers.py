"""Holds record numbers and positions that need more than 32 bits, also where JAX has no int64.

A split of 2**31 records and more is *wide*. On the host, its numbers are int64. On the devices they
are int64 if `jax_enable_x64` is on; otherwise each number is two uint32 words along a new last
axis, the low word first, as in `jax.lax.bitcast_convert_type`. Numbers of other splits are int32.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sharding.checks import refused

# Numbers from here on are counters of other random keys: see `record_keys`.
MAX_RECORDS = 2**61


def is_wide(length: int) -> bool:
    """Whether the numbers and positions of this many records need more than 32 bits."""
    return length >= 2**31


def number_dtype(length: int) -> type[np.signedinteger]:
    """The dtype of the numbers of this many records on the host."""
    return np.int64 if is_wide(length) else np.int32


def as_device_numbers(numbers: Any, length: int) -> Any:
    """Numbers of this many records, an integer or a NumPy array, as the devices hold them.

    JAX arrays, and integers below 2**31, stay as they are.
    """
    if isinstance(numbers, jax.Array):
        return numbers
    if not is_wide(length):
        return numbers if isinstance(numbers, int) else numbers.astype(np.int32, copy=False)
    numbers = np.asarray(numbers, np.int64)
    return numbers if _has_int64() else numbers[..., None].view(np.uint32)


def join_words(words: Any) -> np.ndarray:
    """Joins record numbers that are two 32-bit words each; numbers in one piece stay as they are.

    A batch of a split of 2**31 records and more has such numbers if `jax_enable_x64` is off.

        numbers = join_words(batch["record_number"])

    Args:
        words: uint32 `[..., 2]`, the low word first, or integers of another dtype `[...]`. An array
            that spans processes must be passed by its `addressable_shards`.

    Returns:
        int64 `[...]`, a NumPy array; -1 for padding.

    Raises:
        TypeError: `words` has another dtype or shape.
    """
    array = np.asarray(jax.device_get(words))
    if are_words(array):
        return np.ascontiguousarray(array).view(np.int64)[..., 0]
    if array.dtype.kind not in "iu":
        raise refused(
            TypeError,
            "join_words",
            "words must be uint32 [..., 2], or integers.",
            got=f"{array.dtype}{list(array.shape)}",
            fix="pass batch['record_number']",
        )
    return array.astype(np.int64)


def are_words(value: Any) -> bool:
    """Whether this is an array of numbers of two words each."""
    return getattr(value, "dtype", None) == np.uint32 and value.shape[-1:] == (2,)


def computed_wide(length: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns `function(*arguments)`, computed on the devices with int64 if the split is wide.

    Words among the arguments and results are joined and split. Traceable: 64-bit types are on only
    while `function` is traced.
    """
    if not is_wide(length):
        return function(*arguments)
    has_int64 = _has_int64()
    with jax.enable_x64(True):
        results = function(*map(_joined, arguments))
        return results if has_int64 else jax.tree.map(_split, results)


def _has_int64() -> bool:
    return jax.dtypes.canonicalize_dtype(np.int64) == np.int64


def _joined(value: Any) -> jax.Array:
    if are_words(value):
        return lax.bitcast_convert_type(value, jnp.int64)
    return jnp.asarray(value, jnp.int64)


def _split(value: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(value, jnp.uint32) if value.dtype == np.int64 else value
