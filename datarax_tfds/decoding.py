"""Bytes to arrays, in TensorFlow's C++: the one place that imports TensorFlow."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

_log = logging.getLogger(__name__)


class Decoder:
    """Decodes serialized records of chosen features, many in one call.

    One `parse_example` for all records, and one `map_fn` for each feature that is encoded:
    28x28 PNG images decode three to four times as fast as with one tf.data element a record.
    Safe to use from several threads, and meant to be: a call keeps one core busy.

    Args:
        features: The dataset's `tfds.features.FeaturesDict`.
        selected: Names of the decoded arrays, each with its feature.
    """

    def __init__(self, features: Any, selected: Mapping[str, str]):
        tf = _tensorflow()
        import tensorflow_datasets as tfds

        chosen = tfds.features.FeaturesDict({key: features[key] for key in selected.values()})
        batchwise = {key: feature for key, feature in chosen.items() if _decodes_batchwise(feature)}
        single = tfds.features.FeaturesDict(
            {key: feature for key, feature in chosen.items() if key not in batchwise}
        )
        parsed_spec = {
            key: spec
            for key, spec in chosen.tf_example_spec.items()
            if key.split("/")[0] in batchwise
        }

        def decode(serialized: Any) -> dict[str, Any]:
            columns = {}
            if batchwise:
                parsed = tf.io.parse_example(serialized, parsed_spec)
                columns |= {
                    key: _decode_batch(tf, feature, parsed, key)
                    for key, feature in batchwise.items()
                }
            if single:
                columns |= tf.map_fn(
                    single.deserialize_example,
                    serialized,
                    fn_output_signature=single.get_tensor_spec(),
                )
            return {name: columns[key] for name, key in selected.items()}

        self.Error: type[Exception] = tf.errors.OpError
        self._tf = tf
        self._decode = tf.function(
            decode, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
        ).get_concrete_function()

    def __call__(self, records: Sequence[bytes]) -> dict[str, Any]:
        """Decodes records.

        Returns:
            NumPy arrays `[len(records), ...]`, nested as the features are, in their own dtypes.
        """
        decoded = self._decode(self._tf.constant(records, self._tf.string))
        return self._tf.nest.map_structure(lambda column: column.numpy(), decoded)


def _decodes_batchwise(feature: Any) -> bool:
    """Whether a feature is one column of the file, or a dict of such."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        return all(_decodes_batchwise(part) for part in feature.values())
    info = feature.get_serialized_info()
    return not isinstance(info, dict) and info.sequence_rank == 0 and None not in info.shape


def _decode_batch(tf: Any, feature: Any, parsed: Mapping[str, Any], key: str) -> Any:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        return {
            name: _decode_batch(tf, part, parsed, f"{key}/{name}") for name, part in feature.items()
        }
    # TFRecord keeps integers and bool as int64, floats as float32.
    column = tf.cast(parsed[key], feature.get_serialized_info().tf_dtype)
    if isinstance(feature, tfds.features.Tensor) and column.dtype != tf.string:
        return feature.decode_batch_example(column)
    return tf.map_fn(feature.decode_example, column, fn_output_signature=feature.get_tensor_spec())


def _tensorflow() -> Any:
    """TensorFlow, kept off the accelerators, which are JAX's."""
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        if not tf.config.get_visible_devices(kind):
            continue
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError:
            _log.warning(
                "TensorFlow used the %ss before datarax_tfds was first used, and keeps its memory"
                " there; to give it to JAX, call tf.config.set_visible_devices([], %r) first.",
                kind,
                kind,
            )
    return tf
