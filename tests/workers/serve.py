"""One process of a job: serves batches over several meshes, and notes the rows that it holds."""

import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

DATA_DIR, OUT, ONLY = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]

# Another number of devices in each process.
jax.config.update("jax_num_cpu_devices", 1 + (int(os.environ["JAX_PROCESS_ID"]) == 0))
jax.config.update("jax_numpy_dtype_promotion", "strict")

from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding

from datarax_tfds import (
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    evaluate,
    initialize,
    make_mesh,
    prefetch_to_device,
)
from datarax_tfds.decoding.reader import RecordReader

# More processes than files, and files of very different length.
DATASETS = {
    "replicated": "tiny_array",
    "sharded": "tiny",
    "streaming": "tiny_one",
    "streaming, uneven": "tiny_uneven",
}
# Every mesh on two processes, unless arguments name some. Of one process, tests with eight devices
# show more.
CROSSING = "model axis across processes"
MESHES = {
    1: {"all"},
    2: {"all", "explicit", "reversed", "one device each", CROSSING},
    4: {"all", CROSSING},
}
# Only the job of two processes compiles programs of a caller's own, because that takes longest.
WITHIN_JIT = {("all", "sharded"), (CROSSING, "replicated")}
SIZE, STEPS = 60, 4  # divides over 1 to 6 devices; the second batch ends the first epoch


def shardings() -> dict[str, NamedSharding]:
    devices = np.array(jax.devices())
    count = len(devices)
    one_each = [d for d in devices if d == min(jax.devices(), key=lambda e: (
        e.process_index != d.process_index, e.id))]  # fmt: skip
    meshes = {
        "all": batch_sharding(make_mesh({"data": -1})),
        "explicit": batch_sharding(make_mesh({"data": -1}, axis_type=AxisType.Explicit)),
        "reversed": batch_sharding(Mesh(devices[::-1], ("data",))),
        "one device each": batch_sharding(make_mesh({"data": -1}, devices=one_each)),
    }
    if len(one_each) % 2 == 0:
        # The model axis crosses the processes: replicas of a row lie on different hosts.
        crossing = np.array(one_each).reshape(-1, 2)
        meshes[CROSSING] = batch_sharding(Mesh(crossing, ("data", "model")))
    assert count == jax.process_count() + 1
    wanted = ONLY or MESHES[jax.process_count()]
    return {name: mesh for name, mesh in meshes.items() if name in wanted}


def source_of(name: str, layout: str, sharding: NamedSharding, **fields: Any) -> Any:
    fields |= {"name": name, "split": "train", "data_dir": DATA_DIR, "shuffle": True, "seed": 5}
    if layout.startswith("streaming"):
        # In a store, the default would be another order.
        config = TFDSStreamingConfig(access="random", **fields)
        return TFDSStreamingSource(config, sharding=sharding)
    return TFDSEagerSource(TFDSEagerConfig(layout=layout, **fields), sharding=sharding)


def check_that_only_local_rows_are_read(sharding: NamedSharding) -> None:
    """Each once, though two devices of this process may hold the same."""
    config = TFDSStreamingConfig(
        name="tiny",
        split="train",
        data_dir=DATA_DIR,
        shuffle=True,
        prefetch_buffer=0,
        access="random",
    )
    source = TFDSStreamingSource(config, sharding=sharding)
    read, numbers = RecordReader.read, []
    RecordReader.read = lambda self, some, keys=None: numbers.extend(some) or read(self, some, keys)
    batch = source.get_batch(SIZE)
    RecordReader.read = read
    held = {row for shard in batch["id"].addressable_shards for row in shard.data.tolist()}
    assert sorted(numbers) == sorted(held)


