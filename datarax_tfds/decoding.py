"""Bytes to arrays, in TensorFlow's C++: the one place that imports TensorFlow."""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sharding.messages import explain

_log = logging.getLogger(__name__)

# Numbers of records that are decoded faster than others. Few, since each is compiled at its
# first use (0.1 s); of 256 they are no faster than of 128.
DECODED_TOGETHER = (16, 32, 64, 128)

# How a function is applied to every record: each(function, inputs `[n, ...]`, spec of a result).
_Each = Callable[[Callable[..., Any], tuple[Any, ...], Any], Any]


class Decoder:
    """Decodes serialized records of chosen features, many in one call.

    One `parse_example` for all records, and one graph for all that is decoded record by record.
    In the sizes of `DECODED_TOGETHER` that graph has no loop: PNG images of 28x28 decode 1.6 times
    as fast as with `tf.map_fn`, and five times as fast as with one tf.data element a record.
    Safe to use from several threads, and meant to be: a call keeps about one core busy.

    Args:
        features: The dataset's `tfds.features.FeaturesDict`.
        selected: Names of the decoded arrays, each with its feature.
        decoders: TFDS decoders by feature, in place of the features' own.
        map_fn: Applied to each decoded record, with a seed of its own if it takes two arguments.
        subject: Who decodes, for messages.

    Attributes:
        outputs: What a record becomes: nested dicts of TensorFlow's type specs.
        stochastic: Whether `map_fn` takes a seed.

    Raises:
        ValueError: A decoder for a feature that is not read, or a `map_fn` that TensorFlow cannot
            trace or that returns no dict.
    """

    def __init__(
        self,
        features: Any,
        selected: Mapping[str, str],
        *,
        decoders: Mapping[str, Any] | None,
        map_fn: Callable[..., Any] | None,
        subject: str,
    ):
        tf = _tensorflow()
        parts = _Parts(tf, features, selected, dict(decoders or {}), subject)
        self.stochastic = map_fn is not None and _takes_a_seed(map_fn)
        keys_spec = [tf.TensorSpec([2], tf.int32)] if self.stochastic else []

        if map_fn is None:
            self.outputs = parts.renamed(parts.columns_spec | parts.record_spec)

            def decoded(each: _Each, serialized: Any) -> dict[str, Any]:
                columns = parts.columns(serialized, each)
                if parts.record_spec:
                    columns |= each(parts.record, (serialized,), parts.record_spec)
                return parts.renamed(columns)

            decode: Callable[..., Any] = decoded
        else:
            mapped = tf.function(map_fn)  # in which TensorFlow rewrites `if` and `for` on tensors

            def record_of(serialized: Any, columns: dict[str, Any], *key: Any) -> Any:
                record = mapped(parts.renamed(columns | parts.record(serialized)), *key)
                return tf.nest.map_structure(tf.convert_to_tensor, record)

            inputs = [tf.TensorSpec([], tf.string), parts.columns_spec, *keys_spec]
            self.outputs = _traced_map(lambda: _spec_of(tf, record_of, *inputs), subject)

            def mapped_too(each: _Each, serialized: Any, *keys: Any) -> dict[str, Any]:
                inputs = (serialized, parts.columns(serialized, each), *keys)
                return each(record_of, inputs, self.outputs)

            decode = mapped_too

        def compiled(length: int | None, each: _Each) -> Callable[..., Any]:
            inputs = [tf.TensorSpec([length], tf.string)]
            inputs += [tf.TensorSpec([length, *spec.shape], spec.dtype) for spec in keys_spec]
            function = tf.function(functools.partial(decode, each), inputs, autograph=False)
            return function.get_concrete_function()

        self.Error: type[Exception] = tf.errors.OpError
        self._tf = tf
        self._looped = compiled(None, functools.partial(_looped, tf))
        self._unrolled = functools.cache(
            lambda length: compiled(length, functools.partial(_unrolled, tf, length))
        )

    def __call__(self, records: Sequence[bytes], keys: np.ndarray | None = None) -> dict[str, Any]:
        """Decodes records.

        Args:
            records: As they are stored. Of the same shapes, or only one.
            keys: Their seeds for a stochastic `map_fn`, `[len(records), 2]` int32.

        Returns:
            NumPy arrays `[len(records), ...]`, nested as the outputs are, in their dtypes. They
            are views of TensorFlow's memory, which nothing else uses.
        """
        inputs = [self._tf.constant(records, self._tf.string)]
        if self.stochastic:
            inputs.append(self._tf.constant(keys))
        count = len(records)
        decode = self._unrolled(count) if count in DECODED_TOGETHER else self._looped
        return self._tf.nest.map_structure(np.asarray, decode(*inputs))


