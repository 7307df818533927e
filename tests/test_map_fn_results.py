"""What a map_fn may return: whatever mappings, and a message for whatever no batch can hold."""

import types
from collections import OrderedDict, UserDict, defaultdict
from typing import NamedTuple

import numpy as np
import pytest
import sources
import tensorflow as tf
import tensorflow_datasets as tfds
from contract import equal
from refusals import refused
from tfds_datasets import store

from datarax_tfds import TFDSEagerSource, TFDSStreamingSource

RECORDS = 12
KINDS = pytest.mark.parametrize("kind", [TFDSEagerSource, TFDSStreamingSource])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("results")
    features = {"x": tfds.features.Tensor(shape=(3,), dtype=np.float32), "i": np.int32}
    records = [
        {"x": np.float32([number, 1, 2]), "i": number, "t": f"text {number}"}
        for number in range(RECORDS)
    ]
    store(directory, "small", features | {"t": tfds.features.Text()}, records)
    return directory


def source_of(directory, kind, map_fn, **fields):
    return sources.source_of(directory, kind, name="small", map_fn=map_fn, **fields)


class Two(NamedTuple):
    first: object
    second: object


MAPPINGS = {
    "OrderedDict": OrderedDict,
    "defaultdict": lambda entries: defaultdict(list, entries),
    "UserDict": UserDict,
    "mappingproxy": types.MappingProxyType,
}


@KINDS
@pytest.mark.parametrize("mapping", MAPPINGS.values(), ids=list(MAPPINGS))
@pytest.mark.parametrize("traced", [False, True])
def test_any_mapping_is_taken_as_a_dict(directory, kind, mapping, traced):
    def returned(record, of):
        inner = of({"z": record["i"], "y": [of({"x": record["x"]})]})
        return of({"in": inner, "b": record["i"] + 1, "a": Two(of({"x": record["x"]}), [])})

    def map_fn(record):
        return returned(record, mapping)

    # TensorFlow itself knows no other mappings as results of a tf.function.
    if traced and mapping in (OrderedDict, MAPPINGS["defaultdict"]):
        map_fn = tf.function(map_fn)
    source = source_of(directory, kind, map_fn)
    expected = source_of(directory, kind, lambda record: returned(record, dict))
    batch = source.get_batch(8)
    assert type(batch) is type(batch["in"]) is type(batch["in"]["y"][0]) is dict
    assert equal(batch, expected.get_batch(8))
    assert source.element_spec() == expected.element_spec()


@KINDS
@pytest.mark.parametrize(
    ("map_fn", "names", "fix"),
    [
        (lambda record: {0: record["x"]}, "0", "'0' in place of 0"),
        (lambda record: {0: record["x"], "i": record["i"]}, "0", "'0' in place of 0"),
        (lambda record: {"a": {1: record["i"], 2: record["i"]}}, "1, 2", "'1' in place of 1"),
        (lambda record: {"a": [{None: record["i"]}]}, "None", "'None' in place of None"),
        (lambda record: OrderedDict({(1, 2): record["i"]}), r"\(1, 2\)", r"'\(1, 2\)' in place"),
    ],
)
def test_keys_that_are_not_text_are_refused_at_construction(directory, kind, map_fn, names, fix):
    with refused(ValueError, f"names must be text.*names: +{names}\n.*fix: .*{fix}"):
        source_of(directory, kind, map_fn)


def quantized(dtype, of):
    return lambda record: {"x": tf.bitcast(tf.cast(record["x"], of), dtype)}


def cast(dtype):
    return lambda record: {"x": tf.cast(record["x"], dtype)}


UNHELD = {
    "qint8": (quantized(tf.qint8, tf.int8), r"tf.bitcast\(x, tf.int8\)"),
    "quint8": (quantized(tf.quint8, tf.uint8), r"tf.bitcast\(x, tf.uint8\)"),
    "qint16": (quantized(tf.qint16, tf.int16), r"tf.bitcast\(x, tf.int16\)"),
    "quint16": (quantized(tf.quint16, tf.uint16), r"tf.bitcast\(x, tf.uint16\)"),
    "qint32": (quantized(tf.qint32, tf.int32), r"tf.bitcast\(x, tf.int32\)"),
    "float8_e5m2": (cast(tf.dtypes.experimental.float8_e5m2), r"tf.cast\(x, tf.float32\)"),
    "float8_e4m3fn": (cast(tf.dtypes.experimental.float8_e4m3fn), r"tf.cast\(x, tf.float32\)"),
    "int4": (cast(tf.dtypes.experimental.int4), r"tf.cast\(x, tf.int8\)"),
    "uint4": (cast(tf.dtypes.experimental.uint4), r"tf.cast\(x, tf.int8\)"),
}


