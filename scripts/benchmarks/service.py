"""Compares decoding by workers of Ray on this machine with decoding by as many threads.

    python scripts/benchmarks/service.py --data-dir data --out runs/benchmark

The records are JPEG images of 224x224. The first line has workers alone, so that all is sent; the
second has workers beside the threads, as users get them: these take calls first.
The table is also written to `service.txt`, `service.json` and `service.png` in `--out`.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import benchmark_words  # noqa: F401  (says what takes so long)
import benchmark_data
import jax
import numpy as np
import tyro
from benchmarking import Comparison, in_turn, show

from datarax_tfds import Pipeline, RayService, TFDSStreamingConfig, TFDSStreamingSource
from datarax_tfds.decoding import reader
from datarax_tfds.service import serving
from datarax_tfds.service.dispatcher import Dispatcher
from datarax_tfds.service.served_reader import ServedReader


@dataclass(frozen=True)
class Options:
    """What to run."""

    data_dir: Path = Path("data")
    out: Path = Path("runs/benchmark")
    rounds: int = 5
    batches: int = 20
    batch_size: int = 256
    workers: int = 2


def pipeline(options: Options, service: RayService | None = None) -> Pipeline:
    config = TFDSStreamingConfig(
        name=benchmark_data.jpeg_224(options.data_dir),
        split="train",
        data_dir=str(options.data_dir),
        shuffle=True,
        service=service,
    )
    with mock.patch.object(reader, "decoding_threads", return_value=options.workers):
        return Pipeline(source=TFDSStreamingSource(config), batch_size=options.batch_size)


def with_workers(options: Options, service: RayService) -> Pipeline:
    """A pipeline whose workers are all there."""
    made = pipeline(options, service)
    calls: Dispatcher = made.source.records.reader.dispatcher
    calls.read(np.zeros(1, np.int64))
    while len(calls.team.members) < options.workers:
        time.sleep(0.1)
    return made


def stepping(made: Pipeline, steps: int) -> Callable[[], None]:
    batches = made.batches()

    def run() -> None:
        for _ in range(steps):
            jax.block_until_ready(next(batches))

    return run


def main() -> None:
    options = tyro.cli(Options)
    service = RayService(workers=options.workers, late_s=60.0)
    with mock.patch.object(serving, "ServedReader", partial(ServedReader, threads=0)):
        alone = with_workers(options, service)
    threads = partial(ServedReader, threads=options.workers)
    with mock.patch.object(serving, "ServedReader", threads):
        beside = with_workers(options, service)
    local = pipeline(options)
    timings = alone.source.records.timings

    def comparisons() -> Iterator[Comparison]:
        for name, ours in (("workers alone", alone), ("workers beside threads", beside)):
            yield in_turn(
                f"a batch of {options.batch_size}, {options.workers} {name}",
                stepping(ours, options.batches),
                stepping(local, options.batches),
                target=0.8,
                rounds=options.rounds,
                units=options.batches,
            )

    def notes() -> Iterator[str]:
        stages = ", ".join(f"{name} {s:.1f} s" for name, s in timings.totals().stages.items())
        yield f"stages of the trainer without threads: {stages}"
        yield f"load of the last minute, with this: {os.getloadavg()[0]:.1f}"

    show("Workers of Ray", comparisons(), notes(), options.out / "service")


if __name__ == "__main__":
    main()
