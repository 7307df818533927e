"""A TensorFlow function of the user's on every record, in the parallel decode."""

import jax
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import shardings
from contract import equal, ids

from datarax_tfds import (
    Cursor,
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
)

SIZE = 24


def source_of(data_dir, kind=TFDSStreamingSource, mesh="one device", **fields):
    config = TFDSEagerConfig if kind is TFDSEagerSource else TFDSStreamingConfig
    fields = {"name": "tiny", "split": "train", "data_dir": str(data_dir), "seed": 5} | fields
    return kind(config(**fields), sharding=shardings()[mesh])


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
@pytest.mark.parametrize("size", [24, 32])  # 32 records are decoded without a loop
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


def test_a_map_fn_makes_batches_of_what_had_none(data_dir):
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
            source.move_to(Cursor(epoch, 0))
            epochs.append(np.asarray(source.get_batch(97)["noise"]))
        return epochs

    @pytest.mark.parametrize("mesh", ["one device", "4 x 2, replicas"])
    @pytest.mark.parametrize("fields", [{}, {"access": "sequential", "shuffle_buffer_size": 30}])
    @pytest.mark.parametrize("size", [8, 24])
    def test_a_record_is_the_same_in_an_epoch_wherever_it_is_made(
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

    def test_it_goes_on_after_a_restore(self, data_dir):
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
        with pytest.raises(ValueError, match="seed: saved 6, now 5"):
            source_of(data_dir, map_fn=jittered).set_state(state)

    def test_the_eager_source_refuses_it(self, data_dir):
        with pytest.raises(ValueError, match=r"decoded once(.|\n)*fix:(.|\n)*TFDSStreamingSource"):
            source_of(data_dir, TFDSEagerSource, map_fn=jittered)


class TestFailure:
    @pytest.mark.parametrize(
        ("map_fn", "message"),
        [
            (lambda record: record["nope"], "KeyError: 'nope'"),
            (lambda record: record["id"], "returns no dict"),
            (lambda record: {}, "returns no dict"),
            (lambda record: record | {"x": None}, "returns no dict"),
            (lambda record: {"x": tf.random.uniform([])}, "operations: RandomUniform"),
            (
                lambda record: {"x": tf.image.random_flip_up_down(record["image"])},
                "random numbers that a resume would not draw again",
            ),
            (lambda record: {"x": tf.ragged.constant([[1], [2, 3]])}, "no array of a known rank"),
        ],
    )
    def test_a_map_fn_that_cannot_be_is_refused_at_once(self, data_dir, map_fn, message):
        with pytest.raises(ValueError, match=rf"{message}(.|\n)*fix:"):
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

    def test_records_that_do_not_go_together_are_told_from_one_that_fails(self, data_dir):
        def grown(record):
            shape = tf.stack([tf.where(record["id"] > 3, 2, 1), 2])
            return {"x": tf.ensure_shape(tf.zeros(shape), [None, 2])[:, 0][:, None] * [[1.0]]}

        source = source_of(data_dir, map_fn=grown)
        assert source.element_spec()["x"].shape[0] is None
        with pytest.raises(ValueError, match=r"feature 'x' varies in shape(.|\n)*fix:"):
            source.get_batch(SIZE)

    def test_a_seed_with_a_default_is_given_all_the_same(self, data_dir):
        def optional(record, seed=None):
            return {"id": record["id"], "seed": tf.convert_to_tensor(seed)}

        seeds = np.asarray(source_of(data_dir, map_fn=optional).get_batch(SIZE)["seed"])
        assert len(np.unique(seeds, axis=0)) == SIZE

    def test_decoders_of_what_is_not_read_are_refused(self, data_dir):
        with pytest.raises(ValueError, match=r"decoders name 'imge'(.|\n)*features: id, image"):
            source_of(data_dir, decoders={"imge": tfds.decode.SkipDecoding()})
