"""One process of a job that filters: notes which records its filter is asked about, and batches."""

import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from datarax_tfds import (
    DisagreementError,
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

DATA_DIR, OUT = sys.argv[1:]
SIZE = 24  # as in test_filter.py

initialize()
me = jax.process_index()
mesh = make_mesh({"data": -1})
everywhere = NamedSharding(mesh, PartitionSpec())
asked = []


def some_labels(record):
    asked.append(int(record["id"]))
    return record["label"] in (1, 3, 4)


def source_of(kind=TFDSStreamingSource, cache="cache", **fields):
    os.environ["XDG_CACHE_HOME"] = str(Path(OUT, f"{cache}-{me}"))
    config = TFDSEagerConfig if kind is TFDSEagerSource else TFDSStreamingConfig
    fields = {"filter_fn": some_labels, "filter_with": "numpy", "filter_name": "labels"} | fields
    fields |= {"name": "tiny", "split": "train", "data_dir": DATA_DIR, "shuffle": True, "seed": 5}
    asked.clear()
    return kind(config(**fields), sharding=batch_sharding(mesh))


gather = jax.jit(lambda column: column, out_shardings=everywhere)


def served(source):
    """The ids of the batches of two epochs and more."""
    pipeline, found = Pipeline(source=source, batch_size=SIZE), []
    for _ in range(2):
        for batch in prefetch_to_device(pipeline, 2):
            found += np.asarray(gather(batch["id"]).addressable_data(0)).tolist()
    return found


notes = {}
stream = source_of()
notes["asked"] = list(asked)
eager = source_of(TFDSEagerSource, cache="cache" if me == 0 else "empty", layout="sharded")
notes["asked_without_index"] = list(asked)
source_of(cache="cache" if me == 0 else "empty")
notes["asked_with_index"] = list(asked)
by_tensors = source_of(
    filter_fn=lambda record: (record["label"] == 1) | (record["label"] > 2) & (record["label"] < 5),
    filter_with="tensorflow",
    filter_name=None,
)
notes["served"] = {
    "stream": served(stream),
    "eager": served(eager),
    "by tensors": served(by_tensors),
}
pipeline = Pipeline(source=source_of(), batch_size=SIZE)
for _ in range(3):
    pipeline.step()
notes["state"] = pipeline.source.get_state()
try:
    source_of(filter_name=f"labels of {me}")
except DisagreementError as error:
    notes["refused"] = str(error)
Path(OUT, f"{me}.json").write_text(json.dumps(notes))
