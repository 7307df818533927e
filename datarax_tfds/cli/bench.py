"""`datarax-tfds bench`: how many records a second a stream delivers, and what takes its time."""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from datarax_tfds.cli.dataset import Dataset
from datarax_tfds.cli.terminal import doing, import_tensorflow, print_json, print_table, wrong_usage
from datarax_tfds.cli.user_code import imported_code

if TYPE_CHECKING:
    from datarax_tfds import HostReport, Pipeline
    from datarax_tfds.config.config import TFDSStreamingConfig


@dataclass(frozen=True)
class Command:
    """Measures how many records a second a stream of random records delivers on 1 to n cores.

    With the config of a program that packs text, it measures rows of tokens. At the first time, the
    tokens of all texts are counted before.

    Args:
        split: Any split that TFDS understands. By default, that of the config, or train.
        batch_size: Records of a batch. By default, as many as the config says, or 128.
        cores: With how many cores to measure, as 1,2,4. By default, all powers of two up to the
            cores of this machine, and all of them.
        seconds: How long to measure each.
        step_ms: Also measure how long a training step that takes so long waits for its batch.
        code: The Python file with the map_fn and other functions that a config names. It is run.
        exclude_keys: Features to leave out, such as those that cannot be in a batch.
        picture: Also draw it into this file, as bench.png.
        json: Print JSON.
    """

    dataset: Dataset
    split: str | None = None
    batch_size: int | None = None
    cores: Annotated[str | None, arg(metavar="N[,N]")] = None
    seconds: float = 5.0
    step_ms: float | None = None
    code: Annotated[Path | None, arg(metavar="FILE")] = None
    exclude_keys: Annotated[str | None, arg(metavar="NAME[,NAME]")] = None
    picture: Annotated[Path | None, arg(metavar="FILE")] = None
    json: bool = False

    def run(self) -> int:
        counts = _counts(self.cores)
        if not counts or self.seconds <= 0 or (self.step_ms or 0) < 0:
            most = _cores_here()
            problem = (
                f"--cores must be numbers from 1 to {most}, and --seconds and --step-ms"
                f" positive; got --cores {self.cores} --seconds {self.seconds}"
                f" --step-ms {self.step_ms}"
            )
            return wrong_usage("bench", problem)
        import_tensorflow()
        stream = self._stream()
        found = []
        with imported_code(self.code):  # other processes import it, too
            for count in counts:
                found.append(_on_cores(count, stream, self.seconds, self.step_ms))
        if self.json:
            print_json([asdict(each) for each in found])
        else:
            _print(found, "records/s" if stream.rows is None else "rows/s")
        if self.picture is not None:
            _draw(found, self.picture)
        return 0

    def _stream(self) -> "Stream":
        config = self.dataset.as_configured(
            self.split, self.code, exclude=self.exclude_keys, shuffle=True
        )
        file = self.dataset.file
        batch_size = self.batch_size or (file.batch_size if file else None) or 128
        return Stream(config, batch_size, None if file is None else file.packing(self.code))


@dataclass(frozen=True)
class Stream:
    """What is measured.

    Args:
        config: What is read.
        batch_size: Records of a batch.
        rows: The arguments of a `PackedSource` of these records; None if they are not packed.
    """

    config: "TFDSStreamingConfig"
    batch_size: int
    rows: dict[str, Any] | None

    def pipeline(self) -> "Pipeline":
        from datarax_tfds import PackedSource, Pipeline, TFDSStreamingSource

        records = TFDSStreamingSource(self.config)
        source = records if self.rows is None else PackedSource(records, **self.rows)
        return Pipeline(source=source, batch_size=self.batch_size)


@dataclass(frozen=True)
class Measured:
    """What a stream delivers.

    Args:
        cores: On so many cores.
        records_per_s: Records or packed rows a second, after the first batch.
        first_batch_s: How long the source and its first batch took.
        stages: The share of each stage in the work of the threads.
        waiting: The share of the time for which steps waited for their batches; None if no steps
            were asked for.
        verdict: What bounds the steps, in words; None, likewise.
    """

    cores: int
    records_per_s: float
    first_batch_s: float
    stages: dict[str, float]
    waiting: float | None
    verdict: str | None


def measured(stream: Stream, seconds: float, step_ms: float | None) -> Measured:
    """Reads batches for some seconds in this process."""
    split = f"{stream.config.name}:{stream.config.split}"
    total = seconds * (1 if step_ms is None else 2)
    doing(f"reading {split} with {_cores_here()} of the cores, for {total:g} s")
    begun = time.perf_counter()
    pipeline = stream.pipeline()
    batches = pipeline.batches()
    next(batches)
    first_batch_s = time.perf_counter() - begun
    alone = _reported(pipeline, batches, seconds, 0.0)
    steps = None if step_ms is None else _reported(pipeline, batches, seconds, step_ms / 1e3)
    return Measured(
        alone.cores,
        alone.steps * stream.batch_size / alone.elapsed_s,
        first_batch_s,
        alone.shares,
        None if steps is None else steps.waiting,
        None if steps is None else steps.verdict,
    )


def _reported(
    pipeline: "Pipeline", batches: Iterator[object], seconds: float, step_s: float
) -> "HostReport":
    """Takes batches for so long, and reports on them."""
    before = pipeline.report()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        next(batches)
        time.sleep(step_s)
    return pipeline.report(since=before).hosts[0]


def _on_cores(cores: int, stream: Stream, seconds: float, step_ms: float | None) -> Measured:
    """As `measured`, in a process that may use only so many cores, if this one may use more."""
    if cores == _cores_here():
        return measured(stream, seconds, step_ms)
    doing(f"starting a process that has {cores} of the cores")
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_keep_to, initargs=(cores,)) as pool:
        return pool.submit(measured, stream, seconds, step_ms).result()


def _keep_to(cores: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    import_tensorflow()


def _cores_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _counts(text: str | None) -> list[int]:
    """The numbers of cores to measure; empty if they are wrong. On macOS only all of them."""
    most = _cores_here()
    fewer = hasattr(os, "sched_setaffinity")
    if text is None:
        return sorted({most, *(1 << power for power in range(most.bit_length() if fewer else 0))})
    counts = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if not fewer and counts != [most]:
        return []
    return counts if min(counts) >= 1 and max(counts) <= most else []


def _print(found: list[Measured], speed: str) -> None:
    columns = ["cores", speed, "first batch, s"]
    rows = [[each.cores, round(each.records_per_s), f"{each.first_batch_s:.2f}"] for each in found]
    stages = sorted({stage for each in found for stage in each.stages})
    columns += stages
    for row, each in zip(rows, found, strict=True):
        row += [f"{each.stages.get(stage, 0):.0%}" for stage in stages]
    if found[0].waiting is not None:
        columns.append("waiting")
        rows = [[*row, f"{each.waiting:.0%}"] for row, each in zip(rows, found, strict=True)]
    print_table(columns, rows)
    if found[-1].verdict is not None:
        sys.stdout.write(f"{found[-1].verdict}\n")


def _draw(found: list[Measured], path: Path) -> None:
    from datarax_tfds.pictures.throughput import draw_throughput

    cores, records = [each.cores for each in found], [each.records_per_s for each in found]
    waiting = [each.waiting for each in found if each.waiting is not None]
    draw_throughput(cores, records, waiting or None).save(path)
