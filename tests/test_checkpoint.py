import json

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from conftest import shardings
from contract import ids
from flax import nnx
from refusals import refused

from datarax_tfds import (
    Pipeline,
    StateMismatchError,
    TFDSEagerConfig,
    TFDSEagerSource,
    prefetch_to_device,
)
from datarax_tfds.checkpoint import DataCheckpointable, DataHandler, DataRestore, DataSave

SIZE = 24
MODEL = {"w": jnp.arange(3.0)}


@pytest.fixture(scope="module")
def loaded(data_dir):
    config = TFDSEagerConfig(name="tiny", split="train", data_dir=str(data_dir), shuffle=True)
    return TFDSEagerSource(config, sharding=shardings()["8 devices"])


@pytest.fixture
def pipeline(loaded):
    return Pipeline(source=nnx.clone(loaded), batch_size=SIZE)


@pytest.fixture
def manager(tmp_path):
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        yield manager


def composite(**items):
    return ocp.args.Composite(**items)


def save(manager, step, pipeline):
    manager.save(step, args=composite(model=ocp.args.StandardSave(MODEL), data=DataSave(pipeline)))


def restore(manager, step, pipeline):
    return manager.restore(
        step, args=composite(model=ocp.args.StandardRestore(MODEL), data=DataRestore(pipeline))
    )


def test_a_pipeline_goes_on_where_it_was_when_it_was_saved(manager, pipeline, loaded):
    batches = iter(pipeline)
    next(batches)
    save(manager, 1, pipeline)  # in the background, while the loop goes on:
    expected = [ids(next(batches)) for _ in range(2)]
    manager.wait_until_finished()

    other = Pipeline(source=nnx.clone(loaded), batch_size=SIZE)
    restored = restore(manager, 1, other)
    assert restored.data == other.get_state()
    assert restored.model["w"].tolist() == [0, 1, 2]
    batches = iter(other)
    assert [ids(next(batches)) for _ in range(2)] == expected


