"""`datarax-tfds fill`: random records have the features of the real ones, and are read as those."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from faulty_store import FaultyStore
from object_servers import BUCKET
from tfds_datasets import detection_features, detection_record, store

from datarax_tfds import TFDSStreamingConfig, TFDSStreamingSource
from datarax_tfds.cli import main
from datarax_tfds.files.random_records import Bounds, random_records


def fill(name, out, *words):
    return main(["fill", name, "--out", str(out), *map(str, words)])


def source_of(name, data_dir, split="train"):
    config = TFDSStreamingConfig(name=name, split=split, data_dir=str(data_dir))
    return TFDSStreamingSource(config)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.glob("*record-*")}


@pytest.fixture(scope="module")
def detection(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("detection")
    records = map(detection_record, range(5))
    store(data_dir, "detection", detection_features(tfds.features), records)
    return data_dir


@pytest.mark.parametrize("name", ["tiny", "tiny_array", "pair", "detection"])
def test_random_records_are_read_as_the_real_ones(name, data_dir, detection, tmp_path, capsys):
    real_dir = detection if name == "detection" else data_dir
    capsys.readouterr()
    assert fill(name, tmp_path, "--data-dir", real_dir, "--records", 7, "--shards", 2) == 0
    real = tfds.builder_from_directory(real_dir / name / "1.0.0").info
    made = tfds.builder_from_directory(tmp_path / name / "1.0.0").info
    assert repr(made.features) == repr(real.features)
    assert made.supervised_keys == real.supervised_keys
    assert made.file_format == real.file_format
    counts = {split: min(7, found.num_examples) for split, found in real.splits.items()}
    assert {split: found.num_examples for split, found in made.splits.items()} == counts
    assert len(made.splits["train"].shard_lengths) == 2
    source = source_of(name, tmp_path)
    assert source.element_spec() == source_of(name, real_dir).element_spec()
    assert len(list(source)) == counts["train"]
    said = ", ".join(f"{count} of {split}" for split, count in counts.items())
    said = said.replace(" of", " records of", 1)
    printed = capsys.readouterr()
    assert printed.out == f"{name}/1.0.0 in {made.data_dir}: {said}\n"  # and nothing of TFDS
    assert printed.err == ""


def test_the_seed_decides_the_records(data_dir, tmp_path):
    for place, seed in {"one": 3, "same": 3, "other": 4}.items():
        words = ("--data-dir", data_dir, "--records", 5, "--seed", seed)
        assert fill("tiny", tmp_path / place, *words) == 0
    one, same, other = (
        contents(tmp_path / place / "tiny/1.0.0") for place in ("one", "same", "other")
    )
    assert one == same
    assert all(one[name] != other[name] for name in one)
    assert len({*one.values()}) == len(one)  # splits do not begin alike


def test_a_dataset_that_is_not_prepared_is_filled_from_its_code(tmp_path, capsys):
    words = ("--data-dir", tmp_path / "none", "--records", 4, "--splits", "train,validation")
    assert fill("coco/2017", tmp_path, *words) == 0
    spec = source_of("coco/2017", tmp_path, "validation").element_spec()
    assert spec["objects"]["bbox"].shape == (None, 4)
    assert "4 records of train, 4 of validation" in capsys.readouterr().out


def test_the_metadata_may_be_in_a_store(data_dir, tmp_path):
    with FaultyStore.started() as bucket:
        bucket.put(data_dir / "tiny", "data/tiny")
        place = f"gs://{BUCKET}/data"
        assert fill("tiny", tmp_path / "a", "--data-dir", place, "--records", 2) == 0
        assert not [each for each in bucket.requests if ".tfrecord" in each.name and "read" in each]
    assert fill("tiny", tmp_path / "b", "--data-dir", data_dir, "--records", 2) == 0
    one, same = (contents(tmp_path / each / "tiny/1.0.0") for each in "ab")
    assert one == same


def test_nothing_is_overwritten_and_nonsense_is_refused(data_dir, tmp_path, capsys):
    assert fill("tiny", data_dir, "--data-dir", data_dir) == 2
    assert "tiny/1.0.0 exists: choose another --out" in capsys.readouterr().err
    assert fill("tiny", tmp_path, "--data-dir", data_dir, "--records", 0) == 2
    assert "must be at least 1" in capsys.readouterr().err
    assert fill("tiny", "gs://bucket/data", "--data-dir", data_dir) == 2
    assert "--out must be on a disk" in capsys.readouterr().err
    assert fill("no_such_dataset", tmp_path) == 2
    assert "TFDS knows none of that name" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


OF = tfds.features
FEATURES = {
    "label": OF.ClassLabel(names=["a", "b"]),
    "photo": OF.Image(shape=(None, None, 3), encoding_format="jpeg"),
    "height": OF.Image(shape=(None, 5, 1)),
    "depth": OF.Image(shape=(4, 5, 1), dtype=np.float32, encoding_format="png"),
    "16 bits": OF.Image(shape=(4, 5, 1), dtype=np.uint16, encoding_format="png"),
    "segmentation": OF.LabeledImage(labels=3, shape=(4, None, 1)),
    "video": OF.Video(shape=(None, None, None, 3)),
    "three frames": OF.Video(shape=(3, 4, 4, 3)),
    "audio": OF.Audio(),
    "text": OF.Text(),
    "texts": OF.Sequence(OF.Text()),
    "bytes": OF.Tensor(shape=(2,), dtype=np.object_),
    "box": OF.BBoxFeature(),
    "translation": OF.Translation(["de", "en"]),
    "languages": OF.TranslationVariableLanguages(["de", "en", "fr"]),
    "complex": OF.Tensor(shape=(None, 2), dtype=np.float64),
    "small": OF.Tensor(shape=(3,), dtype=np.int8),
    "flags": OF.Sequence(np.bool_, length=3),
    "nested": OF.Sequence(OF.Sequence(np.int32)),
    "objects": OF.Sequence({"box": OF.BBoxFeature(), "label": OF.ClassLabel(num_classes=3)}),
    "episode": OF.Dataset({"action": OF.Tensor(shape=(2,), dtype=np.float32), "end": np.bool_}),
}


@pytest.mark.parametrize("name", FEATURES)
def test_values_of_every_feature_are_what_tfds_takes(name):
    features = OF.FeaturesDict({"it": FEATURES[name]})
    bounds = Bounds(length=4, image_size=9)
    records = dict(random_records(features, 4, seed=1, bounds=bounds))
    assert list(records) == [0, 1, 2, 3]
    for record in records.values():
        features.serialize_example(record)


def test_sizes_are_those_of_the_features_or_within_the_bounds():
    features = OF.FeaturesDict({name: FEATURES[name] for name in ("photo", "flags", "texts")})
    records = dict(random_records(features, 40, seed=1, bounds=Bounds(length=3, image_size=8)))
    photos = {record["photo"].shape for record in records.values()}
    assert {size for shape in photos for size in shape[:2]} == {4, 5, 6, 7, 8}
    assert {shape[2] for shape in photos} == {3}
    assert {len(record["flags"]) for record in records.values()} == {3}
    assert {len(record["texts"]) for record in records.values()} == {1, 2, 3}
