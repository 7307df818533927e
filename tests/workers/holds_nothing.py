"""One of two processes, of which the second one holds no row of a batch."""

import json
import sys
from pathlib import Path

DATA_DIR, OUT = sys.argv[1:]

import jax
import numpy as np

from datarax_tfds import (
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    global_batch,
    initialize,
    make_mesh,
)

initialize(timeout_s=600)
devices = [device for device in jax.devices() if device.process_index == 0]
rows = batch_sharding(make_mesh({"data": -1}, devices=devices))
fields = {"name": "tiny", "split": "train", "data_dir": DATA_DIR}

ways = {
    "eager": lambda: TFDSEagerSource(
        TFDSEagerConfig(layout="sharded", **fields), sharding=rows
    ).get_batch(8),
    "stream": lambda: TFDSStreamingSource(TFDSStreamingConfig(**fields), sharding=rows).get_batch(
        8
    ),
    "batch": lambda: {"id": global_batch(lambda part: np.arange(8)[part], 8, rows)},
}
found = {}
for name, take in ways.items():
    try:
        found[name] = np.asarray(take()["id"]).tolist()
    except ValueError as error:
        found[name] = str(error)
Path(OUT, f"{jax.process_index()}.json").write_text(json.dumps(found))
