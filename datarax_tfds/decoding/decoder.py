"""Compiles the decoding of records and `map_fn` to one TensorFlow function."""

import functools
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from datarax_tfds.decoding.columns import FeatureColumns
from datarax_tfds.decoding.functions.filter_fn import FilterFn, trace_filter
from datarax_tfds.decoding.functions.map_fn import TracedMapFn, trace_map_fn
from datarax_tfds.decoding.plan import DecodingPlan
from datarax_tfds.decoding.tensorflow_import import tensorflow
from datarax_tfds.decoding.tfds_comparison import require_as_tfds
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.threads import native_call

_log = logging.getLogger(__name__)

# The number of records that are decoded in one call. A call costs 0.3 ms of Python, so it takes at
# least 16 small records; it takes fewer large ones, so that one batch keeps many cores busy.
_MIN_CHUNK, MAX_CHUNK = 16, 512
_MIN_CHUNK_BYTES = 1 << 19

_TIMED_RECORDS, _TIMED_ROUNDS = 32, 3  # in which `map_fn` is timed


def decode_chunk_size(records: int, record_bytes: int) -> int:
    """How many records to decode in one call, if each thread has `records` to decode."""
    least = min(_MIN_CHUNK, max(1, _MIN_CHUNK_BYTES // max(record_bytes, 1)))
    return min(max(records, least), MAX_CHUNK)


def decoder_of(plan: DecodingPlan) -> "Decoder":
    """A decoder, which sources of the same features share unless it runs users' code."""
    config = plan.config
    own = config.decoders, config.map_fn, config.pad_to
    if any(each is not None for each in own) or plan.user_keys:
        return Decoder(plan)
    code = plan.definition.read_text(), repr(plan.names), repr(plan.steps)
    return _shared_decoder(_SharedPlan(code, plan))


@dataclass(frozen=True)
class _SharedPlan:
    """A plan that is equal to plans with the same decoding."""

    code: tuple[str, ...]
    plan: DecodingPlan = field(compare=False)


@functools.lru_cache(maxsize=8)
def _shared_decoder(shared: _SharedPlan) -> "Decoder":
    return Decoder(shared.plan)


@not_copied
class Decoder:
    """Decodes serialized records, many in one call.

    One `parse_example` parses all records of a call. The other decoding and `map_fn` are traced as
    a function of one record, which TensorFlow's `MapDefun` kernel runs for each record. It is
    compiled once, for any number of records. The first call takes 10 to 70 ms, where a graph with a
    copy of the function for each of 64 records took 11 s. PNG images of 28x28 decode 1.2 times as
    fast as in such a graph, and five times as fast as with one tf.data element per record.

    Several threads may call it at the same time; a call keeps about one core busy.

    Args:
        plan: Which features are decoded, and how.

    Attributes:
        outputs: TensorFlow's type specs of a decoded record, in nested dicts.
        stochastic: Whether `map_fn` takes a seed.
        takes_many: Whether a call may decode many records, because no feature is a `RaggedTensor`.
        user_code: A digest of what `map_fn` and users' decoding compute. None without such code, or
            if it may give other results in another run.
        errors: The classes of errors that a call raises.
        bad_bytes_errors: The errors of damaged records, not of a lack of memory or the like.

    Raises:
        ValueError: TFDS cannot decode a feature, or `map_fn` cannot be traced, does not return a
            dict of tensors, or would give other results after a resume.
    """

    def __init__(self, plan: DecodingPlan):
        tf = self._tf = tensorflow()
        self._plan = plan
        columns = self._columns = FeatureColumns(tf, plan)
        record = columns.nest(columns.plain_spec | columns.record_spec)
        map_fn, allow_stateful = plan.config.map_fn, plan.config.allow_stateful_map_fn
        if map_fn is None:
            mapped = TracedMapFn(lambda record: record, [], record, None)
            decode = _without_map_fn(tf, columns)
        else:
            if isinstance(map_fn, FilterFn):
                mapped = trace_filter(tf, map_fn, record, subject=plan.subject)
            else:
                _log.info("%s: compiling map_fn, which the first batch waits for", plan.subject)
                mapped = trace_map_fn(
                    tf, map_fn, record, allow_stateful=allow_stateful, subject=plan.subject
                )
            decode = _with_map_fn(tf, columns, mapped)
        self.outputs, self._mapped = mapped.outputs, mapped
        self.stochastic = bool(mapped.seed_spec)
        self.takes_many = _are_tensors(tf, self.outputs)
        of_many = _of_many(tf, decode, mapped.seed_spec, each_alone=not self.takes_many)
        self._trace = of_many.get_concrete_function
        self._traced: Callable[..., Any] | None = None
        self._plain: Callable[..., Any] | None = None
        self._recent: Sequence[bytes] = ()  # records of the last call, to time `map_fn`
        self.user_code = "+".join(filter(None, [columns.fingerprint, mapped.fingerprint])) or None
        # TensorFlow quotes a record in its error, which Python cannot decode if it is not text.
        self.errors: tuple[type[Exception], ...] = (tf.errors.OpError, UnicodeDecodeError)
        self.bad_bytes_errors: tuple[type[Exception], ...] = (
            tf.errors.InvalidArgumentError,
            tf.errors.DataLossError,
            UnicodeDecodeError,
        )
        self._lock = threading.Lock()
        self._compared = False

    def then(self, function: Callable[[Any], Any]) -> None:
        """Applies one more function to each record, in TensorFlow's operations; its results must
        have fixed shapes. Before the first call, and only if no other source has this decoder.
        """
        mapped, tf = self._mapped, self._tf
        composed = mapped._replace(function=lambda *inputs: function(mapped.function(*inputs)))
        decode = _with_map_fn(tf, self._columns, composed)
        self.takes_many = True
        self._trace = _of_many(tf, decode, mapped.seed_spec).get_concrete_function

    def __call__(self, records: Sequence[bytes], keys: np.ndarray | None = None) -> dict[str, Any]:
        """Decodes records.

        Args:
            records: The bytes as stored; only one unless `takes_many`.
            keys: Their seeds for a stochastic `map_fn`, `[len(records), 2]` int32.

        Returns:
            NumPy arrays `[len(records), ...]`, nested as the outputs are, in their dtypes. They
            are views of TensorFlow's memory, which nothing else uses. Arrays whose shapes vary are
            the elements of an object array `[len(records)]`, unless there is only one record.
        """
        decode, inputs = self._call(records, keys)
        columns = _on_host(self._tf, decode(*inputs))
        if self._plan.config.map_fn is not None:
            self._recent = records[:_TIMED_RECORDS]
        return columns

    def _call(
        self, records: Sequence[bytes], keys: np.ndarray | None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """The compiled function, and its inputs."""
        inputs = [self._tf.constant(records, self._tf.string)]
        if self.stochastic:
            inputs.append(self._tf.constant(keys))
        with self._lock:  # compiled by the first thread that needs it, while the others wait
            decode = self._traced = self._traced or self._trace()
        return decode, inputs

    def map_fn_share(self) -> float:
        """The share of `map_fn` in the time of decoding, in `[0, 1]`; 0 before the first call.

        Both run in one compiled function, so the last records are decoded a few times now, with and
        without it.
        """
        tf, columns, records = self._tf, self._columns, self._recent
        if not records:
            return 0.0
        keys = np.zeros((len(records), 2), np.int32)
        mapped, inputs = self._call(records, keys)
        plain = self._plain
        if plain is None:
            outputs = columns.nest(columns.plain_spec | columns.record_spec)
            each_alone = not (self.takes_many and _are_tensors(tf, outputs))
            decode = _without_map_fn(tf, columns)
            plain = _of_many(tf, decode, [], each_alone=each_alone).get_concrete_function()
            self._plain = plain
        plain_s = mapped_s = math.inf
        for _ in range(_TIMED_ROUNDS):
            begun = time.perf_counter()
            with native_call():
                mapped(*inputs)
                between = time.perf_counter()
                plain(inputs[0])
            mapped_s = min(mapped_s, between - begun)
            plain_s = min(plain_s, time.perf_counter() - between)
        return max(0.0, 1 - plain_s / mapped_s)

    def require_as_tfds(self, record: bytes) -> None:
        """Compares a decoded record with that of TFDS, once for all sources that share the decoder.

        Raises:
            ValueError: A feature has another value, or another shape or dtype than it declares.
        """
        if not self._compared:
            require_as_tfds(self._tf, self._plan, self._columns, record)
            self._compared = True

    def error_of(self, record: bytes, *, skipped: bool) -> Exception | None:
        """The error of decoding a record without `map_fn`; None if it succeeds.

        Decodes the features that `SkipDecoding` leaves to `map_fn` if `skipped`, else the others.
        """
        read = self._columns.read_skipped if skipped else self._columns.read_through
        try:
            with native_call():
                read(record)
        except self.errors as error:
            return error
        return None


# Decodes all records: decode(each, serialized `[n]`, *seeds `[n, 2]`), where
# each(function, inputs `[n, ...]`) applies a traced function of one record to all records.
_Decode = Callable[..., dict[str, Any]]


def _without_map_fn(tf: Any, columns: FeatureColumns) -> _Decode:
    record = tf.function(columns.decode_record, columns.encoded_spec, autograph=False)

    def decode(each: Callable[..., Any], serialized: Any) -> dict[str, Any]:
        plain, encoded = columns.parse(serialized)
        if columns.record_spec:
            plain |= each(record.get_concrete_function(), encoded)
        return columns.nest(plain)

    return decode


def _with_map_fn(tf: Any, columns: FeatureColumns, mapped: TracedMapFn) -> _Decode:
    def of_record(encoded: Any, plain: dict[str, Any], *seed: Any) -> Any:
        return mapped.function(columns.nest(plain | columns.decode_record(*encoded)), *seed)

    inputs = (columns.encoded_spec, columns.plain_spec, *mapped.seed_spec)
    record = tf.function(of_record, inputs, autograph=False)

    def decode(each: Callable[..., Any], serialized: Any, *seeds: Any) -> dict[str, Any]:
        plain, encoded = columns.parse(serialized)
        return each(record.get_concrete_function(), (encoded, plain, *seeds))

    return decode


def _are_tensors(tf: Any, outputs: dict[str, Any]) -> bool:
    return all(isinstance(spec, tf.TensorSpec) for spec in tf.nest.flatten(outputs))


def _of_many(tf: Any, decode: _Decode, seed_spec: list[Any], *, each_alone: bool = False) -> Any:
    """A `tf.function` of any number of records, or of one record."""
    each = functools.partial(_map_single_record if each_alone else _map_records, tf)
    batch_specs = [tf.TensorSpec([None, *spec.shape], spec.dtype) for spec in seed_spec]
    return tf.function(
        functools.partial(decode, each),
        [tf.TensorSpec([None], tf.string), *batch_specs],
        autograph=False,
    )


class _Serialized(NamedTuple):
    """Tensors of several shapes, which no tensor can hold: each as a `TensorProto`, `[n]`."""

    tensors: Any


def _map_records(tf: Any, record: Any, inputs: Any) -> Any:
    """Applies a traced function, whose results are tensors, to every record `[n, ...]`."""
    outputs = record.structured_outputs
    specs = tf.nest.flatten(outputs)
    varies = [not spec.shape.is_fully_defined() for spec in specs]
    if any(varies):
        record = _serializing(tf, record, inputs, varies)
        specs = tf.nest.flatten(record.structured_outputs)
    results = tf.raw_ops.MapDefun(
        arguments=tf.nest.flatten(inputs),
        captured_inputs=record.captured_inputs,
        output_types=[spec.dtype for spec in specs],
        output_shapes=[spec.shape for spec in specs],
        f=record,
        # One record at a time, because our threads run in parallel already, and a record then stays
        # in the cache to its last operation (JPEG of 224x224: 2,470 records/s against 2,080).
        max_intra_op_parallelism=1,
    )
    results = [
        _Serialized(result) if serialized else result
        for result, serialized in zip(results, varies, strict=True)
    ]
    return tf.nest.pack_sequence_as(outputs, results)


def _serializing(tf: Any, record: Any, inputs: Any, varies: list[bool]) -> Any:
    """The traced function of one record that serializes those of its results that vary in shape."""

    def of_record(*inputs: Any) -> list[Any]:
        return [
            tf.io.serialize_tensor(result) if serialized else result
            for result, serialized in zip(tf.nest.flatten(record(*inputs)), varies, strict=True)
        ]

    spec = tf.nest.map_structure(
        lambda column: tf.TensorSpec(column.shape[1:], column.dtype), inputs
    )
    return tf.function(of_record, spec, autograph=False).get_concrete_function()


def _map_single_record(tf: Any, record: Any, inputs: Any) -> Any:
    """Applies a traced function, whose results may have any shape, to one record `[1, ...]`."""
    result = record(*tf.nest.map_structure(lambda column: column[0], inputs))
    return tf.nest.map_structure(lambda value: tf.expand_dims(value, 0), result)


def _on_host(tf: Any, value: Any) -> Any:
    """Decoded records, as `Decoder` returns them."""
    if isinstance(value, _Serialized):
        return _deserialized(tf, value)
    if isinstance(value, Mapping):
        return {name: _on_host(tf, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_on_host(tf, part) for part in value]
        if isinstance(value, list):
            return parts
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return _host_array(value)


def _deserialized(tf: Any, column: _Serialized) -> np.ndarray:
    proto = type(tf.make_tensor_proto(0))  # the class `TensorProto`, which has no public name
    found = [tf.make_ndarray(proto.FromString(each)) for each in column.tensors.numpy()]
    if len(found) == 1:
        return found[0][np.newaxis]
    rows = np.empty(len(found), object)
    for row, values in enumerate(found):
        rows[row] = values
    return rows


def _host_array(value: Any) -> np.ndarray:
    """A tensor on the host. A ragged one becomes an array of arrays."""
    if not hasattr(value, "row_splits"):
        return np.asarray(value)
    inner, splits = _host_array(value.values), value.row_splits.numpy()
    rows = np.empty(len(splits) - 1, object)
    for row, (start, stop) in enumerate(itertools.pairwise(splits)):
        rows[row] = inner[start:stop]
    return rows
