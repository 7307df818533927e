"""One of two processes that use both sources in contexts of JAX that are not those of our mesh."""

import contextlib
import json
import sys
from functools import partial
from pathlib import Path

DATA_DIR, OUT = sys.argv[1:]

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType

from datarax_tfds import (
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

initialize(timeout_s=600)
rows = batch_sharding(make_mesh({"data": -1}))
fields = {"name": "tiny", "split": "train", "data_dir": DATA_DIR, "shuffle": True, "seed": 5}
zero = jnp.int32(0)  # a transfer, which a guard refuses the user


def ids(batch):
    """Of the rows on this process."""
    shards = sorted(batch["id"].addressable_shards, key=lambda shard: shard.index[0].start)
    return np.concatenate([np.asarray(shard.data) for shard in shards]).tolist()


def eager():
    return TFDSEagerSource(TFDSEagerConfig(**fields), sharding=rows)


def streaming():
    return TFDSStreamingSource(TFDSStreamingConfig(**fields), sharding=rows)


def next_id(batch):
    return batch | {"id": batch["id"] + 1}


def add(total, batch):
    total = total + jnp.sum(batch["id"])
    return total, total


def restored(pipeline):
    pipeline.step()
    pipeline.set_state(pipeline.get_state())
    return ids(pipeline.step())


def scanned(pipeline):
    _, totals = pipeline.scan(add, length=3, init_carry=zero)
    return np.asarray(totals.addressable_shards[0].data).tolist()


class Total(nnx.Module):
    def __init__(self):
        self.ids = nnx.Variable(jax.device_put(np.int32(0)))


def count(model, batch):
    model.ids.set_value(model.ids.get_value() + jnp.sum(batch["id"]))
    return model.ids.get_value()


def trained(pipeline):
    """By programs that take over the arrays of the model."""
    model = Total()
    totals = [pipeline.scan(count, length=3, modules=[model]) for _ in range(2)]
    last = model.ids.get_value().addressable_shards[0].data
    assert np.asarray(totals[-1].addressable_shards[0].data)[-1] == np.asarray(last)
    return [np.asarray(total.addressable_shards[0].data).tolist() for total in totals]


@partial(jax.jit, donate_argnums=0)
def eat(batch):
    return jax.tree.map(lambda x: x + x, batch)


def eaten(pipeline):
    """The records are still whole when a program of the user's has taken over a batch."""
    state = pipeline.get_state()
    batch = pipeline.step()
    with jax.set_mesh(rows.mesh):
        eat(batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(batch))
    pipeline.set_state(state)
    return [ids(pipeline.step()), ids(pipeline.step())]


def uses(build):
    """What is taken in each way, from a source that is built in the same context."""
    source = build()

    def pipeline(**arguments):
        return Pipeline(source=source.clone(), batch_size=8, **arguments)

    taken = {
        "get_batch": ids(source.clone().get_batch(8)),
        "step": ids(pipeline().step()),
        "iterated": [ids(batch) for batch in pipeline()],
        "prefetched": [ids(batch) for batch in prefetch_to_device(pipeline(), 2)],
        "stages": ids(pipeline(stages=[next_id]).step()),
        "restored": restored(pipeline()),
        "eaten": eaten(pipeline()),
    }
    if build is eager:
        taken |= {"scanned": scanned(pipeline()), "trained": trained(pipeline())}
    return taken


other = jax.make_mesh((1, jax.device_count()), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
CONTEXTS = {
    "none": contextlib.nullcontext,
    "another mesh": lambda: jax.set_mesh(other),
    "transfer guard": lambda: jax.transfer_guard("disallow"),
}
found = {}
for name, context in CONTEXTS.items():
    for build in (eager, streaming):
        with context():
            found[f"{build.__name__}, {name}"] = uses(build)
Path(OUT, f"{jax.process_index()}.json").write_text(json.dumps(found))
