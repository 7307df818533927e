"""Writes the errors about features that are not arrays, with the code that makes them arrays."""

from collections.abc import Sequence
from typing import Any

from datarax_tfds.decoding.plan import as_set
from sharding.checks import refused


def array_refused(
    feature: str, problem: str, spec: Any, *, subject: str, mapped_by: str | None
) -> ValueError:
    """The error for a feature, or a part such as `objects/label`, that is not an array of one
    shape. `spec` is its type spec of TensorFlow or an `Unbatched`; `mapped_by` is the function of
    the user that returned it, `map_fn` or `transform`.
    """
    name, numbers = feature.split("/")[0], dense_code(spec)
    if mapped_by == "transform":
        fix = f"let transform leave it out, or keep it on the host with host_keys={as_set([name])}"
    elif mapped_by is not None:
        fix = f"let map_fn leave it out, or return numbers of one shape for it, as {numbers}"
    else:
        fix = (
            f"use exclude_keys={as_set([name])}, or return numbers of one shape from map_fn, as"
            f" {numbers}"
        )
        if name == feature and is_text(spec) and not spec.shape:
            fix = f"{fix}, or keep it on the host with host_keys={as_set([name])}"
    if _can_be_padded(spec):
        fix = f"pad it, with {padding_code(feature, tuple(spec.shape))}; or {fix}"
    dtype = getattr(spec, "dtype", type(spec).__name__)
    return refused(
        ValueError,
        subject,
        f"feature {feature!r} {problem}.",
        shape=getattr(spec, "shape", None),
        dtype=f"{dtype} (text or bytes)" if is_text(spec) else dtype,
        fix=fix,
    )


def padding_code(feature: str, shape: Sequence[int | None]) -> str:
    """The argument that pads a part of this shape, with example sizes for those that vary."""
    if shape[0] is None and None not in shape[1:]:
        return f"pad_to={{{feature!r}: 8}}"
    example = 224 if len(shape) == 3 else 8
    return f"pad_to={{{feature!r}: {tuple(example if size is None else size for size in shape)}}}"


def _can_be_padded(spec: Any) -> bool:
    shape = getattr(spec, "shape", None)
    dense = type(spec).__name__ == "Unbatched" and not spec.ragged and not is_text(spec)
    return dense and shape is not None and None in shape


def why_not_an_array(spec: Any) -> str:
    """Says why a type spec of TensorFlow is not that of an array."""
    kind = type(spec).__name__
    if kind == "TensorSpec":
        return "has no known rank"
    kind = "RaggedTensor" if kind == "RaggedTensorSpec" else spec.value_type.__name__
    return f"is a {kind}, not an array"


def is_text(spec: Any) -> bool:
    """Whether an `Unbatched` holds text or bytes."""
    return getattr(getattr(spec, "dtype", None), "kind", None) == "O"


def dense_code(spec: Any) -> str:
    """The code with which a `map_fn` turns a part `x` of a record into numbers of one shape."""
    kind, shape = type(spec).__name__, getattr(spec, "shape", None)
    if kind not in ("TensorSpec", "RaggedTensorSpec", "SparseTensorSpec", "Unbatched"):
        return "the tensors within it, each under a name of its own"
    if shape is None or getattr(shape, "rank", 0) is None:
        return (
            "tf.ensure_shape(x, [8]) or tf.reshape(x, [8]), with the sizes that it always has; for"
            " an image, pass channels=3 and expand_animations=False to tf.io.decode_image, and then"
            " use tf.image.resize(x, [224, 224])"
        )
    varies = [size is None for size in tuple(shape)]
    # Any size will do as an example.
    sizes = [8 if size is None else size for size in tuple(shape)]
    if kind == "RaggedTensorSpec" or getattr(spec, "ragged", False):
        return f"x.to_tensor(shape={sizes}), which cuts and pads it"
    if kind == "SparseTensorSpec":
        dense = "tf.sparse.to_dense(x)"
        return f"tf.ensure_shape({dense}, {sizes})" if any(varies) else dense
    x = "tf.strings.length(x)" if is_text(spec) else "x"
    if not any(varies):
        return x
    if len(sizes) == 3 and x == "x":  # height, width and channels
        resized = "tf.image.resize(x, [224, 224])"
        return f"tf.ensure_shape({resized}, [224, 224, 3])" if varies[2] else resized
    padding = [[0, 8 * each] for each in varies]
    kept = ", ".join(":8" if each else ":" for each in varies)
    return (
        f"tf.ensure_shape({x}, {sizes}), with the sizes that it always has; or, where they vary,"
        f" padded and cut, as tf.ensure_shape(tf.pad({x}, {padding})[{kept}], {sizes})"
    )