class _Parts:
    """A record in two parts: features that are columns of the file, and those that need all of it.

    Attributes:
        columns_spec: Type specs of the first, by feature.
        record_spec: Those of the second.
    """

    def __init__(
        self,
        tf: Any,
        features: Any,
        selected: Mapping[str, str],
        decoders: dict[str, Any],
        subject: str,
    ):
        import tensorflow_datasets as tfds

        def only(keys: set[str]) -> Any:
            return tfds.features.FeaturesDict({key: features[key] for key in sorted(keys)})

        read = set(selected.values())
        unknown = decoders.keys() - read
        if unknown:
            raise ValueError(
                explain(
                    subject,
                    f"decoders name {', '.join(map(repr, sorted(unknown)))}, which is not read.",
                    features=", ".join(sorted(read)),
                    fix="name features that are read in decoders",
                )
            )
        columns = {key for key in read - decoders.keys() if _is_column(features[key])}
        self._tf = tf
        self._selected = selected
        self._decoders = decoders
        self._columns = only(columns)
        self._others = only(read - columns)
        self.columns_spec: dict[str, Any] = self._columns.get_tensor_spec()
        self.record_spec: dict[str, Any] = self._others.get_tensor_spec()
        if decoders:  # of which only tracing tells what they return
            self.record_spec = _spec_of(tf, self.record, tf.TensorSpec([], tf.string))

    def columns(self, serialized: Any, each: _Each) -> dict[str, Any]:
        """The first part of all records, `[n, ...]`."""
        if not self.columns_spec:
            return {}
        parsed = self._tf.io.parse_example(serialized, self._columns.tf_example_spec)
        return self._decoded(self._columns, parsed, "", each)

    def record(self, serialized: Any) -> dict[str, Any]:
        """The second part of one record."""
        if not len(self._others):
            return {}
        return self._others.deserialize_example(serialized, decoders=self._decoders)

    def renamed(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """By the names that users see."""
        return {name: columns[key] for name, key in self._selected.items()}

    def _decoded(self, features: Any, parsed: Mapping[str, Any], path: str, each: _Each) -> Any:
        import tensorflow_datasets as tfds

        columns = {}
        for name, feature in features.items():
            if isinstance(feature, tfds.features.FeaturesDict):
                columns[name] = self._decoded(feature, parsed, f"{path}{name}/", each)
                continue
            # TFRecord keeps integers and bool as int64, floats as float32.
            column = self._tf.cast(parsed[f"{path}{name}"], feature.get_serialized_info().tf_dtype)
            if isinstance(feature, tfds.features.Tensor) and column.dtype != self._tf.string:
                columns[name] = feature.decode_batch_example(column)
            else:
                columns[name] = each(feature.decode_example, (column,), feature.get_tensor_spec())
        return columns


def _is_column(feature: Any) -> bool:
    """Whether a feature is one column of the file, or a dict of such."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        return all(_is_column(part) for part in feature.values())
    info = feature.get_serialized_info()
    return not isinstance(info, dict) and info.sequence_rank == 0 and None not in info.shape


def _looped(tf: Any, function: Callable[..., Any], inputs: tuple[Any, ...], spec: Any) -> Any:
    """Applies a function to any number of records."""
    return tf.map_fn(lambda elements: function(*elements), inputs, fn_output_signature=spec)


def _unrolled(tf: Any, length: int, function: Callable[..., Any], inputs: Any, _spec: Any) -> Any:
    """Applies a function to that many records, as a graph without a loop."""
    columns = [tf.unstack(leaf, length) for leaf in tf.nest.flatten(inputs)]
    # Traced once and called for each: to trace a user's map_fn 128 times would take seconds.
    traced = tf.function(function, autograph=False)
    rows = [
        traced(*tf.nest.pack_sequence_as(inputs, list(row))) for row in zip(*columns, strict=True)
    ]
    return tf.nest.map_structure(lambda *leaves: tf.stack(leaves), *rows)


def _spec_of(tf: Any, function: Callable[..., Any], *inputs: Any) -> Any:
    """What a function returns, found by tracing it."""
    traced = tf.function(function, autograph=False).get_concrete_function(*inputs)
    return tf.nest.map_structure(
        lambda output: tf.type_spec_from_value(output) if tf.is_tensor(output) else output,
        traced.structured_outputs,
    )


def _traced_map(trace: Callable[[], Any], subject: str) -> dict[str, Any]:
    """What a user's function returns; refused where that is no dict, or nothing."""
    fix = (
        "write map_fn(record) or map_fn(record, seed) in TensorFlow's operations; it takes and"
        " returns a dict of tensors"
    )
    try:
        outputs = trace()
    except Exception as error:  # whatever the user's code raises
        # TensorFlow quotes that code; the last line is what was raised there.
        raised = "".join(str(error).strip().splitlines()[-1:]).strip()
        raise ValueError(
            explain(
                subject,
                "TensorFlow cannot trace map_fn.",
                error=f"{type(error).__name__}: {raised}",
                fix=fix,
            )
        ) from error
    if not isinstance(outputs, dict) or not outputs:
        raise ValueError(
            explain(subject, "map_fn returns no dict.", returned=type(outputs).__name__, fix=fix)
        )
    return outputs


def _takes_a_seed(map_fn: Callable[..., Any]) -> bool:
    required = [
        parameter
        for parameter in inspect.signature(map_fn).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    return len(required) > 1


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
