"""Lets TFDS itself decode features from the whole record, as for `tfds.load`."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from datarax_tfds.decoding.episodes import steps_as_arrays
from datarax_tfds.decoding.functions.graph_digest import fingerprint
from datarax_tfds.decoding.functions.map_fn import spec_of, traced
from datarax_tfds.decoding.functions.repeatability import Repeatability
from datarax_tfds.decoding.plan import DecodingPlan, leaves
from datarax_tfds.decoding.tfds_features import dict_classes, nested, only
from sharding.checks import refused

Result = TypeVar("Result")


def values_of_tfds(
    plan: DecodingPlan, serialized: Any, keys: Sequence[str], *, with_decoders: bool = True
) -> dict[str, Any]:
    """Features of a record as TFDS decodes them, with or without the decoders of the plan."""
    if not keys:
        return {}
    features = plan.features
    if type(features) in dict_classes():  # TFDS decodes their parts one by one
        features = only(features, keys)
    decoders = {key: plan.decoders[key] for key in keys if with_decoders and key in plan.decoders}
    values = features.deserialize_example(serialized, decoders=decoders or None)
    return {key: values[key] for key in keys}


def decode_by_tfds(
    tf: Any, plan: DecodingPlan, serialized: Any, keys: Sequence[str]
) -> dict[str, Any]:
    """Decodes features of one record to the shapes that they declare. The steps of an episode
    become arrays, unless a `map_fn` takes them as a `tf.data.Dataset`.
    """

    def with_arrays(path: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: with_arrays(f"{path}/{name}", part) for name, part in value.items()}
        if isinstance(value, tf.data.Dataset) and plan.config.map_fn is None:
            return steps_as_arrays(tf, value, plan.steps.get(path), path)
        return value

    decoded = values_of_tfds(plan, serialized, keys)
    return {
        key: with_arrays(key, _with_declared_shapes(tf, plan, key, value))
        for key, value in decoded.items()
    }


def _with_declared_shapes(tf: Any, plan: DecodingPlan, key: str, value: Any) -> Any:
    def with_shape(part: Any, spec: Any) -> Any:
        declares = isinstance(spec, tf.TensorSpec) and tf.is_tensor(part)
        if declares and part.dtype == spec.dtype and spec.shape.is_compatible_with(part.shape):
            return tf.ensure_shape(part, spec.shape)
        return part

    if key in plan.decoders:
        return value
    try:
        return tf.nest.map_structure(with_shape, value, plan.features[key].get_tensor_spec())
    except (KeyError, TypeError, ValueError, NotImplementedError):
        return value  # it has another structure than its class declares


def traced_spec(tf: Any, plan: DecodingPlan, keys: list[str]) -> dict[str, Any]:
    """Type specs of the features, which are found by tracing their decoding.

    Raises:
        ValueError: TFDS cannot decode a feature. The message names it.
    """

    def spec(some: list[str]) -> dict[str, Any]:
        decode = functools.partial(decode_by_tfds, tf, plan, keys=some)
        return spec_of(tf, traced(tf, decode, tf.TensorSpec([], "string")))

    return naming_the_feature(tf, plan, keys, spec)


def repeatable_fingerprint(tf: Any, plan: DecodingPlan, keys: list[str]) -> str:
    """The fingerprint of the code that decodes these features.

    Raises:
        ValueError: A resume would not repeat the results of the code.
    """

    @functools.partial(tf.function, autograph=False)
    def decode(serialized: Any) -> Any:
        return values_of_tfds(plan, serialized, keys)

    parts = [part for key in keys for part in nested(plan.features[key])]
    code = [part.decode_example for part in [*leaves(plan.decoders), *parts]]
    repeatability = Repeatability(tf, decode, *code, plan.features.deserialize_example)
    trace = tf.function(decode).get_concrete_function(tf.TensorSpec([], "string"))
    what = f"the decoding of {', '.join(map(repr, keys))}"
    repeatability.require(trace, what=what, subject=plan.subject)
    return fingerprint(tf, trace)


def naming_the_feature(
    tf: Any, plan: DecodingPlan, keys: list[str], decode: Callable[[list[str]], Result]
) -> Result:
    """Returns `decode(keys)`. If some features cannot be decoded, raises an error that names one;
    if all cannot, because the record is damaged, raises what `decode` raises.
    """
    try:
        return decode(keys)
    except Exception as error:  # the code of a feature may raise anything
        reasons: dict[str, Exception] = {}
        for key in keys:
            try:
                decode([key])
            except Exception as reason:
                reasons[key] = reason
        of_bytes = isinstance(error, tf.errors.OpError | UnicodeDecodeError)
        if not reasons or (of_bytes and len(reasons) == len(keys)):
            raise error
        key, reason = next(iter(reasons.items()))
        last_line = "".join(str(reason).strip().splitlines()[-1:]).strip()[:300]
        raise feature_refused(
            plan,
            key,
            "cannot be decoded by TFDS.",
            error=f"{type(reason).__name__}: {last_line}",
        ) from reason


def feature_refused(plan: DecodingPlan, path: str, problem: str, **facts: object) -> ValueError:
    """The error for a feature whose decoding is at fault."""
    key = path.partition("/")[0]
    return refused(
        ValueError,
        plan.subject,
        f"feature {path!r} {problem}",
        feature=type(plan.features[key]).__name__,
        **facts,
        fix=f"leave it out with exclude_keys={{{key!r}}}, or correct its class or decoder",
    )
