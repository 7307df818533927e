"""Compares batches from records on eight CPU devices with plain indexing under jit.

python scripts/benchmarks/gather.py
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import benchmark_words  # noqa: F401  (says what takes so long)
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from benchmark_data import InMemory
from benchmarking import Comparison, in_turn, show
from jax.sharding import AxisType

from datarax_tfds.order.cursor import Cursor, Schedule
from datarax_tfds.order.order import Order
from datarax_tfds.order.sampler import ByNumber, Sampler
from datarax_tfds.order.strata import StrataOrder
from datarax_tfds.records.eager import EagerRecords
from sharding import batch_sharding, global_batch, make_mesh, storage_sharding, take_rows

DEVICES = 8
RECORDS = 48_000


@dataclass(frozen=True)
class Options:
    """What to run."""

    rounds: int = 9
    steps: int = 50  # batches per round


def gathers(options: Options) -> Iterator[Comparison]:
    for shape in ((28, 28, 1), (32, 32, 3), (64, 64, 3)):
        images = np.random.default_rng(0).integers(0, 256, (RECORDS, *shape), np.uint8)
        reader: Any = InMemory(image=images)
        for axes in ({"data": 8}, {"data": 4, "model": 2}):
            batch = batch_sharding(make_mesh(axes))
            records = EagerRecords(reader, batch=batch, layout="sharded")
            storage = storage_sharding(batch, "sharded")
            plain = global_batch(lambda part, images=images: images[part], RECORDS, storage)
            take = jax.jit(lambda rows, numbers: rows[numbers], out_shardings=batch)
            for size in (256, 1024):
                order = np.random.default_rng(1).permutation(RECORDS).astype(np.int32)
                batches = order[: RECORDS // size * size].reshape(-1, size)
                ours = lambda numbers, records=records: records.batch(  # noqa: E731
                    ByNumber(Order(RECORDS), numbers, 0, 0)
                )
                assert np.array_equal(ours(batches[0])["image"], images[batches[0]])

                def run(take: Callable[[np.ndarray], Any], batches: np.ndarray = batches) -> None:
                    for step in range(options.steps):
                        jax.block_until_ready(take(batches[step % len(batches)]))

                yield in_turn(
                    f"{'x'.join(map(str, shape))} bytes, batch {size}, mesh {axes}",
                    partial(run, ours),
                    partial(run, partial(take, plain)),
                    target=1.5,
                    rounds=options.rounds,
                    units=options.steps,
                )


def strata(options: Options) -> Iterator[Comparison]:
    """Times batches that need no exchange, in the order that `strata=8` gives."""
    batch = batch_sharding(make_mesh({"data": DEVICES}))
    storage = storage_sharding(batch, "sharded")
    take = jax.jit(lambda rows, numbers: rows[numbers], out_shardings=batch)
    for shape in ((28, 28, 1), (64, 64, 3)):
        images = np.random.default_rng(0).integers(0, 256, (RECORDS, *shape), np.uint8)
        reader: Any = InMemory(image=images)
        records = EagerRecords(reader, batch=batch, layout="sharded", strata=DEVICES)
        plain = global_batch(lambda part, images=images: images[part], RECORDS, storage)
        sampler = Sampler(StrataOrder(RECORDS, 0, DEVICES), 0)
        for size in (256, 1024):
            schedule = Schedule(RECORDS, size, strata=DEVICES)
            steps = range(min(options.steps, RECORDS // size))
            batches = [sampler.at(schedule, Cursor(0, step * size)) for step in steps]
            numbers = [each.record_numbers() for each in batches]

            def ours(batches: list[Any] = batches, records: EagerRecords = records) -> None:
                for each in batches:
                    jax.block_until_ready(records.batch(each))

            def peer(numbers: list[Any] = numbers, plain: Any = plain) -> None:
                for each in numbers:
                    jax.block_until_ready(take(plain, each))

            yield in_turn(
                f"strata=8, {'x'.join(map(str, shape))} bytes, batch {size}",
                ours,
                peer,
                target=5.0,
                rounds=options.rounds,
                units=len(batches),
            )


def explicit() -> str:
    """Reports that plain indexing raises under Explicit axes, and that ours returns the batch."""
    batch = batch_sharding(make_mesh({"data": DEVICES}, axis_type=AxisType.Explicit))
    rows = np.arange(RECORDS, dtype=np.int32)
    placed = global_batch(lambda part: rows[part], RECORDS, storage_sharding(batch, "sharded"))
    numbers = jnp.arange(64) * 7
    try:
        jax.jit(lambda rows, numbers: rows[numbers])(placed, numbers)
    except Exception as error:  # any error of JAX: only its name is printed
        plain = f"raises {type(error).__name__}"
    else:
        plain = "works"
    ours = jax.jit(lambda rows, numbers: take_rows(rows, numbers, batch, "sharded"))
    exact = np.array_equal(ours(placed, numbers), rows[numbers])
    return f"Explicit axes: plain indexing {plain}; ours is {'exact' if exact else 'WRONG'}"


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    jax.config.update("jax_num_cpu_devices", DEVICES)
    title = f"batches from {RECORDS:,} sharded records, jax {jax.__version__}"
    show(title, chain(strata(options), gathers(options)))
    print(explicit())
