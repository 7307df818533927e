"""One process of a job that takes rows of tokens, notes them, and saves every second step.

It may be killed after the last one.
"""

import json
import os
import signal
import sys
from pathlib import Path

DATA_DIR, PACKING, BATCH_SIZE, STEPS, KILLED = sys.argv[1], *sys.argv[3:]
PLACE = Path(sys.argv[2])
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
import packed_texts
from jax.sharding import NamedSharding, PartitionSpec

from datarax_tfds import (
    PackedSource,
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
config = TFDSStreamingConfig(name="docs", split="train", data_dir=DATA_DIR)
stream = TFDSStreamingSource(config, sharding=batch_sharding(mesh))
encoded = []


def encode(text):
    encoded.append(text)
    return packed_texts.encode(text)


source = PackedSource(
    stream,
    encode=encode,
    encode_name="bytes",
    length=packed_texts.LENGTH,
    packing=PACKING,
    shuffle=True,
    seed=5,
)
leader = jax.process_index() == 0
assert source.kept_tokens == source.tokens


def note_encoded():
    (PLACE / f"encoded-{jax.process_index()}").write_text(str(len(encoded)))


note_encoded()
pipeline = Pipeline(source=source, batch_size=int(BATCH_SIZE))
saved = PLACE / "state.json"
if saved.exists():
    pipeline.set_state(json.loads(saved.read_text()))
everywhere = jax.jit(lambda batch: batch, out_shardings=NamedSharding(mesh, PartitionSpec()))
before, step = pipeline.cursor, 0
while step < int(STEPS):
    for batch in prefetch_to_device(pipeline, 2):
        rows = {name: np.asarray(column) for name, column in everywhere(batch).items()}
        position = before.epoch * len(source) + before.index
        note = {"position": position, **{name: column.tolist() for name, column in rows.items()}}
        with open(PLACE / f"rows-{jax.process_index()}", "a") as notes:
            notes.write(json.dumps(note) + "\n")
        before, step = pipeline.cursor, step + 1
        note_encoded()
        if step % 2 == 0 and leader:
            saved.write_text(json.dumps(pipeline.get_state()))
        if step == int(STEPS):
            if KILLED == "killed" and leader:
                os.kill(os.getpid(), signal.SIGKILL)
            break
