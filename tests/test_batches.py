"""A pipeline as an iterator of its own: global batches, and the rows of a process as NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shardings
from contract import equal, ids
from flax import nnx
from refusals import refused
from sources import SIZE, config_of, source_of
from sources import loaded as loaded_once

from datarax_tfds import Cursor, Pipeline, TFDSEagerSource, prefetch_to_device
from sharding.local_batch import local_batch

PLACES = {
    "one device": ("tiny", "one device", "auto"),
    "streaming": ("tiny", "8 devices, permuted", "streaming"),
    "replicas": ("tiny", "4 x 2, replicas", "sharded"),
}


@pytest.fixture(params=PLACES)
def make(request, data_dir):
    """Makes pipelines at the beginning of one source."""
    place = PLACES[request.param]
    loaded = loaded_once(config_of(data_dir, place, shuffle=True), place[1])

    def pipeline(**fields):
        return Pipeline(source=nnx.clone(loaded), **({"batch_size": SIZE} | fields))

    return pipeline


@pytest.fixture(scope="module")
def loaded(data_dir):
    return source_of(data_dir, TFDSEagerSource, shuffle=True)


@pytest.mark.parametrize("size", [None, 2])
def test_they_go_on_past_the_ends_of_epochs_and_move_the_cursor_of_the_pipeline(make, size):
    stepped, pipeline = make(), make()
    batches = pipeline.batches()
    batches = batches if size is None else prefetch_to_device(batches, size)
    for _ in range(7):
        assert equal(next(batches), stepped.step())
        assert pipeline.get_state() == stepped.get_state()


@pytest.mark.parametrize("remainder", ["wrap", "drop", "pad"])
def test_they_end_where_the_epochs_of_the_run_end_also_after_a_resume(loaded, remainder):
    def pipeline():
        return Pipeline(source=nnx.clone(loaded), batch_size=SIZE, remainder=remainder)

    whole, states, by_epoch = pipeline(), [], []
    while whole.cursor.epoch < 2:
        states.append(whole.get_state())
        by_epoch.append(ids(whole.step()))
    assert [ids(batch) for batch in pipeline().batches(2)] == by_epoch
    for step, state in enumerate(states):
        resumed = pipeline()
        assert resumed.get_state_at(step) == state
        resumed.set_state(state)
        assert [ids(batch) for batch in resumed.batches(num_epochs=2)] == by_epoch[step:]
        assert resumed.cursor.epoch == 2
        assert next(resumed.batches(num_epochs=2), None) is None


@pytest.mark.parametrize("size", [0, 2])
def test_they_go_on_where_the_cursor_was_set(loaded, size):
    pipeline = Pipeline(source=nnx.clone(loaded), batch_size=SIZE)
    first = ids(next(pipeline.batches()))
    batches = prefetch_to_device(pipeline.batches(num_epochs=1), size)
    next(batches)
    pipeline.reset()
    assert ids(next(batches)) == first
    pipeline.source.seek(Cursor(1, 0))
    assert next(batches, None) is None


def test_a_local_batch_has_all_rows_of_one_process_on_the_host(make):
    fields = {"stages": [normalize], "record_numbers": True, "remainder": "pad"}
    stepped, pipeline = make(**fields), make(**fields)
    for batch in itertools.islice(pipeline.local_batches(), 6):
        expected = stepped.step()
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(batch))
        assert equal(batch, expected)
        assert jax.tree.map(lambda leaf: leaf.dtype, batch) == jax.tree.map(
            lambda leaf: np.dtype(leaf.dtype), expected
        )
        assert pipeline.get_state() == stepped.get_state()
    assert equal(next(pipeline.batches(as_numpy=True)), stepped.step())


def normalize(batch):
    """With one value for each pixel of the batch, which has no rows."""
    scaled = batch["image"].astype(jnp.float32) / 255
    return batch | {"nested": {"scaled": scaled, "mean": scaled.mean(0)}}


def test_a_local_batch_copies_nothing_on_one_device(loaded):
    pipeline = Pipeline(source=nnx.clone(loaded), batch_size=SIZE)
    batch = pipeline.step()
    images = local_batch(batch, SIZE, loaded.sharding)["image"]
    assert np.shares_memory(images, np.asarray(batch["image"]))
    assert not images.flags.writeable


def test_an_error_on_the_way_to_the_host_loses_no_batch(loaded, monkeypatch):
    pipeline = Pipeline(source=nnx.clone(loaded), batch_size=SIZE)
    batches, before = pipeline.local_batches(), pipeline.get_state()
    with monkeypatch.context() as patched:
        patched.setattr(jax, "device_get", lambda _: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            next(batches)
    assert pipeline.get_state() == before
    assert ids(next(batches)) == ids(Pipeline(source=nnx.clone(loaded), batch_size=SIZE).step())


def test_a_row_that_several_devices_hold_comes_once():
    rows = np.arange(SIZE, dtype=np.int32)
    for placement in shardings().values():
        for spec in (placement.spec, jax.P()) if hasattr(placement, "spec") else ():
            other = jax.sharding.NamedSharding(placement.mesh, spec)
            placed = jax.device_put(rows, other)
            assert local_batch(placed, SIZE, placement).tolist() == rows.tolist()


def test_a_number_of_epochs_must_be_one(loaded):
    pipeline = Pipeline(source=nnx.clone(loaded), batch_size=SIZE)
    for make in (pipeline.batches, pipeline.local_batches):
        with refused(ValueError, "num_epochs must be an integer of at least 0"):
            make(-1)
