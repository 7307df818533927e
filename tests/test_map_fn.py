"""A TensorFlow function of the user's on every record, in the parallel decode."""

import functools
import threading

import jax
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from checkout import GUARD_S
from contract import equal, ids
from pairs import all_pairs
from refusals import refused
from sources import source_of

from datarax_tfds import Cursor, Pipeline, TFDSEagerSource, TFDSStreamingSource
from datarax_tfds.order.cursor import Schedule

SIZE = 24


def crop(record):
    """A shape of its own, a branch on a tensor, and a feature left out."""
    image = tf.cast(record["image"][1:4, 1:3], tf.float32)
    if record["label"] > 3:
        image = -image
    return {"id": record["id"], "crop": {"pixels": image}}


def jittered(record, seed):
    noise = tf.random.stateless_uniform([2], seed)
    return {"id": record["id"], "noise": noise, "seed": seed}


@pytest.mark.parametrize("kind", [TFDSEagerSource, TFDSStreamingSource])
@pytest.mark.parametrize("size", [24, 32])
def test_a_map_fn_sees_each_record_and_makes_the_batch(data_dir, kind, size):
    plain = source_of(data_dir, kind).get_batch(size)
    source = source_of(data_dir, kind, map_fn=crop)
    assert source.element_spec() == {
        "id": jax.ShapeDtypeStruct((), np.int32),
        "crop": {"pixels": jax.ShapeDtypeStruct((3, 2, 3), np.float32)},
    }
    batch = source.get_batch(size)
    pixels = np.asarray(plain["image"])[:, 1:4, 1:3].astype(np.float32)
    negative = np.asarray(plain["label"]) > 3
    pixels[negative] *= -1
    assert np.array_equal(batch["crop"]["pixels"], pixels)
    assert ids(batch) == ids(plain)
    assert equal(source[30], jax.tree.map(lambda x: x[0], source.get_batch_at(30, 1)))


@pytest.mark.parametrize("kind", [TFDSEagerSource, TFDSStreamingSource])
def test_a_map_fn_is_traced_once_for_all_batch_sizes(data_dir, kind):
    """To trace it, and to compile it, may take seconds: it is done at construction."""
    traces = []

    def noting(record):
        traces.append(record)
        return crop(record)

    source = source_of(data_dir, kind, map_fn=noting)
    source.get_batch(1)
    traced = len(traces)
    for size in (2, 7, 16, 24, 32, 64, 97):
        source.get_batch(size)
    assert len(traces) == traced


def test_the_log_says_that_the_map_fn_is_being_compiled(data_dir, caplog):
    caplog.set_level("INFO", "datarax_tfds")
    source_of(data_dir, map_fn=crop)
    assert "TFDSStreamingSource(tiny:train): compiling map_fn" in caplog.text


def test_threads_map_records_at_the_same_time(data_dir):
    """Each call of the function waits until another one has begun, which a lock would prevent."""
    meeting = threading.Barrier(2, timeout=GUARD_S)

    def meet():
        return np.int32(meeting.wait())

    def map_fn(record):
        place = tf.ensure_shape(tf.numpy_function(meet, [], tf.int32), [])
        return {"id": record["id"], "place": place}

    source = source_of(data_dir, map_fn=map_fn, allow_stateful_map_fn=True)
    assert sum(source.get_batch(32)["place"].tolist()) == 16  # the places in a meeting are 0 and 1


def test_branches_loops_and_layers_give_the_same_in_a_batch_as_on_a_single_record(data_dir):
    layer = keras.layers.Rescaling(1 / 255)

    def turned(record, seed):
        image = layer(record["image"])
        number = tf.cast(record["id"], tf.int32)
        image = tf.cond(number % 3 == 0, lambda: image + 1, lambda: tf.transpose(image, [1, 0, 2]))
        noise = tf.random.stateless_uniform([], seed, 0, 4, tf.int32)
        _, image = tf.while_loop(
            lambda turn, _: turn < number % 4,
            lambda turn, image: (turn + 1, tf.image.rot90(image)),
            (0, image),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None, 3])),
        )
        for _ in range(number % 2):  # of AutoGraph
            image = -image
        return {"image": tf.image.resize_with_crop_or_pad(image, 5, 5), "noise": noise}

    source = source_of(data_dir, map_fn=turned, shuffle=True)
    keys = source.sampler.at(Schedule(97, 97), Cursor()).keys()
    plain = source_of(data_dir, shuffle=True).get_batch(97)
    batch = source.get_batch(97)
    for row in (0, 1, 2, 50, 96):
        record = jax.tree.map(lambda column, row=row: tf.constant(np.asarray(column)[row]), plain)
        alone = turned(record, tf.constant(keys[row]))
        assert np.array_equal(batch["image"][row], alone["image"])
        assert np.array_equal(batch["noise"][row], alone["noise"])


