"""Bytes to arrays, in TensorFlow's C++: the one place that imports TensorFlow."""

import functools
import inspect
import itertools
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sharding.messages import explain

_log = logging.getLogger(__name__)

# Numbers of records that are decoded faster than others: a call costs 1 ms where several threads
# decode. Few, since each is compiled at its first use (0.4 s for 512).
_DECODED_TOGETHER = (16, 32, 64, 128, 256, 512)
LEAST_TOGETHER, MOST_TOGETHER = _DECODED_TOGETHER[0], _DECODED_TOGETHER[-1]

# Operations whose results depend on what ran before them.
_RANDOM = re.compile(
    r"Random\w+|(Parameterized)?TruncatedNormal|Multinomial|SampleDistortedBoundingBox\w*"
    r"|Stateful(?!PartitionedCall)\w+|RngReadAndSkip"
)

# How a function is applied to every record: each(function, inputs `[n, ...]`, spec of a result).
_Each = Callable[[Callable[..., Any], tuple[Any, ...], Any], Any]


def decoded_together(records: int) -> int:
    """How many of those records to decode in one call, so that it takes the least time a record."""
    return max(
        (size for size in _DECODED_TOGETHER if size <= records),
        default=records,
    )


@dataclass(frozen=True)
class Definition:
    """The features of a dataset, told apart by the file that defines them.

    Args:
        text: Of `features.json`.
        features: What TFDS makes of it.
    """

    text: str
    features: Any = field(compare=False)


@functools.lru_cache(maxsize=8)
def shared_decoder(definition: Definition, selected: tuple[tuple[str, str], ...]) -> "Decoder":
    """One decoder for all sources of the same features, which is compiled once.

    Args:
        definition: Of the features.
        selected: As `Decoder` takes it, in pairs.
    """
    return Decoder(
        definition.features, dict(selected), decoders=None, map_fn=None, subject="features"
    )


