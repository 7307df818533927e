"""Every class of features, TFDS's own and a user's: records are what TFDS makes of them."""

import itertools
import json

import jax
import numpy as np
import pytest
import sources
import tensorflow as tf
import tensorflow_datasets as tfds
from pairs import all_pairs
from refusals import refused
from tfds_datasets import store

from datarax_tfds import (
    Pipeline,
    TFDSEagerSource,
    TFDSStreamingSource,
    Unbatched,
    from_tfds,
)

of = tfds.features
RECORDS = 4


def pixels(number, *shape):
    return np.random.default_rng(number).integers(0, 256, shape).astype(np.uint8)


# Each class that TFDS has, in the forms that are decoded differently; and a value by record.
CLASSES = {
    "tensor": (of.Tensor(shape=(2, 3), dtype=np.float32), lambda i: np.full((2, 3), i, np.float32)),
    "scalar": (of.Scalar(np.int32), lambda i: i),
    "bool": (of.Scalar(np.bool_), lambda i: bool(i % 2)),
    "strings": (of.Tensor(shape=(2,), dtype=np.str_), lambda i: [f"a{i}", "b"]),
    "raw": (of.Tensor(shape=(2,), dtype=np.int16, encoding="bytes"), lambda i: np.int16([i, 1])),
    "zlib": (of.Tensor(shape=(2,), dtype=np.int16, encoding="zlib"), lambda i: np.int16([i, 1])),
    "dynamic": (
        of.Tensor(shape=(None, None), dtype=np.int32, encoding="zlib"),
        lambda i: np.full((i + 1, 2), i, np.int32),
    ),
    "open": (of.Tensor(shape=(None, 3), dtype=np.int32), lambda i: np.full((i + 1, 3), i, "int32")),
    "optional": (
        of.Tensor(shape=(2,), dtype=np.int32, optional=True),
        lambda i: None if i % 2 else np.int32([i, i]),
    ),
    "optional scalar": (
        of.Scalar(np.float32, optional=True),
        lambda i: None if i % 2 else float(i),
    ),
    "label": (of.ClassLabel(num_classes=9), lambda i: i),
    "box": (of.BBoxFeature(), lambda i: of.BBox(0.0, 0.0, 0.5, 0.5 + i / 100)),
    "text": (of.Text(), lambda i: f"text {i}"),
    "image": (of.Image(shape=(4, 4, 3)), lambda i: pixels(i, 4, 4, 3)),
    "float image": (
        of.Image(shape=(4, 4, 1), dtype=np.float32),
        lambda i: np.random.default_rng(i).random((4, 4, 1)).astype(np.float32),
    ),
    "16-bit image": (
        of.Image(shape=(4, 4, 1), dtype=np.uint16, encoding_format="png"),
        lambda i: pixels(i, 4, 4, 1).astype(np.uint16),
    ),
    "any image": (of.Image(), lambda i: pixels(i, i + 1, 4, 3)),
    "labeled image": (of.LabeledImage(labels=9, shape=(4, 4, 1)), lambda i: pixels(i, 4, 4, 1)),
    "video": (of.Video(shape=(2, 4, 4, 3)), lambda i: pixels(i, 2, 4, 4, 3)),
    "any video": (of.Video(shape=(None, 4, 4, 3)), lambda i: pixels(i, i + 1, 4, 4, 3)),
    "audio": (of.Audio(), lambda i: np.arange(i + 1)),
    "fixed audio": (of.Audio(shape=(5,), dtype=np.int32), lambda i: np.arange(5) + i),
    "translation": (of.Translation(languages=["en", "fr"]), lambda i: {"en": f"{i}", "fr": "f"}),
    "variable translation": (
        of.TranslationVariableLanguages(),
        lambda i: {"en": f"e{i}", "fr": ["f", "g"]},
    ),
    "dict": (
        of.FeaturesDict({"a": np.int32, "b": {"c": of.Image(shape=(2, 2, 3))}}),
        lambda i: {"a": i, "b": {"c": pixels(i, 2, 2, 3)}},
    ),
    "sequence": (of.Sequence(np.int32), lambda i: list(range(i))),
    "fixed sequence": (of.Sequence(np.int32, length=3), lambda i: [i, 1, 2]),
    "sequence of dicts": (
        of.Sequence({"a": np.int32, "t": of.Text()}),
        lambda i: [{"a": j, "t": "x"} for j in range(i)],
    ),
    "fixed sequence of dicts": (
        of.Sequence({"a": np.int32, "c": of.Image(shape=(2, 2, 3))}, length=2),
        lambda i: [{"a": j, "c": pixels(i + j, 2, 2, 3)} for j in range(2)],
    ),
    "sequence of images": (
        of.Sequence(of.Image(shape=(2, 2, 3))),
        lambda i: [pixels(j, 2, 2, 3) for j in range(i)],
    ),
    "sequence of any images": (
        of.Sequence(of.Image()),
        lambda i: [pixels(j, 2, 2, 3) for j in range(i)],
    ),
    "sequence of boxes": (
        of.Sequence(of.BBoxFeature()),
        lambda i: [of.BBox(0.0, 0.0, 0.5, 0.5)] * i,
    ),
    "sequence of labels": (
        of.Sequence(of.ClassLabel(num_classes=9), length=2),
        lambda i: [i, 0],
    ),
    "sequence of raw tensors": (
        of.Sequence(of.Tensor(shape=(2,), dtype=np.float32, encoding="zlib"), length=3),
        lambda i: np.float32([[i, 1]] * 3),
    ),
    "sequence of translations": (
        of.Sequence(of.Translation(languages=["en", "fr"])),
        lambda i: [{"en": "a", "fr": "b"}] * i,
    ),
    "nested sequence": (
        of.Sequence(of.Sequence(np.int32)),
        lambda i: [list(range(j)) for j in range(i)],
    ),
    "sequence of videos": (
        of.Sequence(of.Video(shape=(None, 2, 2, 3))),
        lambda i: [pixels(i, i, 2, 2, 3)] * i,
    ),
    "sequence in a sequence of images": (
        of.Sequence(of.Sequence(of.Image(shape=(2, 2, 3)))),
        lambda i: [[pixels(j, 2, 2, 3)] * j for j in range(i)],
    ),
    "episodes": (
        of.Dataset({"o": of.Tensor(shape=(2,), dtype=np.float32), "r": np.float32}),
        lambda i: [{"o": np.float32([i, j]), "r": float(j)} for j in range(i + 1)],
    ),
    "equal episodes": (
        of.Dataset({"o": {"c": of.Image(shape=(2, 2, 3))}, "r": np.int32}),
        lambda i: [{"o": {"c": pixels(i + j, 2, 2, 3)}, "r": i} for j in range(3)],
    ),
    "fixed episodes": (of.Dataset(np.int32, length=2), lambda i: [i, i + 1]),
    "empty episodes": (
        of.Dataset({"c": of.Image(shape=(2, 2, 3)), "s": of.Sequence(np.int32)}),
        lambda i: [{"c": pixels(j, 2, 2, 3), "s": list(range(j))} for j in range(i)],
    ),
    "episodes with text": (
        of.Dataset({"t": of.Text(), "s": of.Sequence(np.int32)}),
        lambda i: [{"t": f"{j}", "s": list(range(j))} for j in range(i + 1)],
    ),
}
# Those of which a batch is one array a leaf.
BATCHED = {
    *("tensor", "scalar", "bool", "raw", "zlib", "optional", "optional scalar", "label", "box"),
    *("image", "float image", "16-bit image", "labeled image", "video", "fixed audio", "dict"),
    *("fixed sequence", "fixed sequence of dicts", "sequence of labels", "sequence of raw tensors"),
    *("equal episodes", "fixed episodes"),
}


