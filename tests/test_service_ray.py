"""Decoding by Ray: every batch is that of one process, whatever is killed."""

import inspect
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import elsewhere
import jax
import numpy as np
import pytest

from datarax_tfds import Executor, Pipeline, RayService, TFDSStreamingConfig, TFDSStreamingSource
from datarax_tfds.cli import main
from datarax_tfds.runtime.timings import WORKERS
from datarax_tfds.service import ray_engine
from datarax_tfds.service.description import Description
from datarax_tfds.service.lent_files import opened_in
from datarax_tfds.service.ray_worker import RayWorker
from datarax_tfds.service.served_reader import facts_of

ENOUGH_S = 600  # for what takes seconds on an idle machine
PORT = 20_000 + os.getpid() % 10_000


class Cluster:
    """A cluster of Ray on this machine, which is this test's alone."""

    address = f"127.0.0.1:{PORT}"

    def __init__(self, directory):
        self.directory = directory
        self.process: Any = None

    def start(self):
        options = [
            "--head", f"--port={PORT}", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--block",
            "--object-store-memory=100000000", f"--temp-dir={self.directory}",
            "--include-dashboard=false", "--disable-usage-stats", "--no-monitor",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def stop(self):
        os.killpg(self.process.pid, signal.SIGKILL)  # all at once, as when a machine is lost
        self.process.wait()


@pytest.fixture(scope="module")
def cluster():
    with (
        # Of a short name, because that of a socket has at most 107 bytes.
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", os.urandom(32).hex())
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster(directory)
        cluster.start()
        yield cluster
        cluster.stop()


def pipeline(data_dir, service, transform=elsewhere.jittered):
    config = TFDSStreamingConfig(
        name="tiny", split="train", data_dir=str(data_dir), shuffle=True, transform=transform,
        service=service,
    )  # fmt: skip
    return Pipeline(source=TFDSStreamingSource(config), batch_size=32)


def until(condition):
    deadline = time.monotonic() + ENOUGH_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)  # leaves the cores to the workers, which import TensorFlow


def team(of):
    return of.source.records.reader.dispatcher.team


def pids(of):
    return {int(each.name.rpartition(" ")[2]) for each in team(of).members}


class Trainer:
    """Takes batches, and compares them with those of a run without workers."""

    def __init__(self, data_dir, service):
        self.run, self.local = pipeline(data_dir, service), pipeline(data_dir, None)

    def step(self, count=4):
        for _ in range(count):
            here, there = self.local.step(), self.run.step()
            jax.tree.map(np.testing.assert_array_equal, there, here)
        assert self.run.get_state() == self.local.get_state()

    def asked(self):
        """The seconds in which workers were waited for."""
        return self.run.source.records.timings.totals().stages.get(WORKERS, 0.0)

    def step_until_asked(self):
        until(lambda: team(self.run).members)
        before = self.asked()
        deadline = time.monotonic() + ENOUGH_S
        while self.asked() == before:  # without pauses, in which threads would decode ahead
            assert time.monotonic() < deadline
            self.step()


def test_batches_are_those_of_one_process_whatever_is_killed(
    cluster, data_dir, caplog, capsys, monkeypatch
):
    caplog.set_level("INFO", "datarax_tfds.service")
    opened: list[int] = []

    def opened_but_once(pid, descriptor, token):
        opened.append(pid)
        if len(opened) == 1:
            raise PermissionError("as of a process in another container")
        return opened_in(pid, descriptor, token)

    monkeypatch.setattr(ray_engine, "opened_in", opened_but_once)
    # Of one worker each, because each start of one takes a core about 7 s.
    service = RayService(cluster.address, workers=1)
    first = Trainer(data_dir, service)
    second = Trainer(data_dir, replace(service, late_s=1.5))
    both = first, second
    for each in both:
        each.step()
    for each in both:
        each.step_until_asked()

    assert main(["workers", "--address", cluster.address, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {each["pid"] for each in listed} == pids(first.run) | pids(second.run)
    assert all(each["reads"] == ["tiny/1.0.0 train[0:97]"] for each in listed)
    assert sum(each["records"] for each in listed) > 0
    assert f"rows of process {opened[0]} come through Ray" in caplog.text
    assert set(opened) == pids(first.run) | pids(second.run)  # the memory of the other is mapped

    killed = pids(first.run)
    os.kill(*killed, signal.SIGKILL)
    for each in both:
        each.step()
    until(lambda: killed != pids(first.run))
    for each in both:
        each.step_until_asked()

    cluster.stop()
    for each in both:
        each.step()
    until(lambda: not any(team(each.run).members for each in both))
    cluster.start()
    for each in both:
        each.step()
    for each in both:
        each.step_until_asked()
    said = [record.getMessage() for record in caplog.records]
    assert any("no worker is left" in each for each in said)
    assert any("workers decode again" in each for each in said)

    # A run goes on without workers, and one without them goes on with them.
    state = first.run.get_state()
    for run in (pipeline(data_dir, None), pipeline(data_dir, service)):
        run.set_state(state)
        jax.tree.map(np.testing.assert_array_equal, run.step(), first.local.step())
        first.local.set_state(state)

    # Its rows differ, and its code does not.
    run = pipeline(data_dir, service, elsewhere.other_elsewhere)
    run.step()
    until(lambda: "records differ" in caplog.text)
    refused = next(each for each in caplog.records if "is refused" in each.getMessage())
    assert re.search(r"worker \S+, pid \d+ is refused", refused.getMessage())
    assert not team(run).members
    assert main(["workers", "--address", cluster.address]) == 1
    assert "records differ" in capsys.readouterr().out


def test_the_example_of_an_executor_decodes(data_dir):
    doc = inspect.getdoc(Executor)
    assert doc is not None
    example = textwrap.dedent(doc[doc.index("    from concurrent") : doc.index("Attributes:")])
    names: dict[str, Any] = {
        "TFDSStreamingSource": TFDSStreamingSource,
        "config": pipeline(data_dir, None, transform=None).source.config,
    }
    exec(example, names)  # our own documentation
    run = Pipeline(source=names["source"], batch_size=32)
    run.step()
    until(lambda: team(run).members)


def test_a_worker_says_what_differs_in_its_data_and_its_functions(data_dir, tmp_path):
    local = pipeline(data_dir, RayService()).source
    reader = local.records.reader.reader
    described = Description.of(reader, local.config, pickle_functions=False)
    worker = RayWorker("test")
    ours = facts_of(reader)
    assert worker.open("same", pickle.dumps(described)) == ours

    copied = Path(data_dir, "tiny_one", "1.0.0")  # the same records in other files
    fields = described.fields | {"data_dir": str(copied), "name": "tiny_one"}
    other = worker.open("copy", pickle.dumps(replace(described, fields=fields)))
    assert {name for name in ours if ours[name] != other[name]} == {
        "dataset",
        "fingerprint of the files",
    }
    function = replace(described.functions["transform"], name="other_elsewhere")
    other = worker.open(
        "function", pickle.dumps(replace(described, functions={"transform": function}))
    )
    assert {name for name in ours if ours[name] != other[name]} == {"functions of the user"}