@pytest.mark.parametrize("kind", [TFDSEagerSource, TFDSStreamingSource])
def test_a_map_fn_may_change_the_record_that_it_gets(data_dir, kind):
    """As functions for tf.data are often written."""

    def changed(record):
        if record["label"] > 3:  # of AutoGraph
            record["label"] = -record["label"]
        record["image"] = tf.cast(record["image"], tf.float32) / 255
        del record["id"]
        return record

    batch = source_of(data_dir, kind, map_fn=changed).get_batch(8)
    assert sorted(batch) == ["image", "label"]
    assert batch["label"].tolist() == [0, 1, 2, 3, -4, -5, -6, 0]


def test_a_map_fn_makes_batches_of_images_of_any_shape_and_of_text(data_dir):
    """Images of any shape and text: the first step to train on ImageNet."""

    def resized(record):
        image = tf.image.resize(record["photo"], (4, 4))
        return {"image": image, "letters": tf.strings.length(record["text"])}

    source = source_of(data_dir, name="text", exclude_keys={"wide"}, map_fn=resized)
    batch = source.get_batch(5)
    assert batch["image"].shape == (5, 4, 4, 3)
    assert batch["letters"].tolist() == [8] * 5


def test_a_decoder_may_leave_an_image_to_the_map_fn(data_dir):
    def decoded(record):
        image = tf.io.decode_png(record["image"])
        return {"id": record["id"], "image": tf.slice(image, [1, 1, 0], [3, 2, 3])}

    skip = {"image": tfds.decode.SkipDecoding()}
    source = source_of(data_dir, map_fn=decoded, decoders=skip)
    expected = source_of(data_dir).get_batch(SIZE)
    batch = source.get_batch(SIZE)
    assert np.array_equal(batch["image"], np.asarray(expected["image"])[:, 1:4, 1:3])
    assert source_of(data_dir, decoders=skip)[0]["image"].startswith(b"\x89PNG")


class TestRandom:
    """Augmentation that a resume, another host count and another batch size do not change."""

    def expected(self, data_dir):
        """What each record becomes in two epochs, in stored order."""
        source = source_of(data_dir, map_fn=jittered)
        epochs = []
        for epoch in range(2):
            source.advance_to(Cursor(epoch, 0))
            epochs.append(np.asarray(source.get_batch(97)["noise"]))
        return epochs

    @pytest.mark.parametrize(
        ("size", "fields", "mesh"),
        all_pairs(
            [8, 24],
            [{}, {"access": "sequential", "shuffle_buffer_size": 30}],
            ["one device", "4 x 2, replicas"],
        ),
    )
    def test_a_record_is_augmented_the_same_on_every_mesh_and_batch_size(
        self, data_dir, mesh, fields, size
    ):
        expected = self.expected(data_dir)
        source = source_of(data_dir, mesh=mesh, shuffle=True, map_fn=jittered, **fields)
        pipeline = Pipeline(source=source, batch_size=size)
        seen = np.zeros((2, 97))
        while pipeline.cursor.epoch < 2:
            start = pipeline.cursor
            batch = next(iter(pipeline))
            for row, number in enumerate(ids(batch)):
                epoch = start.epoch + (start.index + row) // 97
                if epoch < 2:
                    assert np.array_equal(batch["noise"][row], expected[epoch][number])
                    seen[epoch, number] += 1
        assert (seen == 1).all()
        assert not np.isin(expected[0], expected[1]).any()

    def test_augmentation_goes_on_after_a_restore(self, data_dir):
        def make():
            return Pipeline(
                source=source_of(data_dir, shuffle=True, map_fn=jittered), batch_size=SIZE
            )

        one, other = make(), make()
        for _ in range(3):
            next(iter(one))
        other.set_state(one.get_state())
        assert equal(next(iter(one)), next(iter(other)))

    def test_single_records_and_batches_agree(self, data_dir):
        source = source_of(data_dir, map_fn=jittered)
        batch = source.get_batch_at(0, SIZE)
        for row, record in zip(range(SIZE), source, strict=False):
            assert equal(record, jax.tree.map(lambda column, row=row: column[row], batch))

    def test_another_seed_is_refused_at_restore_even_in_stored_order(self, data_dir):
        state = source_of(data_dir, map_fn=jittered, seed=6).get_state()
        with pytest.raises(ValueError, match="seed: saved 6, now 42"):
            source_of(data_dir, map_fn=jittered).set_state(state)

    def test_the_eager_source_refuses_a_random_map_fn(self, data_dir):
        with pytest.raises(ValueError, match=r"decoded once(.|\n)*fix:(.|\n)*TFDSStreamingSource"):
            source_of(data_dir, TFDSEagerSource, map_fn=jittered)


def seed_and_id(record, seed):
    return {"id": record["id"], "seed": seed}


