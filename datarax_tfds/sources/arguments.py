"""Checks the arguments that users pass to a source, before they are used."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax_tfds.config.config import AnyConfig
from sharding.checks import is_integer, refused, whole_number


def _is_number(value: Any) -> bool:
    """Whether this is one integer of Python, NumPy or JAX, also a traced one."""
    dtype = getattr(value, "dtype", type(value))
    return getattr(value, "ndim", 0) == 0 and np.issubdtype(dtype, np.integer)


def _is_key(value: Any) -> bool:
    """Whether this is one PRNG key, typed or raw, also a traced one."""
    if not isinstance(value, jax.Array | np.ndarray):
        return False
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value.ndim == 0
    return value.ndim == 1 and value.dtype == np.uint32 and value.size > 0


class _Check(NamedTuple):
    """A check of one argument.

    Args:
        argument: The name of the argument.
        accepts: Whether a value is valid.
        problem: The message if it is not.
        fix: What to pass; `{}` stands for the nearest valid whole number.
        kind: The class of the error.
        least: The smallest valid number.
    """

    argument: str
    accepts: Callable[[Any], bool]
    problem: str
    fix: str
    kind: type[Exception] = TypeError
    least: int = 0


_CHECKS = [
    _Check(
        "rngs",
        lambda value: value is None or isinstance(value, nnx.Rngs),
        "rngs must be an nnx.Rngs, or left out.",
        fix="pass rngs=nnx.Rngs(0), or leave it out",
    ),
    _Check(
        "streams",
        lambda value: (
            isinstance(value, list | tuple | set | frozenset)
            and all(isinstance(name, str) for name in value)
        ),
        "streams must be a list of names.",
        fix="pass a list, as ['order']",
    ),
    _Check(
        "enabled",
        lambda value: isinstance(value, bool | np.bool_),
        "enabled must be True or False.",
        fix="pass enabled=True for a random order, or enabled=False for that of the files",
    ),
    _Check(
        "number",
        _is_number,
        "the number of a record must be an integer.",
        fix="pass one integer, as source[0]; several with source.get_records(np.arange(8))",
    ),
    _Check("start", _is_number, "start must be an integer.", fix="use start={}"),
    _Check(
        "start",
        lambda value: isinstance(value, jax.core.Tracer) or value >= 0,
        "start must be an integer of at least 0.",
        fix="use start={}",
        kind=ValueError,
    ),
    _Check(
        "size",
        lambda value: is_integer(value, 1),
        "size must be an integer of at least 1.",
        fix="use size={}",
        kind=ValueError,
        least=1,
    ),
    _Check(
        "key",
        lambda value: value is None or _is_key(value),
        "key must be one PRNG key.",
        fix="pass key=jax.random.key(0)",
    ),
]


def require(subject: str, **arguments: Any) -> None:
    """Raises if an argument fails one of the checks; the message begins with `subject`."""
    for check in _CHECKS:
        if check.argument in arguments and not check.accepts(arguments[check.argument]):
            value = arguments[check.argument]
            nearest = max(whole_number(value) or check.least, check.least)
            raise refused(
                check.kind,
                subject,
                check.problem,
                **{check.argument: repr(value)},
                got=type(value).__name__,
                fix=check.fix.replace("{}", str(nearest)),
            )


def require_config(config: Any, kind: type, subject: str) -> None:
    """Raises unless `config` is of the class that this kind of source takes."""
    if type(config) is not kind:
        made_for = type(config).__name__.replace("Config", "Source")
        other = f"; or build a {made_for} with this config" if isinstance(config, AnyConfig) else ""
        raise refused(
            TypeError,
            subject,
            f"config must be a {kind.__name__}, got {type(config).__name__}.",
            config=type(config).__name__,
            fix=f"pass a config such as {kind.__name__}(name='mnist', split='train'){other}",
        )


def require_records(numbers: np.ndarray, known: range, subject: str) -> None:
    """Raises if one of the numbers is not that of a record."""
    for number in (int(numbers.min()), int(numbers.max())):
        if number not in known:
            raise refused(
                IndexError,
                subject,
                "there is no such record.",
                number=number,
                records=known.stop,
                fix=f"use a number from {known.start} to {known.stop - 1}",
            )


def numbers_of(indices: Any, subject: str) -> Any:
    """Returns a list of record numbers as an array `[n]`, which may be traced."""
    try:
        numbers: Any = indices if isinstance(indices, jax.Array) else np.asarray(indices)
    except ValueError:  # rows of different lengths
        numbers = np.asarray(None)
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise refused(
            TypeError,
            subject,
            "indices must be a list of integers.",
            got=f"{numbers.dtype}{list(numbers.shape)}",
            fix="pass integers [n], as np.arange(8)",
        )
    return numbers
