"""What may be passed to a source: told at once, and by name, from what may not."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sharding.integers import is_integer
from sharding.messages import explain


def require_config(config: Any, kind: type, subject: str) -> None:
    """Refuses what is not the config of this kind of source."""
    if type(config) is not kind:
        raise TypeError(
            explain(
                subject,
                f"such a source has a {kind.__name__}.",
                config=type(config).__name__,
                fix=f"pass {kind.__name__}(name=..., split=...), or build the other source",
            )
        )


def require_rngs(rngs: Any, subject: str) -> None:
    """Refuses what is no streams of keys, and is not absent."""
    if rngs is not None and not isinstance(rngs, nnx.Rngs):
        raise TypeError(
            explain(
                subject,
                "rngs are streams of keys, an nnx.Rngs.",
                rngs=type(rngs).__name__,
                fix="pass rngs=nnx.Rngs(0), or none",
            )
        )


def require_names(names: Any, subject: str) -> None:
    """Refuses what is no list of names of streams."""
    listed = isinstance(names, list | tuple | set | frozenset)
    if not listed or not all(isinstance(name, str) for name in names):
        raise TypeError(
            explain(
                subject,
                "streams are a list of names.",
                streams=repr(names),
                fix="pass a list, as ['order']",
            )
        )


def require_choice(enabled: Any, subject: str) -> None:
    """Refuses what does not say whether an order is random."""
    if not isinstance(enabled, bool | np.bool_):
        raise TypeError(
            explain(
                subject,
                "an order is random or it is not.",
                enabled=repr(enabled),
                fix="pass True or False",
            )
        )


def require_number(number: Any, subject: str) -> None:
    """Refuses what is no number of a record."""
    if not _is_number(number):
        raise TypeError(
            explain(
                subject,
                "a record is taken by its number.",
                got=type(number).__name__,
                fix="pass an integer; get_records takes several, as np.arange(8)",
            )
        )


def require_record(number: int, length: int, least: int, subject: str) -> None:
    """Refuses a number that no record has."""
    if not least <= number < length:
        raise IndexError(
            explain(
                subject,
                "there is no such record.",
                number=number,
                records=length,
                fix=f"use a number from {least} to {length - 1}",
            )
        )


def numbers_of(indices: Any, subject: str) -> Any:
    """A list of numbers of records as an array `[n]`, perhaps a traced one."""
    try:
        numbers: Any = indices if isinstance(indices, jax.Array) else np.asarray(indices)
    except ValueError:  # rows of different lengths
        numbers = np.asarray(None)
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise TypeError(
            explain(
                subject,
                "records are taken by a list of their numbers.",
                got=f"{numbers.dtype}{list(numbers.shape)}",
                fix="pass integers [n], as np.arange(8)",
            )
        )
    return numbers


def require_positions(start: Any, size: Any, key: Any, subject: str) -> None:
    """Refuses positions that cannot be, as far as they are known while this is traced."""
    if not _is_number(start):
        raise TypeError(
            explain(
                subject,
                "start is the number of a position.",
                start=type(start).__name__,
                fix="pass an integer from 0",
            )
        )
    if not is_integer(size, 1) or (not isinstance(start, jax.core.Tracer) and start < 0):
        raise ValueError(
            explain(
                subject,
                "positions are counted from 0, and at least one is taken.",
                start=start,
                size=repr(size),
                fix="use a start of at least 0, and a size of at least 1",
            )
        )
    if key is not None and not _is_key(key):
        raise TypeError(
            explain(
                subject,
                "an order of its own is that of one PRNG key.",
                key=type(key).__name__,
                fix="pass key=jax.random.key(0)",
            )
        )


def _is_number(value: Any) -> bool:
    """Whether this is one integer, of Python, NumPy or JAX, perhaps a traced one."""
    dtype = getattr(value, "dtype", type(value))
    return getattr(value, "ndim", 0) == 0 and np.issubdtype(dtype, np.integer)


def _is_key(value: Any) -> bool:
    """Whether this is one PRNG key, typed or raw, perhaps a traced one."""
    if not isinstance(value, jax.Array | np.ndarray):
        return False
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value.ndim == 0
    return value.ndim == 1 and value.dtype == np.uint32 and value.size > 0
