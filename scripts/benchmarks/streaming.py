"""Compares the streaming source with tf.data and Grain, and measures how its cost grows.

    python scripts/benchmarks/streaming.py --data-dir data --out runs/benchmark

The table is also written to `streaming.txt`, `streaming.json` and `streaming.png` in `--out`.
"""

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import benchmark_words  # noqa: F401  (says what takes so long)
import benchmark_data
import jax
import tyro
from benchmarking import Comparison, duration, in_turn, resident_bytes, show

from datarax_tfds import (
    Cursor,
    Pipeline,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    initialize,
    make_mesh,
)
from datarax_tfds.files.stored_file import StoredFile
from datarax_tfds.files.tfrecord_index import open_index
from datarax_tfds.order.cursor import Schedule
from datarax_tfds.order.order import Order
from datarax_tfds.order.sampler import BatchAt

GRAIN_THREADS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Options:
    """What to run."""

    data_dir: Path = Path("data")
    out: Path = Path("runs/benchmark")
    rounds: int = 5
    process: str = ""  # internal: what a subprocess of this script measures


def streaming(name: str, options: Options) -> TFDSStreamingSource:
    config = TFDSStreamingConfig(
        name=name, split="train", data_dir=str(options.data_dir), shuffle=True, seed=0
    )
    return TFDSStreamingSource(config)


def taking(batches: Callable[[], Iterator[Any]], count: int) -> Callable[[], None]:
    """Returns a function that takes `count` batches from a new iterator."""

    def run() -> None:
        for batch in itertools.islice(batches(), count):
            jax.block_until_ready(batch)

    return run


def endless(pipeline: Pipeline) -> Iterator[Any]:
    while True:
        yield from pipeline


def ours(name: str, batch_size: int, options: Options) -> Callable[[], Iterator[Any]]:
    pipeline = Pipeline(source=streaming(name, options), batch_size=batch_size)
    return lambda: endless(pipeline)