class Decoder:
    """Decodes serialized records of chosen features, many in one call.

    One `parse_example` for all records, and one graph for all that is decoded record by record.
    In the sizes of `decoded_together` that graph has no loop: PNG images of 28x28 decode 1.6 times
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
        tensorflow_version: Of the code that decodes.

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
        parts = _Features(tf, features, selected, dict(decoders or {}), subject)
        self.stochastic = map_fn is not None and _takes_a_seed(map_fn)
        keys_spec = [tf.TensorSpec([2], tf.int32)] if self.stochastic else []

        if map_fn is None:
            self.outputs = parts.nested(parts.plain_spec | parts.record_spec)

            def decoded(each: _Each, serialized: Any) -> dict[str, Any]:
                plain, encoded = parts.columns(serialized)
                if parts.record_spec:
                    plain |= each(parts.record, encoded, parts.record_spec)
                return parts.nested(plain)

            decode: Callable[..., Any] = decoded
        else:
            mapped = tf.function(map_fn)  # in which TensorFlow rewrites `if` and `for` on tensors

            def record_of(encoded: Any, plain: dict[str, Any], *key: Any) -> Any:
                return mapped(parts.nested(plain | parts.record(*encoded)), *key)

            inputs = [parts.encoded_spec, parts.plain_spec, *keys_spec]
            self.outputs = _map_outputs(tf, lambda: _traced(tf, record_of, *inputs), subject)

            def mapped_too(each: _Each, serialized: Any, *keys: Any) -> dict[str, Any]:
                plain, encoded = parts.columns(serialized)
                return each(record_of, (encoded, plain, *keys), self.outputs)

            decode = mapped_too

        def compiled(length: int | None, each: _Each) -> Callable[..., Any]:
            inputs = [tf.TensorSpec([length], tf.string)]
            inputs += [tf.TensorSpec([length, *spec.shape], spec.dtype) for spec in keys_spec]
            function = tf.function(functools.partial(decode, each), inputs, autograph=False)
            return function.get_concrete_function()

        self.Error: type[Exception] = tf.errors.OpError
        self.tensorflow_version: str = tf.__version__
        self._tf = tf
        self._graphs: dict[int | None, Callable[..., Any]] = {}
        self._compiled = lambda length: compiled(
            length, functools.partial(_unrolled if length else _looped, tf, length)
        )
        self._lock = threading.Lock()

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
        decode = self._graph(len(records))
        return self._tf.nest.map_structure(np.asarray, decode(*inputs))

    def _graph(self, length: int) -> Callable[..., Any]:
        size = length if length in _DECODED_TOGETHER else None
        with self._lock:  # compiled by the first thread that needs it, while the others wait
            if size not in self._graphs:
                self._graphs[size] = self._compiled(size)
            return self._graphs[size]


class _Features:
    """A record in parts: numbers, which are columns of the file; images and such, which are columns
    of bytes; and features that need all of the record.

    Leaves go by their paths, as `objects/label`.

    Attributes:
        plain_spec: Type specs of the numbers.
        encoded_spec: Those of what is still to be decoded: the record, and its columns of bytes.
        record_spec: Those of what `record` makes of it.
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
                    f"decoders name {', '.join(sorted(map(repr, unknown)))}, which is not read.",
                    features=", ".join(sorted(read)),
                    fix="name features that are read in decoders",
                )
            )
        for key, decoder in decoders.items():
            if not _is_decoder(decoder):
                raise ValueError(
                    explain(
                        subject,
                        f"the decoder of {key!r} is none of TFDS's.",
                        decoder=type(decoder).__name__,
                        fix="use tfds.decode.SkipDecoding(), or one of make_decoder",
                    )
                )
        columns = {key for key in read - decoders.keys() if _is_column(features[key])}
        self._tf = tf
        self._selected = selected
        self._decoders = decoders
        self._features = features
        self._columns = only(columns)
        self._others = only(read - columns)
        leaves = _leaves(self._columns)
        self._plain = {
            path: leaf
            for path, leaf in leaves.items()
            if isinstance(leaf, tfds.features.Tensor) and _stored_dtype(leaf) != tf.string
        }
        self._encoded = {path: leaf for path, leaf in leaves.items() if path not in self._plain}

        text = tf.TensorSpec([], tf.string)
        self.plain_spec = {path: leaf.get_tensor_spec() for path, leaf in self._plain.items()}
        self.encoded_spec = (text, dict.fromkeys(self._encoded, text))
        self.record_spec = {path: leaf.get_tensor_spec() for path, leaf in self._encoded.items()}
        if decoders:  # of which only tracing tells what they return
            self.record_spec = _spec_of(tf, _traced(tf, self.record, *self.encoded_spec))
        else:
            self.record_spec |= self._others.get_tensor_spec()

    def columns(self, serialized: Any) -> tuple[dict[str, Any], Any]:
        """All records `[n]`: their numbers `[n, ...]`, and what is still to be decoded."""
        spec = self._columns.tf_example_spec
        parsed = self._tf.io.parse_example(serialized, spec) if spec else {}
        plain = {
            # TFRecord keeps integers and bool as int64, floats as float32.
            path: leaf.decode_batch_example(self._tf.cast(parsed[path], _stored_dtype(leaf)))
            for path, leaf in self._plain.items()
        }
        return plain, (serialized, {path: parsed[path] for path in self._encoded})

    def record(self, serialized: Any, encoded: Mapping[str, Any]) -> dict[str, Any]:
        """What is still to be decoded of one record."""
        decoded = {path: leaf.decode_example(encoded[path]) for path, leaf in self._encoded.items()}
        if len(self._others):
            decoded |= self._others.deserialize_example(serialized, decoders=self._decoders)
        return decoded

    def nested(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        """As the features are, by the names that users see."""

        def grown(feature: Any, path: str) -> Any:
            if path in leaves:
                return leaves[path]
            return {name: grown(part, f"{path}/{name}") for name, part in feature.items()}

        return {name: grown(self._features[key], key) for name, key in self._selected.items()}


def _is_decoder(value: Any) -> bool:
    """Whether TFDS decodes a feature with it, or with a dict of such the parts of one."""
    import tensorflow_datasets as tfds

    if isinstance(value, Mapping):
        return all(map(_is_decoder, value.values()))
    return isinstance(value, tfds.decode.Decoder)


def _leaves(features: Any, prefix: str = "") -> dict[str, Any]:
    """The features within nested dicts, by their paths."""
    import tensorflow_datasets as tfds

    leaves = {}
    for name, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            leaves |= _leaves(feature, f"{prefix}{name}/")
        else:
            leaves[f"{prefix}{name}"] = feature
    return leaves


def _stored_dtype(leaf: Any) -> Any:
    return leaf.get_serialized_info().tf_dtype


def _is_column(feature: Any) -> bool:
    """Whether a feature is one column of the file, or a dict of such."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        return all(_is_column(part) for part in feature.values())
    info = feature.get_serialized_info()
    return not isinstance(info, dict) and info.sequence_rank == 0 and None not in info.shape


def _looped(tf: Any, _length: None, function: Callable[..., Any], inputs: Any, spec: Any) -> Any:
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


def _traced(tf: Any, function: Callable[..., Any], *inputs: Any) -> Any:
    return tf.function(function, autograph=False).get_concrete_function(*inputs)


def _spec_of(tf: Any, traced: Any) -> Any:
    """What a traced function returns."""
    return tf.nest.map_structure(
        lambda output: tf.type_spec_from_value(output) if tf.is_tensor(output) else output,
        traced.structured_outputs,
    )


def _drawn(traced: Any) -> list[str]:
    """The operations of a traced function that draw random numbers of TensorFlow's own."""
    graph = traced.graph.as_graph_def()
    nodes = itertools.chain(graph.node, *(body.node_def for body in graph.library.function))
    return sorted({node.op for node in nodes if _RANDOM.fullmatch(node.op)})


def _map_outputs(tf: Any, trace: Callable[[], Any], subject: str) -> dict[str, Any]:
    """What a user's function returns; refused where that is of no use."""
    fix = (
        "write map_fn(record) or map_fn(record, seed) in TensorFlow's operations; it takes and"
        " returns a dict of tensors"
    )
    try:
        traced = trace()
    except Exception as error:  # whatever the user's code raises
        # TensorFlow quotes that code; the last line is what was raised there.
        raised = "".join(str(error).strip().splitlines()[-1:]).strip()
        kind = type(error).__name__
        raise ValueError(
            explain(
                subject,
                "TensorFlow cannot trace map_fn.",
                error=raised if raised.startswith(kind) else f"{kind}: {raised}",
                fix=fix,
            )
        ) from error
    drawn = _drawn(traced)
    if drawn:
        raise ValueError(
            explain(
                subject,
                "map_fn draws random numbers that a resume would not draw again.",
                operations=", ".join(drawn),
                fix="let it take a seed, as map_fn(record, seed), and use tf.random.stateless_* and"
                " tf.image.stateless_random_*",
            )
        )
    outputs = _spec_of(tf, traced)
    if not isinstance(outputs, dict) or not outputs or None in tf.nest.flatten(outputs):
        raise ValueError(
            explain(subject, "map_fn returns no dict of tensors.", returned=outputs, fix=fix)
        )
    return outputs


def _takes_a_seed(map_fn: Callable[..., Any]) -> bool:
    positional = [
        parameter
        for parameter in inspect.signature(map_fn).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    second = positional[1:2]
    return any(each.default is each.empty or each.name == "seed" for each in second)


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