def check_that_the_host_has_its_rows(name: str, layout: str, sharding: NamedSharding) -> None:
    """Of what stays on the host, and of whole batches, if it asks for them."""
    source = source_of(name, layout, sharding, host_keys={"label"})
    pipeline, other = (
        Pipeline(source=nnx.clone(source), batch_size=SIZE, remainder="pad") for _ in range(2)
    )
    for batch, local in zip(pipeline, other.local_batches(num_epochs=1), strict=True):
        rows = {}
        for column in ("id", "image", "mask"):
            shards = batch[column].addressable_shards
            slices = {shard.index[0].indices(SIZE)[0]: shard.data for shard in shards}
            rows[column] = np.concatenate([slices[start] for start in sorted(slices)])
        assert batch["label"].tolist() == (rows["id"] % 7 * rows["mask"]).tolist()
        rows["label"] = batch["label"]
        assert all(np.array_equal(local[column], rows[column]) for column in batch)
    if jax.process_count() > 1:
        with pytest.raises(ValueError, match="use local_batches"):
            pipeline.batches(as_numpy=True)


def noted(batch: dict[str, Any]) -> list[Any]:
    """For each slice of rows that this process holds, a checksum of its bytes."""
    return sorted(
        [name, *shard.index[0].indices(SIZE)[:2], zlib.crc32(np.asarray(shard.data).tobytes())]
        for name, column in batch.items()
        for shard in column.addressable_shards
    )


def drawn(batch: dict[str, Any], keys: jax.Array) -> dict[str, Any]:
    return {"id": batch["id"], "bits": jax.vmap(jax.random.bits)(keys)}


def at_three_speeds(source: TFDSEagerSource) -> list[dict[str, Any]]:
    """The batches of a random stage: by a loop, and alike in a program of one's own and as one."""

    def make() -> Pipeline:
        return Pipeline(source=source.clone(), stages=[drawn], batch_size=SIZE)

    looped, own = make(), make()
    batches = [looped.step() for _ in range(STEPS)]
    step = nnx.jit(lambda pipeline: pipeline.step())
    assert [noted(step(own)) for _ in range(STEPS)] == list(map(noted, batches))
    scanned = make().scan(lambda batch: batch, length=STEPS)
    alike = jax.jit(lambda one, other, step: (one == other[step]).all())
    for number, batch in enumerate(batches):
        assert all(alike(batch[name], scanned[name], number) for name in batch)
    return batches


def main() -> None:
    initialize()
    notes = {}
    for mesh, sharding in shardings().items():
        for layout, name in DATASETS.items():
            source = source_of(name, layout, sharding)
            pipeline = Pipeline(source=nnx.clone(source), batch_size=SIZE)
            batches = [batch for _ in range(3) for batch in prefetch_to_device(pipeline)]
            steps = [noted(batch) for batch in batches[:STEPS]]
            notes[f"{mesh}, {layout}"] = steps
            if layout == "streaming":
                check_that_only_local_rows_are_read(sharding)

            if mesh in ("all", CROSSING):
                check_that_the_host_has_its_rows(name, layout, sharding)

            if jax.process_count() != 2 or (mesh, layout) not in WITHIN_JIT:
                continue
            # Closed over by a caller's own jit: arrays of several processes, too.
            at = jax.jit(lambda start, source=source: source.get_batch_at(start, SIZE))
            assert [noted(at(step * SIZE)) for step in range(STEPS)] == steps
            stepper = nnx.jit(lambda source: source.get_batch(SIZE))
            copy = nnx.clone(source)
            assert [noted(stepper(copy)) for _ in range(STEPS)] == steps
            assert int(source[50]["id"].addressable_shards[0].data) == 50
            if mesh == "all":
                notes["random"] = list(map(noted, at_three_speeds(source)))
            padded = Pipeline(source=source, batch_size=SIZE, remainder="pad")
            count = jax.jit(lambda batch: batch["mask"].sum())
            assert [int(count(batch)) for batch in padded] == [60, 37]
            found = evaluate(padded, lambda batch: {"id": batch["id"], "one": batch["id"] >= 0})
            assert (found.records, found.sums) == (97, {"id": 96 * 97 // 2, "one": 97})
    (OUT / f"{jax.process_index()}.json").write_text(json.dumps(notes))


main()