def plain(value):
    """Arrays, ragged tensors and steps, in whatever form, as lists."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, tf.data.Dataset):
        steps = [plain(step) for step in value]
        spec = jax.tree.map(lambda _: 0, value.element_spec)
        return jax.tree.map(lambda _, *parts: list(parts), spec, *steps)
    if isinstance(value, tf.RaggedTensor):
        return value.to_list()
    value = np.asarray(value)
    if value.dtype == object and value.ndim:
        return [plain(part) for part in value]
    return value.tolist()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Every class, as a feature of its own, and within a dict."""
    directory = tmp_path_factory.mktemp("classes")
    features = {name: feature for name, (feature, _) in CLASSES.items()}
    values = [{name: value(i) for name, (_, value) in CLASSES.items()} for i in range(RECORDS)]
    nested = {f"in {name}": {"a": {"b": feature}} for name, feature in features.items()}
    records = [
        record | {f"in {name}": {"a": {"b": part}} for name, part in record.items()}
        for record in values
    ]
    store(directory, "every", features | nested, records)
    return directory


@pytest.fixture(scope="module")
def by_tfds(directory):
    dataset = tfds.builder("every", data_dir=directory).as_dataset(
        split="train", read_config=tfds.ReadConfig(interleave_cycle_length=1)
    )
    return [plain(record) for record in dataset]


