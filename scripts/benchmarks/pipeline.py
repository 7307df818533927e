"""Trains a small network on 28x28 images in each of the ways to drive a pipeline, on one device.

    python scripts/benchmarks/pipeline.py --data-dir data --out runs/benchmark

The table is also written to `pipeline.txt`, `pipeline.json` and `pipeline.png` in `--out`.
"""

import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmark_words  # noqa: F401  (says what takes so long)
import benchmark_data
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from benchmarking import Comparison, duration, in_turn, show
from flax import nnx

from datarax_tfds import Pipeline, from_tfds

BATCH = 128
SINGLE_RECORDS = 1_920


@dataclass(frozen=True)
class Options:
    """What to run."""

    data_dir: Path = Path("data")
    out: Path = Path("runs/benchmark")
    rounds: int = 5


class Network(nnx.Module):
    """A network of 784 pixels, 64 hidden units and 10 classes."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(784, 64, rngs=rngs)
        self.out = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        pixels = image.reshape(len(image), -1).astype(jnp.float32) / 255
        return self.out(nnx.relu(self.hidden(pixels)))


def new_modules() -> tuple[Network, nnx.Optimizer]:
    model = Network(nnx.Rngs(0))
    return model, nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)


def train_step(model: Network, optimizer: nnx.Optimizer, batch: dict[str, Any]) -> jax.Array:
    def loss_of(model: Network) -> jax.Array:
        logits = model(batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    return loss


def pipeline_of(
    name: str, options: Options, *, eager: bool = True, split: str = "train"
) -> Pipeline:
    source = from_tfds(
        name, split, eager=eager, data_dir=str(options.data_dir), shuffle=True, seed=0
    )
    return Pipeline(source=source, batch_size=BATCH)


def scanning(pipeline: Pipeline, length: int) -> Callable[[], None]:
    modules = new_modules()

    def run() -> None:
        jax.block_until_ready(pipeline.scan(train_step, length=length, modules=modules))

    return run


def looping(batches: Callable[[], Iterator[Any]], length: int) -> Callable[[], None]:
    model, optimizer = new_modules()
    step = nnx.jit(train_step)

    def run() -> None:
        losses = [step(model, optimizer, batch) for batch in itertools.islice(batches(), length)]
        jax.block_until_ready(losses[-1])

    return run


def by_hand(pipeline: Pipeline, length: int) -> Callable[[], None]:
    """Runs the same epoch as a user would write it, over a given permutation."""
    data = pipeline.source.collect_to_array()
    order = np.random.default_rng(0).permutation(len(pipeline.source))
    order = jnp.asarray(order[: length * BATCH].reshape(length, BATCH), jnp.int32)
    graphdef, state = nnx.split(new_modules())

    @jax.jit
    def epoch(data: Any, order: jax.Array, state: Any) -> Any:
        def body(state: Any, rows: jax.Array) -> Any:
            modules = nnx.merge(graphdef, state)
            batch = jax.tree.map(lambda column: jnp.take(column, rows, axis=0), data)
            return nnx.state(modules), train_step(*modules, batch)

        return jax.lax.scan(body, state, order)

    def run() -> None:
        nonlocal state
        state, losses = epoch(data, order, state)
        jax.block_until_ready(losses)

    return run


def endless(pipeline: Pipeline) -> Iterator[Any]:
    while True:
        yield from pipeline


def training(name: str, options: Options) -> Iterator[Comparison]:
    """Compares an epoch of `scan` with other ways to do the same work."""
    pipeline = pipeline_of(name, options)
    steps = len(pipeline.source) // BATCH
    yield in_turn(
        "scan of an epoch, against lax.scan by hand over a permutation",
        scanning(pipeline, steps),
        by_hand(pipeline, steps),
        target=1 / 1.1,
        rounds=2 * options.rounds,
        units=steps,
    )
    same = pipeline.source.clone()
    yield in_turn(
        "scan, against a loop over batches of the same source",
        scanning(pipeline, steps),
        looping(lambda: endless(Pipeline(source=same, batch_size=BATCH)), steps),
        target=1.0,
        rounds=options.rounds,
        units=steps,
    )
    stream = pipeline_of(name, options, eager=False)
    yield in_turn(
        "scan, against a loop over batches of a stream",
        scanning(pipeline, steps),
        looping(lambda: endless(stream), steps),
        target=1.0,
        rounds=options.rounds,
        units=steps,
    )
    singly = pipeline.source.clone()

    def records() -> Iterator[Any]:
        singly.reset()
        for record in singly:
            yield jax.tree.map(lambda value: value[None], record)

    yield in_turn(
        "scan, against a loop over single records, a record",
        scanning(pipeline, SINGLE_RECORDS // BATCH),
        looping(records, SINGLE_RECORDS),
        target=100.0,
        rounds=options.rounds,
        units=SINGLE_RECORDS,
    )


def compiling(name: str, options: Options) -> Iterator[Comparison]:
    """Times a first scan of 7 steps, including its compilation."""

    def first(split: str) -> Callable[[], None]:
        source = pipeline_of(name, options, split=split).source

        def run() -> None:
            scanning(Pipeline(source=source.clone(), batch_size=BATCH), 7)()

        return run

    yield in_turn(
        "compilation of scan: 60,000 records, against 1,000",
        first("train"),
        first("test"),
        target=1.0,
        rounds=options.rounds,
    )


def notes(name: str, options: Options) -> Iterator[str]:
    compiled: list[str] = []
    pipeline = pipeline_of(name, options)
    run = scanning(pipeline, len(pipeline))
    run()
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    for _ in range(3):
        run()
    yield f"compilations in epochs 2 to 4: {len(compiled)}"
    code = (
        "import time, jax, flax.nnx; start = time.perf_counter(); import datarax_tfds;"
        "print(time.perf_counter() - start)"
    )
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(options.rounds)
    ]
    yield (
        f"import datarax_tfds, over jax and flax.nnx: {duration(statistics.median(times))}"
        f" ({duration(min(times))} to {duration(max(times))}; target: 0.3 s)"
    )


def main(options: Options) -> None:
    start = time.perf_counter()
    name = benchmark_data.png_28(options.data_dir)
    rows = itertools.chain(training(name, options), compiling(name, options))
    title = f"pipeline, {jax.default_backend()}, jax {jax.__version__}"
    show(title, rows, notes(name, options), save_as=options.out / "pipeline")
    print(f"in {duration(time.perf_counter() - start)}")


if __name__ == "__main__":
    main(tyro.cli(Options))