def decorated(function, keeps_signature=True):
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return functools.wraps(function)(wrapper) if keeps_signature else wrapper


class Augment:
    def __init__(self, size=3):
        self.size = size

    def __call__(self, record, *, seed):
        return seed_and_id(record, seed)

    def method(self, record, seed):
        return seed_and_id(record, seed)


def keyword_only(record, *, seed):
    return seed_and_id(record, seed)


def keyword_only_with_default(record, *, seed=None):
    return seed_and_id(record, seed)


def third(record, size=3, seed=None):
    assert size == 3
    return seed_and_id(record, seed)


def third_without_default(record, size, seed):
    assert size == 3
    return seed_and_id(record, seed)


def by_place(record, key, /):
    return seed_and_id(record, key)


def by_place_with_default(record, seed=None, /):
    return seed_and_id(record, seed)


def among_any(*args, seed):
    return seed_and_id(*args, seed)


SEEDED = {
    "a second argument": seed_and_id,
    "a second argument of another name": lambda record, key: seed_and_id(record, key),
    "one with a default": lambda record, seed=None: seed_and_id(record, seed),
    "one by place only": by_place,
    "one by place only with a default": by_place_with_default,
    "one by name only": keyword_only,
    "one by name only with a default": keyword_only_with_default,
    "one after another argument": third,
    "one after an argument that is bound": functools.partial(third_without_default, size=3),
    "one after *args": among_any,
    "an object": Augment(),
    "a method": Augment().method,
    "a decorated function": decorated(keyword_only),
    "a tf.function": tf.function(seed_and_id),
    "a tf.function by name only": tf.function(keyword_only),
}
SEEDLESS = {
    "a default": lambda record, size=3: {"id": record["id"] + size},
    "a default by name only": functools.partial(lambda record, size: {"id": record["id"]}, size=3),
    "a seed that is bound": functools.partial(seed_and_id, seed=np.int32([1, 2])),
    "any arguments": lambda *records: {"id": records[0]["id"]},
    "any options": lambda record, **options: {"id": record["id"]},
    "a decorated function without a seed": decorated(crop, keeps_signature=False),
    "a function in C": dict,
}


class TestSignatures:
    @pytest.mark.parametrize("map_fn", SEEDED.values(), ids=list(SEEDED))
    def test_a_seed_is_passed_by_whatever_parameter_takes_it(self, data_dir, map_fn):
        batch = source_of(data_dir, map_fn=map_fn, shuffle=True).get_batch(SIZE)
        assert equal(batch, source_of(data_dir, map_fn=seed_and_id, shuffle=True).get_batch(SIZE))
        assert len(np.unique(batch["seed"], axis=0)) == SIZE

    @pytest.mark.parametrize("map_fn", SEEDLESS.values(), ids=list(SEEDLESS))
    def test_a_function_without_such_a_parameter_gets_no_seed(self, data_dir, map_fn):
        batch = source_of(data_dir, TFDSEagerSource, map_fn=map_fn).get_batch(SIZE)
        assert np.array_equal(batch.get("seed", [[1, 2]])[0], [1, 2])


class TestFailure:
    @pytest.mark.parametrize(
        ("map_fn", "message"),
        [
            (lambda record: record["nope"], "error: +KeyError: 'nope'"),
            (lambda record: {}, "must return a dict"),
            (lambda record: record | {"x": None}, "must return a dict"),
        ],
    )
    def test_a_map_fn_that_cannot_be_used_is_refused_at_construction(
        self, data_dir, map_fn, message
    ):
        with refused(ValueError, message):
            source_of(data_dir, map_fn=map_fn)

    @pytest.mark.parametrize("size", [24, 32])
    def test_an_exception_names_the_record(self, data_dir, size):
        def fails(record):
            tf.debugging.assert_none_equal(record["id"], tf.constant(30, tf.int64))
            return record

        source = source_of(data_dir, map_fn=fails)
        source.get_batch(16)
        message = (
            r"map_fn fails on a record(.|\n)*where: record 6 of \S+/tiny-train.tfrecord-00001-of-"
            r"00004 \(byte \d+, tfds_id tiny-train.tfrecord-00001-of-00004__6\)\n"
            r" +error: .*Condition x != y did not hold(.|\n)*fix:"
        )
        with pytest.raises(RuntimeError, match=message):
            source.get_batch(size)

    def test_records_of_several_shapes_are_refused_by_feature(self, data_dir):
        def grown(record):
            shape = tf.stack([tf.where(record["id"] > 3, 2, 1), 2])
            return {"x": tf.ensure_shape(tf.zeros(shape), [None, 2])[:, 0][:, None] * [[1.0]]}

        source = source_of(data_dir, map_fn=grown)
        assert source.element_spec()["x"].shape[0] is None
        with pytest.raises(ValueError, match=r"feature 'x' varies in shape(.|\n)*fix:"):
            source.get_batch(SIZE)
