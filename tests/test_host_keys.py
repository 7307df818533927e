"""Features that stay on the host beside a batch. With several processes: test_processes."""

import jax
import numpy as np
import pytest
import sources
import tensorflow as tf
from flax import nnx
from refusals import refused

from datarax_tfds import (
    Pipeline,
    TFDSEagerSource,
    TFDSStreamingSource,
    prefetch_to_device,
)

KINDS = ["eager", "streaming", "cached"]


def source_of(data_dir, kind="streaming", mesh="one device", **fields):
    of = TFDSEagerSource if kind == "eager" else TFDSStreamingSource
    return sources.source_of(data_dir, of, mesh, cacheable=kind == "cached", **fields)


def texts(record):
    return {"image": record["image"], "text": tf.strings.as_string(record["id"])}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mesh", ["one device", "8 devices, permuted", "4 x 2, replicas"])
@pytest.mark.parametrize("prefetched", [False, True])
def test_a_batch_has_the_host_features_of_its_rows(data_dir, kind, mesh, prefetched):
    source = source_of(data_dir, kind, mesh, shuffle=True, map_fn=texts, host_keys={"text"})
    pipeline = Pipeline(source=source, batch_size=16, remainder="pad", record_numbers=True)
    for _ in range(2):
        for batch in prefetch_to_device(pipeline) if prefetched else pipeline:
            assert isinstance(batch["text"], np.ndarray)
            numbers = batch["record_number"].tolist()
            assert batch["text"].tolist() == [
                b"" if number < 0 else str(number).encode() for number in numbers
            ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_reading_gives_the_host_features(data_dir, kind):
    source = source_of(data_dir, kind, host_keys={"label"})
    labels = [number % 7 for number in range(97)]
    assert source.get_batch(8)["label"].tolist() == labels[:8]
    assert source.get_batch_at(90, 7)["label"].tolist() == labels[90:]
    assert source.get_records([5, 96])["label"].tolist() == [5, 96 % 7]
    assert source[96]["label"] == 96 % 7
    assert [int(record["label"]) for record in source] == labels[8:]


@pytest.mark.parametrize("kind", KINDS)
def test_host_integers_keep_64_bits(data_dir, kind):
    """The devices have 32 bits, which these numbers do not fit."""
    keys = {"label", "wide"}
    source = source_of(data_dir, kind, name="text", include_keys=keys, host_keys={"wide"})
    wide = source.get_batch(5)["wide"]
    assert wide.dtype == np.int64
    assert wide.tolist() == [2**40 + number for number in range(5)]


@pytest.mark.parametrize("fields", [{"include_keys": {"image"}}, {"exclude_keys": {"id", "label"}}])
def test_host_features_are_read_in_spite_of_key_filters(data_dir, fields):
    batch = source_of(data_dir, host_keys={"id"}, **fields).get_batch(4)
    assert sorted(batch) == ["id", "image"]
    assert batch["id"].tolist() == [0, 1, 2, 3]


def test_compiled_functions_and_stages_do_not_see_host_features(data_dir):
    seen = []

    def stage(batch):
        seen.append(sorted(batch))
        return batch

    source = source_of(data_dir, "eager", host_keys={"label"})
    pipeline = Pipeline(source=source, stages=[stage], batch_size=8)
    assert pipeline.step()["label"].tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    assert sorted(pipeline.scan(lambda batch: batch, length=2)) == ["id", "image"]
    assert sorted(jax.jit(lambda start: source.get_batch_at(start, 8))(0)) == ["id", "image"]
    assert sorted(jax.jit(source.get_records)(np.arange(8))) == ["id", "image"]
    assert sorted(nnx.jit(lambda source: source.get_batch(8))(source)) == ["id", "image"]
    assert sorted(nnx.jit(lambda pipeline: pipeline.step())(pipeline)) == ["id", "image"]
    assert sorted(source.element_spec()) == ["id", "image"]
    assert seen == [["id", "image"]] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_collect_to_array_leaves_out_host_features(data_dir, kind):
    assert sorted(source_of(data_dir, kind, host_keys={"label"}).collect_to_array()) == [
        "id",
        "image",
    ]


def test_a_stage_that_returns_a_host_feature_is_refused(data_dir):
    source = source_of(data_dir, host_keys={"label"})
    stages = [lambda batch: batch | {"label": batch["id"]}]
    with refused(ValueError, "a stage must not return 'label', which host_keys keep"):
        Pipeline(source=source, stages=stages, batch_size=8).step()


def test_a_state_does_not_depend_on_host_keys(data_dir):
    without = source_of(data_dir, exclude_keys={"label"})
    without.get_batch(8)
    source = source_of(data_dir, host_keys={"label"})
    source.set_state(without.get_state())
    assert source.get_batch(1)["label"].tolist() == [1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"host_keys": {"lable"}}, "host_keys must be features of a record, got 'lable'"),
        ({"host_keys": {"id", "image", "label"}}, "must leave a feature for the devices"),
        ({"name": "text", "host_keys": {"photo"}}, "'photo' must be one array of a fixed shape"),
        ({"map_fn": texts, "host_keys": {"id"}}, "got 'id'.*features: +image, text.*return 'id'"),
        ({"host_keys": "label"}, "host_keys .*a set of names"),
    ],
)
def test_names_that_cannot_stay_on_the_host_are_refused(data_dir, fields, message):
    with refused(ValueError, message):
        source_of(data_dir, **fields)
