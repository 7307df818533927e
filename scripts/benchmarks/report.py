"""Slows down one part of a stream at a time, and times the counters of `Pipeline.report`.

    python scripts/benchmarks/report.py --data-dir data --out runs/benchmark

It prints what each report says of a stage whose time is known, and the table of the cost of the
counters, which is also written to `report.txt`, `report.json` and `report.png` in `--out`.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import benchmark_words  # noqa: F401  (says what takes so long)
import benchmark_data
import jax
import tyro
from benchmarking import Comparison, in_turn, show

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
    rounds: int = 10
    steps: int = 300
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


def reported(pipeline: Pipeline, slowed: Slowed | None = None, step_s: float = 0.0) -> HostReport:
    """The report of some steps, without those that fill the buffers."""
    for _ in pipeline.steps(5):
        pass
    before = pipeline.report()
    if slowed is not None:
        slowed.spent_s = 0.0
    for _ in pipeline.steps(STEPS):
        time.sleep(step_s)
    return pipeline.report(since=before).hosts[jax.process_index()]


def slow_stage(what: str, stage: str, slowed: Slowed, pipeline: Pipeline) -> str:
    """What is reported of a stage, beside what it took in truth."""
    here = reported(pipeline, slowed)
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
    here = reported(pipeline(options), step_s=0.02)
    slept = 0.02 * STEPS / here.elapsed_s
    own = 1 - here.waiting
    yield f"slow steps: {own:.1%} their own, in truth at least {slept:.1%}; {here.verdict}"
    yield slow_host(options)


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
        here = reported(stream, reads, step_s=0.02)
        everything = stream.report()
    work_s = sum(spent for name, spent in here.stages.items() if name not in (PLACING, READING))
    known = reads.spent_s / (reads.spent_s + work_s)
    if slow:
        said = f"{here.shares[READING]:.1%} {READING}, in truth {known:.1%}"
        (options.out / "report.txt").write_text(f"slow host 1 of 2: {said}; {everything.verdict}")


def cost(options: Options) -> Iterator[Comparison]:
    """Steps of 1 ms, with the counters and without."""

    def stepping(counts: bool) -> Callable[[], None]:
        made = pipeline(options)
        batches = made.batches()
        if not counts:
            made.source.records.timings.__class__ = Uncounted

        def run() -> None:
            for _ in range(options.steps):
                jax.block_until_ready(next(batches))
                end = time.perf_counter() + STEP_S
                while time.perf_counter() < end:
                    pass

        return run

    yield in_turn(
        f"a step of {1000 * STEP_S:.0f} ms with counters, against one without",
        stepping(counts=True),
        stepping(counts=False),
        target=0.99,
        rounds=options.rounds,
        units=options.steps,
    )


class Uncounted(Timings):
    """Counts nothing."""

    def timed(self, stage: str) -> Any:  # noqa: ARG002
        return nullcontext()

    def add(self, stage: str, seconds: float) -> None:
        """Does nothing."""

    def count_read(self, records: Any) -> None:
        """Does nothing."""

    def count_step(self, asked_at: float) -> None:
        """Does nothing."""


def main() -> None:
    options = tyro.cli(Options)
    if options.process:
        measure_host(options)
        return
    show("The counters", cost(options), stages(options), options.out / "report")


if __name__ == "__main__":
    main()
