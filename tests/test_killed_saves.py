"""A save that ends at any call to the file system: the old state or the new one, never another."""

import json
import shutil

import dying
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from datarax_tfds import Pipeline, TFDSEagerConfig, TFDSEagerSource
from datarax_tfds.checkpoint import DataRestore, DataSave, latest_valid_step
from datarax_tfds.state import state_file

SIZE = 24


@pytest.fixture(scope="module")
def loaded(data_dir):
    return TFDSEagerSource(
        TFDSEagerConfig(name="tiny", split="train", data_dir=str(data_dir), shuffle=True)
    )


def manager(directory):
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, todelete_subdir="deleted", enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(directory, options=options)


def save(checkpoints, step, pipeline):
    """The model is what the data is, so that it shows if they are of different steps."""
    model = ocp.args.JsonSave(pipeline.get_state())
    checkpoints.save(step, args=ocp.args.Composite(model=model, data=DataSave(pipeline)))


def restored(checkpoints, pipeline):
    step = latest_valid_step(checkpoints)
    args = ocp.args.Composite(model=ocp.args.JsonRestore(), data=DataRestore(pipeline))
    items = checkpoints.restore(step, args=args)
    assert items["model"] == items["data"] == pipeline.get_state()
    return step


def attempt(directory, loaded, number, failure):
    """One save over an older one; returns whether the call came, and which it was."""
    pipeline = Pipeline(source=nnx.clone(loaded), batch_size=SIZE)
    with manager(directory) as checkpoints:
        pipeline.step()
        save(checkpoints, 1, pipeline)
        before = pipeline.get_state()
        pipeline.step()
        after = pipeline.get_state()
        with dying.at_call(directory, number, failure) as plan:
            try:
                save(checkpoints, 2, pipeline)
            except (dying.Killed, OSError, ValueError):
                assert plan.calls >= number
    for draft in directory.rglob(state_file.NAME):  # what was not synced may be lost in part
        if plan.dead and plan.last.startswith("fsync") and str(draft) in plan.last:
            content = draft.read_bytes()
            draft.write_bytes(content[: len(content) // 2])
    other = Pipeline(source=nnx.clone(loaded), batch_size=SIZE)
    with manager(directory) as checkpoints:
        step = restored(checkpoints, other)
        assert other.get_state() == {1: before, 2: after}[step]
        other.step()
        save(checkpoints, 3, other)
        assert restored(checkpoints, other) == 3
    return plan.calls >= number


@pytest.mark.parametrize("failure", dying.FAILURES)
def test_a_save_may_end_or_fail_at_any_call(loaded, tmp_path, figure, failure):
    points = 0
    while attempt(tmp_path / str(points), loaded, points + 1, dying.FAILURES[failure]):
        shutil.rmtree(tmp_path / str(points))
        points += 1
    figure(f"calls of a save at which it may be: {failure}", f"{points} of {points}", "all")
    assert points >= 15, "the hook saw too few calls"


def test_a_kill_is_noticed_by_this_test(tmp_path):
    with dying.at_call(tmp_path, 2):
        (tmp_path / "one").mkdir()
        with pytest.raises(dying.Killed):
            (tmp_path / "two").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    state_file.write(tmp_path, {})
    assert json.loads((tmp_path / state_file.NAME).read_text()) == {}