def source_of(directory, name="every", kind=TFDSStreamingSource, mesh="one device", **fields):
    return sources.source_of(directory, kind, mesh, name=name, **fields)


@pytest.mark.parametrize("name", CLASSES)
def test_a_record_equals_the_record_of_tfds(directory, by_tfds, name):
    source = source_of(directory, include_keys={name, f"in {name}"})
    for number, record in enumerate(source):
        assert plain(record) == {key: by_tfds[number][key] for key in record}
    holds_arrays = all(
        isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(source.element_spec())
    )
    assert holds_arrays == (name in BATCHED)


@pytest.mark.parametrize("mesh", ["one device", "8 devices"])
@pytest.mark.parametrize("kind", [TFDSEagerSource, TFDSStreamingSource])
def test_a_batch_equals_the_records_of_tfds(directory, by_tfds, kind, mesh):
    keys = BATCHED | {f"in {name}" for name in BATCHED}
    source = source_of(directory, kind=kind, mesh=mesh, include_keys=keys)
    batch = source.get_batch(2 * RECORDS)
    spec = source.element_spec()
    for leaf, column in zip(jax.tree.leaves(spec), jax.tree.leaves(batch), strict=True):
        assert (leaf.shape, leaf.dtype) == (column.shape[1:], column.dtype)
    for row in range(2 * RECORDS):
        record = jax.tree.map(lambda column, row=row: column[row], batch)
        assert plain(record) == {key: by_tfds[row % RECORDS][key] for key in record}


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - BATCHED))
def test_a_batch_of_a_feature_that_is_not_an_array_is_refused_by_name(directory, name):
    source = source_of(directory, include_keys={name})
    assert any(isinstance(leaf, Unbatched) for leaf in jax.tree.leaves(source.element_spec()))
    with refused(ValueError, rf"feature '{name}.* (varies in shape|is text, which).*map_fn"):
        source.get_batch(2)


def test_a_version_of_tfds_that_decodes_differently_is_noticed(directory, monkeypatch):
    monkeypatch.setattr(of.Tensor, "decode_example", lambda self, value: value[::-1])
    source = {"include_keys": {"box"}, "map_fn": lambda record: record}
    with refused(ValueError, "feature 'box' is not decoded to the value that TFDS gives"):
        source_of(directory, **source)


def test_unsigned_64_bit_integers_arrive_unchanged(tmp_path):
    values = [2**63 + i for i in range(3)]
    store(tmp_path, "unsigned", {"x": np.uint64}, [{"x": np.uint64(value)} for value in values])
    with jax.enable_x64(True):
        assert source_of(tmp_path, "unsigned").get_batch(3)["x"].tolist() == values


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        (of.Sequence(of.Sequence(np.int32, length=2), length=3), [[0, 1]] * 3),
        (of.Dataset({"s": of.Sequence(np.int32, length=2)}), [{"s": [1, 2]}]),
    ],
)
def test_a_feature_that_tfds_cannot_decode_is_refused_by_name(tmp_path, feature, value):
    store(tmp_path, "broken", {"x": feature, "id": np.int32}, [{"x": value, "id": 7}])
    with refused(ValueError, r"feature 'x' cannot be decoded by TFDS.*exclude_keys={'x'}"):
        source_of(tmp_path, "broken")
    assert source_of(tmp_path, "broken", exclude_keys={"x"}).get_batch(1)["id"].tolist() == [7]


