"""The fixes of messages about what is made of records: features, decoders, map_fn, crops."""

import functools
import logging
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from advice import Row

from datarax_tfds import Pipeline, decode_center_crop, decode_random_crop
from datarax_tfds.decoding.functions.user_function import as_dicts

SKIP = {"image": tfds.decode.SkipDecoding()}
PNG = tf.io.encode_png(np.zeros((4, 4, 3), np.uint8))
RANDOM = (
    "for random numbers take a seed, as map_fn(record, seed), and use tf.random.stateless_* or"
    " tf.image.stateless_random_*, not Keras's random layers; or accept other batches after a"
    " resume, with allow_stateful_map_fn=True"
)
TRACED = (
    "write map_fn(record) or map_fn(record, seed) in TensorFlow's operations; it takes and returns"
    " a dict of tensors"
)
VARIABLE = tf.Variable(2.0)
FLOAT8 = tf.dtypes.experimental.float8_e5m2
CONSTANT = tf.constant(VARIABLE.numpy())


def drawn(record):
    return {"x": tf.random.uniform([])}


def drawn_by_seed(record, seed):
    return {"x": tf.random.stateless_uniform([], seed)}


def scaled(record):
    return {"x": VARIABLE * tf.cast(record["label"], tf.float32)}


def scaled_by_a_constant(record):
    return {"x": CONSTANT * tf.cast(record["label"], tf.float32)}


def timed(record):
    return {"x": tf.timestamp() + tf.cast(record["label"], tf.float64)}


def computed(record):
    return {"x": 2.0 + tf.cast(record["label"], tf.float32)}


def since(begun):
    return lambda record: {"x": begun + tf.cast(record["label"], tf.float64)}


def measured(record):
    begun = time.perf_counter()
    result = computed(record)
    logging.getLogger(__name__).debug("%.6f s", time.perf_counter() - begun)
    return result


def noisy(batch, keys):
    """A random stage of a pipeline."""
    noise = jax.vmap(lambda key: jax.random.uniform(key))(keys)
    return {"x": batch["label"].astype(jnp.float32) + noise}


def cropped(record, seed=None):
    return {"image": decode_center_crop(record["image"], (4, 4))}


def resized(record):
    return {"photo": tf.image.resize(record["photo"], [224, 224])}


def lengths(record):
    return {"text": tf.strings.length(record["text"])}


def first_tokens(record):
    tokens = tf.concat([record["tokens"], tf.zeros([8], tf.int32)], 0)
    return {"tokens": tf.ensure_shape(tokens[:8], [8])}


def padded_tokens(record):
    return {"tokens": tf.ensure_shape(tf.pad(record["tokens"], [[0, 8]])[:8], [8])}


@tfds.decode.make_decoder(output_dtype=tf.qint8)
def quantized(serialized, feature):
    image = tf.ensure_shape(tf.io.decode_png(serialized, channels=3), [5, 4, 3])
    return tf.bitcast(tf.cast(image, tf.int8), tf.qint8)


def in_float8(record):
    return tf.cast(tf.cast(record["label"], tf.float32), FLOAT8)


def compiled(record):
    """For XLA, which has no text."""
    return tf.function(computed, jit_compile=True)(record)


def of_text(u, *keys, **fields):
    return u.batch(name="text", include_keys=set(keys), **fields)


def mapped_text(u, map_fn, **fields):
    return u.batch(name="text", map_fn=map_fn, **fields)


def with_64_bits(call):
    with jax.enable_x64(True):
        return call()


def built_with_64_bits(u):
    with jax.enable_x64(True):
        return u.stream(name="text", include_keys={"wide"})


class Failing(tfds.decode.Decoder):
    """A decoder that cannot decode anything."""

    def decode_example(self, serialized_example):
        raise ValueError("not today")


class Working(tfds.decode.Decoder):
    def decode_example(self, serialized_example):
        return tf.ensure_shape(tf.io.decode_png(serialized_example, channels=3), [5, 4, 3])


