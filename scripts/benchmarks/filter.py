"""Compares evaluating a filter with decoding the records, and a filtered stream with a whole one.

    python scripts/benchmarks/filter.py --data-dir data --out runs/benchmark

The table is also written to `filter.txt`, `filter.json` and `filter.png` in `--out`.
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
import numpy as np
import tyro
from benchmarking import Comparison, in_turn, show

from datarax_tfds import Pipeline, TFDSStreamingConfig, TFDSStreamingSource
from datarax_tfds.files.kept_records import KeptRecords

BATCH = 64
RECORDS = 10**9
ROWS = 1024


@dataclass(frozen=True)
class Options:
    """What to run."""

    data_dir: Path = Path("data")
    out: Path = Path("runs/benchmark")
    rounds: int = 5
    steps: int = 40


def is_even(record: Any) -> Any:
    return record["label"] % 2 == 0


def is_light(record: Any) -> Any:
    import tensorflow as tf

    return tf.reduce_mean(tf.cast(record["image"], tf.float32)) > 64


def is_even_in_python(record: Any) -> bool:
    return bool(record["label"] % 2 == 0)


def streamed(name: str, options: Options, **fields: Any) -> TFDSStreamingSource:
    fields |= {"name": name, "split": "train", "data_dir": str(options.data_dir)}
    return TFDSStreamingSource(TFDSStreamingConfig(shuffle=True, seed=0, **fields))


def evaluating(
    name: str, options: Options, filter_fn: Callable[..., Any], **fields: Any
) -> Callable[[], None]:
    """A function that evaluates a filter at each call, because it finds no index."""
    calls = iter(range(1000))

    def run() -> None:
        # A name that no index has.
        unseen = f"benchmark {time.time_ns()} {next(calls)}"
        streamed(name, options, filter_fn=filter_fn, filter_name=unseen, **fields)

    return run


def batches(source: TFDSStreamingSource, steps: int) -> Callable[[], None]:
    def run() -> None:
        for batch in islice(Pipeline(source=source.clone(), batch_size=BATCH), steps):
            jax.block_until_ready(batch)

    return run


def passes(options: Options) -> Iterator[Comparison]:
    """Evaluates filters of all records, and decodes all records of the same split."""
    name = benchmark_data.jpeg_224(options.data_dir)
    whole = streamed(name, options)
    decoding = batches(whole, len(whole) // BATCH)
    kinds = {
        "by label": (is_even, {}),
        "by image": (is_light, {}),
        "by label, in Python": (is_even_in_python, {"filter_with": "numpy"}),
    }
    for kind, (filter_fn, fields) in kinds.items():
        yield in_turn(
            f"a filter {kind}, with opening the source, against decoding (JPEG 224x224)",
            evaluating(name, options, filter_fn, **fields),
            decoding,
            target=0.8,
            rounds=options.rounds,
        )


def streams(options: Options) -> Iterator[Comparison]:
    """Streams the kept half of a split, and as many records of the whole split."""
    name = benchmark_data.png_28(options.data_dir)
    yield in_turn(
        f"a filtered stream, against one without a filter (PNG 28x28, batch {BATCH})",
        batches(streamed(name, options, filter_fn=is_even), 10 * options.steps),
        batches(streamed(name, options), 10 * options.steps),
        target=0.9,
        rounds=options.rounds,
        units=10 * options.steps,
    )


def numbers(options: Options) -> Iterator[str]:
    """Measures the memory and the time of finding kept records among a billion."""
    bits = np.random.default_rng(0).integers(0, 256, RECORDS // 8, np.uint8)
    kept = KeptRecords(bits, RECORDS)
    found = np.random.default_rng(1).integers(0, len(kept), (options.steps, ROWS))
    seconds = []
    for rows in found:
        start = time.process_time()
        kept.stored_numbers(rows)
        seconds.append(time.process_time() - start)
    held = sum(value.nbytes for value in vars(kept).values() if isinstance(value, np.ndarray))
    median, most = (1000 * each for each in (statistics.median(seconds), max(seconds)))
    yield f"kept records of {RECORDS:,}: {held / 1e6:.0f} MB"
    yield f"numbers of {ROWS:,} of them, CPU: {median:.2f} ms (up to {most:.2f})"
    source = streamed(benchmark_data.png_28(options.data_dir), options, filter_fn=is_even)
    yield f"state of a filtered source: {len(json.dumps(source.get_state()))} bytes; target 2,048"


def main() -> None:
    options = tyro.cli(Options)

    def comparisons() -> Iterator[Comparison]:
        yield from passes(options)
        yield from streams(options)

    show("Filters", comparisons(), list(numbers(options)), options.out / "filter")


if __name__ == "__main__":
    main()
