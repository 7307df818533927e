"""Compares mixtures with their parts alone, and times the order of a mixture.

    python scripts/benchmarks/mixture.py --data-dir data --out runs/benchmark

The table is also written to `mixture.txt`, `mixture.json` and `mixture.png` in `--out`.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import benchmark_words  # noqa: F401  (says what takes so long)
import benchmark_data
import jax
import tyro
from benchmarking import Comparison, in_turn, show

from datarax_tfds import (
    Cursor,
    MixtureSource,
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
)
from datarax_tfds.order.mixture import MixtureOrder, Stage
from datarax_tfds.order.order import Order

BATCH = 128
PARTS = {"one": "train[:60%]", "two": "train[60%:90%]", "three": "train[90%:]"}
WEIGHTS = {"one": 0.5, "two": 0.3, "three": 0.2}
POSITIONS = 10**6
ROWS = 1024


@dataclass(frozen=True)
class Options:
    """What to run."""

    data_dir: Path = Path("data")
    out: Path = Path("runs/benchmark")
    rounds: int = 5
    steps: int = 100


def source(kind: Any, config: Any, name: str, split: str, options: Options) -> Any:
    fields = {"name": name, "split": split, "data_dir": str(options.data_dir), "seed": 0}
    return kind(config(shuffle=True, **fields))


def epochs(pipeline: Pipeline) -> Iterator[Any]:
    while True:
        yield from pipeline


def taking(source: Any, options: Options) -> Callable[[], None]:
    batches = epochs(Pipeline(source=source, batch_size=BATCH))

    def run() -> None:
        for batch in islice(batches, options.steps):
            jax.block_until_ready(batch)

    return run


def streams(options: Options) -> Iterator[Comparison]:
    """Streams a mixture of three parts, and the whole split alone."""
    name = benchmark_data.png_28(options.data_dir)
    stream = TFDSStreamingSource, TFDSStreamingConfig
    parts = {part: source(*stream, name, split, options) for part, split in PARTS.items()}
    yield in_turn(
        f"a mixture of 3 streams, against one stream (PNG 28x28, batch {BATCH})",
        taking(MixtureSource(parts, WEIGHTS), options),
        taking(source(*stream, name, "train", options), options),
        target=0.9,
        rounds=options.rounds,
        units=options.steps,
    )


def eager(options: Options) -> Iterator[Comparison]:
    """Takes batches of a mixture of eager sources, and of one such source."""
    name = benchmark_data.png_28(options.data_dir)
    on_devices = TFDSEagerSource, TFDSEagerConfig
    parts = {part: source(*on_devices, name, split, options) for part, split in PARTS.items()}
    mixture = MixtureSource(parts, WEIGHTS)
    alone = source(*on_devices, name, "train", options)

    def asked(source: Any) -> Callable[[], None]:
        def run() -> None:
            jax.block_until_ready([source.get_batch(BATCH) for _ in range(options.steps)])

        return run

    yield in_turn(
        f"get_batch({BATCH}) of a mixture of 3 eager sources, against one",
        asked(mixture),
        asked(alone),
        target=1 / 1.5,
        rounds=3 * options.rounds,
        units=options.steps,
    )


def order(options: Options) -> list[str]:
    """Measures the CPU time of the order of a mixture of three splits."""
    names = tuple(PARTS)
    parts = (Order(10**7, 1), Order(10**6, 2), Order(60_000, 3))
    whole = MixtureOrder(names, parts, 10**8, (Stage(0, (5, 3, 2)),))
    of_all, of_batch = [], []
    for round_ in range(options.rounds):
        start = time.process_time()
        whole.host_numbers(round_, 0, POSITIONS)
        of_all.append(time.process_time() - start)
        for first in range(2 * POSITIONS, 2 * POSITIONS + options.steps * ROWS, ROWS):
            start = time.process_time()
            whole.host_numbers(round_, first, first + ROWS)
            of_batch.append(time.process_time() - start)
    return [
        f"order of a mixture, {POSITIONS:,} positions, CPU: {_spread(of_all, 1)} s; target 0.3 s",
        f"order of a mixture, {ROWS:,} positions, CPU: {_spread(of_batch, 1000)} ms; target 1 ms",
    ]


def state(options: Options) -> str:
    """Measures a state with several changes of weights."""
    name = benchmark_data.png_28(options.data_dir)
    stream = TFDSStreamingSource, TFDSStreamingConfig
    parts = {part: source(*stream, name, split, options) for part, split in PARTS.items()}
    mixture = MixtureSource(parts, WEIGHTS)
    for change in range(1, 11):
        weights = {"one": change, "two": 1, "three": 0.5}
        mixture.set_weights(weights, at=Cursor(change, 0))
    size = len(json.dumps(mixture.get_state()))
    return f"state of a mixture of 3 with 10 changes of weights: {size:,} bytes; target 2,048"


def _spread(seconds: list[float], scale: float) -> str:
    middle, low, high = statistics.median(seconds), min(seconds), max(seconds)
    return f"{scale * middle:.3f} ({scale * low:.3f} to {scale * high:.3f})"


def main() -> None:
    options = tyro.cli(Options)

    def comparisons() -> Iterator[Comparison]:
        yield from eager(options)
        yield from streams(options)

    notes = [*order(options), state(options)]
    show("Mixtures", comparisons(), notes, options.out / "mixture")


if __name__ == "__main__":
    main()
