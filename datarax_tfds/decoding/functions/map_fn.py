"""Traces a user's `map_fn` with TensorFlow, and refuses one that cannot be used."""

from collections.abc import Callable
from typing import Any, NamedTuple

from datarax_tfds.decoding.functions.graph_digest import fingerprint
from datarax_tfds.decoding.functions.repeatability import Repeatability
from datarax_tfds.decoding.functions.user_function import (
    hides_its_parameters,
    takes_a_seed,
    traceable,
)
from sharding.checks import refused

_WRITE = (
    "write map_fn(record) or map_fn(record, seed) in TensorFlow's operations; it takes and returns"
    " a dict of tensors"
)


def traced(tf: Any, function: Callable[..., Any], *inputs: Any) -> Any:
    return tf.function(function, autograph=False).get_concrete_function(*inputs)


def spec_of(tf: Any, traced: Any) -> Any:
    """The type specs of the results of a traced function."""
    return tf.nest.map_structure(
        lambda output: None if output is None else tf.type_spec_from_value(output),
        traced.structured_outputs,
    )


class TracedMapFn(NamedTuple):
    """A `map_fn` that can be used.

    Args:
        function: A `tf.function` that is already traced for its inputs.
        seed_spec: A list with the type spec of its seed; empty if it takes no seed.
        outputs: The type specs of its result.
        fingerprint: Identifies its graph; None if it may give other results in another run.
    """

    function: Callable[..., Any]
    seed_spec: list[Any]
    outputs: dict[str, Any]
    fingerprint: str | None


def trace_map_fn(
    tf: Any, map_fn: Callable[..., Any], record: Any, *, allow_stateful: bool, subject: str
) -> TracedMapFn:
    """Traces a `map_fn` for a record of these type specs.

    Raises:
        ValueError: TensorFlow cannot trace it, it does not return a dict of tensors with text as
            names, or a resume would not repeat it.
    """
    repeatability = Repeatability(tf, map_fn)
    function = traceable(tf, map_fn)
    seed_spec = [tf.TensorSpec([2], tf.int32)] if takes_a_seed(map_fn) else []
    fix = _WRITE
    if isinstance(map_fn, type):
        fix = f"pass an instance of the class, as map_fn={map_fn.__name__}(); {_WRITE}"
    elif hides_its_parameters(map_fn) and not seed_spec:
        fix = f"use functools.wraps where map_fn is decorated, so that its seed is seen; {_WRITE}"
    try:
        trace = function.get_concrete_function(record, *seed_spec)
    except Exception as error:  # the user's code may raise anything
        # The error of one of our helpers that map_fn calls has its own fix.
        said, _, own_fix = raised(error).partition("\nfix:")
        problem = "TensorFlow cannot trace map_fn."
        raise refused(
            ValueError, subject, problem, error=said, fix=own_fix.strip() or fix
        ) from error
    if not allow_stateful:
        repeatability.require(trace, what="map_fn", subject=subject)
    outputs = spec_of(tf, trace)
    if not isinstance(outputs, dict) or not outputs or None in tf.nest.flatten(outputs):
        raise refused(
            ValueError, subject, "map_fn must return a dict of tensors.", returned=outputs, fix=fix
        )
    code = None if allow_stateful else fingerprint(tf, trace)
    return TracedMapFn(function, seed_spec, outputs, code)


def raised(error: Exception) -> str:
    """The error of the user's code, without the code that TensorFlow quotes before it."""
    lines, kind = [line.strip() for line in str(error).strip().splitlines()], type(error).__name__
    starts = [place for place, line in enumerate(lines) if line.startswith(f"{kind}: ")]
    if starts:
        return "\n".join(lines[starts[-1] :])
    quoted = any(line.startswith('File "') for line in lines)
    return f"{kind}: " + "\n".join(lines[-1:] if quoted else lines)
