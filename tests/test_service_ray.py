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
from unittest import mock

import elsewhere
import jax
import numpy as np
import packed_texts
import psutil
import pytest
import ragged_records
import ray_clusters
import tfds_datasets
import warmed
from checkout import WORKERS as SCRIPTS
from sources import source_of

from datarax_tfds import (
    BucketedSource,
    Executor,
    MixtureSource,
    PackedSource,
    Pipeline,
    RayService,
    TFDSStreamingConfig,
    TFDSStreamingSource,
)
from datarax_tfds.cli import main
from datarax_tfds.runtime.timings import WORKERS
from datarax_tfds.service import ray_engine
from datarax_tfds.service.description import Description
from datarax_tfds.service.driver_process import DriverProcess
from datarax_tfds.service.lent_files import opened_in
from datarax_tfds.service.ray_driver import require_answer
from datarax_tfds.service.ray_worker import RayWorker
from datarax_tfds.service.served_reader import facts_of
from datarax_tfds.tokens import served_tokens
from datarax_tfds.tokens.served_tokens import ServedTokens

ENOUGH_S = 600  # for what takes seconds on an idle machine


@pytest.fixture(scope="module")
def cluster():
    with ray_clusters.running(cores=2) as cluster:
        yield cluster


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


def wait_until_it_answers(cluster):
    def answers():
        try:
            require_answer(cluster.address)
        except OSError:
            return False
        return True

    until(answers)


def workers_of(cluster):
    """What `datarax-tfds workers` lists."""
    command = [sys.executable, "-m", "datarax_tfds", "workers", "--json", "--address"]
    asked = warmed.run([*command, cluster.address], timeout=ENOUGH_S)
    return json.loads(asked.stdout)


def pids_of(cluster):
    return {each["pid"] for each in workers_of(cluster)}


def team(of):
    return of.source.records.reader.dispatcher.team


def pids(of):
    return {int(each.name.rpartition(" ")[2]) for each in team(of).members}


class Trainer:
    """Takes batches, and compares them with those of a run without workers."""

    def __init__(self, run, local):
        self.run, self.local = run, local

    @classmethod
    def of_tiny(cls, data_dir, service):
        return cls(pipeline(data_dir, service), pipeline(data_dir, None))

    def step(self, count=4):
        # One after the other without pauses, in which threads would decode ahead alone.
        batches = [self.run.step() for _ in range(count)]
        for batch in batches:
            jax.tree.map(np.testing.assert_array_equal, batch, self.local.step())
        assert self.run.get_state() == self.local.get_state()

    def asked(self):
        """The seconds in which workers were waited for."""
        return self.run.source.records.timings.totals().stages.get(WORKERS, 0.0)

    def step_until_asked(self):
        before = self.asked()
        deadline = time.monotonic() + ENOUGH_S
        while self.asked() == before:
            assert time.monotonic() < deadline
            self.step(12)


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
    first = Trainer.of_tiny(data_dir, service)
    second = Trainer.of_tiny(data_dir, replace(service, late_s=1.5))
    both = first, second
    for each in both:
        each.step()
    for each in both:
        until(lambda each=each: team(each.run).members)
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
        until(lambda each=each: team(each.run).members)
        each.step_until_asked()

    cluster.stop()
    for each in both:
        each.step()
    until(lambda: not any(team(each.run).members for each in both))
    cluster.start()
    for each in both:
        each.step()
    for each in both:
        until(lambda each=each: team(each.run).members)
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


def mixed(data_dir, service):
    part = lambda name, seed: source_of(
        data_dir, name=name, shuffle=True, seed=seed, transform=elsewhere.jittered, service=service
    )
    return MixtureSource({"a": part("tiny", 1), "b": part("tiny_one", 2)}, {"a": 3, "b": 1})


def bucketed(data_dir, service):
    stream = source_of(data_dir, name="ragged", transform=elsewhere.tokens, service=service)
    return BucketedSource(stream, {"tokens": ragged_records.LENGTHS}, run=32, shuffle=True)


