"""One of two processes that differ in one thing at a time: both refuse, in the same words."""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

DATA_DIR, OTHER_DIR, OUT = sys.argv[1:]

import jax

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
from sharding import busy, waits

initialize(timeout_s=100)
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


def other_order():
    if odd:
        return Pipeline(source=source, batch_size=8)
    return source.set_state(source.get_state())


def late():
    waits.limits.agree_s = 2.0
    if odd:
        time.sleep(4)
    try:
        source.set_state(source.get_state())
    finally:
        waits.limits.agree_s = 100.0


def late_but_busy():
    """Longer than the limit: the other waits all the same."""
    source.set_state(source.get_state())  # at the same time from here
    waits.limits.agree_s = 1.0
    if odd:
        with busy("preparing a dataset"):
            time.sleep(4)
    source.set_state(source.get_state())
    waits.limits.agree_s = 100.0
    raise WaitTimeoutError("none")


def other_checkpoints():
    """One path, which leads to another directory on each host."""
    here = Path(OUT, f"checkpoints-{jax.process_index()}")
    here.mkdir()
    os.chdir(here)
    return latest_valid_step(SimpleNamespace(directory="."))


CASES = {
    "seed": lambda: stream(seed=6),
    "split": lambda: stream(split="train[:50]"),
    "shuffle": lambda: stream(shuffle=False),
    "features": lambda: stream(include_keys={"id"}),
    "files": lambda: stream(data_dir=OTHER_DIR),
    "order": lambda: stream(access="sequential"),
    "batch size": lambda: Pipeline(source=source, batch_size=16 if odd else 8),
    "remainder": lambda: Pipeline(source=source, batch_size=8, remainder="pad" if odd else "wrap"),
    "eager": lambda: TFDSEagerSource(
        TFDSEagerConfig(**(fields | ({"seed": 6} if odd else {}))), sharding=rows
    ),
    "restore": lambda: source.set_state(behind.get_state()),
    "pipeline restore": lambda: Pipeline(source=source, batch_size=8).set_state(
        other_state.get_state()
    ),
    "save": lambda: DataSave(behind),
    "what is done": other_order,
    "checkpoints": other_checkpoints,
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
source.set_state(source.get_state())  # and they still agree on what is alike
Path(OUT, f"{jax.process_index()}.json").write_text(json.dumps(refused))