@KINDS
@pytest.mark.parametrize(("map_fn", "fix"), UNHELD.values(), ids=list(UNHELD))
@pytest.mark.parametrize("host_keys", [None, {"x"}])
def test_a_dtype_that_a_batch_cannot_have_is_refused_at_construction(
    directory, kind, map_fn, fix, host_keys
):
    with refused(ValueError, f"feature 'x' has a dtype that a batch cannot have.*fix: .*{fix}"):
        source_of(directory, kind, lambda record: record | map_fn(record), host_keys=host_keys)


@KINDS
@pytest.mark.parametrize(
    "dtype",
    [
        *(tf.bool, tf.int8, tf.uint8, tf.int16, tf.uint16, tf.int32, tf.uint32, tf.int64),
        *(tf.uint64, tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.complex64, tf.complex128),
    ],
)
def test_every_other_dtype_arrives(directory, kind, dtype):
    source = source_of(directory, kind, lambda record: {"i": tf.cast(record["i"], dtype)})
    values = np.asarray(source.get_batch(RECORDS)["i"]).astype(np.complex64)
    assert values.tolist() == [min(i, 1) if dtype == tf.bool else i for i in range(RECORDS)]


class Pair(tf.experimental.ExtensionType):
    first: tf.Tensor
    second: tf.Tensor


def drawn_length(record):
    """A part of `x` whose length varies from record to record."""
    return record["x"][: record["i"] % 3]


