"""One of two processes that differ in one thing at a time: both refuse, in the same words."""

import _thread
import itertools
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

DATA_DIR, OTHER_DIR, OUT = sys.argv[1:]
PATIENCE_S = 600  # with whoever is not meant to be late

import jax
import numpy as np

from datarax_tfds import (
    DisagreementError,
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    WaitTimeoutError,
    batch_sharding,
    initialize,
    make_mesh,
)
from datarax_tfds.checkpoint import DataSave, latest_valid_step
from datarax_tfds.report.reporting import LoggedReports
from sharding.hosts.agreement import agree, extend_deadlines
from sharding.hosts.coordination import Coordinator
from sharding.hosts.job import job

initialize(timeout_s=PATIENCE_S)
odd = jax.process_index() == 1
rows = batch_sharding(make_mesh({"data": -1}))
fields = {"name": "tiny", "split": "train", "data_dir": DATA_DIR, "shuffle": True, "seed": 5}


def stream(**other):
    config = TFDSStreamingConfig(**(fields | (other if odd else {})))
    return TFDSStreamingSource(config, sharding=rows)


source = stream()
behind = stream()
other_state = Pipeline(source=stream(), batch_size=8)
if odd:
    behind.index.set_value(8)
    other_state.source.index.set_value(16)


def mapped(factor):
    """With a value that a process may draw when it starts."""
    config = TFDSStreamingConfig(**fields, map_fn=lambda record: {"x": record["id"] * factor})
    return TFDSStreamingSource(config, sharding=rows)


def other_order(other=1):
    if jax.process_index() == other:
        return Pipeline(source=source, batch_size=8)
    return source.set_state(source.get_state())


def graph():
    """The same number of stages, linked in another way."""
    nodes = {"a": dict, "b": dict, "c": lambda one, other: one}
    b = ["a"] if odd else []
    return Pipeline.from_dag(
        source=source,
        nodes=nodes,
        edges={"a": [], "b": b, "c": ["a", "b"]},
        sink="c",
        batch_size=8,
    )


def split_of_each_process():
    """As TFDS has it, which knows nothing of a mesh; the whole split is right."""
    import tensorflow_datasets as tfds

    assert len(stream(split="train")) == 97
    config = TFDSStreamingConfig(**(fields | {"split": tfds.split_for_jax_process("train")}))
    return TFDSStreamingSource(config, sharding=rows)


def late():
    told = Path(OUT, "late")
    if odd:
        wait_for(told)
        return source.set_state(source.get_state())
    job.limits.timeout_s = 1.0
    return late_until(told)


def late_but_busy():
    """Longer than the limit: the other waits all the same."""
    told = Path(OUT, "busy")
    job.limits.timeout_s, job.limits.stall_warn_s = 4.0, 1.0
    if odd:
        with extend_deadlines("preparing a dataset"):
            told.touch()
            time.sleep(8)
    wait_for(told)
    source.set_state(source.get_state())
    job.limits.timeout_s, job.limits.stall_warn_s = PATIENCE_S, 30.0
    raise WaitTimeoutError("none")


put, has_said = Coordinator.put, threading.Event()


def noting(coordinator, place, note):
    put(coordinator, place, note)
    if "/said/" in place:
        has_said.set()


Coordinator.put = noting


def interrupt():
    assert has_said.wait(PATIENCE_S)
    _thread.interrupt_main()


def interrupted(who, name):
    """One is interrupted while it waits for the other, which comes here only then."""
    told = Path(OUT, name)
    if jax.process_index() == who:
        has_said.clear()
        try:
            threading.Thread(target=interrupt).start()
            source.set_state(source.get_state())
        except KeyboardInterrupt:
            told.touch()
    wait_for(told)


def wait_for(told):
    while not told.exists():
        time.sleep(0.01)


def comes_again(who):
    interrupted(who, f"comes again {who}")
    source.set_state(source.get_state())
    stream(seed=6)  # still in turn: both hear of this


def gives_up(who):
    interrupted(who, f"gives up {who}")
    other_order(who)


