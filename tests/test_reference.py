"""The documented interface: names, signatures, defaults, and the examples that show its use."""

import dataclasses
import inspect
import logging
from collections.abc import Callable
from typing import Any

import flax.nnx as nnx
import jax
import numpy as np
import pytest
from contract import N, ids

import datarax_tfds
from datarax_tfds import (
    DatasetNotFoundError,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    Unbatched,
    prefetch_to_device,
)
from datarax_tfds.pipeline import Pipeline

BASE = {
    "cacheable": False,
    "batch_stats_fn": None,
    "precomputed_stats": None,
    "stochastic": False,
    "stream_name": None,
    "name": None,
    "split": None,
    "data_dir": None,
    "include_keys": None,
    "exclude_keys": None,
    "try_gcs": False,
    "shuffle": False,
}
CONFIGS = {
    TFDSEagerConfig: BASE
    | {
        "seed": 42,
        "as_supervised": False,
        "download_and_prepare_kwargs": None,
        "beam_num_workers": None,
        "local_files_only": False,
    },
    TFDSStreamingConfig: BASE
    | {
        "shuffle_buffer_size": 1000,
        "as_supervised": False,
        "download_and_prepare_kwargs": None,
        "beam_num_workers": None,
        "prefetch_buffer": 2,
        "local_files_only": False,
    },
}
REQUIRED = inspect.Parameter.empty
# Parameters by name with their defaults; "*" for those that are keyword-only from there on.
METHODS = {
    "get_operation_stats": {},
    "reset_operation_stats": {},
    "compute_statistics": {"data": REQUIRED},
    "get_statistics": {},
    "set_statistics": {"stats": REQUIRED},
    "reset_statistics": {},
    "reset_cache": {},
    "copy": {"*": None, "config": None, "rngs": None, "name": None},
    "get_state": {},
    "set_state": {"state": REQUIRED},
    "clone": {},
    "requires_rng_streams": {},
    "ensure_rng_streams": {"stream_names": REQUIRED},
    "process": {"input": REQUIRED, "args": REQUIRED, "kwargs": REQUIRED},
    "get_batch_at": {"start": REQUIRED, "size": REQUIRED, "key": None},
    "element_spec": {},
    "get_batch": {"batch_size": REQUIRED, "key": None},
    "get_dataset_info": {},
    "reset": {"seed": None},
    "set_random_order": {"enabled": REQUIRED},
    "collect_to_array": {},
}
CONSTRUCTOR = {"config": REQUIRED, "*": None, "rngs": None, "name": None}
SOURCES = [TFDSEagerSource, TFDSStreamingSource]