@tfds.decode.make_decoder()
def grey(serialized, feature):
    return tf.ensure_shape(tf.io.decode_png(serialized, channels=1), [5, 4, 1])


def failing_on(number):
    def map_fn(record):
        fine = tf.debugging.Assert(record["id"] != number, ["no such id"])
        with tf.control_dependencies([fine]):
            return {"id": tf.identity(record["id"])}

    return map_fn


def coping(record):
    return {"id": record["id"]}


def in_short_memory(u, most, size):
    """A batch, where memory is short for more than so many records in one call."""
    read = []

    def measure(number):
        read.append(number)
        # After a failure as many are read one by one, and then all is tried once more.
        if len(read) % (2 * most + 2) == most + 1:
            raise MemoryError("short")
        return number

    def map_fn(record):
        number = tf.numpy_function(measure, [record["id"]], tf.int64)
        return {"id": tf.ensure_shape(number, [])}

    stream = u.stream(map_fn=map_fn, allow_stateful_map_fn=True, prefetch_buffer=0)
    read.clear()
    return stream.get_batch(size)


FEATURES = [
    Row(
        "the dataset has no feature 'lable'.",
        "use include_keys={'label'}",
        lambda u: u.batch(include_keys={"lable"}),
        lambda u: u.batch(include_keys={"label"}),
    ),
    Row(
        "include_keys must leave at least one feature.",
        "leave include_keys out, or use include_keys={'id'}",
        lambda u: u.batch(include_keys=set()),
        lambda u: u.batch(),
        lambda u: u.batch(include_keys={"id"}),
    ),
    Row(
        "as_supervised=True needs an input and a target feature.",
        "leave as_supervised out, and read the features by their names",
        lambda u: u.batch(as_supervised=True),
        lambda u: u.batch()["image"],
    ),
    Row(
        "as_supervised=True needs an input and a target feature.",
        "include both, with include_keys={'input', 'target'}",
        lambda u: u.batch(name="pair", as_supervised=True, include_keys={"input"}),
        lambda u: u.batch(name="pair", as_supervised=True, include_keys={"input", "target"}),
    ),
    Row(
        "feature 'text' is text, which a JAX array cannot hold.",
        "use exclude_keys={'text'}, or return numbers of one shape from map_fn, as"
        " tf.strings.length(x), or keep it on the host with host_keys={'text'}",
        lambda u: of_text(u, "text", "label"),
        lambda u: u.batch(name="text", exclude_keys={"text", "photo", "tokens", "wide"}),
        lambda u: mapped_text(u, lengths),
        lambda u: of_text(u, "text", "label", host_keys={"text"}),
    ),
    Row(
        "feature 'photo' varies in shape from record to record.",
        "pad it, with pad_to={'photo': (224, 224, 3)}; or use exclude_keys={'photo'}, or return"
        " numbers of one shape from map_fn, as tf.image.resize(x, [224, 224])",
        lambda u: of_text(u, "photo", "label"),
        lambda u: of_text(u, "photo", "label", pad_to={"photo": (224, 224, 3)}),
        lambda u: u.batch(name="text", exclude_keys={"text", "photo", "tokens", "wide"}),
        lambda u: mapped_text(u, resized),
    ),
    Row(
        "feature 'tokens' varies in shape from record to record.",
        "pad it, with pad_to={'tokens': 8}; or use exclude_keys={'tokens'}, or return numbers of"
        " one shape from map_fn, as tf.ensure_shape(x, [8]), with the sizes that it always has; or,"
        " where they vary, padded and cut, as tf.ensure_shape(tf.pad(x, [[0, 8]])[:8], [8])",
        lambda u: of_text(u, "tokens", "label"),
        lambda u: of_text(u, "tokens", "label", pad_to={"tokens": 8}),
        lambda u: u.batch(name="text", exclude_keys={"text", "photo", "tokens", "wide"}),
        lambda u: mapped_text(u, first_tokens),
        lambda u: mapped_text(u, padded_tokens),
    ),
    Row(
        "feature 'x' has a dtype that a batch cannot have.",
        "let map_fn return it in another dtype, as tf.cast(x, tf.float32)",
        lambda u: u.batch(map_fn=lambda record: {"x": in_float8(record)}),
        lambda u: u.batch(map_fn=lambda record: {"x": tf.cast(in_float8(record), tf.float32)}),
    ),
    Row(
        "feature 'image' has a dtype that a batch cannot have.",
        "use exclude_keys={'image'}, or let map_fn return it in another dtype, as"
        " tf.cast(x, tf.int32), or, with the same bits, tf.bitcast(x, tf.int8)",
        lambda u: u.batch(decoders={"image": quantized()}),
        lambda u: u.batch(exclude_keys={"image"}),
        lambda u: u.batch(
            decoders={"image": quantized()},
            map_fn=lambda record: {"x": tf.cast(record["image"], tf.int32)},
        ),
        lambda u: u.batch(
            decoders={"image": quantized()},
            map_fn=lambda record: {"x": tf.bitcast(record["image"], tf.int8)},
        ),
    ),
    Row(
        "feature 'text' is text, which a JAX array cannot hold.",
        "let map_fn leave it out, or return numbers of one shape for it, as tf.strings.length(x)",
        lambda u: mapped_text(u, lambda record: {"text": record["text"], "label": record["label"]}),
        lambda u: mapped_text(u, lambda record: {"label": record["label"]}),
        lambda u: mapped_text(u, lengths),
    ),
    Row(
        "feature 'photo' varies in shape from record to record.",
        "pad it, with pad_to={'photo': (224, 224, 3)}; or let map_fn leave it out, or return"
        " numbers of one shape for it, as tf.image.resize(x, [224, 224])",
        lambda u: mapped_text(u, lambda record: {"photo": record["photo"]}),
        lambda u: mapped_text(
            u, lambda record: {"photo": record["photo"]}, pad_to={"photo": (224, 224, 3)}
        ),
        lambda u: mapped_text(u, lambda record: {"label": record["label"]}),
        lambda u: mapped_text(u, resized),
    ),
    Row(
        "the value does not fit int32.",
        "turn on 64-bit types with jax.config.update('jax_enable_x64', True), keep the feature on"
        " the host with host_keys, cast it in map_fn, or leave it out with exclude_keys",
        lambda u: of_text(u, "wide", "label"),
        lambda u: with_64_bits(lambda: of_text(u, "wide", "label")),
        lambda u: of_text(u, "label", host_keys={"wide"}),
        lambda u: mapped_text(u, lambda record: {"wide": tf.cast(record["wide"], tf.float32)}),
        lambda u: u.batch(name="text", exclude_keys={"text", "photo", "tokens", "wide"}),
    ),
    Row(
        "feature 'wide' would be cut, because 64-bit types have been turned off.",
        "leave jax_enable_x64 as it was, or build the source anew",
        lambda u: built_with_64_bits(u).get_batch(4),
        lambda u: with_64_bits(lambda: built_with_64_bits(u).get_batch(4)),
        lambda u: u.stream(name="text", include_keys={"label"}).get_batch(4),
    ),
    Row(
        "host_keys must be features of a record, got 'lable'.",
        "use host_keys={'label'}",
        lambda u: u.batch(host_keys={"lable"}),
        lambda u: u.batch(host_keys={"label"}),
    ),
    Row(
        "host_keys must be features of a record, got 'label'.",
        "let map_fn return 'label', too, or leave it out of host_keys",
        lambda u: u.batch(host_keys={"label"}, map_fn=coping),
        lambda u: u.batch(host_keys={"label"}, map_fn=lambda record: record),
        lambda u: u.batch(map_fn=coping),
    ),
    Row(
        "host_keys must leave a feature for the devices.",
        "leave 'label' out of host_keys, or read another feature, too",
        lambda u: u.batch(include_keys={"label"}, host_keys={"label"}),
        lambda u: u.batch(include_keys={"label"}),
        lambda u: u.batch(include_keys={"id", "label"}, host_keys={"label"}),
    ),
    Row(
        "feature 'tokens' must be one array of a fixed shape to stay on the host.",
        "leave 'tokens' out of host_keys, or let map_fn return an array of a fixed shape for it",
        lambda u: of_text(u, "label", host_keys={"tokens"}),
        lambda u: of_text(u, "label"),
        lambda u: mapped_text(
            u,
            lambda record: first_tokens(record) | {"label": record["label"]},
            host_keys={"tokens"},
        ),
    ),
]