class Unit(of.Tensor):
    """Depends on the whole tensor: many records at once would be another value."""

    def decode_example(self, tfexample_data):
        return tfexample_data / tf.reduce_max(tfexample_data)


class Turned(of.Tensor):
    def decode_example(self, tfexample_data):
        return tfexample_data[::-1]


class Doubled(of.Scalar):
    """Decodes a batch, which sequences are, in its own way."""

    def decode_example(self, tfexample_data):
        return 2 * tfexample_data

    def decode_batch_example(self, example_data):
        return 2 * example_data


class Shifted(of.ClassLabel):
    def decode_example(self, tfexample_data):
        return tfexample_data + 1


class Gray(of.Image):
    """Decodes to another shape and dtype than it declares."""

    def decode_example(self, example):
        return tf.reduce_mean(tf.cast(super().decode_example(example), tf.float32), axis=-1)


class ByPython(of.Tensor):
    """Leaves its shape to what it declares; another run would give the same."""

    def decode_example(self, tfexample_data):
        return tf.numpy_function(lambda value: value + np.float32(1), [tfexample_data], tf.float32)


class Parts(of.FeaturesDict):
    """A dict that TFDS takes apart, as its own."""


class Reversed(of.Sequence):
    """A sequence that TFDS takes apart, as its own."""


class Whole(of.FeaturesDict):
    """The features of a dataset, with a decoding of their own."""

    def decode_example(self, serialized_example, *, decoders=None):
        decoded = super().decode_example(serialized_example, decoders=decoders)
        return decoded | {"x": decoded["x"] + decoded["y"]}


OF_USERS = {
    "unit": (Unit(shape=(3,), dtype=np.float32), lambda i: np.float32([1, 2, i + 1])),
    "turned": (Turned(shape=(3,), dtype=np.int32), lambda i: np.int32([i, 50, 60])),
    "doubled": (Doubled(np.int32), lambda i: i),
    "shifted": (Shifted(num_classes=99), lambda i: i),
    "gray": (Gray(shape=(2, 2, 3)), lambda i: pixels(i, 2, 2, 3)),
    "sequence": (of.Sequence(Unit(shape=(2,), dtype=np.float32), length=2), lambda i: [[1, 2]] * 2),
    "own sequence": (Reversed(Doubled(np.int32), length=2), lambda i: [i, 1]),
    "dict": (Parts({"a": Turned(shape=(2,), dtype=np.int32)}), lambda i: {"a": np.int32([i, 1])}),
    "nested": (
        of.FeaturesDict({"a": {"b": Turned(shape=(2,), dtype=np.int32)}, "c": np.int32}),
        lambda i: {"a": {"b": np.int32([i, 1])}, "c": i},
    ),
    "episodes": (of.Dataset({"d": Doubled(np.int32)}), lambda i: [{"d": i}] * 2),
}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    directory = tmp_path_factory.mktemp("own")
    features = {name: feature for name, (feature, _) in OF_USERS.items()}
    values = [{name: value(i) for name, (_, value) in OF_USERS.items()} for i in range(20)]
    store(directory, "own", features, values)
    by_tfds = [plain(record) for record in tfds.load("own", split="train", data_dir=directory)]
    return directory, by_tfds


