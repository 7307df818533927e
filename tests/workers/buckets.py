"""One process of a job that takes batches of a few lengths, notes them, and saves some steps.

It saves every second step, and may be killed after the last one.
"""

import json
import os
import signal
import sys
from pathlib import Path

DATA_DIR, BATCH_SIZE, STEPS, KILLED = sys.argv[1], *sys.argv[3:]
PLACE = Path(sys.argv[2])
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
import ragged_records
from jax.sharding import NamedSharding, PartitionSpec

from datarax_tfds import (
    BucketedSource,
    Pipeline,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    initialize,
    make_mesh,
    prefetch_to_device,
)

initialize()
mesh = make_mesh({"data": -1})
read = []


def transform(record):
    read.append(1)
    return {"id": record["id"], "tokens": record["tokens"]}


fields = {"data_dir": DATA_DIR, "transform": transform, "allow_stateful_map_fn": True}
config = TFDSStreamingConfig(name="ragged", split="train", **fields)
stream = TFDSStreamingSource(config, sharding=batch_sharding(mesh))
source = BucketedSource(stream, {"tokens": ragged_records.LENGTHS}, run=24, shuffle=True, seed=5)
leader = jax.process_index() == 0
(PLACE / f"read-{jax.process_index()}").write_text(str(len(read)))
pipeline = Pipeline(source=source, batch_size=int(BATCH_SIZE))
saved = PLACE / "state.json"
if saved.exists():
    pipeline.set_state(json.loads(saved.read_text()))
everywhere = jax.jit(lambda batch: batch, out_shardings=NamedSharding(mesh, PartitionSpec()))
before, step = pipeline.cursor, 0
for batch in prefetch_to_device(pipeline.steps(int(STEPS)), 2):
    rows = {name: np.asarray(column) for name, column in everywhere(batch).items()}
    position = before.epoch * len(source) + before.index
    note = {"position": position, **{name: column.tolist() for name, column in rows.items()}}
    with open(PLACE / f"rows-{jax.process_index()}", "a") as notes:
        notes.write(json.dumps(note) + "\n")
    before, step = pipeline.cursor, step + 1
    if step % 2 == 0 and leader:
        saved.write_text(json.dumps(pipeline.get_state()))
if KILLED == "killed" and leader:
    os.kill(os.getpid(), signal.SIGKILL)