DECODERS = [
    Row(
        "decoders must name features that are read, got 'imgae'.",
        "use 'image' in place of 'imgae'",
        lambda u: u.batch(decoders={"imgae": grey()}),
        lambda u: u.batch(decoders={"image": grey()}),
    ),
    Row(
        "decoders must name features that are read, got 'image'.",
        "leave 'image' out of decoders, or read it, too",
        lambda u: u.batch(include_keys={"label"}, decoders={"image": grey()}),
        lambda u: u.batch(include_keys={"label"}),
        lambda u: u.batch(include_keys={"label", "image"}, decoders={"image": grey()}),
    ),
    Row(
        "the decoder of 'image' must be one of TFDS's decoders.",
        "make an object of the class: {'image': tfds.decode.SkipDecoding()}",
        lambda u: u.stream(decoders={"image": tfds.decode.SkipDecoding}),
        lambda u: u.stream(decoders={"image": tfds.decode.SkipDecoding()}),
    ),
    Row(
        "the decoder of 'image' must be one of TFDS's decoders.",
        "use {'image': tfds.decode.SkipDecoding()}, or what make_decoder returns",
        lambda u: u.stream(decoders={"image": "SkipDecoding"}),
        lambda u: u.stream(decoders={"image": tfds.decode.SkipDecoding()}),
        lambda u: u.batch(decoders={"image": grey()}),
    ),
    Row(
        "PartialDecoding names features that the dataset does not have.",
        "use features of the dataset, as tfds.decode.PartialDecoding({'id': True})",
        lambda u: u.batch(decoders=tfds.decode.PartialDecoding({"lable": True})),
        lambda u: u.batch(decoders=tfds.decode.PartialDecoding({"id": True})),
    ),
    Row(
        "feature 'image' cannot be decoded by TFDS.",
        "leave it out with exclude_keys={'image'}, or correct its class or decoder",
        lambda u: u.batch(decoders={"image": Failing()}),
        lambda u: u.batch(exclude_keys={"image"}),
        lambda u: u.batch(decoders={"image": Working()}),
    ),
]


