"""One of several processes that read from a store, which fails for one of them in many ways."""

import json
import os
import sys
import urllib.parse
import urllib.request
from pathlib import Path

DATASETS, OUT, WHO = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, str(Path(__file__).parents[1]))
# So that the store knows who asks.
os.environ["GS_USER_PROJECT"] = f"process-{os.environ['JAX_PROCESS_ID']}"

import jax
from connections import ConnectionSpy
from jax.experimental.multihost_utils import sync_global_devices

from datarax_tfds import (
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    initialize,
    make_mesh,
)
from datarax_tfds.stores import object_store

PASSES = [429, 503, "reset", "short", "late"]
LASTS = [503, 403, 404, "wrong", "replaced"]
SIZE = 16
notes = {"rows": [], "errors": {}, "lengths": {}}

initialize()
spy = ConnectionSpy()
process = jax.process_index()
object_store.PATIENCE = object_store.Patience(retries=3, answer_s=60.0)
sharding = batch_sharding(make_mesh({"data": -1}))
total = jax.jit(lambda batch: batch["label"].sum())


def tell(**what):
    """Says something to the store of this test."""
    url = f"{os.environ['TENSORSTORE_GCS_HTTP_URL']}/tell?{urllib.parse.urlencode(what)}"
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url).close()


def source_of(name, **fields):
    fields |= {"name": name, "split": "train", "data_dir": DATASETS, "shuffle": True, "seed": 5}
    config = TFDSStreamingConfig(prefetch_buffer=0, **fields)
    return TFDSStreamingSource(config, sharding=sharding)


def held(batch):
    """The rows of a batch that this process holds, with their places in it."""
    return [
        [shard.index[0].indices(SIZE)[0], shard.data.tolist()]
        for shard in batch["id"].addressable_shards
        if shard.replica_id == 0
    ]


def together(phase):
    """Begins a phase of all processes."""
    sync_global_devices(phase)
    if process == 0:
        tell(phase=phase)
    sync_global_devices(f"{phase} has begun")


together("open many objects")
many = source_of("tiny_many", access="random")
together("read of many objects")
numbers = many.record_indices_at(0, 3 * SIZE).tolist()
for _ in range(3):
    many.get_batch(SIZE)
together("index")
source = source_of("tiny", access="random")
together("read")
for fault in [None, *PASSES]:
    sync_global_devices(f"fault that passes: {fault}")
    if process == WHO:
        tell(fault=fault, times=2)
    notes["rows"].append(held(source.get_batch(SIZE)))
for fault in LASTS:
    sync_global_devices(f"fault that lasts: {fault}")
    if process == WHO:
        tell(fault=fault, times=1000)
        try:
            source.get_batch(SIZE)
        except Exception as error:
            notes["errors"][str(fault)] = f"{type(error).__name__}: {error}"
        tell(fault=None)
    notes["rows"].append(held(source.get_batch(SIZE)))  # of the others, at once
notes["numbers"] = numbers
notes["addresses"] = spy.addresses()
(OUT / f"{process}.json").write_text(json.dumps(notes))
sync_global_devices("the end")
if process == WHO:
    tell(fault=403, times=1000)
while True:  # the process that fails ends with all others
    total(source.get_batch(SIZE)).block_until_ready()
