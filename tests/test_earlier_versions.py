"""What earlier versions wrote is read, and a run continues with the batch it would have had."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import orbax.checkpoint as ocp
import pytest
from faulty_store import FaultyStore
from indexes import record_starts
from object_servers import BUCKET, environment

from datarax_tfds import Cursor, Pipeline, audit
from datarax_tfds.checkpoint import DataRestore, latest_valid_step
from datarax_tfds.files.tfrecord import scanned_starts
from datarax_tfds.state import state_file

EARLIER = Path(__file__).parent / "golden" / "earlier"
COMMITS = ["906bba5", "2bb0494"]
SOURCES = ["eager", "stored", "blocks"]

spec = importlib.util.spec_from_file_location("write", EARLIER / "write.py")
write = importlib.util.module_from_spec(spec)
spec.loader.exec_module(write)


@pytest.fixture
def data_dir(tmp_path):
    """The dataset, with the times that the indexes of its files are of."""
    shutil.copytree(EARLIER / "data", tmp_path / "data")
    for file in tmp_path.rglob("*.tfrecord*"):
        os.utime(file, ns=(write.MTIME_NS, write.MTIME_NS))
    return tmp_path / "data"


@pytest.mark.parametrize("commit", COMMITS)
@pytest.mark.parametrize("name", SOURCES)
def test_a_checkpoint_is_restored_and_the_same_batches_follow(data_dir, tmp_path, commit, name):
    checkpoints = shutil.copytree(EARLIER / commit / name, tmp_path / name)
    following = json.loads((EARLIER / commit / "following.json").read_text())[name]
    pipeline = Pipeline(source=write.sources(str(data_dir))[name], batch_size=write.SIZE)
    with ocp.CheckpointManager(checkpoints) as manager:
        assert latest_valid_step(manager) == write.STEPS
        items = {"data": DataRestore(pipeline)}
        if name == "eager":
            items["model"] = ocp.args.StandardRestore()
        restored = manager.restore(write.STEPS, args=ocp.args.Composite(**items))
    # The fingerprint was of the sizes of the files, too; these have not changed.
    of_the_files = {"fingerprint", "sha256"}
    now = pipeline.get_state()
    assert {key for key in now if now[key] != restored.data[key]} == of_the_files
    assert name != "eager" or restored.model["w"].tolist() == [0, 1, 2]
    assert [pipeline.step()["id"].tolist() for _ in following] == following


@pytest.mark.parametrize("commit", COMMITS)
@pytest.mark.parametrize("name", ["eager", "blocks"])
def test_a_run_goes_on_with_a_copy_of_the_data_in_a_store(data_dir, tmp_path, commit, name):
    state = state_file.read(EARLIER / commit / name / str(write.STEPS) / "data")
    following = json.loads((EARLIER / commit / "following.json").read_text())[name]
    with FaultyStore.started() as store, environment(XDG_CACHE_HOME=str(tmp_path / "cache")):
        store.put(data_dir, "datasets")
        source = write.sources(f"gs://{BUCKET}/datasets")[name]
        pipeline = Pipeline(source=source, batch_size=write.SIZE)
        pipeline.set_state(state)
        assert pipeline.get_state()["fingerprint"] != state["fingerprint"]
        assert [pipeline.step()["id"].tolist() for _ in following] == following


@pytest.mark.parametrize("commit", COMMITS)
@pytest.mark.parametrize("name", SOURCES)
def test_a_cursor_log_is_audited(commit, name):
    found = audit((EARLIER / commit / f"{name}.jsonl").read_text().splitlines())
    assert found.sound, str(found)
    assert found.reached == Cursor(1, write.SIZE * write.STEPS - 40)


@pytest.mark.parametrize("commit", COMMITS)
def test_an_index_of_records_is_read_and_not_built_again(data_dir, monkeypatch, commit):
    directory = data_dir / "golden" / "1.0.0"
    shutil.copytree(EARLIER / commit / "record_index", directory / ".record_index")
    files = sorted(directory.glob("*.tfrecord*"))
    expected = [scanned_starts(file).tolist() for file in files]

    def refuse(path):
        raise AssertionError(f"{path} was scanned")

    monkeypatch.setattr("datarax_tfds.files.tfrecord_index.scanned_starts", refuse)
    assert [record_starts(file).tolist() for file in files] == expected


def test_counts_of_tokens_are_read_and_the_rows_of_a_state_follow(tmp_path):
    """They are of a version that kept no tokens, which are then made again."""
    data_dir = shutil.copytree(EARLIER / "texts", tmp_path / "data")
    counts = data_dir / "golden_text" / "1.0.0" / ".token_counts"
    shutil.copytree(EARLIER / "78cc979" / "token_counts", counts)
    encoded = []

    def encode(text):
        encoded.append(text)
        return list(text.encode())

    source = write.packed(str(data_dir), encode)
    assert len(encoded) == 2 * 32  # on which a tokenizer is tried
    assert source.kept_tokens == 0
    rows = json.loads((EARLIER / "78cc979" / "packed.json").read_text())
    source.set_state(rows["state"])
    assert [source.get_batch(4)["tokens"].tolist() for _ in rows["following"]] == rows["following"]
