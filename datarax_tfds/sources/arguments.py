"""Checks the arguments that users pass to a source, before they are used."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax_tfds.config.config import AnyConfig
from datarax_tfds.config.fields import Field, flag, integer
from datarax_tfds.order.wide_numbers import are_words, join_words
from sharding.checks import refused, whole_number


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


def _of(accepts: Callable[[Any], bool], words: str, *, fix: str) -> Callable[[Field], None]:
    """A check for a value that is accepted; `words` says what it must be."""

    def check(field: Field) -> None:
        if not accepts(field.value):
            raise field.refusal(f"{field.name} must be {words}.", fix=fix)

    return check


def _at_least(least: int) -> Callable[[Field], int]:
    return lambda field: integer(least)(replace(field, error=ValueError))


def _position(field: Field) -> None:
    value = field.value
    if not _is_number(value):
        fix = f"use start={max(whole_number(value) or 0, 0)}"
        raise field.refusal("start must be an integer.", fix=fix)
    if not isinstance(value, jax.core.Tracer):
        _at_least(0)(replace(field, value=int(value)))


# The check of each argument. An invalid value is a `TypeError`, or a `ValueError` if it is too low.
_CHECKS: dict[str, Callable[[Field], Any]] = {
    "rngs": _of(
        lambda value: value is None or isinstance(value, nnx.Rngs),
        "an nnx.Rngs, or left out",
        fix="pass rngs=nnx.Rngs(0), or leave it out",
    ),
    "streams": _of(
        lambda value: (
            isinstance(value, list | tuple | set | frozenset)
            and all(isinstance(name, str) for name in value)
        ),
        "a list of names",
        fix="pass a list, as ['order']",
    ),
    "enabled": flag,
    "number": _of(
        _is_number,
        "one integer",
        fix="pass one integer, as source[0]; several with source.get_records(np.arange(8))",
    ),
    "start": _position,
    "size": _at_least(1),
    "key": _of(
        lambda value: value is None or _is_key(value),
        "one PRNG key",
        fix="pass key=jax.random.key(0)",
    ),
}


def require(subject: str, **arguments: Any) -> None:
    """Raises if an argument fails its check; the message begins with `subject`."""
    for name, value in arguments.items():
        _CHECKS[name](Field(subject, name, value, error=TypeError))


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


def require_step_fn(subject: str, step_fn: Any, modules: Any, *, call: str) -> None:
    """Raises a `TypeError` unless `step_fn` is a function and `modules` is a list; `call` shows how
    both are passed.
    """
    if not callable(step_fn) or not isinstance(modules, list | tuple | nnx.List):
        raise refused(
            TypeError,
            subject,
            "step_fn must be a function, and modules a list of its other arguments.",
            step_fn=type(step_fn).__name__,
            modules=type(modules).__name__,
            fix=f"call {call}",
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
    if are_words(indices) and not isinstance(indices, jax.core.Tracer):
        indices = join_words(indices)
    try:
        numbers: Any = indices if isinstance(indices, jax.Array) else np.asarray(indices)
    except ValueError:  # rows of different lengths
        numbers = np.asarray(None)
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise refused(
            TypeError,
            subject,
            "indices must be a list of at least one integer.",
            got=f"{numbers.dtype}{list(numbers.shape)}",
            fix="pass integers [n], as np.arange(8)",
        )
    return numbers
