"""Refuses features that decode to other values than in TFDS, or than their classes declare."""

from typing import Any

import numpy as np

from datarax_tfds.decoding.columns import FeatureColumns
from datarax_tfds.decoding.plan import DecodingPlan
from datarax_tfds.decoding.tfds_decoding import (
    feature_refused,
    naming_the_feature,
    values_of_tfds,
)
from datarax_tfds.decoding.tfds_features import by_path


def require_as_tfds(
    tf: Any, plan: DecodingPlan, columns: FeatureColumns, serialized: bytes
) -> None:
    """Compares one decoded record with that of TFDS, and with its spec.

    Raises:
        ValueError: A feature differs. The message names it.
    """
    expected = naming_the_feature(
        tf, plan, plan.keys, lambda keys: values_of_tfds(plan, serialized, keys)
    )
    theirs = dict(by_path({key: expected[key] for key in plan.keys if key not in columns.others}))
    for path, value in columns.decode_columns(serialized).items():
        if not _equal_bits(value, theirs[path]):
            raise feature_refused(
                plan,
                path,
                "is not decoded to the value that TFDS gives.",
                value=_described(value),
                of_tfds=_described(theirs[path]),
            )
    for key in columns.others:
        specs = tf.nest.flatten(columns.record_spec[key])
        values = tf.nest.flatten(expected[key])
        # Steps are only decoded when they are read, and an empty sequence may lack inner axes.
        if any(isinstance(x, tf.data.Dataset) or 0 in x.shape.as_list() for x in values):
            continue
        if not all(spec.is_compatible_with(x) for spec, x in zip(specs, values, strict=True)):
            raise feature_refused(
                plan,
                key,
                "does not have the shape and dtype that its class declares.",
                declared=specs,
                record=", ".join(map(_described, values)),
            )


def _equal_bits(value: Any, other: Any) -> bool:
    value, other = np.asarray(value), np.asarray(other)
    if (value.shape, value.dtype) != (other.shape, other.dtype):
        return False
    if value.dtype == object:
        return value.tolist() == other.tolist()
    return value.tobytes() == other.tobytes()


def _described(value: Any) -> str:
    return f"{getattr(value, 'dtype', type(value).__name__)}{getattr(value, 'shape', '')}"
