"""One of two processes that read the same corrupt records, and note what they deliver instead."""

import json
import sys
from pathlib import Path

DATA_DIR, OUT = sys.argv[1:]

import jax
import numpy as np

from datarax_tfds import (
    CursorLog,
    DataLossError,
    DisagreementError,
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    initialize,
    make_mesh,
)

initialize(timeout_s=600)
mine = jax.process_index()
rows = batch_sharding(make_mesh({"data": -1}))
fields = {
    "name": "tiny",
    "split": "train",
    "data_dir": DATA_DIR,
    "shuffle": True,
    "seed": 3,
    "max_corrupt_records": 3,
}
notes = {}
sources = {
    "streaming": TFDSStreamingSource(TFDSStreamingConfig(**fields), sharding=rows),
    "eager": TFDSEagerSource(TFDSEagerConfig(**fields), sharding=rows),
}
for access, source in sources.items():
    pipeline = Pipeline(source=source, batch_size=32, record_numbers=True)
    log = CursorLog(f"{OUT}/cursors-{access}-{mine}.jsonl", pipeline)
    steps = notes[access] = []
    for _ in range(4):
        batch = pipeline.step()
        log.note(batch["record_number"])
        shards = batch["id"].addressable_shards
        steps.append({shard.index[0].start: np.asarray(shard.data).tolist() for shard in shards})

# Each process counts the records that it has read itself: 33 and the one after it, or 96.
apart = TFDSStreamingSource(
    TFDSStreamingConfig(**(fields | {"max_corrupt_records": 2})), sharding=rows
)
halves = np.repeat([33, 96], 8)
apart.get_records(halves)
notes["apart"] = sorted(apart.corrupt_records)
try:
    apart.get_records(halves[::-1])
except DataLossError as error:
    notes["together"] = str(error)

# Every process reads the single record that all of them hold.
record = sources["streaming"][33]
notes["both"] = [int(record["id"].addressable_shards[0].data)]
try:
    other = fields | {"max_corrupt_records": mine}
    TFDSStreamingSource(TFDSStreamingConfig(**other), sharding=rows)
except DisagreementError as error:
    notes["differs"] = str(error)
Path(OUT, f"{mine}.json").write_text(json.dumps(notes))
