"""A dataset that is missing is prepared by one process; who dies on the way is made up for."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import warmed
from checkout import GUARD_S, WORKERS

from datarax_tfds import DatasetNotFoundError, TFDSEagerConfig, WaitTimeoutError
from datarax_tfds.cli import launching
from datarax_tfds.files.preparing import only_preparer, prepare_options
from datarax_tfds.files.split import open_split

WORKER = WORKERS / "prepare.py"


def start(directory, sleep_s=0.0):
    command = [sys.executable, WORKER, directory / "data", directory / "notes", sleep_s]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return warmed.Popen(list(map(str, command)), **pipes)


def ended(process):
    """What it printed, of which the last line is the fingerprint."""
    try:
        out, errors = process.communicate(timeout=GUARD_S)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-3000:]
    return out.splitlines()[-1], errors


def makers(directory):
    return set((directory / "notes").read_text().split())


def test_of_four_processes_one_prepares(tmp_path, figure, full):
    rounds = 20 if full else 1
    for number in range(rounds):
        directory = tmp_path / str(number)
        directory.mkdir()
        processes = [start(directory, 0.5) for _ in range(4)]
        found = {ended(process)[0] for process in processes}
        assert len(found) == 1
        assert len(makers(directory)) == 1
        assert not list((directory / "data").rglob("incomplete*"))
    figure("4 processes prepare the same dataset at once", f"{rounds} of {rounds} rounds", "all")


def test_hosts_that_share_no_file_system_are_told(tmp_path):
    command = [sys.executable, WORKER, tmp_path / "data", tmp_path / "notes", "0"]
    assert launching.launch(2, list(map(str, command)), tmp_path, GUARD_S, warmed.Popen) == 0
    assert len(makers(tmp_path)) == 2
    logs = [(tmp_path / f"process-{number}.log").read_text() for number in (0, 1)]
    assert any("share no file system" in log for log in logs)


def test_a_preparer_that_dies_half_way_is_made_up_for(tmp_path):
    dying = start(tmp_path, 100.0)
    deadline = time.monotonic() + GUARD_S
    while not (tmp_path / "notes").exists():
        assert dying.poll() is None, dying.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    waiting = start(tmp_path)
    time.sleep(1)
    dying.send_signal(signal.SIGKILL)
    dying.communicate()
    _, errors = ended(waiting)
    assert makers(tmp_path) == {str(dying.pid), str(waiting.pid)}
    assert "was left half prepared" in errors


def test_who_waits_too_long_is_told_for_whom(tmp_path):
    prepared = tmp_path / "name" / "1.0.0"
    with (
        only_preparer(prepared, "one"),
        pytest.raises(WaitTimeoutError, match=rf"holder: +process {os.getpid()} on (.|\n)*fix:"),
        only_preparer(prepared, "another", timeout_s=0.5),
    ):
        pass
    with only_preparer(prepared, "later", timeout_s=0.5):
        pass


def test_a_wait_for_who_prepares_is_announced_and_ends_at_the_limit(tmp_path, limits, caplog):
    limits.stall_warn_s = 0.0  # it is announced at once
    limits.stall_timeout_s = 1.0
    prepared = tmp_path / "tiny" / "1.0.0"
    with (
        only_preparer(prepared, "one"),
        pytest.raises(WaitTimeoutError, match=r"another: (.|\n)*holder(.|\n)*stall_timeout_s"),
        only_preparer(prepared, "another"),
    ):
        pass
    assert re.search(r"another: waiting on .* for process \d+ on .* to prepare", caplog.text)


def test_where_nothing_can_be_written_the_remedy_is_told():
    with pytest.raises(DatasetNotFoundError, match=r"cannot be: nothing can be(.|\n)*data_dir"):
        open_split(TFDSEagerConfig(name="mnist", split="train", data_dir="/proc/data"))


class TestOptions:
    """What TFDS is told when it prepares a dataset."""

    def options(self, **fields):
        return prepare_options(TFDSEagerConfig(name="mnist", split="train", **fields))

    def test_the_bucket_is_tried_on_request_and_other_options_are_kept(self):
        import tensorflow_datasets as tfds

        given = tfds.download.DownloadConfig(num_shards=3, try_download_gcs=False)
        kwargs = {"download_dir": "here", "download_config": given}
        options = self.options(try_gcs=True, download_and_prepare_kwargs=kwargs)
        assert options["download_dir"] == "here"
        assert options["download_config"].num_shards == 3
        assert options["download_config"].try_download_gcs
        assert not self.options(download_and_prepare_kwargs=kwargs)[
            "download_config"
        ].try_download_gcs

    @pytest.mark.parametrize("wanted", [True, False])
    def test_the_bucket_is_tried_only_on_request(self, wanted):
        assert self.options(try_gcs=wanted)["download_config"].try_download_gcs is wanted

    def test_beam_workers_need_beam(self):
        with pytest.raises(ImportError, match=r"Beam is not installed(.|\n)*fix: +pip install"):
            self.options(beam_num_workers=4)