def table(function: Callable[..., Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in found:
            found["*"] = None
        if name != "self":
            found[name] = parameter.default
    return found


@pytest.mark.parametrize("config", CONFIGS)
def test_the_fields_of_a_config_and_their_defaults(config):
    documented, found = CONFIGS[config], table(config)
    assert dict(list(found.items())[: len(documented)]) == documented
    assert list(found)[: len(documented)] == list(documented)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config(name="tiny", split="train").shuffle = True


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("method", METHODS)
def test_the_signature_of_a_method(source, method):
    assert table(getattr(source, method)) == METHODS[method]


@pytest.mark.parametrize("source", SOURCES)
def test_the_signature_of_a_constructor(source):
    found = table(source)
    assert list(found)[: len(CONSTRUCTOR)] == list(CONSTRUCTOR)
    assert CONSTRUCTOR.items() <= found.items()
    assert issubclass(source, nnx.Module)


def test_the_signature_of_a_pipeline():
    found = table(Pipeline)
    assert list(found) == [
        "*",
        "source",
        "stages",
        "batch_size",
        "rngs",
        "remainder",
        "record_numbers",
    ]


def test_the_places_of_names():
    from datarax_tfds import tfds_source

    for name in ("TFDSEagerConfig", "TFDSStreamingConfig", "TFDSEagerSource", "from_tfds"):
        assert getattr(tfds_source, name) is getattr(datarax_tfds, name)
    assert isinstance(tfds_source.logger, logging.Logger)


@pytest.fixture(params=SOURCES)
def source(request, data_dir):
    config = {TFDSEagerSource: TFDSEagerConfig, TFDSStreamingSource: TFDSStreamingConfig}
    fields = {"name": "tiny", "split": "train", "data_dir": str(data_dir)}
    return request.param(config[request.param](**fields), rngs=nnx.Rngs(0))


def test_the_attributes_of_a_source(source):
    assert (source.dataset_name, source.split_name, source.length) == ("tiny", "train", N)
    assert source.name == f"{type(source).__name__}(tiny:train)"
    assert not source.as_supervised
    assert source.include_keys is source.exclude_keys is source.stream_name is None
    assert source.stochastic is False
    assert source.is_random_order is False
    assert isinstance(source.epoch, nnx.Variable)
    assert isinstance(source.index, nnx.Variable)
    assert isinstance(source.rngs, nnx.Rngs)
    assert isinstance(source.config.name, str)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in source.element_spec().values())


def test_documented_errors(source, data_dir):
    for field, values in {
        "name": {"split": "train"},
        "split": {"name": "tiny"},
        "include_keys": {"name": "a", "split": "b", "include_keys": {"a"}, "exclude_keys": {"b"}},
        "stream_name": {"name": "tiny", "split": "train", "stochastic": True},
        "batch_stats_fn": {"name": "tiny", "split": "train", "batch_stats_fn": 3},
        "precomputed_stats": {"name": "tiny", "split": "train", "precomputed_stats": [1]},
        "try_gcs": {"name": "tiny", "split": "train", "try_gcs": True, "data_dir": "here"},
    }.items():
        with pytest.raises(ValueError, match=rf"{field}(.|\n)*fix:"):
            type(source.config)(**values)
    with pytest.raises(TypeError, match=r"(.|\n)*fix:"):
        source.set_state([])
    with pytest.raises(ValueError, match=r"(.|\n)*fix:"):
        source.set_state({})
    with pytest.raises(DatasetNotFoundError, match=r"(.|\n)*fix:"):
        type(source)(
            type(source.config)(
                name="tiny:9.9.9", split="train", data_dir=str(data_dir), local_files_only=True
            )
        )


class TestExamples:
    """As on the page, but for the imports, the datasets, and how often a loop turns."""

    def test_quick_start(self, data_dir):
        config = TFDSEagerConfig(name="tiny", split="train", data_dir=str(data_dir))
        source = TFDSEagerSource(config, rngs=nnx.Rngs(0))
        count = 0
        for item in source:
            image = item["image"]
            label = item["label"]
            assert (image.shape, label.shape) == ((5, 4, 3), ())
            assert isinstance(image, jax.Array)
            count += 1
        assert count == N

    def test_supervised_mode(self, data_dir):
        config = TFDSEagerConfig(
            name="pair", split="train", as_supervised=True, data_dir=str(data_dir)
        )
        source = TFDSEagerSource(config)
        batch = source.get_batch(4)
        assert set(batch) == {"image", "label"}
        assert (batch["image"].shape, batch["label"].shape) == ((4,), (4,))

    def test_batch_retrieval(self, source):
        seen = []
        for _ in range(4):
            batch = source.get_batch(64)
            seen.append((source.epoch.get_value(), source.index.get_value()))
            assert len(ids(batch)) == 64
        assert seen == [divmod(64 * step, N) for step in range(1, 5)]

    def test_shuffling(self, data_dir):
        config = TFDSEagerConfig(
            name="tiny",
            split="train",
            shuffle=True,
            shuffle_buffer_size=10000,
            seed=42,
            data_dir=str(data_dir),
        )
        source = TFDSEagerSource(config, rngs=nnx.Rngs(42))
        served = [int(item["id"]) for item in source]
        assert served != sorted(served) == list(range(N))

    def test_caching(self, data_dir):
        config = TFDSEagerConfig(name="tiny", split="train", cacheable=True, data_dir=str(data_dir))
        source = TFDSEagerSource(config)
        assert ids(source.data) == list(range(N))

    def test_field_filtering(self, data_dir):
        config = TFDSEagerConfig(
            name="tiny", split="train", include_keys={"image", "label"}, data_dir=str(data_dir)
        )
        assert set(TFDSEagerSource(config).get_batch(2)) == {"image", "label"}
        config = TFDSEagerConfig(
            name="tiny", split="train", exclude_keys={"id"}, data_dir=str(data_dir)
        )
        assert set(TFDSEagerSource(config).get_batch(2)) == {"image", "label"}

    def test_integration_with_pipelines(self, data_dir):
        config = TFDSEagerConfig(
            name="pair", split="train", as_supervised=True, data_dir=str(data_dir)
        )
        source = TFDSEagerSource(config)

        def normalize_op(batch):
            return batch | {"image": batch["image"].astype(np.float32) / 255}

        class AugmentOp(nnx.Module):
            def __init__(self, rngs):
                self.rngs = rngs

            def __call__(self, batch):
                noise = jax.random.normal(self.rngs.augment(), batch["image"].shape)
                return batch | {"image": batch["image"] + 0.1 * noise}

        augment_op = AugmentOp(nnx.Rngs(augment=1))
        pipeline = Pipeline(
            source=source, stages=[normalize_op, augment_op], batch_size=4, rngs=nnx.Rngs(0)
        )
        steps = []
        for batch in pipeline:
            steps.append(batch["image"].dtype)
        assert steps == [np.float32] * 2

    def test_dataset_information(self, source):
        info = source.get_dataset_info()
        assert set(info.features) == {"id", "image", "label"}
        assert isinstance(info.description, str)
        assert isinstance(info.citation, str)
        assert info.splits["train"].num_examples == N

    def test_stateful_and_stateless_batches(self, data_dir):
        config = TFDSEagerConfig(name="tiny", split="train", shuffle=True, data_dir=str(data_dir))
        source = TFDSEagerSource(config, rngs=nnx.Rngs(0))
        one = source.get_batch(32)
        other = source.get_batch(32, key=jax.random.key(0))
        assert ids(one) != ids(other)
        assert source.index.get_value() == 32

    def test_streaming_with_prefetching(self, data_dir):
        config = TFDSStreamingConfig(name="tiny", split="train", data_dir=str(data_dir))
        source = TFDSStreamingSource(config, rngs=nnx.Rngs(0))
        assert [int(record["id"]) for record in prefetch_to_device(source, size=2)] == [*range(N)]

    def test_copies_with_another_config(self, source):
        new_config = dataclasses.replace(source.config, cacheable=True)
        new_module = source.copy(config=new_config)
        assert new_module.config.cacheable
        renamed = source.copy(name="new_name")
        assert renamed.name == "new_name"

    def test_staged_training_over_all_records(self, data_dir):
        config = TFDSEagerConfig(name="tiny", split="train", data_dir=str(data_dir))
        arrays = TFDSEagerSource(config).collect_to_array()

        @jax.jit
        def total(arrays):
            def step(i, total):
                return total + jax.lax.dynamic_slice_in_dim(arrays["id"], i * 8, 8).sum()

            return jax.lax.fori_loop(0, N // 8, step, np.int32(0))

        assert total(arrays) == sum(range(96))


def test_text_is_told_apart_in_the_spec(data_dir):
    config = TFDSStreamingConfig(name="text", split="train", data_dir=str(data_dir))
    assert isinstance(TFDSStreamingSource(config).element_spec()["text"], Unbatched)
