"""What a job keeps in a store beside its data: checkpoints, cursor logs and indexes."""

import logging
import re
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack
from types import SimpleNamespace

import google_apis
import jax.numpy as jnp
import object_servers
import orbax.checkpoint as ocp
import pytest
from checkout import GUARD_S, ROOT
from faulty_store import FaultyStore
from object_servers import BUCKET, environment, upload
from refusals import refused

from datarax_tfds import (
    CursorLog,
    Pipeline,
    StateMismatchError,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    audit,
)
from datarax_tfds.checkpoint import DataRestore, DataSave, latest_valid_step
from datarax_tfds.cli import main
from datarax_tfds.state import state_file
from datarax_tfds.stores import object_store
from datarax_tfds.stores.object_path import ObjectPath
from datarax_tfds.stores.object_store import names, write_object

MODEL = {"w": jnp.arange(30_000.0), "b": jnp.zeros(())}


@pytest.fixture(scope="module")
def source(data_dir):
    config = TFDSStreamingConfig(name="tiny", split="train", data_dir=str(data_dir), shuffle=True)
    return TFDSStreamingSource(config)


@pytest.fixture
def pipeline(source):
    return Pipeline(source=source.clone(), batch_size=24, record_numbers=True)


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(object_store, "PATIENCE", object_store.Patience(retries=1, answer_s=30.0))
    with FaultyStore.started() as store:
        yield store


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request, tmp_path_factory):
    """A bucket on a real server of each kind."""
    with ExitStack() as stack:
        served = object_servers.s3()
        if request.param == "gs":
            served = object_servers.gcs(tmp_path_factory.mktemp("gcs"))
        stack.enter_context(environment(**stack.enter_context(served)))
        yield f"{request.param}://{BUCKET}"


def save(manager, step, pipeline):
    items = {"model": ocp.args.StandardSave(MODEL), "data": DataSave(pipeline)}
    manager.save(step, args=ocp.args.Composite(**items))


