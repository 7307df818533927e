"""Parts of records that vary in size, padded: a small set for detection, as COCO is."""

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from contract import check_resume_after_every_batch, equal
from refusals import refused
from sources import source_of
from tfds_datasets import MOST_OBJECTS, detection_features, detection_record, store

from datarax_tfds import (
    MixtureSource,
    Pipeline,
    StateMismatchError,
    TFDSEagerSource,
    TFDSStreamingSource,
)

of = tfds.features
RECORDS = 19
SIDE = 9
PAD_TO = {"objects": MOST_OBJECTS, "image": (SIDE, SIDE, None), "caption": 3, "steps/reward": 2}
KINDS = [TFDSEagerSource, TFDSStreamingSource]


def record(number):
    """With a sequence of texts, and an episode."""
    return detection_record(number) | {
        "caption": ["word"] * (number % 4),
        "steps": [{"reward": number + step} for step in range(number % 3)],
    }


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("detection")
    features = detection_features(of) | {
        "caption": of.Sequence(of.Text()),
        "steps": of.Dataset({"reward": np.int32}),
    }
    store(directory, "detection", features, map(record, range(RECORDS)))
    return directory


def padded(directory, kind: type = TFDSStreamingSource, mesh="one device", **fields):
    options = {"name": "detection", "host_keys": {"caption"}}
    return source_of(directory, kind, mesh, **options | {"pad_to": PAD_TO, "seed": 3} | fields)


def expected(number):
    """A padded record, made by NumPy of what was written."""

    def pad(value, *sizes):
        value = np.asarray(value)
        return np.pad(value, [(0, size - n) for size, n in zip(sizes, value.shape, strict=True)])

    values = record(number)
    objects, rewards = values["objects"], [step["reward"] for step in values["steps"]]
    boxes = np.array([each["bbox"] for each in objects], np.float32).reshape(-1, 4)
    return {
        "id": number,
        "image": pad(values["image"], SIDE, SIDE, 3),
        "image_shape": values["image"].shape,
        "objects": {
            "bbox": pad(boxes, MOST_OBJECTS, 4),
            "label": pad(np.array([each["label"] for each in objects], np.int32), MOST_OBJECTS),
            "is_crowd": pad(np.array([each["is_crowd"] for each in objects], bool), MOST_OBJECTS),
        },
        "objects_length": len(objects),
        "caption": [text.encode() for text in values["caption"]] + [b""] * (3 - number % 4),
        "caption_length": number % 4,
        "steps": {"reward": pad(np.array(rewards, np.int32), 2), "reward_length": number % 3},
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mesh", ["one device", "8 devices"])
def test_records_of_any_size_are_rows_of_a_batch_with_their_true_sizes(directory, kind, mesh):
    source = padded(directory, kind, mesh, shuffle=True)
    batch = source.get_batch(16)
    for row, number in enumerate(batch["id"].tolist()):
        of_row = jax.tree.map(lambda column, row=row: np.asarray(column)[row], batch)
        want = expected(number)
        assert equal(
            {name: of_row[name] for name in want},
            jax.tree.map(np.asarray, want, is_leaf=lambda x: isinstance(x, list | tuple)),
        )
        assert of_row.keys() == want.keys()
    boxes = source.element_spec()["objects"]["bbox"]
    assert boxes == jax.ShapeDtypeStruct((MOST_OBJECTS, 4), np.float32)
    assert source.element_spec()["image_shape"] == jax.ShapeDtypeStruct((3,), np.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_of_padded_records_resumes_after_every_batch(directory, kind):
    source = padded(directory, kind, "8 devices", shuffle=True)
    check_resume_after_every_batch(lambda: Pipeline(source=source.clone(), batch_size=8), 2)


def test_a_run_goes_on_with_the_other_kind_of_source_and_not_with_other_sizes(directory):
    eager, stream = (padded(directory, kind, shuffle=True) for kind in KINDS)
    eager.get_batch(5)
    stream.set_state(eager.get_state())
    assert equal(stream.get_batch(5), eager.get_batch(5))
    wider = padded(directory, pad_to=PAD_TO | {"objects": 7}, shuffle=True)
    with refused(StateMismatchError, r"differ in features"):
        wider.set_state(eager.get_state())


def test_a_mixture_may_have_parts_that_are_padded_alike(directory):
    parts = {"a": padded(directory), "b": padded(directory, TFDSEagerSource)}
    mixture = MixtureSource(parts, weights={"a": 1, "b": 1})
    batch = mixture.get_batch(8)
    assert batch["objects"]["bbox"].shape == (8, MOST_OBJECTS, 4)
    assert sorted(batch["id"].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_longer_is_an_error_that_names_the_record_or_is_cut(directory, kind):
    fields = {"pad_to": PAD_TO | {"objects": 3}, "shuffle": True}
    fix = r"fix: +use pad_to={'objects': 4} or more, or cut .* truncate={'objects'}"
    with refused(ValueError, rf"record \d+ .*'objects/.*larger(.|\n)*length: +4(.|\n)*{fix}"):
        padded(directory, kind, **fields).get_batch(RECORDS)
    batch = padded(directory, kind, **fields, truncate={"objects"}).get_batch(RECORDS)
    for row, number in enumerate(batch["id"].tolist()):
        want = expected(number)["objects"]["bbox"][:3]
        assert np.array_equal(batch["objects"]["bbox"][row], want)
        assert batch["objects_length"][row] == min(number % (MOST_OBJECTS + 1), 3)


def test_an_image_is_cut_in_every_axis_that_is_too_long(directory):
    pad_to = PAD_TO | {"image": (4, 10, None)}
    batch = padded(directory, pad_to=pad_to, truncate={"image"}).get_batch(RECORDS)
    for number in range(RECORDS):
        image = record(number)["image"][:4]
        height, width, _ = batch["image_shape"][number].tolist()
        assert (height, width) == image.shape[:2]
        assert np.array_equal(batch["image"][number, :height, :width], image)
        assert not batch["image"][number, height:].any()


def test_the_records_of_a_stream_are_padded_one_by_one_too(directory):
    for number, one in enumerate(padded(directory)):
        assert one["objects_length"] == number % (MOST_OBJECTS + 1)
        assert one["objects"]["label"].shape == (MOST_OBJECTS,)


@pytest.mark.parametrize("kind", KINDS)
def test_a_transform_gets_records_of_any_size_without_padding(directory, kind):
    def summed(record):
        return {
            "id": record["id"],
            "shape": list(record["image"].shape),
            "pixels": record["image"].sum(dtype=np.int32),
            "labels": record["objects"]["label"].sum(dtype=np.int32),
            "words": len(record["caption"]),
        }

    source = padded(directory, kind, pad_to=None, host_keys=None, transform=summed)
    batch = jax.device_get(source.get_batch_at(0, RECORDS))
    for row, number in enumerate(batch["id"]):
        values = record(number)
        assert np.array_equal(batch["shape"][row], values["image"].shape)
        assert batch["pixels"][row] == values["image"].sum()
        assert batch["labels"][row] == sum(each["label"] for each in values["objects"])
        assert batch["words"][row] == len(values["caption"])
