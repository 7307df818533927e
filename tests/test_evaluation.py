"""An evaluation takes each record once, and leaves all else as it was."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tfds_datasets
from conftest import shardings
from contract import N, ids
from flax import nnx
from refusals import refused

from datarax_tfds import (
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    evaluate,
    prefetch_to_device,
)

SIZE = 24  # does not divide N
KINDS = {
    "eager": (TFDSEagerSource, TFDSEagerConfig),
    "stream": (TFDSStreamingSource, TFDSStreamingConfig),
}


@functools.cache
def loaded(data_dir, kind="eager", mesh="one device", **fields):
    source, config = KINDS[kind]
    fields = {"name": "tiny", "split": "train", "shuffle": True, "seed": 5} | fields
    return source(config(data_dir=data_dir, **fields), sharding=shardings()[mesh])


@pytest.fixture
def source(data_dir):
    return loaded(str(data_dir)).clone()


class Scale(nnx.Module):
    def __init__(self, factor):
        self.factor = nnx.Param(jnp.float32(factor))
        self.calls = nnx.Variable(jnp.int32(0))

    def __call__(self, batch):
        self.calls.set_value(self.calls.get_value() + 1)
        return batch | {"scaled": batch["id"].astype(jnp.float32) * self.factor[...]}


def values(model, batch):
    scaled = model(batch)["scaled"]
    bright = (batch["image"].sum((1, 2, 3)) > 0).astype(jnp.float32)
    return {
        "scaled": scaled,
        "infinite for padding": jnp.log(scaled + bright),
        "odd": batch["id"] % 2 == 1,
        "label": jax.nn.one_hot(batch["label"], 7, dtype=jnp.int32),
        "numbers": {"id": batch["id"]},
    }


def check(found, records):
    """Compares with the records as they were written; they are in no order."""
    numbers = [record["id"] for record in records]
    bright = np.array([int(record["image"].sum()) > 0 for record in records])
    assert found.records == len(records)
    sums = found.sums
    assert sums["numbers"]["id"] == sum(numbers)
    assert sums["scaled"] == sum(numbers) / 2
    assert type(sums["odd"]) is int
    assert sums["odd"] == sum(number % 2 for number in numbers)
    assert sums["label"].tolist() == np.bincount(np.array(numbers) % 7, minlength=7).tolist()
    wide = np.log(np.float32(np.array(numbers) / 2 + bright)).astype(float).sum()
    assert np.isclose(sums["infinite for padding"], wide)
    assert found.means["odd"] == sums["odd"] / len(records)


@pytest.mark.parametrize(
    ("kind", "mesh", "split", "size", "remainder"),
    [
        ("eager", "one device", "train", SIZE, "wrap"),
        ("eager", "8 devices", "train", SIZE, "pad"),
        ("eager", "8 devices, explicit axes", "train", SIZE, "drop"),
        ("eager", "4 x 2, replicas", "train[:5]", 8, "wrap"),  # smaller than a batch
        ("stream", "one device", "train[:48]", SIZE, "wrap"),  # divides
        ("stream", "8 devices, explicit axes", "train", SIZE, "wrap"),
        ("stream", "8 devices, permuted", "train[:5]", 8, "pad"),
    ],
)
def test_each_record_counts_once(data_dir, kind, mesh, split, size, remainder):
    source = loaded(str(data_dir), kind, mesh, split=split)
    pipeline = Pipeline(source=source.clone(), batch_size=size, remainder=remainder)
    pipeline.step()
    before = pipeline.get_state()
    stop = int(split.partition(":")[2].rstrip("]") or N)
    records = list(map(tfds_datasets.tiny_record, range(stop)))
    check(evaluate(pipeline, values, modules=[Scale(0.5)]), records)
    assert pipeline.get_state() == before


def test_nothing_changes_also_if_it_fails(source):
    def failing(model, batch):
        raise RuntimeError("the user's own")

    stage, model = Scale(2), Scale(0.5)
    pipeline = Pipeline(source=source, stages=[stage], batch_size=SIZE)
    expected = [ids(batch) for batch in Pipeline(source=source.clone(), batch_size=SIZE)]
    served = []
    for batch in prefetch_to_device(pipeline, 2):
        before = pipeline.get_state(), int(stage.calls.get_value())
        served.append(ids(batch))
        evaluate(pipeline, values, modules=(model,))
        with pytest.raises(RuntimeError, match="the user's own"):
            evaluate(pipeline, failing, modules=(model,))
        assert (pipeline.get_state(), int(stage.calls.get_value())) == before
    assert served == expected
    assert int(model.calls.get_value()) == 0


def test_it_is_compiled_once_and_sees_what_was_trained(source):
    traced = []

    def counted(model, weights, batch):
        traced.append(1)
        return {"scaled": model(batch)["scaled"] * weights["w"]}

    model, weights = Scale(1), {"w": jnp.float32(1)}
    pipeline = Pipeline(source=source, batch_size=SIZE)
    one = evaluate(pipeline, counted, modules=(model, weights)).sums["scaled"]
    model.factor.set_value(jnp.float32(2))
    weights = {"w": jnp.float32(3)}
    assert evaluate(pipeline, counted, modules=(model, weights)).sums["scaled"] == 6 * one
    assert len(traced) == 1


def test_sums_are_exact_beyond_what_float32_holds(source):
    found = evaluate(
        Pipeline(source=source, batch_size=SIZE),
        lambda batch: {
            "float": jnp.where(batch["id"] == 3, jnp.float32(2**30), jnp.float32(1)),
            "integer": jnp.full(SIZE, 2**31 - 1, jnp.int32),
            "bfloat16": jnp.ones(SIZE, jnp.bfloat16),
        },
    )
    assert found.sums == {"float": 2**30 + N - 1, "integer": N * (2**31 - 1), "bfloat16": N}


def test_a_feature_that_stays_on_the_host_is_left_out(data_dir):
    source = loaded(str(data_dir), host_keys=frozenset({"label"})).clone()
    names = []
    evaluate(
        Pipeline(source=source, batch_size=SIZE, remainder="pad", record_numbers=True),
        lambda batch: names.append(set(batch)) or {"id": batch["id"]},
    )
    assert names == [{"id", "image", "mask", "record_number"}]


class Model(nnx.Module):
    def __call__(self, batch):
        return {"id": batch["id"]}

    def metrics(self, batch):
        return {"id": batch["id"]}


MODEL = Model()


@pytest.mark.parametrize(
    ("step_fn", "kind", "message"),
    [
        (lambda batch: batch["id"], TypeError, "a dict of values"),
        (lambda batch: {}, TypeError, "a dict of values"),
        (lambda batch: {"sum": batch["id"].sum()}, ValueError, "'sum' must have a value for each"),
        (lambda batch: {"id": batch["id"][1:]}, ValueError, "'id' must have a value for each"),
        (lambda batch: MODEL(batch), ValueError, "closed_over: +MODEL"),
        (nnx.jit(lambda batch: MODEL(batch)), ValueError, "closed_over: +MODEL"),
        (MODEL, ValueError, "closed_over: +Model"),
        (MODEL.metrics, ValueError, "closed_over: +Model"),
        (None, TypeError, "step_fn must be a function"),
    ],
)
def test_a_step_that_cannot_be_summed_is_refused(source, step_fn, kind, message):
    with refused(kind, f"^evaluate: .*{message}"):
        evaluate(Pipeline(source=source, batch_size=SIZE), step_fn)


def test_other_wrong_arguments_are_refused(source):
    with refused(TypeError, "pipeline must be a Pipeline, got TFDSEagerSource"):
        evaluate(source, values)
    with refused(TypeError, "modules: +Model"):
        evaluate(Pipeline(source=source, batch_size=SIZE), values, modules=MODEL)