class TestUsersClasses:
    """A user's subclass of a class of TFDS, with a decoding of its own."""

    @pytest.mark.parametrize(
        ("size", "kind", "mesh"),
        all_pairs(
            [4, 16], [TFDSEagerSource, TFDSStreamingSource], ["one device", "4 x 2, replicas"]
        ),
    )
    def test_batches_of_any_size_equal_the_records_of_tfds(self, own, kind, mesh, size):
        directory, by_tfds = own
        batch = source_of(directory, "own", kind, mesh).get_batch(size)
        for row in range(size):
            record = jax.tree.map(lambda column, row=row: column[row], batch)
            assert plain(record) == by_tfds[row]

    def test_the_spec_is_what_decoding_returns(self, own):
        spec = source_of(own[0], "own").element_spec()
        assert spec["gray"] == jax.ShapeDtypeStruct((2, 2), np.float32)

    def test_single_records_equal_those_of_tfds(self, own):
        directory, by_tfds = own
        source = source_of(directory, "own")
        assert [plain(record) for record in itertools.islice(source, 5)] == by_tfds[:5]
        assert plain(source[-1]) == by_tfds[-1]

    def test_a_map_fn_gets_the_values_of_tfds(self, own):
        directory, by_tfds = own
        source = source_of(directory, "own", map_fn=lambda record: {"x": record["turned"] + 1})
        expected = [[x + 1 for x in record["turned"]] for record in by_tfds[:4]]
        assert source.get_batch(4)["x"].tolist() == expected

    def test_a_features_dict_with_its_own_decoding_equals_tfds(self, tmp_path):
        features = Whole({"x": np.int32, "y": np.int32})
        tfds.dataset_builders.store_as_tfds_dataset(
            name="whole",
            version="1.0.0",
            features=features,
            split_datasets={"train": [(i, {"x": i, "y": 10}) for i in range(4)]},
            data_dir=tmp_path,
            disable_shuffling=True,
        )
        assert source_of(tmp_path, "whole").get_batch(4)["x"].tolist() == [10, 11, 12, 13]
        only = source_of(tmp_path, "whole", include_keys={"x"})
        assert set(only.get_batch(2)) == {"x"}

    def test_a_class_that_is_defined_again_is_decoded_anew(self, tmp_path):
        store(tmp_path, "again", {"x": Doubled(np.int32)}, [{"x": 1}])
        assert source_of(tmp_path, "again").get_batch(1)["x"].tolist() == [2]
        before = Doubled.decode_example
        try:
            Doubled.decode_example = lambda self, value: 3 * value
            assert source_of(tmp_path, "again").get_batch(1)["x"].tolist() == [3]
        finally:
            Doubled.decode_example = before

    def test_python_code_has_to_be_accepted_and_keeps_the_declared_shape(self, tmp_path):
        values = [{"x": np.float32([i, 1])} for i in range(3)]
        store(tmp_path, "python", {"x": ByPython(shape=(2,), dtype=np.float32)}, values)
        with refused(ValueError, "decoding of 'x' depends on state.*PyFunc"):
            source_of(tmp_path, "python")
        source = source_of(tmp_path, "python", allow_stateful_map_fn=True)
        assert source.get_batch(3)["x"].tolist() == [[1, 2], [2, 2], [3, 2]]

    def test_a_shape_that_records_do_not_have_is_refused_by_name(self, tmp_path):
        values = [{"x": np.float32([i, 1]), "id": i} for i in range(3)]
        store(tmp_path, "lying", {"x": Lying(shape=(2,), dtype=np.float32), "id": np.int32}, values)
        with refused(ValueError, r"feature 'x' does not have the shape.*Lying.*exclude_keys={'x'}"):
            source_of(tmp_path, "lying", allow_stateful_map_fn=True)
        assert len(source_of(tmp_path, "lying", exclude_keys={"x"}).get_batch(3)["id"]) == 3


class Lying(ByPython):
    def decode_example(self, tfexample_data):
        decoded = tf.numpy_function(lambda value: value[:1], [tfexample_data], tf.float32)
        if not tf.executing_eagerly():
            decoded.set_shape([2])
        return decoded


