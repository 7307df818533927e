"""Gives the shapes and dtypes of a decoded record on the devices, and what stays on the host."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from datarax_tfds.decoding.array_advice import array_refused, is_text, why_not_an_array
from datarax_tfds.decoding.device_dtypes import path_name
from datarax_tfds.decoding.functions.filter_fn import is_filter
from datarax_tfds.decoding.plan import DecodingPlan, as_set, nearest_feature
from sharding.checks import refused


@dataclass(frozen=True)
class Unbatched:
    """A part of a record that cannot be in a batch: text, or an array whose shape varies.

    Args:
        shape: The shape of the array, with None for sizes that vary from record to record.
        dtype: The dtype of the array; `object` for text and bytes.
        ragged: Whether sizes also vary within a record, so that `map_fn` gets a `tf.RaggedTensor`.
    """

    shape: tuple[int | None, ...]
    dtype: np.dtype
    ragged: bool = False


def record_spec(
    outputs: Mapping[str, Any], plan: DecodingPlan
) -> tuple[dict[str, Any], dict[str, Unbatched]]:
    """Splits a decoded record into what goes to the devices and what stays on the host.

    Args:
        outputs: TensorFlow's type specs of a decoded record, in nested dicts.
        plan: How the record is decoded, and which features stay on the host.

    Returns:
        For the devices, nested as the outputs, a `jax.ShapeDtypeStruct` without a batch axis for
        each array, or an `Unbatched` for a part that cannot be in a batch. 64-bit types become
        32-bit ones unless `jax_enable_x64` is on. For the host, the shape and dtype by feature.

    Raises:
        ValueError: A feature is not an array even in a single record, its dtype is one that
            TensorFlow or NumPy cannot batch, or the host keys do not fit.
    """
    require_tensors(outputs, plan)
    host = {} if is_filter(plan.config.filter_fn) else _host_spec(outputs, plan)

    def spec(output: Any) -> jax.ShapeDtypeStruct | Unbatched:
        dtype = np.dtype(output.dtype.as_numpy_dtype)
        sizes = tuple(output.shape.as_list())
        if dtype.kind != "O":
            dtype = jax.dtypes.canonicalize_dtype(dtype)
            if None not in sizes:
                return jax.ShapeDtypeStruct(sizes, dtype)
        return Unbatched(sizes, dtype, ragged=type(output).__name__ == "RaggedTensorSpec")

    on_devices = {name: output for name, output in outputs.items() if name not in host}
    return jax.tree.map(spec, on_devices), host


def require_tensors(outputs: Mapping[str, Any], plan: DecodingPlan) -> None:
    """Refuses what is not an array, or with TFDS's own features a ragged one, in a single record.

    Raises:
        ValueError: The message names the feature.
    """
    mapped = plan.config.map_fn is not None
    leaves = jax.tree_util.tree_leaves_with_path(dict(outputs))
    for path, output in leaves:
        _require_dtype(path_name(path), getattr(output, "dtype", None), plan)
    arrays = ("TensorSpec",) if mapped else ("TensorSpec", "RaggedTensorSpec")
    for path, output in leaves:
        shape = getattr(output, "shape", None)
        if type(output).__name__ not in arrays or shape is None or shape.rank is None:
            raise array_refused(
                path_name(path),
                why_not_an_array(output),
                output,
                subject=plan.subject,
                mapped_by="map_fn" if mapped else None,
            )


def _require_dtype(feature: str, dtype: Any, plan: DecodingPlan) -> None:
    """Refuses a dtype that is quantized, is a float8 or has less than 8 bits."""
    # The type spec of a user's own type may have anything as its dtype.
    if type(dtype).__name__ != "DType" or dtype.name == "bfloat16":
        return
    if not dtype.is_quantized and np.dtype(dtype.as_numpy_dtype).isbuiltin == 1:
        return
    cast = "tf.cast(x, tf.float32)" if dtype.is_floating else "tf.cast(x, tf.int8)"
    if dtype.is_quantized:
        same_bits = f"tf.bitcast(x, tf.{dtype.name.removeprefix('q')})"
        cast = f"tf.cast(x, tf.int32), or, with the same bits, {same_bits}"
    fix = f"let map_fn return it in another dtype, as {cast}"
    if plan.config.map_fn is None:
        fix = f"use exclude_keys={as_set([feature.split('/')[0]])}, or {fix}"
    problem = f"feature {feature!r} has a dtype that a batch cannot have."
    raise refused(ValueError, plan.subject, problem, dtype=dtype.name, fix=fix)


def _host_spec(outputs: Mapping[str, Any], plan: DecodingPlan) -> dict[str, Unbatched]:
    """Shape and dtype of the features on the host, each one array of a fixed shape."""
    keys = plan.config.host_keys or frozenset()
    facts = {"host_keys": ", ".join(sorted(keys)), "features": ", ".join(sorted(outputs))}
    unknown = sorted(keys - set(outputs))
    if unknown:
        fix = f"use host_keys={as_set(nearest_feature(key, outputs) for key in keys)}"
        if dropped := sorted(set(unknown) & set(plan.names)):
            fix = f"let map_fn return {dropped[0]!r}, too, or leave it out of host_keys"
        problem = f"host_keys must be features of a record, got {', '.join(map(repr, unknown))}."
        raise refused(ValueError, plan.subject, problem, **facts, fix=fix)
    if not set(outputs) - keys:
        raise refused(
            ValueError,
            plan.subject,
            "host_keys must leave a feature for the devices.",
            **facts,
            fix=f"leave {min(keys)!r} out of host_keys, or read another feature, too",
        )
    host = {}
    for key in sorted(keys):
        output, kind = outputs[key], type(outputs[key]).__name__
        if kind != "TensorSpec" or not output.shape.is_fully_defined():
            raise refused(
                ValueError,
                plan.subject,
                f"feature {key!r} must be one array of a fixed shape to stay on the host.",
                got=f"{kind} of shape {getattr(output, 'shape', None)}",
                fix=f"leave {key!r} out of host_keys, or let map_fn return an array of a fixed"
                " shape for it",
            )
        dtype = np.dtype(output.dtype.as_numpy_dtype)
        host[key] = Unbatched(tuple(output.shape.as_list()), dtype)
    return host


def require_arrays(spec: Mapping[str, Any], subject: str, *, mapped_by: str | None = None) -> None:
    """Refuses records that cannot be rows of a `jax.Array`. `mapped_by` is the function of the user
    that made them.

    Raises:
        ValueError: A feature holds text or bytes, or its shape varies from record to record.
    """
    for path, leaf in _unbatched(spec):
        problem = "varies in shape from record to record"
        if is_text(leaf):
            problem = "is text, which a JAX array cannot hold"
        raise array_refused(path_name(path), problem, leaf, subject=subject, mapped_by=mapped_by)


def holds_arrays(spec: Mapping[str, Any]) -> bool:
    """Whether records can be rows of a `jax.Array`."""
    return next(_unbatched(spec), None) is None


def _unbatched(spec: Mapping[str, Any]) -> Iterator[tuple[Any, Unbatched]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(spec):
        if isinstance(leaf, Unbatched):
            yield path, leaf
