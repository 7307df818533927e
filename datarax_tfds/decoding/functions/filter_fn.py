"""Traces a user's `filter_fn` with TensorFlow, like a `map_fn` that returns one bool."""

from collections.abc import Callable
from typing import Any, final

from datarax_tfds.decoding.functions.graph_digest import fingerprint
from datarax_tfds.decoding.functions.map_fn import TracedMapFn, raised, spec_of
from datarax_tfds.decoding.functions.repeatability import Repeatability
from datarax_tfds.decoding.functions.user_function import traceable
from sharding.checks import refused

KEPT = "kept"  # the feature that it returns


@final
class FilterFn:
    """A `map_fn` which says whether a filter keeps a record: `{"kept": bool[]}`.

    Args:
        function: The user's function.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, record: Any) -> dict[str, Any]:
        return {KEPT: self.function(record)}


def is_filter(function: Any) -> bool:
    """Whether a `map_fn` is a filter; or whether a `filter_fn` marks the decoding for a filter."""
    return isinstance(function, FilterFn)


def name_of(map_fn: Any) -> str:
    """What messages call it: the field of the config in which the user's function is."""
    return "filter_fn" if is_filter(map_fn) else "map_fn"


def trace_filter(tf: Any, filter_fn: FilterFn, record: Any, *, subject: str) -> TracedMapFn:
    """Traces a filter for a record of these type specs.

    The features that it does not use need not be decoded: it takes zeros in their place, so that
    TensorFlow leaves out the operations that decode them.

    Raises:
        ValueError: TensorFlow cannot trace it, it does not return one bool, or it may give another
            answer in another run.
    """
    repeatability, function = Repeatability(tf, filter_fn), traceable(tf, filter_fn)
    fix = (
        "write filter_fn(record) in TensorFlow's operations; it takes a dict of tensors and returns"
        " one bool, as record['label'] == 3; or set filter_with='numpy' for a Python function"
    )
    try:
        trace = function.get_concrete_function(record)
    except Exception as error:  # the user's code may raise anything
        problem = "TensorFlow cannot trace filter_fn."
        raise refused(ValueError, subject, problem, error=raised(error), fix=fix) from error
    repeatability.require(trace, what="filter_fn", subject=subject)
    outputs = spec_of(tf, trace)
    spec = outputs[KEPT]
    if not isinstance(spec, tf.TensorSpec) or spec.dtype != tf.bool or spec.shape.rank != 0:
        problem = "filter_fn must return one bool."
        raise refused(ValueError, subject, problem, returned=spec, fix=fix)
    return TracedMapFn(_without_unused(tf, trace, record), [], outputs, fingerprint(tf, trace))


def _without_unused(tf: Any, trace: Any, record: Any) -> Callable[[Any], Any]:
    """A traced function of a record which takes zeros for the features that it does not use."""
    inputs, specs, unused = iter(trace.inputs), tf.nest.flatten(record), []
    for spec in specs:
        parts = [next(inputs) for _ in tf.nest.flatten(spec, expand_composites=True)]
        used = any(part.consumers() or part is trace.outputs[0] for part in parts)
        unused.append(not used and isinstance(spec, tf.TensorSpec) and spec.shape.rank is not None)

    def of_used(values: Any) -> Any:
        given = zip(tf.nest.flatten(values), specs, unused, strict=True)
        flat = [
            tf.zeros([size or 0 for size in spec.shape], spec.dtype) if drop else value
            for value, spec, drop in given
        ]
        return trace(tf.nest.pack_sequence_as(record, flat))

    return of_used
