"""One process of a job that may be killed: takes batches, notes them, saves every third step.

It kills itself at a moment that is chosen: in a save, in a restore, or at the end of an epoch.
"""

import json
import os
import signal
import sys
from pathlib import Path

DATA_DIR, CHECKPOINTS, LEDGER, KIND, BATCH_SIZE, EPOCHS, MOMENT = sys.argv[1:]
sys.path.insert(0, str(Path(__file__).parents[1]))  # for the records as they were written

import contract
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from datarax_tfds import (
    Cursor,
    MixtureSource,
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    initialize,
    make_mesh,
    prefetch_to_device,
)
from datarax_tfds.checkpoint import DataRestore, DataSave, latest_valid_step
from datarax_tfds.state import state_file

initialize()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def torn(directory, state):
    """Half of a state, at a later save."""
    if state["index"] % 2 or state["epoch"]:
        (Path(directory) / state_file.NAME).write_text(json.dumps(state)[:100])
        die()
    write(directory, state)


write = state_file.write
if MOMENT == "save":
    state_file.write = torn
mesh = make_mesh({"data": -1})
everywhere = NamedSharding(mesh, PartitionSpec())
fields = {"name": "tiny", "split": "train", "data_dir": DATA_DIR, "shuffle": True, "seed": 5}
if KIND == "eager":
    config = TFDSEagerConfig(layout="sharded", **fields)
    source = TFDSEagerSource(config, sharding=batch_sharding(mesh))
elif KIND == "streaming":
    # In a store, the default would be another order.
    config = TFDSStreamingConfig(access="random", **fields)
    source = TFDSStreamingSource(config, sharding=batch_sharding(mesh))
elif KIND == "filtered":
    config = TFDSStreamingConfig(access="random", filter_fn=contract.some_labels, **fields)
    source = TFDSStreamingSource(config, sharding=batch_sharding(mesh))
else:  # a mixture of both, whose weights change within a batch of any size
    parts = {}
    for name, (split, kind) in contract.MIXED.items():
        of_part = fields | {"split": split}
        config = TFDSEagerConfig(**of_part)
        if kind is TFDSStreamingSource:
            config = TFDSStreamingConfig(access="random", **of_part)
        parts[name] = kind(config, sharding=batch_sharding(mesh))
    source = MixtureSource(parts, weights={"web": 0.7, "code": 0.3})
    source.set_weights({"web": 1, "code": 3}, at=Cursor(0, 50))
pipeline = Pipeline(source=source, batch_size=json.loads(BATCH_SIZE))
ledger = os.open(
    f"{LEDGER}-{jax.process_index()}.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644
)
add = jax.jit(
    lambda model, batch: (model + batch["label"].sum(), batch["id"]), out_shardings=everywhere
)

manager = ocp.CheckpointManager(CHECKPOINTS, options=ocp.CheckpointManagerOptions(max_to_keep=3))
model = {"sum": jax.jit(lambda: jnp.int32(0), out_shardings=everywhere)()}
step = latest_valid_step(manager) or 0
if step:
    if MOMENT == "restore" and jax.process_index() == 0:
        pipeline.source.seek = lambda *_: die()
    args = ocp.args.Composite(model=ocp.args.StandardRestore(model), data=DataRestore(pipeline))
    model = manager.restore(step, args=args)["model"]

while pipeline.cursor.epoch < int(EPOCHS):
    before = pipeline.cursor
    for batch in prefetch_to_device(pipeline, 2):
        model["sum"], ids = add(model["sum"], batch)
        step += 1
        local = {name: column.addressable_shards[0].data for name, column in batch.items()}
        contract.check_records(local)
        note = {
            "position": before.epoch * len(source) + before.index,
            "ids": np.asarray(ids).tolist(),
            "sum": int(model["sum"]),
        }
        os.write(ledger, (json.dumps(note) + "\n").encode())
        os.fsync(ledger)
        if MOMENT == "epoch" and pipeline.cursor.epoch > before.epoch and jax.process_index() == 0:
            die()
        before = pipeline.cursor
        if step % 3 == 0:
            state = ocp.args.StandardSave(model)
            manager.save(step, args=ocp.args.Composite(model=state, data=DataSave(pipeline)))
manager.close()