class Twice:
    """A map_fn as an object: it takes a record once it is built."""

    def __call__(self, record):
        return {"x": 2 * record["label"]}


class Listed(list):
    """A map_fn as an object that is itself a list: of the keys, or of a record by mistake."""

    def __init__(self, record=()):
        super().__init__(record)

    def __call__(self, record):
        return {"x": record["label"]}


def decorated(function, wraps=lambda wrapper: wrapper):
    """Hides that the function takes a seed, unless functools.wraps says it."""
    return wraps(lambda *arguments: function(*arguments))


def of_a_seed_or_none(record, seed=None):
    return None if seed is None else drawn_by_seed(record, seed)


INSTANCE = "pass an instance of the class, as map_fn"
WRAPS = "use functools.wraps where map_fn is decorated, so that its seed is seen"

FUNCTIONS = [
    Row(
        "TensorFlow cannot trace map_fn.",
        f"{INSTANCE}=Twice(); {TRACED}",
        lambda u: u.batch(map_fn=Twice),
        lambda u: u.batch(map_fn=Twice()),
    ),
    Row(
        "map_fn must return a dict of tensors.",
        f"{INSTANCE}=Listed(); {TRACED}",
        lambda u: u.batch(map_fn=Listed),
        lambda u: u.batch(map_fn=Listed()),
    ),
    Row(
        "TensorFlow cannot trace map_fn.",
        f"{WRAPS}; {TRACED}",
        lambda u: u.batch(map_fn=decorated(drawn_by_seed)),
        lambda u: u.batch(map_fn=decorated(drawn_by_seed, functools.wraps(drawn_by_seed))),
    ),
    Row(
        "map_fn must return a dict of tensors.",
        f"{WRAPS}; {TRACED}",
        lambda u: u.batch(map_fn=decorated(of_a_seed_or_none)),
        lambda u: u.batch(map_fn=decorated(of_a_seed_or_none, functools.wraps(of_a_seed_or_none))),
    ),
    Row(
        "TensorFlow cannot trace map_fn.",
        TRACED,
        lambda u: u.batch(map_fn=lambda record: {"x": np.sqrt(record["image"])}),
        lambda u: u.batch(map_fn=lambda record: {"x": tf.cast(record["image"], tf.float32)}),
        lambda u: u.batch(map_fn=drawn_by_seed),
    ),
    Row(
        "map_fn must return a dict of tensors.",
        TRACED,
        lambda u: u.batch(map_fn=lambda record: record["label"]),
        lambda u: u.batch(map_fn=lambda record: {"label": record["label"]}),
        lambda u: u.batch(map_fn=drawn_by_seed),
    ),
    Row(
        "names must be text in a dict that it returns.",
        "use texts as names, as '0' in place of 0",
        lambda u: as_dicts({0: 1}),
        lambda u: as_dicts({"0": 1}),
    ),
    Row(
        "TensorFlow cannot trace map_fn.",
        "use texts as names, as '0' in place of 0",
        lambda u: u.batch(map_fn=lambda record: {0: record["label"], "id": record["id"]}),
        lambda u: u.batch(map_fn=lambda record: {"0": record["label"], "id": record["id"]}),
    ),
    Row(
        "XLA cannot compile map_fn for the features that it is given.",
        "leave out jit_compile=True where map_fn is, or calls, a tf.function; or, if it is text"
        " that XLA cannot take, leave the text out with exclude_keys",
        lambda u: mapped_text(u, compiled, exclude_keys={"photo", "tokens", "wide"}),
        lambda u: mapped_text(u, computed, exclude_keys={"photo", "tokens", "wide"}),
        lambda u: mapped_text(u, compiled, exclude_keys={"photo", "tokens", "wide", "text"}),
    ),
    Row(
        "map_fn draws random numbers that a resume would not draw again.",
        RANDOM,
        lambda u: u.batch(map_fn=drawn),
        lambda u: u.batch(map_fn=drawn_by_seed),
        lambda u: u.batch(map_fn=drawn, allow_stateful_map_fn=True),
    ),
    Row(
        "map_fn depends on state that a resume does not restore.",
        "make a constant outside map_fn, as c = tf.constant(variable.numpy()), and use it there;"
        f" {RANDOM}",
        lambda u: u.batch(map_fn=scaled),
        lambda u: u.batch(map_fn=scaled_by_a_constant),
    ),
    Row(
        "map_fn depends on state that a resume does not restore.",
        "compute all of it by TensorFlow's operations on the record, without a clock (to measure"
        " how long something takes, use time.perf_counter; compute a fixed date outside map_fn and"
        f" close over the value); {RANDOM}",
        lambda u: u.batch(map_fn=timed),
        lambda u: u.batch(map_fn=computed),
        lambda u: u.batch(map_fn=measured),
        lambda u: u.batch(map_fn=since(time.time())),
        lambda u: u.batch(map_fn=timed, allow_stateful_map_fn=True),
    ),
    Row(
        "records are decoded once, so a random map_fn cannot change them from epoch to epoch.",
        "use a TFDSStreamingSource, or a random stage of the Pipeline",
        lambda u: u.eager(map_fn=drawn_by_seed),
        lambda u: u.batch(map_fn=drawn_by_seed),
        lambda u: u.pipeline(stages=[noisy]).step(),
    ),
    Row(
        "records that are kept cannot change from epoch to epoch, as map_fn asks.",
        "use cacheable=False, or a random stage of the Pipeline in place of map_fn",
        lambda u: u.batch(map_fn=drawn_by_seed, cacheable=True),
        lambda u: u.batch(map_fn=drawn_by_seed, cacheable=False),
        lambda u: Pipeline(source=u.stream(cacheable=True), stages=[noisy], batch_size=4).step(),
    ),
    Row(
        "map_fn fails on a record.",
        "let map_fn cope with this record, or leave it out with split='train[0:3]+train[4:97]'",
        lambda u: u.batch(map_fn=failing_on(3)),
        lambda u: u.batch(map_fn=coping),
        lambda u: u.batch(map_fn=failing_on(3), split="train[0:3]+train[4:97]"),
    ),
    Row(
        "map_fn fails on a record.",
        "let map_fn cope with this record",
        lambda u: u.stream(map_fn=failing_on(3), split="train[3:4]").get_batch(1),
        lambda u: u.stream(map_fn=coping, split="train[3:4]").get_batch(1),
    ),
    Row(
        "these records decode one by one, but not in one call.",
        "free memory, or use a smaller batch_size",
        lambda u: in_short_memory(u, most=7, size=8),
        lambda u: in_short_memory(u, most=8, size=8),
        lambda u: in_short_memory(u, most=7, size=4),
    ),
]

