"""The batches of a pipeline as a dataset of Grain, with its state."""

import json

import grain
import jax
import orbax.checkpoint as ocp
import pytest
from contract import equal, ids
from flax import nnx
from refusals import refused
from sources import SIZE, source_of

from datarax_tfds import Pipeline, TFDSEagerSource, grain_dataset
from datarax_tfds.checkpoint import DataRestore, DataSave


@pytest.fixture(scope="module")
def loaded(data_dir):
    return source_of(data_dir, TFDSEagerSource, "4 x 2, replicas", shuffle=True)


@pytest.fixture
def make(loaded):
    """Makes pipelines at the beginning of one source."""
    return lambda: Pipeline(source=nnx.clone(loaded), batch_size=SIZE)


def test_it_gives_the_batches_of_the_pipeline(make):
    stepped, pipeline = make(), make()
    batches = iter(grain_dataset(pipeline))
    for _ in range(7):
        assert equal(next(batches), stepped.step())
        assert batches.get_state() == stepped.get_state() == pipeline.get_state()
    assert len(list(grain_dataset(pipeline, num_epochs=3))) == 6


def test_it_goes_on_after_any_batch(make):
    dataset = grain_dataset(make(), num_epochs=2).map(jax.device_get)
    grain.experimental.assert_equal_output_after_checkpoint(dataset)


def test_transformations_of_grain_keep_its_state(make):
    dataset = grain_dataset(make(), num_epochs=1).map(ids).filter(lambda numbers: 3 not in numbers)
    grain.experimental.assert_equal_output_after_checkpoint(dataset)
    state = iter(dataset).get_state()
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize("by", ["Grain", "the pipeline", "the iterator"])
def test_a_checkpoint_restores_it(make, tmp_path, by):
    save = {"Grain": lambda p, i: grain.checkpoint.CheckpointSave(i)}
    save |= {"the pipeline": lambda p, i: DataSave(p), "the iterator": lambda p, i: DataSave(i)}
    restore = {"Grain": lambda p, i: grain.checkpoint.CheckpointRestore(i)}
    restore |= {
        "the pipeline": lambda p, i: DataRestore(p),
        "the iterator": lambda p, i: DataRestore(i),
    }
    pipeline = make()
    batches = iter(grain_dataset(pipeline))
    for _ in range(6):
        next(batches)
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        manager.save(6, args=ocp.args.Composite(data=save[by](pipeline, batches)))
        other = make()
        restored = iter(grain_dataset(other))
        manager.restore(6, args=ocp.args.Composite(data=restore[by](other, restored)))
    for _ in range(3):
        assert equal(next(restored), next(batches))


def test_a_closed_iterator_is_refused(make):
    batches = iter(grain_dataset(make()))
    batches.close()
    with pytest.raises(ValueError, match="closed iterator"):
        next(batches)


def test_it_is_made_of_a_pipeline_and_whole_epochs(make):
    with refused(TypeError, "pipeline must be a Pipeline, got TFDSEager"):
        grain_dataset(make().source)
    with refused(ValueError, "num_epochs must be an integer"):
        grain_dataset(make(), num_epochs=1.5)
