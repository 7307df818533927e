"""One process of a job that takes batches of a few lengths."""

import sys
from pathlib import Path

DATA_DIR, PLACE = sys.argv[1], Path(sys.argv[2])
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import ragged_records
from saving_steps import take_steps

from datarax_tfds import (
    BucketedSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    initialize,
    make_mesh,
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
(PLACE / f"read-{jax.process_index()}").write_text(str(len(read)))
take_steps(source, mesh, PLACE, sys.argv[3:])