class TestDecoders:
    def test_a_random_decoder_is_refused(self, data_dir):
        @tfds.decode.make_decoder(output_dtype=tf.float32)
        def noisy(example, feature):
            return tf.cast(feature.decode_example(example), tf.float32) + tf.random.normal([])

        decoders = {"image": noisy()}
        with refused(ValueError, "decoding of 'image' draws random numbers.*RandomStandardNormal"):
            source_of(data_dir, "tiny", decoders=decoders)
        source = source_of(data_dir, "tiny", decoders=decoders, allow_stateful_map_fn=True)
        assert source.get_state()["features"].endswith(", stateful map_fn")

    def test_a_decoder_that_draws_in_python_is_refused(self, data_dir):
        @tfds.decode.make_decoder()
        def flipped(example, feature):
            image = feature.decode_example(example)
            return image[::-1] if np.random.rand() < 0.5 else image

        with refused(ValueError, "decoding of 'image' .*python: +.*numpy.random"):
            source_of(data_dir, "tiny", decoders={"image": flipped()})

    def test_a_part_of_a_feature_may_have_a_decoder(self, directory):
        source = source_of(
            directory,
            include_keys={"dict"},
            decoders={"dict": {"b": {"c": tfds.decode.SkipDecoding()}}},
        )
        assert source[0]["dict"]["b"]["c"].startswith(b"\x89PNG")


class TestPartialDecoding:
    @pytest.mark.parametrize("kind", [TFDSEagerSource, TFDSStreamingSource])
    def test_partial_decoding_leaves_out_parts_of_features(self, directory, by_tfds, kind):
        part = tfds.decode.PartialDecoding({"dict": {"a"}, "fixed sequence of dicts": {"a": True}})
        source = source_of(directory, kind=kind, decoders=part)
        record = {"dict": {"a": 1}, "fixed sequence of dicts": {"a": [0, 1]}}
        assert plain(source[1]) == record
        batch = source.get_batch(RECORDS)
        assert batch["dict"]["a"].tolist() == [each["dict"]["a"] for each in by_tfds]

    def test_partial_decoding_works_with_a_key_filter(self, directory):
        part = tfds.decode.PartialDecoding({"dict": {"b"}, "label": True})
        assert source_of(directory, decoders=part, include_keys={"label"})[2] == {"label": 2}

    def test_partial_decoding_works_with_decoders_and_a_map_fn(self, directory):
        part = tfds.decode.PartialDecoding(
            {"dict": {"b"}, "label": True}, {"dict": {"b": {"c": tfds.decode.SkipDecoding()}}}
        )

        def decoded(record):
            image = tf.io.decode_png(record["dict"]["b"]["c"])
            return {"image": tf.ensure_shape(image, [2, 2, 3])}

        batch = source_of(directory, decoders=part, map_fn=decoded).get_batch(3)
        assert np.array_equal(batch["image"][1], pixels(1, 2, 2, 3))

    @pytest.mark.parametrize("features", [{"nothing": True}, {"dict": {"z"}}, {"label": of.Text()}])
    def test_partial_decoding_of_unknown_features_is_refused(self, directory, features):
        part = tfds.decode.PartialDecoding(features)
        with refused(ValueError, "PartialDecoding names features that the dataset does not have"):
            source_of(directory, decoders=part)