@pytest.fixture(scope="module")
def saved(source, tmp_path_factory):
    """A checkpoint with the steps 1 and 2, saved on a disk."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    pipeline = Pipeline(source=source.clone(), batch_size=24)
    with ocp.CheckpointManager(directory) as manager:
        for step in (1, 2):
            pipeline.step()
            save(manager, step, pipeline)
    return directory


class TestCheckpoints:
    def test_orbax_saves_to_gs_and_a_run_on_a_disk_goes_on(
        self, pipeline, tmp_path, monkeypatch, source
    ):
        """By TensorFlow's client and TensorStore's, whose addresses lead to a server of ours."""
        from orbax.checkpoint._src.path import gcs_utils

        # It needs the package google-cloud-storage to ask whether the bucket has folders.
        monkeypatch.setattr(gcs_utils, "get_bucket", lambda _: None)
        with google_apis.served(tmp_path):
            options = ocp.CheckpointManagerOptions(max_to_keep=1)
            with ocp.CheckpointManager(f"gs://{BUCKET}/run", options=options) as manager:
                assert latest_valid_step(manager) is None
                for step in (1, 2):
                    pipeline.step()
                    save(manager, step, pipeline)
                manager.wait_until_finished()
                assert latest_valid_step(manager) == 2
                other = Pipeline(source=source.clone(), batch_size=24)
                items = {"model": ocp.args.StandardRestore(MODEL), "data": DataRestore(other)}
                found = manager.restore(2, args=ocp.args.Composite(**items))
                assert found["model"]["w"].tolist() == MODEL["w"].tolist()
                assert other.get_state() == pipeline.get_state()
                assert {
                    int(name.partition("/")[0])
                    for name in names(ObjectPath.parse(f"gs://{BUCKET}/run"))
                } == {2}

    def test_the_copy_of_a_checkpoint_is_found_in_any_store(self, bucket, saved):
        upload(saved, f"{bucket}/run")
        assert latest(f"{bucket}/run") == 2
        state = state_file.read(ObjectPath.parse(f"{bucket}/run/2/data"))
        assert state == state_file.read(saved / "2" / "data")
        write_object(ObjectPath.parse(f"{bucket}/run/2/model/_METADATA"), b"{")
        assert latest(f"{bucket}/run") == 1

    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("commit_success.txt", None, "its save did not finish"),
            ("_CHECKPOINT_METADATA", None, "_CHECKPOINT_METADATA cannot be read"),
            ("_CHECKPOINT_METADATA", b"{}", "_CHECKPOINT_METADATA cannot be read"),
            ("data/", None, "item 'data' is missing"),
            ("data/data_state.json", None, "no saved state can be read there"),
            ("data/data_state.json", b"{}", "not a state of datarax_tfds"),
            ("model/_METADATA", None, "item 'model' lacks model/_METADATA"),
            ("model/manifest.ocdbt", b"", "item 'model' is damaged"),
            ("model/d/", b"", "item 'model' is damaged"),
            ("model/ocdbt.process_0/d/", b"short", "item 'model' lacks model/ocdbt.process_0/d/"),
            ("model/ocdbt.process_0/d/", None, "item 'model' lacks model/ocdbt.process_0/d/"),
        ],
    )
    def test_a_step_that_is_not_whole_is_skipped(self, store, saved, caplog, name, content, reason):
        store.put(saved, "run")
        for key in [key for key in store.objects if key.startswith(f"run/2/{name}")]:
            if content is None:
                del store.objects[key]
            else:
                store.objects[key] = content
        with caplog.at_level(logging.WARNING, logger="datarax_tfds"):
            assert latest(f"gs://{BUCKET}/run") == 1
        assert re.search(f"step 2 is skipped: .*({reason})", caplog.text)

    @pytest.mark.parametrize(("fault", "kind"), [(503, ConnectionError), (403, PermissionError)])
    @pytest.mark.parametrize(
        "name", ["run/", "_CHECKPOINT_METADATA", "model/_METADATA", "ocdbt", "/d/", "data_state"]
    )
    def test_no_step_is_skipped_because_the_store_fails(self, store, saved, fault, kind, name):
        store.put(saved, "run")
        store.fault = lambda request: fault if name in request.name else None
        with refused(kind, rf"^gs://{BUCKET}/run"):
            latest(f"gs://{BUCKET}/run")

    def test_a_restore_says_whether_the_state_or_the_store_is_at_fault(self, store, saved):
        store.put(saved, "run")
        item = ObjectPath.parse(f"gs://{BUCKET}/run/2/data")
        store.fault = lambda _: 503
        with refused(ConnectionError, "does not answer"):
            state_file.read(item)
        store.fault = lambda _: None
        store.objects["run/2/data/data_state.json"] = b"{ }"
        with refused(StateMismatchError, "damaged"):
            state_file.read(item)


def latest(directory):
    """Without a manager of Orbax, whose clients know no server of ours, or no `s3://` at all."""
    return latest_valid_step(SimpleNamespace(directory=directory))


def audited(*logs):
    return audit(*map(CursorLog.lines, logs))


class TestCursorLog:
    def run(self, log, pipeline, steps):
        noted = CursorLog(log, pipeline)
        for _ in range(steps):
            noted.note(pipeline.step()["record_number"])
        return noted

    def test_several_runs_are_audited(self, bucket, pipeline, source, capsys):
        log = f"{bucket}/logs/cursors-0.jsonl"
        self.run(log, pipeline, 3)
        state = DataSave(pipeline).state  # waits until the lines are written
        self.run(log, pipeline, 2).flush()  # is rolled back:
        again = Pipeline(source=source.clone(), batch_size=16, record_numbers=True)
        again.set_state(state)
        self.run(log, again, 9).flush()
        found = audited(log)
        assert found.sound, found
        assert found.runs == 3
        assert found.reached == again.cursor
        assert main(["audit", log]) == 0
        assert "each record was delivered once" in capsys.readouterr().out

    def test_the_copy_of_a_file_is_audited_too(self, bucket, pipeline, tmp_path):
        self.run(tmp_path / "log", pipeline, 2)
        write_object(ObjectPath.parse(f"{bucket}/copy"), (tmp_path / "log").read_bytes())
        assert list(CursorLog.lines(f"{bucket}/copy")) == list(CursorLog.lines(tmp_path / "log"))

    def test_a_log_that_is_not_there_is_refused(self, store, capsys):
        with refused(FileNotFoundError, "there is no log of cursors"):
            audited(f"gs://{BUCKET}/nothing")
        assert main(["audit", f"gs://{BUCKET}/nothing"]) == 2
        assert "fix:" in capsys.readouterr().err

    def test_lines_are_written_together_while_training_goes_on(self, store, pipeline):
        store.latency_s = 0.05
        log = CursorLog(f"gs://{BUCKET}/log", pipeline)
        for _ in range(500):
            log.note()
        log.flush()
        assert store.count("write") <= 20  # one a second
        assert len(list(CursorLog.lines(f"gs://{BUCKET}/log"))) == 501

    def test_lines_that_cannot_be_written_are_kept_and_the_save_fails(self, store, pipeline):
        log = CursorLog(f"gs://{BUCKET}/log", pipeline)
        store.fault = lambda request: 503 if request.kind == "write" else None
        log.note(pipeline.step()["record_number"])
        with refused(ConnectionError, rf"^gs://{BUCKET}/log/000001-\w+-000001.jsonl"):
            DataSave(pipeline)
        store.fault = lambda _: None
        DataSave(pipeline)
        assert audited(f"gs://{BUCKET}/log").reached == pipeline.cursor

    def test_a_store_that_may_not_be_written_is_refused(self, store, pipeline):
        store.writable = False
        with refused(PermissionError, "Storage Object User"):
            CursorLog(f"gs://{BUCKET}/log", pipeline).flush()

    def test_the_last_lines_are_written_before_the_interpreter_exits(self, store):
        code = (
            "from datarax_tfds.history.log_files import log_at\n"
            f"log_at('gs://{BUCKET}/log').append(b'the last\\n')\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=GUARD_S, cwd=ROOT)
        assert list(CursorLog.lines(f"gs://{BUCKET}/log")) == ["the last\n"]

    def test_no_thread_is_left_when_all_is_written(self, store, pipeline):
        self.run(f"gs://{BUCKET}/log", pipeline, 1).flush()
        assert "datarax_tfds log" not in {thread.name for thread in threading.enumerate()}


class TestIndex:
    def test_the_indexes_that_are_missing_are_written_beside_the_data(
        self, store, data_dir, tmp_path, capsys
    ):
        version = shutil.copytree(data_dir / "tiny" / "1.0.0", tmp_path / "1.0.0")
        first, *others = sorted(version.glob("*.tfrecord*"))
        others[-1].write_bytes(b"damaged")
        store.put(version, "tiny/1.0.0")
        assert main(["index", f"gs://{BUCKET}/tiny/1.0.0"]) == 1
        printed = capsys.readouterr()
        assert printed.out == f"{len(others)} of {len(others) + 1} TFRecord files have an index\n"
        assert re.search(rf"gs://.*{others[-1].name}: .*cut short(.|\n)*fix:", printed.err)
        beside = {name.rpartition("/")[2] for name in store.objects if ".record_index" in name}
        assert beside == {first.name, *(other.name for other in others[:-1])}
        store.fault = lambda _: 503
        assert main(["index", f"gs://{BUCKET}/tiny/1.0.0"]) == 2
