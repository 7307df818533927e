"""Slows down one part of a stream at a time, and times the counters of `Pipeline.report`.

    python scripts/benchmarks/report.py --data-dir data --out runs/benchmark

It prints what each report says of a stage whose time is known, and what the counters of a step
take. `--out` gets the logs of two processes.
"""

import subprocess
import sys
import time
import timeit
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import benchmark_words  # noqa: F401  (says what takes so long)
import benchmark_data
import jax
import tyro

from datarax_tfds import (
    HostReport,
    Pipeline,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    initialize,
    make_mesh,
)
from datarax_tfds.runtime.timings import PLACING, READING, TRANSFORM, Timings

BATCH = 64
STEP_S = 0.001
STEPS = 200


@dataclass(frozen=True)
class Options:
    """What to run."""

    data_dir: Path = Path("data")
    out: Path = Path("runs/benchmark")
    process: str = ""  # internal: what a subprocess of this script measures


def pipeline(options: Options, *, sharding: Any = None, **fields: Any) -> Pipeline:
    name = benchmark_data.png_28(options.data_dir)
    config = TFDSStreamingConfig(
        name=name, split="train", data_dir=str(options.data_dir), shuffle=True, **fields
    )
    return Pipeline(source=TFDSStreamingSource(config, sharding=sharding), batch_size=BATCH)


class Slowed:
    """A function that takes longer than it needs, and knows how long it took."""

    def __init__(self, function: Callable[..., Any], seconds: float):
        self._function, self._seconds = function, seconds
        self.spent_s = 0.0

    def __call__(self, *args: Any) -> Any:
        begun = time.perf_counter()
        time.sleep(self._seconds)
        result = self._function(*args)
        self.spent_s += time.perf_counter() - begun
        return result


def reported(
    pipeline: Pipeline, slowed: Slowed | None = None, step_s: float = 0.0
) -> tuple[HostReport, float]:
    """The report of some steps, without those that fill the buffers; and the share of their time
    that the steps took themselves.
    """
    for _ in pipeline.steps(5):
        pass
    before = pipeline.report()
    if slowed is not None:
        slowed.spent_s = 0.0
    begun, own_s = time.perf_counter(), 0.0
    for _ in pipeline.steps(STEPS):
        step = time.perf_counter()
        time.sleep(step_s)
        own_s += time.perf_counter() - step
    share = own_s / (time.perf_counter() - begun)
    return pipeline.report(since=before).hosts[jax.process_index()], share


def slow_stage(what: str, stage: str, slowed: Slowed, pipeline: Pipeline) -> str:
    """What is reported of a stage, beside what it took in truth."""
    here, _ = reported(pipeline, slowed)
    others_s = sum(s for name, s in here.stages.items() if name not in (PLACING, stage))
    known = slowed.spent_s / (slowed.spent_s + others_s)
    return f"{what}: {here.shares[stage]:.1%} {stage}, in truth {known:.1%}; {here.verdict}"


def stages(options: Options) -> Iterator[str]:
    """Slows down one thing at a time."""
    slowed = pipeline(options)
    files = slowed.source.records.reader.files
    reads = Slowed(files.read, 0.1)
    with mock.patch.object(files, "read", reads):
        yield slow_stage("slow files", READING, reads, slowed)
    transform = Slowed(lambda record: {"label": record["label"]}, 0.001)
    slowed = pipeline(options, transform=lambda record: transform(record))
    yield slow_stage("slow transform", TRANSFORM, transform, slowed)
    here, own = reported(pipeline(options), step_s=0.02)
    yield f"slow steps: {1 - here.waiting:.1%} their own, in truth {own:.1%}; {here.verdict}"
    yield slow_host(options)
    yield price(options)


def slow_host(options: Options) -> str:
    """What the report says of two processes, of which the second has slow files."""
    logs = options.out / "report-hosts"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "datarax_tfds", "launch", "2", "--logs", str(logs)]
    command += ["--timeout-s", "300", "--", sys.executable, __file__]
    command += ["--data-dir", str(options.data_dir), "--out", str(logs), "--process", "host"]
    subprocess.run(command, capture_output=True, check=True)
    return (logs / "report.txt").read_text()


def measure_host(options: Options) -> None:
    """One of these processes."""
    jax.config.update("jax_num_cpu_devices", 1)
    initialize()
    slow = jax.process_index() == 1
    mesh = batch_sharding(make_mesh({"data": -1}))
    stream = pipeline(options, sharding=mesh)
    files: Any = stream.source.records.reader.files
    reads = Slowed(files.read, 3.0 if slow else 0.0)
    with mock.patch.object(files, "read", reads):
        here, _ = reported(stream, reads, step_s=0.02)
        everything = stream.report()
    work_s = sum(spent for name, spent in here.stages.items() if name not in (PLACING, READING))
    known = reads.spent_s / (reads.spent_s + work_s)
    if slow:
        said = f"{here.shares[READING]:.1%} {READING}, in truth {known:.1%}"
        (options.out / "report.txt").write_text(f"slow host 1 of 2: {said}; {everything.verdict}")


class Calls(Timings):
    """Counts which counters are used, and how often."""

    used: ClassVar[Counter[str]] = Counter()

    def timed(self, stage: str) -> Any:
        self.used["timed"] += 1
        return super().timed(stage)

    def count_read(self, records: Any) -> None:
        self.used["count_read"] += 1
        super().count_read(records)

    def count_step(self, asked_at: float) -> None:
        self.used["count_step"] += 1
        super().count_step(asked_at)


def price(options: Options) -> str:
    """How often a step uses each counter, and what one use takes of a core."""
    made = pipeline(options)
    made.source.records.timings.__class__ = Calls
    for _ in made.steps(STEPS):
        pass
    alone, records = Timings(), [b"record"] * BATCH
    uses: dict[str, Callable[[], Any]] = {
        "timed": lambda: timed_nothing(alone),
        "count_read": lambda: alone.count_read(records),
        "count_step": lambda: alone.count_step(0.0),
    }
    sums = {
        name: Calls.used[name] / STEPS * min(timeit.repeat(use, number=1000, repeat=7)) / 1000
        for name, use in uses.items()
    }
    parts = ", ".join(
        f"{Calls.used[name] / STEPS:.2g} of {name} {1e6 * s:.2g} us" for name, s in sums.items()
    )
    total = sum(sums.values())
    return f"the counters of a step take {1e6 * total:.2g} us, {total / STEP_S:.2%} of it: {parts}"


def timed_nothing(timings: Timings) -> None:
    with timings.timed(READING):
        pass


def main() -> None:
    options = tyro.cli(Options)
    if options.process:
        measure_host(options)
        return
    for line in stages(options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