def tf_data(
    name: str, batch_size: int, shuffle: int, options: Options
) -> Callable[[], Iterator[Any]]:
    """Reads as the TFDS guide recommends, without a cache, for which most data are too big."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    read_config = tfds.ReadConfig(try_autocache=False)
    dataset: Any = tfds.load(
        name, split="train", data_dir=options.data_dir, read_config=read_config
    )
    if shuffle:
        dataset = dataset.shuffle(shuffle)
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return lambda: iter(tfds.as_numpy(dataset))


def grain(name: str, batch_size: int, options: Options) -> Callable[[], Iterator[Any]]:
    """Reads TFDS's ArrayRecord data source with Grain, shuffled, with the fastest thread count."""
    import grain
    import tensorflow_datasets as tfds

    source: Any = tfds.data_source(name, split="train", data_dir=options.data_dir)
    dataset = grain.MapDataset.source(source).shuffle(seed=0).batch(batch_size)

    def batches(threads: int) -> Iterator[Any]:
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads)))

    def seconds(threads: int) -> float:
        start = time.perf_counter()
        taking(partial(batches, threads), 2_000 // batch_size)()
        return time.perf_counter() - start

    best = min(GRAIN_THREADS, key=seconds)
    print(f"Grain on {name}: best with {best} threads", flush=True)
    return partial(batches, best)


def against(options: Options) -> Iterator[Comparison]:
    """Times shuffled batches of an epoch (10,000 records for Grain), per record."""
    data_dir = options.data_dir
    rows = [
        # Title, dataset, records, batch size, target against tf.data, target against Grain.
        ("60,000 PNG 28x28", benchmark_data.png_28, 60_000, 128, 3.0, 10.0),
        ("50,000 PNG 32x32x3", benchmark_data.png_32, 50_000, 128, 2.0, None),
        ("3,000 JPEG 224x224", benchmark_data.jpeg_224, 3_000, 64, 1.0, 1.4),
    ]
    for title, dataset, records, size, least, grain_least in rows:
        name = dataset(data_dir)
        stream = ours(name, size, options)
        for shuffle, way in ((0, "sequential"), (1000, "shuffle(1000)")):
            yield in_turn(
                f"{title}, against tf.data, {way}",
                taking(stream, records // size),
                taking(tf_data(name, size, shuffle, options), records // size),
                target=least,
                rounds=options.rounds,
                units=records // size * size,
            )
        if grain_least is None:
            continue
        name = dataset(data_dir, "array_record")
        steps = min(records, 10_000) // size
        yield in_turn(
            f"{title} as ArrayRecord, against Grain",
            taking(ours(name, size, options), steps),
            taking(grain(name, size, options), steps),
            target=grain_least,
            rounds=options.rounds,
            units=steps * size,
        )


def resuming(options: Options) -> Iterator[Comparison]:
    """Times `set_state` and the first batch after it, late and early in an epoch."""
    source = streaming(benchmark_data.png_28(options.data_dir), options)
    pipeline = Pipeline(source=source, batch_size=128)

    def state_at(share: float) -> dict[str, Any]:
        source.advance_to(Cursor(0, int(share * len(source))))
        return pipeline.get_state()

    def run(state: dict[str, Any]) -> None:
        pipeline.set_state(state)
        jax.block_until_ready(next(iter(pipeline)))

    yield in_turn(
        "set_state to first batch, at 99 % of an epoch, against 1 %",
        partial(run, state_at(0.99)),
        partial(run, state_at(0.01)),
        target=1.0,
        rounds=4 * options.rounds,
    )


def asking(options: Options) -> Iterator[Comparison]:
    """Times computing the record numbers of one process: the only cost that grows with the job."""

    def run(processes: int, length: int) -> Callable[[], None]:
        schedule = Schedule(length, 128 * processes)
        batch = BatchAt(Order(length, 0), schedule, Cursor(), seed=0)
        rows = slice(128 * (processes // 2), 128 * (processes // 2) + 128)

        def steps() -> None:
            nonlocal batch
            for _ in range(100):
                batch.record_numbers(rows)
                batch = batch.following

        return steps

    for processes in (64, 1024):
        yield in_turn(
            f"numbers of 128 rows on 1 of {processes} processes, N = 1e9, against N = 1e6",
            run(processes, 10**9),
            run(processes, 10**6),
            target=1.0,
            rounds=4 * options.rounds,
            units=100,
        )
    yield in_turn(
        "the same on 1 of 1024 processes, against 1 of 64 (N = 1e9)",
        run(1024, 10**9),
        run(64, 10**9),
        target=1.0,
        rounds=4 * options.rounds,
        units=100,
    )


def indexing(options: Options) -> str:
    """Times building the index of 1,000,000 records, and loading it from its file."""
    path = benchmark_data.million(options.data_dir)
    index = path.parent / ".record_index" / path.name
    index.unlink(missing_ok=True)
    times = [time.perf_counter()]
    opened, _ = open_index(path, StoredFile(path).version())
    times.append(time.perf_counter())
    open_index(path, StoredFile(path).version())
    times.append(time.perf_counter())
    first, again = (duration(end - start) for start, end in itertools.pairwise(times))
    index_bytes = index.stat().st_size / len(opened)
    return (
        f"index of {len(opened):,} records: {first}, then {again}; {index_bytes:.1f} bytes a record"
        " (targets: 1 s, 5 bytes)"
    )


def boundary(options: Options) -> str:
    """Compares the longest wait for a batch at the end of an epoch with the median wait."""
    source = streaming(benchmark_data.jpeg_224(options.data_dir), options)
    waits, across = [], []
    before = source.cursor.epoch
    batches = endless(Pipeline(source=source, batch_size=64))
    next(batches)
    for _ in range(6 * len(source) // 64):
        start = time.perf_counter()
        jax.block_until_ready(next(batches))
        (waits if source.cursor.epoch == before else across).append(time.perf_counter() - start)
        before = source.cursor.epoch
    return (
        f"waits for batches of 64 JPEG: median {duration(statistics.median(waits))}, longest within"
        f" an epoch {duration(max(waits))}, longest across {len(across)} ends of epochs"
        f" {duration(max(across))}"
    )


def memory(options: Options) -> str:
    """Measures the resident memory of a subprocess after each of ten epochs."""
    command = [sys.executable, __file__, "--data-dir", str(options.data_dir), "--process", "memory"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sizes = [size / 2**20 for size in json.loads(printed.splitlines()[-1])]
    return (
        f"resident memory after each of ten epochs of 60,000 PNG: {sizes[0]:.0f} MiB after the"
        f" first, {sizes[1]:.0f} to {max(sizes[1:]):.0f} after the others, {sizes[-1]:.0f} at last"
    )


def measure_memory(options: Options) -> None:
    source = streaming(benchmark_data.png_28(options.data_dir), options)
    pipeline = Pipeline(source=source, batch_size=128)
    sizes = []
    for _ in range(10):
        for _ in pipeline:
            pass
        sizes.append(resident_bytes())
    print(json.dumps(sizes))


def growing(options: Options) -> str:
    """Measures the CPU time per record on 1, 2 and 4 processes, each reading 64 rows a batch."""
    costs = []
    for count in (1, 2, 4):
        logs = options.out / f"processes-{count}"
        logs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "datarax_tfds", "launch", str(count), "--logs", str(logs)]
        command += ["--timeout-s", "300", "--", sys.executable, __file__]
        command += ["--data-dir", str(options.data_dir), "--out", str(logs), "--process", "share"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        results = [json.loads((logs / f"{process}.json").read_text()) for process in range(count)]
        costs.append(f"{count}: {statistics.mean(results) * 1e6:.0f} us")
    return f"CPU time a record read, by the number of processes: {', '.join(costs)}"


def measure_share(options: Options) -> None:
    jax.config.update("jax_num_cpu_devices", 1)
    initialize()
    name = benchmark_data.jpeg_224(options.data_dir)
    config = TFDSStreamingConfig(
        name=name, split="train", data_dir=str(options.data_dir), shuffle=True, seed=0
    )
    source = TFDSStreamingSource(config, sharding=batch_sharding(make_mesh({"data": -1})))
    batches = endless(Pipeline(source=source, batch_size=64 * jax.process_count()))
    taking(lambda: batches, 5)()
    start = time.process_time()
    taking(lambda: batches, 40)()
    seconds = (time.process_time() - start) / (40 * 64)
    (options.out / f"{jax.process_index()}.json").write_text(json.dumps(seconds))


def main(options: Options) -> None:
    if options.process:
        {"memory": measure_memory, "share": measure_share}[options.process](options)
        return

    def comparisons() -> Iterator[Comparison]:
        yield from against(options)
        yield from resuming(options)
        yield from asking(options)

    reports = (indexing, boundary, memory, growing)
    title = f"streaming source, {jax.default_backend()}, jax {jax.__version__}"
    show(title, comparisons(), (report(options) for report in reports), options.out / "streaming")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