def packed(data_dir, service):
    stream = source_of(data_dir, name="docs", service=service)
    return PackedSource(
        stream, encode=elsewhere.encode, length=packed_texts.LENGTH, shuffle=True, keep_tokens=False
    )


def test_sources_of_all_kinds_read_through_workers_while_one_is_killed(
    cluster, data_dir, tmp_path, caplog
):
    ragged_records.write(tmp_path)
    packed_texts.write(tmp_path)
    caplog.set_level("INFO", "datarax_tfds.service")
    service = RayService(cluster.address, workers=2)
    kinds = [(mixed, data_dir), (bucketed, tmp_path), (packed, tmp_path)]
    trainers = [
        Trainer(*(Pipeline(source=make(place, of), batch_size=32) for of in (service, None)))
        for make, place in kinds
    ]
    for each in trainers:
        each.step()
    # The threads of this process are fast enough for tokens.
    *asked, tokens = trainers
    for each in asked:
        each.step_until_asked()
    killed = workers_of(cluster)[0]["pid"]
    os.kill(killed, signal.SIGKILL)
    for each in trainers:
        each.step()
    until(lambda: "has died" in caplog.text)
    for each in asked:
        each.step_until_asked()
    tokens.step()
    until(lambda: len(workers_of(cluster)) == 2 and killed not in pids_of(cluster))
    reads = {name for each in workers_of(cluster) for name in each["reads"]}
    assert reads == {f"{each}/1.0.0 train[0:{n}]" for each, n in [
        ("tiny", 97), ("tiny_one", 97), ("ragged", ragged_records.N), ("docs", 67)
    ]}  # fmt: skip

    made: list[ServedTokens] = []

    def of_workers_only(*args, **kwargs):
        made.append(ServedTokens(*args, **kwargs, threads=0))
        return made[-1]

    with mock.patch.object(served_tokens, "ServedTokens", of_workers_only):
        source = packed(tmp_path, service)
    made[0].dispatcher.read(np.zeros(1, np.int64))  # waits for the first worker
    Trainer(
        *(Pipeline(source=each, batch_size=32) for each in (source, packed(tmp_path, None)))
    ).step()


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


@pytest.fixture
def nodes(data_dir, tmp_path):
    """A cluster whose workers differ, each in something else, from what the trainer has."""
    other = {name: tmp_path / name for name in ("versions", "functions", "data")}
    for directory in other.values():
        directory.mkdir()
    (other["versions"] / "sitecustomize.py").write_text(OTHER_TENSORFLOW)
    code = Path(elsewhere.__file__).read_text()
    (other["functions"] / "elsewhere.py").write_text(
        code.replace("integers(0, 9,", "integers(0, 8,")
    )
    tfds_datasets.write(other["data"], "tiny", shards=2)
    with ray_clusters.running(cores=0) as cluster:
        wait_until_it_answers(cluster)
        for how in (
            {"cwd": data_dir, "python_path": other["versions"]},
            {"cwd": data_dir, "python_path": other["functions"]},
            {"cwd": other["data"]},
        ):
            node = cluster.join(**how)
            # One after the other, because two that start at once may choose one port.
            until(lambda node=node: node.keep() or has_raylet(node.process.pid))
        yield cluster


OTHER_TENSORFLOW = """
import importlib.abc
import importlib.util
import sys


class Other(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            module.__version__ = "2.99.0"

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Other())
"""