class TestEpisodes:
    """RLDS: records with steps."""

    @pytest.mark.parametrize("mesh", ["one device", "4 x 2, replicas"])
    @pytest.mark.parametrize("kind", [TFDSEagerSource, TFDSStreamingSource])
    def test_a_map_fn_gets_the_steps_of_an_episode_as_a_dataset(self, directory, kind, mesh):
        def returns(record):
            steps = record["episodes"]
            total = steps.reduce(0.0, lambda total, step: total + step["r"])
            last = tf.zeros([2])
            for step in steps:
                last = step["o"]
            padded = steps.map(lambda step: step["r"]).padded_batch(5, padded_shapes=[])
            return {
                "total": total,
                "last": last,
                "first": steps.take(1).get_single_element()["o"],
                "steps": steps.cardinality(),
                "padded": tf.ensure_shape(tf.pad(padded.get_single_element(), [[0, 5]])[:5], [5]),
            }

        keys = {"episodes"}
        source = source_of(directory, kind=kind, mesh=mesh, include_keys=keys, map_fn=returns)
        batch = source.get_batch(RECORDS)
        assert batch["total"].tolist() == [0, 1, 3, 6]
        assert batch["last"].tolist() == [[i, i] for i in range(RECORDS)]
        assert batch["first"].tolist() == [[i, 0] for i in range(RECORDS)]
        assert batch["steps"].tolist() == [1, 2, 3, 4]
        assert batch["padded"][2].tolist() == [0, 1, 2, 0, 0]

    def test_steps_of_equal_length_are_batches_of_a_pipeline(self, directory, by_tfds):
        source = from_tfds("every", "train", data_dir=directory, include_keys={"equal episodes"})
        batch = Pipeline(source=source, batch_size=2).step()
        assert batch["equal episodes"]["o"]["c"].shape == (2, 3, 2, 2, 3)
        expected = [record["equal episodes"]["r"] for record in by_tfds[:2]]
        assert batch["equal episodes"]["r"].tolist() == expected

    def test_an_episode_longer_than_those_looked_at_is_refused_where_it_is_read(self, tmp_path):
        values = [{"steps": [1.0] * (3 if number == 1 else 2)} for number in range(100)]
        store(tmp_path, "rare", {"steps": of.Dataset(np.float32)}, values)
        source = source_of(tmp_path, "rare")
        assert source.element_spec()["steps"].shape == (2,)
        assert source.get_batch_at(2, 50)["steps"].shape == (50, 2)
        message = (
            r"an episode has another number of steps.*where: +record 1 of.*feature steps .*map_fn"
        )
        with refused(ValueError, message):
            source.get_batch(8)

        def cut(record):
            return {
                "steps": tf.ensure_shape(record["steps"].take(2).batch(2).get_single_element(), [2])
            }

        assert source_of(tmp_path, "rare", map_fn=cut).get_batch(8)["steps"].shape == (8, 2)


def as_stored(keys):
    """Supervised keys as TFDS writes them in dataset_info.json."""
    if isinstance(keys, str):
        return {"featureKey": keys}
    if isinstance(keys, tuple):
        return {"tuple": {"items": [as_stored(key) for key in keys]}}
    return {"dict": {"dict": {name: as_stored(key) for name, key in keys.items()}}}


class TestSupervised:
    """Records as `as_supervised` of TFDS gives them, by name."""

    @pytest.mark.parametrize("kind", [TFDSEagerSource, TFDSStreamingSource])
    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            (("x", "y"), {"image": "x", "label": "y"}),
            (("x", "x"), {"image": "x", "label": "x"}),
            (("x", "y", "w"), {"image": "x", "label": "y", "weight": "w"}),
            (({"a": "x", "b": "w"}, "y"), {"image": {"a": "x", "b": "w"}, "label": "y"}),
            ((("x", "w"), {"c": "y"}), {"image": ("x", "w"), "label": {"c": "y"}}),
            (
                ("x", ("y", {"d": "w"}), "w"),
                {"image": "x", "label": ("y", {"d": "w"}), "weight": "w"},
            ),
        ],
    )
    def test_supervised_keys_may_be_pairs_triples_and_nested(self, tmp_path, kind, keys, expected):
        features = {"x": np.float32, "y": np.int32, "w": np.float32}
        values = [{"x": i + 0.5, "y": i, "w": i / 4} for i in range(4)]
        store(tmp_path, "supervised", features, values)
        path = tmp_path / "supervised" / "1.0.0" / "dataset_info.json"
        info = json.loads(path.read_text()) | {"supervisedKeys": as_stored(keys)}
        path.write_text(json.dumps(info))
        by_tfds = tfds.load("supervised", split="train", as_supervised=True, data_dir=tmp_path)

        source = source_of(tmp_path, "supervised", kind, as_supervised=True)
        values = {"x": [0.5, 1.5], "y": [0, 1], "w": [0, 0.25]}
        batch = source.get_batch(2)
        assert jax.tree.structure(batch) == jax.tree.structure(expected)
        assert jax.tree.map(lambda column: column.tolist(), batch) == jax.tree.map(
            values.__getitem__, expected
        )
        for row, record in enumerate(by_tfds.take(2)):
            ours = jax.tree.map(lambda column, row=row: column[row].item(), tuple(batch.values()))
            assert ours == jax.tree.map(lambda value: value.numpy().item(), record)
        assert jax.tree.structure(source.element_spec()) == jax.tree.structure(expected)
        assert jax.tree.structure(source[1]) == jax.tree.structure(expected)
