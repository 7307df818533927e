"""Compares the eager source with code that a user would write by hand, on one device.

python scripts/benchmarks/eager.py --data-dir data
"""

import json
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmark_words  # noqa: F401  (says what takes so long)
import benchmark_data
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from benchmark_data import InMemory
from benchmarking import Comparison, duration, in_turn, resident_bytes, show

from datarax_tfds import Pipeline, TFDSEagerConfig, TFDSEagerSource, batch_sharding, make_mesh
from datarax_tfds.order.order import Order
from datarax_tfds.order.sampler import Traced
from datarax_tfds.records.eager import EagerRecords

BATCH = 128


@dataclass(frozen=True)
class Options:
    """What to run."""

    data_dir: Path = Path("data")
    rounds: int = 7
    measure_memory: bool = False  # internal: whether this is the subprocess that measures memory


def loading(name: str, options: Options) -> Iterator[Comparison]:
    """Times loading 60,000 PNG images of 28x28 from disk into arrays."""
    import tensorflow_datasets as tfds

    def ours() -> None:
        source = eager(name, options)
        jax.block_until_ready(source.get_batch(BATCH))

    def peer() -> dict[str, np.ndarray]:
        dataset = tfds.load(name, split="train", batch_size=1024, data_dir=options.data_dir)
        batches = list(tfds.as_numpy(dataset))
        return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}

    yield in_turn(
        "load 60,000 PNG 28x28, against tfds.load(batch_size=1024)",
        ours,
        peer,
        target=2.0,
        rounds=options.rounds,
    )


def serving(name: str, options: Options) -> Iterator[Comparison]:
    """Times an epoch of shuffled batches; the peer is a jitted take with a given permutation."""
    source = eager(name, options)
    pipeline = Pipeline(source=source, batch_size=BATCH)
    data = jax.tree.map(jnp.asarray, source.data)
    order = np.random.default_rng(0).permutation(len(source)).astype(np.int32)
    take = jax.jit(lambda data, rows: {k: jnp.take(v, rows, axis=0) for k, v in data.items()})
    steps = len(source) // BATCH

    def peer() -> None:
        starts = range(0, steps * BATCH, BATCH)
        jax.block_until_ready(last(take(data, order[at : at + BATCH]) for at in starts))

    def iterated() -> None:
        source.reset()
        jax.block_until_ready(last(pipeline))

    def asked() -> None:
        jax.block_until_ready(last(source.get_batch(BATCH) for _ in range(steps)))

    for title, ours in (("for batch in pipeline", iterated), ("get_batch", asked)):
        yield in_turn(
            f"{title} (batch {BATCH}), against jitted take",
            ours,
            peer,
            target=1 / 1.3,
            rounds=3 * options.rounds,
            units=steps,
        )


def cost_in_the_length(options: Options) -> Iterator[Comparison]:
    """Compares a jitted `get_batch_at` on 10,000,000 records with the same on 100,000 records."""

    def stepper(length: int) -> Callable[[], None]:
        at = jax.jit(batch_at(length))

        return lambda: jax.block_until_ready(last(at(step * BATCH) for step in range(200)))

    yield in_turn(
        "jitted get_batch_at: N = 10,000,000, against N = 100,000",
        stepper(10_000_000),
        stepper(100_000),
        target=1.0,
        rounds=3 * options.rounds,
        units=200,
    )


def batch_at(length: int) -> Callable[[jax.Array], Any]:
    """Returns `get_batch_at` for `length` records that exist only in memory."""
    one = batch_sharding(make_mesh({"data": 1}, devices=jax.devices()[:1]))
    reader: Any = InMemory(number=np.arange(length, dtype=np.int32))
    records = EagerRecords(reader, batch=one, layout="auto")
    order = Order(length, seed=0)

    def at(start: jax.Array) -> Any:
        positions = start + jnp.arange(BATCH)
        numbers = order.device_numbers(positions // length, positions % length)
        return records.batch(Traced(order, positions // length, numbers, seed=0))

    return at


def memory(name: str, options: Options) -> dict[str, int]:
    """Returns the bytes that loading adds to the peak memory of this process after all imports."""
    eager(name, options, split="test").get_batch(BATCH)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident_bytes()
    source = eager(name, options)
    peak = resident_bytes("VmHWM") - before
    rows = sum(part.nbytes for part in jax.tree.leaves(source.data))
    return {"peak": peak, "rows": rows}


def state(name: str, options: Options) -> str:
    """Measures the size of a saved state, and the time to restore it early and late in an epoch."""
    source = eager(name, options)
    pipeline = Pipeline(source=source, batch_size=BATCH)
    size = len(json.dumps(pipeline.get_state()))
    times = {}
    for share in (0.01, 0.99) * 10:
        source.reset()
        source.index.set_value(int(share * len(source)))
        saved = pipeline.get_state()
        start = time.perf_counter()
        pipeline.set_state(saved)
        jax.block_until_ready(next(iter(pipeline)))
        times.setdefault(share, []).append(time.perf_counter() - start)
    early, late = (duration(statistics.median(times[share])) for share in (0.01, 0.99))
    return (
        f"state: {size} bytes; restore to first batch: {early} at 1 %, {late} at 99 % of an epoch"
    )


def last(batches: Iterable[Any]) -> Any:
    """Takes all batches and returns the last one."""
    return deque(batches, maxlen=1)[0]


def eager(name: str, options: Options, split: str = "train") -> TFDSEagerSource:
    config = TFDSEagerConfig(
        name=name, split=split, data_dir=str(options.data_dir), shuffle=True, seed=0
    )
    return TFDSEagerSource(config)


def main(options: Options) -> None:
    name = benchmark_data.png_28(options.data_dir)
    if options.measure_memory:
        print(json.dumps(memory(name, options)))
        return

    def comparisons() -> Iterator[Comparison]:
        yield from loading(name, options)
        yield from serving(name, options)
        yield from cost_in_the_length(options)

    show(f"eager source, {jax.default_backend()}, jax {jax.__version__}", comparisons())
    print(state(name, options))
    command = [sys.executable, __file__, "--data-dir", str(options.data_dir), "--measure-memory"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = json.loads(printed.splitlines()[-1])
    print(
        f"peak host memory of loading: {used['peak'] / used['rows']:.2f} times the bytes of the"
        f" rows ({used['rows']:,}), target at most 1.5"
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