def test_workers_with_other_libraries_functions_or_data_are_refused_by_name(
    nodes, data_dir, monkeypatch, caplog, figure
):
    caplog.set_level("INFO", "datarax_tfds.service")
    monkeypatch.chdir(data_dir)
    # A path that each process finds its own files at, as each machine has its own disk.
    trainer = Trainer.of_tiny("/proc/self/cwd", RayService(nodes.address, workers=3))
    trainer.step()
    refusals = lambda: [each for each in caplog.records if "is refused" in each.getMessage()]
    until(lambda: nodes.keep() or len(refusals()) == 3)
    trainer.step()
    assert not team(trainer.run).members
    differ = re.compile(r"worker \S+, pid \d+ is refused.*reason: +(.+?) differs", re.DOTALL)
    said = sorted(
        found[1] for each in refusals() if (found := differ.search(each.getMessage())) is not None
    )
    assert said == ["fingerprint of the files", "functions of the user", "tensorflow"]
    connected = next(each for each in caplog.records if "connected to Ray" in each.getMessage())
    for each in refusals():
        figure(
            "service: worker with another TensorFlow, map_fn or data: from the connection to Ray"
            " to its refusal, with the start of the worker",
            f"{each.created - connected.created:.1f} s",
            "10 s",
        )


@pytest.mark.parametrize(("how", "steps", "ready"), [
    ("ends", 1, None),  # while Ray starts
    ("SIGKILL", 10**9, "there"),
    ("SIGINT", 10**9, "asked"),  # as Ctrl-C does: to the whole process group
])  # fmt: skip
def test_a_cluster_of_one_program_ends_with_it(data_dir, tmp_path, how, steps, ready):
    log = tmp_path / "log"
    with log.open("wb") as errors:
        program = warmed.Popen(
            [
                sys.executable,
                str(SCRIPTS / "own_cluster.py"),
                str(data_dir),
                str(tmp_path),
                str(steps),
            ],
            stdout=errors,
            stderr=errors,
        )
    try:
        found: set[psutil.Process] = set()
        deadline = time.monotonic() + ENOUGH_S
        while program.poll() is None and not (ready and (tmp_path / ready).exists()):
            assert time.monotonic() < deadline
            found |= children_of(program.pid)
            time.sleep(0.02)
        if how == "SIGKILL":
            program.kill()
        elif how == "SIGINT":
            found |= children_of(program.pid)
            assert has_raylet(program.pid)
            os.killpg(program.pid, signal.SIGINT)
        program.wait(ENOUGH_S)
        assert found
        until(lambda: not any(map(runs, found)))
    finally:
        program.kill()
        program.wait()
    said = log.read_text()
    assert "not equal" not in said
    if how == "SIGINT":
        assert "has less room than what workers may have under way" in said
        assert said.count("Traceback") == said.count("KeyboardInterrupt") == 1
        assert "no worker is left" not in said


def has_raylet(pid):
    return any("raylet" in name_of(each) for each in children_of(pid) if runs(each))


def name_of(process):
    try:
        return process.name()
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return ""


def children_of(pid):
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def runs(process):
    """Whether a process has not ended; nobody may have asked for its status yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_cluster_of_one_program_starts_where_another_one_was_started(monkeypatch):
    # Of a short name, because that of a socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as directory:
        known = Path(directory, "ray", "ray_current_cluster")  # `ray start` writes it
        known.parent.mkdir()
        known.write_text("127.0.0.1:1")
        monkeypatch.setenv("RAY_TMPDIR", directory)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        settings = {"address": None, "workers": 1, "processes": 1, "started_by": "test"}
        driver = DriverProcess(settings | {"object_store_bytes": ray_clusters.STORE_BYTES})
        received = driver.receive()
        why = driver.end()
    assert received is not None, why
    assert received[0]["kind"] == "connected"


def test_a_cluster_of_tests_ends_with_them_however_they_end():
    code = "import ray_clusters as r, sys, time; n = r.Cluster(sys.argv[1], 1).start()\n"
    code += "print(n.process.pid, flush=True); time.sleep(9999)"
    # Of a short name, because that of a socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as directory:
        tests = subprocess.Popen(
            [sys.executable, "-c", code, directory],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent,
        )
        with tests:
            assert tests.stdout is not None
            node = int(tests.stdout.readline())
            until(
                lambda: any("gcs_server" in each.name() for each in children_of(node) if runs(each))
            )
            found = children_of(node) | {psutil.Process(node)}
            tests.kill()
        until(lambda: not any(map(runs, found)))
