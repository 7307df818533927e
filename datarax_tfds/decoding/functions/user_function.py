"""Turns a user's function of a record into a `tf.function`, however it takes its seed."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sharding.checks import refused

_BY_PLACE = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def traceable(tf: Any, function: Callable[..., Any]) -> Any:
    """A user's function as a `tf.function`, in which TensorFlow rewrites `if` and `for`.

    The user's function may change the dict that it is given, as with `tf.data`. The seed is the
    second argument of the `tf.function`, which returns other mappings as dicts.
    """
    plain = tf.autograph.experimental.do_not_convert(as_dicts)
    seed = random_parameter(function, "seed")
    second = [each.name for each in _parameters(function)[1:2] if each.kind in _BY_PLACE]

    def by_name(record: Any, seed: Any) -> Any:
        return function(record, seed=seed)

    # The seed is passed by position if possible, because a wrapper may not take keywords.
    called = function if seed is None or seed.name in second else by_name

    def on_copies(*arguments: Any, **options: Any) -> Any:
        result = called(*tf.nest.map_structure(lambda value: value, arguments), **options)
        return plain(result)

    return tf.function(on_copies)


def takes_a_seed(map_fn: Callable[..., Any]) -> bool:
    """Whether a function takes a seed besides the record."""
    return random_parameter(map_fn, "seed") is not None


def hides_its_parameters(map_fn: Callable[..., Any]) -> bool:
    """Whether a function has `*args` or `**kwargs`, as one decorated without `functools.wraps`."""
    return any(each.kind in _COLLECTING for each in _parameters(map_fn))


def as_dicts(value: Any) -> Any:
    """Replaces each mapping in a value, such as an OrderedDict or a defaultdict, by a dict.

    Raises:
        ValueError: A key is not text, because TensorFlow cannot sort keys of several types.
    """
    if isinstance(value, Mapping):
        others = [name for name in value if not isinstance(name, str)]
        if others:
            raise refused(
                ValueError,
                "map_fn",
                "names must be text in a dict that it returns.",
                names=", ".join(map(repr, others)),
                fix=f"use texts as names, as {str(others[0])!r} in place of {others[0]!r}",
            )
        return {name: as_dicts(part) for name, part in value.items()}
    if isinstance(value, list):
        return [as_dicts(part) for part in value]
    if isinstance(value, tuple):
        parts = [as_dicts(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def random_parameter(function: Callable[..., Any], name: str) -> inspect.Parameter | None:
    """The parameter that takes the seed, or the generator: the one of this name, unless it is the
    first parameter; else the second parameter, if it has no default.
    """
    others = _parameters(function)[1:]
    second = [each for each in others[:1] if each.kind in _BY_PLACE]
    named = [each for each in others if each.name == name and each.kind in _BY_NAME]
    if isinstance(function, functools.partial) and name in function.keywords:
        named = []  # it is already set
    required = [each for each in second if each.default is each.empty]
    found = [each for each in second if each.name == name] + named + required
    return found[0] if found else None


def _parameters(map_fn: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(map_fn).parameters.values())
    except (TypeError, ValueError):  # of a function in C, or of a class without a signature
        return []
