"""What may be found in a checkpoint directory, and which step a run then goes on from."""

import json
import logging
import os
import re
import shutil

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from contract import N
from flax import nnx

from datarax_tfds import Pipeline, StateMismatchError, TFDSEagerConfig, TFDSEagerSource
from datarax_tfds.checkpoint import DataRestore, DataSave, latest_valid_step
from datarax_tfds.state import state_file

MODEL = {"w": jnp.arange(30_000.0), "b": jnp.zeros(())}


@pytest.fixture(scope="module")
def loaded(data_dir):
    return TFDSEagerSource(
        TFDSEagerConfig(name="tiny", split="train", data_dir=str(data_dir), shuffle=True)
    )


@pytest.fixture(scope="module")
def saved(loaded, tmp_path_factory):
    """A checkpoint with the steps 1, 2 and 3."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    pipeline = Pipeline(source=nnx.clone(loaded), batch_size=24)
    with ocp.CheckpointManager(directory) as manager:
        for step in (1, 2, 3):
            pipeline.step()
            model = ocp.args.StandardSave(MODEL)
            manager.save(step, args=ocp.args.Composite(model=model, data=DataSave(pipeline)))
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def found(directory):
    with ocp.CheckpointManager(directory) as manager:
        return latest_valid_step(manager)


def test_the_newest_step_is_found_where_all_are_whole(directory):
    assert found(directory) == 3


def test_there_is_none_in_an_empty_directory(tmp_path):
    assert found(tmp_path / "nothing") is None


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("3", shutil.rmtree, None),
        ("3/data", shutil.rmtree, "item 'data' is missing"),
        ("3/model", shutil.rmtree, "item 'model' is missing"),
        ("3/model/manifest.ocdbt", remove, "item 'model' lacks"),
        ("3/model/_METADATA", remove, "item 'model' lacks"),
        ("3/model/d", shutil.rmtree, "item 'model' (lacks|is damaged)"),
        ("3/model/ocdbt.process_0", shutil.rmtree, "item 'model' lacks"),
        ("3/_CHECKPOINT_METADATA", remove, "_CHECKPOINT_METADATA cannot be read"),
        ("3/_CHECKPOINT_METADATA", lambda path: path.write_text("{}"), "cannot be read"),
        ("3/data/data_state.json", remove, "no saved state can be read"),
        ("3/data/data_state.json", lambda path: path.write_text("{}"), "not a state|damaged"),
        ("3/data/data_state.json", lambda path: os.truncate(path, 100), "not JSON"),
        ("3/model/manifest.ocdbt", lambda path: os.truncate(path, 50), "item 'model' is damaged"),
    ],
)
def test_a_step_that_is_not_whole_is_passed_over_by_name(directory, caplog, name, damage, reason):
    damage(directory / name)
    with caplog.at_level(logging.WARNING, logger="datarax_tfds"):
        assert found(directory) == 2
    if reason is not None:
        assert "step 3 is skipped" in caplog.text
        assert re.search(reason, caplog.text)


@pytest.mark.parametrize("name", ["4", "9999"])
def test_a_stray_directory_is_passed_over(directory, caplog, name):
    (directory / name).mkdir()
    assert found(directory) == 3
    assert f"step {name} is skipped" in caplog.text


def test_a_step_that_is_a_link_is_passed_over(directory, tmp_path):
    outside = shutil.move(directory / "3", tmp_path / "outside")
    (directory / "3").symlink_to(outside)
    assert found(directory) == 2


def cut_in_half(path):
    os.truncate(path, os.path.getsize(path) // 2)


@pytest.mark.parametrize("damage", [os.unlink, cut_in_half])
def test_whichever_file_is_damaged_the_step_is_passed_over_or_restores(
    directory, loaded, tmp_path, damage
):
    step = directory / "3"
    files = [os.path.join(top, name) for top, _, names in os.walk(step) for name in names]
    assert len(files) >= 8
    for path in files:
        whole = shutil.copy2(path, tmp_path / "whole")
        damage(path)
        assert found(directory) == 2 or restores(directory, loaded), path
        os.replace(whole, path)
    assert found(directory) == 3


def restores(directory, loaded):
    with ocp.CheckpointManager(directory) as manager:
        args = ocp.args.Composite(
            model=ocp.args.StandardRestore(MODEL),
            data=DataRestore(Pipeline(source=nnx.clone(loaded), batch_size=24)),
        )
        model = manager.restore(3, args=args)["model"]
    return bool((model["w"] == MODEL["w"]).all())


class TestTheStateFile:
    @pytest.fixture
    def item(self, saved, tmp_path):
        return shutil.copytree(saved / "3" / "data", tmp_path / "data")

    def test_every_flipped_bit_is_noticed(self, item, loaded, figure):
        pipeline = Pipeline(source=nnx.clone(loaded), batch_size=24)
        before, path = pipeline.get_state(), item / state_file.NAME
        content = path.read_bytes()
        pipeline.set_state(state_file.read(item))
        pipeline.set_state(before)
        for place in range(len(content)):
            for bit in range(8):
                flipped = bytearray(content)
                flipped[place] ^= 1 << bit
                path.write_bytes(flipped)
                with pytest.raises(StateMismatchError, match=r"fix:"):
                    pipeline.set_state(state_file.read(item))
        assert pipeline.get_state() == before
        flips = 8 * len(content)
        figure("bit flips of the data state noticed", f"{flips:,} of {flips:,}", "100 %")

    def test_every_truncation_and_addition_is_noticed(self, item, figure):
        path = item / state_file.NAME
        content = path.read_bytes()
        changed = [content[:length] for length in range(len(content))]
        changed += [content + more for more in (b" ", b"\n", b"\0", b"{}", b"\n" * 70_000)]
        for wrong in changed:
            path.write_bytes(wrong)
            with pytest.raises(StateMismatchError, match=r"fix:"):
                state_file.read(item)
        cuts = len(content)
        figure("truncations of the data state noticed", f"{cuts} of {cuts}", "100 %")

    @pytest.mark.parametrize(
        "text",
        [
            '{"epoch": NaN}',
            '{"epoch": 1, "epoch": 1}',
            "[" * 60_000,
            "[]",
            '"state"',
            "\ufeff{}",
        ],
    )
    def test_what_is_not_plain_json_is_refused(self, item, text):
        (item / state_file.NAME).write_text(text)
        with pytest.raises(StateMismatchError, match=r"(.|\n)*fix:"):
            state_file.read(item)

    def test_links_are_not_followed(self, item, tmp_path):
        path = item / state_file.NAME
        outside = shutil.move(path, tmp_path / "outside.json")
        path.symlink_to(outside)
        with pytest.raises(StateMismatchError, match=r"symbolic links(.|\n)*fix:"):
            state_file.read(item)
        (tmp_path / "linked").symlink_to(item)
        with pytest.raises(StateMismatchError, match=r"symbolic link(.|\n)*fix:"):
            state_file.read(tmp_path / "linked")

    def test_a_fifo_does_not_hold_anybody_up(self, item):
        path = item / state_file.NAME
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(StateMismatchError, match="fix:"):
            state_file.read(item)

    def test_a_state_that_is_there_is_not_replaced(self, item):
        with pytest.raises(FileExistsError):
            state_file.write(item, {})

    def test_a_state_that_could_not_be_written_is_not_there(self, tmp_path, monkeypatch):
        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            state_file.write(tmp_path, {"epoch": 1})
        assert list(tmp_path.iterdir()) == []

    def test_it_is_on_the_disk_with_its_directories_before_it_counts(self, tmp_path, monkeypatch):
        synced = []
        fsync = os.fsync

        def noting(descriptor):
            synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", noting)
        item = tmp_path / "item"
        item.mkdir()
        state_file.write(item, {"epoch": 1})
        assert synced == [str(item / state_file.NAME), str(item), str(tmp_path)]


def test_a_state_has_the_size_of_a_small_file(saved):
    state = json.loads((saved / "3" / "data" / state_file.NAME).read_text())
    assert state["records"] == N
    assert (saved / "3" / "data" / state_file.NAME).stat().st_size < 2048