@pytest.mark.parametrize("args", [None, composite(data=DataRestore())], ids=["none", "no pipeline"])
def test_without_a_pipeline_the_state_comes_back_as_a_dict(manager, pipeline, args):
    """As tools restore, and inference, which has no data."""
    next(iter(pipeline))
    save(manager, 1, pipeline)
    manager.wait_until_finished()
    with ocp.CheckpointManager(manager.directory) as other:
        restored = other.restore(1, args=args)
        assert restored.data == pipeline.get_state()
        assert args is not None or restored.model["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("item", [DataSave, DataRestore, DataCheckpointable])
def test_an_item_refuses_what_has_no_state_before_anything_is_written_or_read(item, pipeline):
    for other in (prefetch_to_device(pipeline), 3):
        with refused(TypeError, "must be a Pipeline or a source"):
            item(other)


def test_the_metadata_of_the_item_are_the_state(manager, pipeline):
    save(manager, 1, pipeline)
    manager.wait_until_finished()
    assert manager.item_metadata(1).data == pipeline.get_state()


def test_plain_json_does_as_well(manager, pipeline, loaded):
    next(iter(pipeline))
    manager.save(1, args=composite(data=ocp.args.JsonSave(pipeline.get_state())))
    manager.wait_until_finished()
    other = Pipeline(source=nnx.clone(loaded), batch_size=SIZE)
    other.set_state(manager.restore(1, args=composite(data=ocp.args.JsonRestore())).data)
    assert other.get_state() == pipeline.get_state()


def test_a_source_can_be_saved_too(manager, loaded):
    source = nnx.clone(loaded)
    source.get_batch(SIZE)
    manager.save(1, args=composite(data=DataSave(source)))
    manager.wait_until_finished()
    other = nnx.clone(loaded)
    manager.restore(1, args=composite(data=DataRestore(other)))
    assert other.cursor == source.cursor


def test_the_newer_interface_of_orbax_does_as_well(tmp_path, pipeline, loaded):
    from orbax.checkpoint import v1

    next(iter(pipeline))
    state = pipeline.get_state()
    saving = v1.save_checkpointables_async(
        tmp_path / "one", {"model": MODEL, "data": DataCheckpointable(pipeline)}
    )
    next(iter(pipeline))  # what is saved is what there was
    saving.result()
    assert json.loads((tmp_path / "one/data/data_state.json").read_text()) == state
    other = Pipeline(source=nnx.clone(loaded), batch_size=SIZE)
    items = v1.load_checkpointables(
        tmp_path / "one", {"model": MODEL, "data": DataCheckpointable(other)}
    )
    assert other.get_state() == state
    assert items["model"]["w"].tolist() == [0, 1, 2]
    path = tmp_path / "one/data/data_state.json"
    path.write_text(path.read_text().replace("24", "25"))
    with pytest.raises(StateMismatchError, match=r"checksum(.|\n)*fix:"):
        v1.load_checkpointables(tmp_path / "one", {"data": DataCheckpointable(other)})
    assert other.get_state() == state


@pytest.mark.parametrize("prefetch", [0, 1, 4, 16])
def test_a_save_holds_what_was_handed_out_when_it_began(manager, pipeline, prefetch):
    for step, _ in enumerate(prefetch_to_device(pipeline, prefetch) if prefetch else pipeline, 1):
        save(manager, step, pipeline)
        if step == 3:
            break
    for _ in pipeline:  # while the save is under way
        pass
    manager.wait_until_finished()
    assert restore(manager, 3, pipeline).data["index"] == 3 * SIZE


def test_an_item_that_is_not_there_is_named(manager, pipeline):
    manager.save(1, args=composite(model=ocp.args.StandardSave(MODEL)))
    manager.wait_until_finished()
    with pytest.raises(KeyError, match=r"data(.|\n)*model"):
        manager.restore(1, args=composite(data=DataRestore(pipeline)))


def test_two_pipelines_of_one_handler_are_saved_apart(tmp_path, pipeline, loaded):
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handler = DataHandler()
    registry.add(None, DataSave, handler)
    registry.add(None, DataRestore, handler)
    further = Pipeline(source=nnx.clone(loaded), batch_size=SIZE)
    with ocp.CheckpointManager(tmp_path / "checkpoints", handler_registry=registry) as manager:
        for step in (1, 2):
            further.step()
            saved = composite(train=DataSave(pipeline), evaluation=DataSave(further))
            manager.save(step, args=saved)
        asked = composite(train=DataRestore(), evaluation=DataRestore())
        found = manager.restore(2, args=asked)
    assert found.train == pipeline.get_state() != found.evaluation == further.get_state()


def test_without_a_manager(tmp_path, pipeline, loaded):
    next(iter(pipeline))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "one", composite(data=DataSave(pipeline)))
        other = Pipeline(source=nnx.clone(loaded), batch_size=SIZE)
        checkpointer.restore(tmp_path / "one", composite(data=DataRestore(other)))
    assert other.get_state() == pipeline.get_state()


def test_the_saved_item_is_one_small_file(manager, pipeline, tmp_path):
    save(manager, 1, pipeline)
    manager.wait_until_finished()
    files = [p for p in (tmp_path / "checkpoints/1/data").iterdir() if p.name.startswith("data")]
    assert [file.name for file in files] == ["data_state.json"]
    assert files[0].stat().st_size < 2048
    assert json.loads(files[0].read_text()) == pipeline.get_state()
    metadata = (tmp_path / "checkpoints/1/_CHECKPOINT_METADATA").read_text()
    assert "datarax_tfds.checkpoint.DataHandler" in metadata  # so it may never move


def test_a_checkpoint_of_other_data_is_refused_and_the_pipeline_stays(
    manager, pipeline, data_dir, loaded
):
    save(manager, 1, pipeline)
    manager.wait_until_finished()
    config = TFDSEagerConfig(name="tiny", split="test", data_dir=str(data_dir))
    other = Pipeline(source=TFDSEagerSource(config), batch_size=5)
    next(iter(other))
    before = other.get_state()
    with pytest.raises(StateMismatchError, match=r"differ in split, records(.|\n)*shuffle, seed"):
        restore(manager, 1, other)
    assert other.get_state() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda text: "", "not JSON"),
        (lambda text: text.replace('"index": 24', '"index": 25'), "checksum does not match"),
        (lambda text: "{}", "not a state of datarax_tfds"),
    ],
)
def test_a_damaged_file_is_refused(manager, pipeline, tmp_path, damage, message):
    next(iter(pipeline))
    save(manager, 1, pipeline)
    manager.wait_until_finished()
    file = tmp_path / "checkpoints/1/data/data_state.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(StateMismatchError, match=rf"{message}(.|\n)*fix:"):
        restore(manager, 1, pipeline)