CROPS = [
    Row(
        "TensorFlow cannot trace map_fn.",
        "hand map_fn the bytes as stored, with decoders={'image': tfds.decode.SkipDecoding()} in"
        " the config",
        lambda u: u.batch(map_fn=cropped),
        lambda u: u.batch(map_fn=cropped, decoders=SKIP),
    ),
    Row(
        "it must be the bytes of one image, a scalar string tensor.",
        "hand map_fn the bytes as stored, with decoders={'image': tfds.decode.SkipDecoding()} in"
        " the config",
        lambda u: decode_center_crop(tf.zeros([4, 4, 3], tf.uint8), (4, 4)),
        lambda u: u.batch(map_fn=cropped, decoders=SKIP),
    ),
    Row(
        "size must be a height and a width in pixels.",
        "use size=(224, 224)",
        lambda u: decode_random_crop(PNG, (0, 0), 4),
        lambda u: decode_random_crop(PNG, (0, 0), size=(224, 224)),
    ),
    Row(
        "channels must be 1 (grey) or 3 (colour).",
        "use channels=3",
        lambda u: decode_random_crop(PNG, (0, 0), (4, 4), channels=4),
        lambda u: decode_random_crop(PNG, (0, 0), (4, 4), channels=3),
    ),
    Row(
        "area must be (low, high) with 0 < low <= high <= 1.",
        "use area=(0.08, 1.0)",
        lambda u: decode_random_crop(PNG, (0, 0), (4, 4), area=(1.0, 0.08)),
        lambda u: decode_random_crop(PNG, (0, 0), (4, 4), area=(0.08, 1.0)),
    ),
    Row(
        "aspect_ratio must be (low, high) with 0 < low <= high.",
        "use aspect_ratio=(0.75, 1.33)",
        lambda u: decode_random_crop(PNG, (0, 0), (4, 4), aspect_ratio=0.75),
        lambda u: decode_random_crop(PNG, (0, 0), (4, 4), aspect_ratio=(0.75, 1.33)),
    ),
    Row(
        "fraction must be above 0 and at most 1.",
        "use fraction=0.875",
        lambda u: decode_center_crop(PNG, (4, 4), fraction=0.0),
        lambda u: decode_center_crop(PNG, (4, 4), fraction=0.875),
    ),
]

ROWS = FEATURES + DECODERS + FUNCTIONS + CROPS


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_fix_of_a_message_works_when_it_is_followed(user, row):
    row.follow(user)