def gives_up_in_time():
    """One does not wait long enough for the other, and then does something else."""
    told = Path(OUT, "gives up in time")
    if odd:
        job.limits.timeout_s = 0.5
        try:
            source.set_state(source.get_state())
        except WaitTimeoutError:
            told.touch()
        job.limits.timeout_s = PATIENCE_S
    wait_for(told)
    other_order()


def late_twice():
    told = Path(OUT, "late twice")
    job.limits.timeout_s = 0.5
    if not odd:
        try:
            source.set_state(source.get_state())
        except WaitTimeoutError:
            late_until(told)
    wait_for(told)
    job.limits.timeout_s = PATIENCE_S
    source.set_state(source.get_state())


def late_until(told):
    try:
        source.set_state(source.get_state())
    finally:
        job.limits.timeout_s = PATIENCE_S
        told.touch()


def late_after_an_error():
    """What a process was busy with fails, and it goes on: nobody waits for that for ever."""
    told = Path(OUT, "late after an error")
    if not odd:
        job.limits.timeout_s = 0.5
        late_until(told)
    try:
        with extend_deadlines("preparing a dataset"):
            raise OSError("no room")
    except OSError:
        wait_for(told)
    source.set_state(source.get_state())


def other_checkpoints():
    """One path, which leads to another directory on each host."""
    here = Path(OUT, f"checkpoints-{jax.process_index()}")
    here.mkdir()
    os.chdir(here)
    return latest_valid_step(SimpleNamespace(directory="."))


CASES = {
    "seed": lambda: stream(seed=6),
    "split": lambda: stream(split="train[:50]"),
    "split of each process": split_of_each_process,
    "shuffle": lambda: stream(shuffle=False),
    "features": lambda: stream(include_keys={"id"}),
    "map_fn": lambda: mapped(np.int64(odd)),
    "files": lambda: stream(data_dir=OTHER_DIR),
    "order": lambda: stream(access="sequential"),
    "batch size": lambda: Pipeline(source=source, batch_size=16 if odd else 8),
    "remainder": lambda: Pipeline(source=source, batch_size=8, remainder="pad" if odd else "wrap"),
    "eager": lambda: TFDSEagerSource(
        TFDSEagerConfig(**(fields | ({"seed": 6} if odd else {}))), sharding=rows
    ),
    "graph": graph,
    "restore": lambda: source.set_state(behind.get_state()),
    "pipeline restore": lambda: Pipeline(source=source, batch_size=8).set_state(
        other_state.get_state()
    ),
    "save": lambda: DataSave(behind),
    "what is done": other_order,
    "checkpoints": other_checkpoints,
    "0 comes again": lambda: comes_again(0),
    "1 comes again": lambda: comes_again(1),
    "0 gives up": lambda: gives_up(0),
    "then": lambda: stream(seed=6),
    "1 gives up": lambda: gives_up(1),
    "1 gives up in time": gives_up_in_time,
    "late twice": late_twice,
    "late after an error": late_after_an_error,
    "and then": lambda: stream(seed=6),
    "late": late,
    "late but busy": late_but_busy,
}
refused = {}
for name, case in CASES.items():
    try:
        case()
    except (DisagreementError, WaitTimeoutError) as error:
        refused[name] = [type(error).__name__, str(error)]
    assert source.get_state()["index"] == 0
mapped(np.int64(3))  # and they still agree on what is alike
source.set_state(source.get_state())


def meet():
    for _ in range(5):
        agree("in threads", {}, [0, 1])
    met.append(True)


met = []
threads = [threading.Thread(target=meet) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(met) == len(threads)

reported = Pipeline(source=stream(), batch_size=8)
timings = reported.source.records.timings
# A second for each look at the clock of process 1, and none for the other.
timings.clock = itertools.count().__next__ if odd else lambda: 0.0
logged = LoggedReports(timings, "all of them", [0, 1])
for _ in reported.steps(3):
    pass
report = reported.report()
assert [host.process for host in report.hosts] == [0, 1]
assert [host.steps for host in report.hosts] == [3, 3]
logging.getLogger("datarax_tfds").setLevel(logging.INFO)
if odd:
    logged()
agree("logged", {}, [0, 1])
if not odd:
    logged()
Path(OUT, f"{jax.process_index()}.json").write_text(json.dumps([refused, report.verdict]))