@KINDS
@pytest.mark.parametrize(
    ("map_fn", "message", "way"),
    [
        (
            lambda record: {"x": tf.io.decode_image(tf.io.encode_png(pixels(record)))},
            r"feature 'x' has no known rank.*channels=3 and expand_animations=False.*tf.image.re",
            lambda record: {
                "x": tf.image.resize(
                    tf.io.decode_image(
                        tf.io.encode_png(pixels(record)), channels=3, expand_animations=False
                    ),
                    [224, 224],
                )
            },
        ),
        (
            lambda record: {"x": of_python(record)},
            r"feature 'x' has no known rank.*tf.ensure_shape\(x, \[8\]\)",
            lambda record: {"x": tf.ensure_shape(of_python(record), [3])},
        ),
        (
            lambda record: {"x": of_python(record)},
            r"feature 'x' has no known rank.*tf.reshape\(x, \[8\]\)",
            lambda record: {"x": tf.reshape(of_python(record), [3])},
        ),
        (
            lambda record: {"x": tf.RaggedTensor.from_row_lengths(record["x"], [1, 2])},
            r"feature 'x' is a RaggedTensor, not an array.*x.to_tensor\(shape=\[2, 8\]\)",
            lambda record: {
                "x": tf.RaggedTensor.from_row_lengths(record["x"], [1, 2]).to_tensor(shape=[2, 8])
            },
        ),
        (
            lambda record: {"x": tf.sparse.from_dense(record["x"])},
            r"feature 'x' is a SparseTensor, not an array.*as tf.sparse.to_dense\(x\)",
            lambda record: {"x": tf.sparse.to_dense(tf.sparse.from_dense(record["x"]))},
        ),
        (
            lambda record: {"x": tf.sparse.from_dense(record["x"][: 2 + record["i"] // 99])},
            r"feature 'x' is a SparseTensor.*tf.ensure_shape\(tf.sparse.to_dense\(x\), \[8\]\)",
            lambda record: {
                "x": tf.ensure_shape(
                    tf.sparse.to_dense(tf.sparse.from_dense(record["x"][: 2 + record["i"] // 99])),
                    [2],
                )
            },
        ),
        (
            lambda record: {"x": Pair(record["x"], record["i"])},
            r"feature 'x' is a Pair, not an array.*the tensors within it, each under a name",
            lambda record: {"first": record["x"], "second": record["i"]},
        ),
    ],
)
def test_a_result_that_is_not_an_array_is_refused_with_a_fix_that_works(
    directory, kind, map_fn, message, way
):
    with refused(ValueError, message):
        source_of(directory, kind, map_fn, allow_stateful_map_fn=True)
    batch = source_of(directory, kind, way, allow_stateful_map_fn=True).get_batch(8)
    assert all(column.shape[0] == 8 for column in batch.values())


def pixels(record):
    return tf.zeros([4, 4, 3], tf.uint8) + tf.cast(record["i"], tf.uint8)


def of_python(record):
    return tf.numpy_function(lambda x: x, [record["x"]], tf.float32)


@KINDS
@pytest.mark.parametrize(
    ("part", "message", "way"),
    [
        (
            drawn_length,
            r"tf.ensure_shape\(tf.pad\(x, \[\[0, 8\]\]\)\[:8\], \[8\]\)",
            lambda x: tf.ensure_shape(tf.pad(x, [[0, 8]])[:8], [8]),
        ),
        (
            lambda record: drawn_length(record)[:, None] * [[1.0, 2.0]],
            r"tf.ensure_shape\(tf.pad\(x, \[\[0, 8\], \[0, 0\]\]\)\[:8, :\], \[8, 2\]\)",
            lambda x: tf.ensure_shape(tf.pad(x, [[0, 8], [0, 0]])[:8, :], [8, 2]),
        ),
        (
            lambda record: tf.zeros([2, 2, record["i"] % 3 + 1]),
            r"tf.ensure_shape\(tf.image.resize\(x, \[224, 224\]\), \[224, 224, 3\]\)",
            lambda x: tf.ensure_shape(
                tf.image.resize(x[:, :, :1] * [1.0, 1, 1], [8, 8]), [8, 8, 3]
            ),
        ),
        (
            lambda record: tf.strings.as_string(drawn_length(record)),
            r"tf.pad\(tf.strings.length\(x\), \[\[0, 8\]\]\)\[:8\], \[8\]\)",
            lambda x: tf.ensure_shape(tf.pad(tf.strings.length(x), [[0, 8]])[:8], [8]),
        ),
    ],
)
def test_lengths_that_vary_may_be_padded(directory, kind, part, message, way):
    with refused(ValueError, f"feature 'x' .*{message}"):
        source_of(directory, kind, lambda record: {"x": part(record)}).get_batch(8)
    source = source_of(directory, kind, lambda record: {"x": way(part(record))})
    assert source.get_batch(8)["x"].shape[:2] == (8, 8)


@KINDS
def test_a_ragged_feature_of_the_dataset_may_be_padded(tmp_path, kind):
    lengths = tfds.features.Sequence(tfds.features.Sequence(np.int32))
    records = [{"x": [[1], [2] * i], "i": i} for i in range(RECORDS)]
    store(tmp_path, "small", {"x": lengths, "i": np.int32}, records)
    message = r"feature 'x' varies in shape.*exclude_keys={'x'}, .*x.to_tensor\(shape=\[8, 8\]\)"
    with refused(ValueError, message):
        source_of(tmp_path, kind, None).get_batch(4)

    def padded(record):
        return {"x": record["x"].to_tensor(shape=[8, 8])}

    batch = source_of(tmp_path, kind, padded).get_batch(4)
    assert np.asarray(batch["x"]).sum((1, 2)).tolist() == [1, 3, 5, 7]


@tfds.decode.make_decoder(output_dtype=tf.dtypes.experimental.int4)
def in_four_bits(serialized, feature):
    return tf.cast(tf.strings.length(serialized), tf.dtypes.experimental.int4)


@KINDS
def test_a_map_fn_may_cast_the_dtype_of_a_decoder_that_a_batch_cannot_have(directory, kind):
    fields = {"decoders": {"t": in_four_bits()}}
    with refused(ValueError, r"'t' has a dtype that a batch .*exclude_keys={'t'}, or let map_fn"):
        source_of(directory, kind, None, **fields)
    source = source_of(
        directory, kind, lambda record: {"t": tf.cast(record["t"], tf.int8)}, **fields
    )
    assert source.get_batch(4)["t"].tolist() == [6] * 4


@KINDS
@pytest.mark.parametrize("within", [False, True])
def test_a_map_fn_that_xla_cannot_compile_is_not_blamed_on_a_record(directory, kind, within):
    def doubled(record):
        return {"x": 2 * record["x"]}

    compiled = tf.function(doubled, jit_compile=True)
    map_fn = (lambda record: compiled(record)) if within else compiled
    message = "XLA cannot compile map_fn.*error: +Detected unsupported.*fix: .*jit_compile=True"
    with refused(RuntimeError, message) as raised:
        source_of(directory, kind, map_fn).get_batch(8)
    assert "split=" not in str(raised.value)
    expected = source_of(directory, kind, doubled).get_batch(8)
    assert equal(source_of(directory, kind, map_fn, exclude_keys={"t"}).get_batch(8), expected)
