"""Shows how fast records are read from an object store with latency.

python scripts/benchmarks/benchmark_object_store.py

The store is a process on loopback that answers each request late. The records are arrays of bytes,
so that decoding takes little.
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

sys.path[:0] = [str(Path(__file__).parents[2] / part) for part in ("tests", "scripts")]

DATASETS = "gs://benchmark/datasets"


@dataclass(frozen=True)
class Options:
    """What to read."""

    records: int = 4000
    record_bytes: int = 25_000
    shards: int = 100
    latency_ms: float = 30.0
    batch_size: int = 64
    rounds: int = 3


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(options, Path(folder))
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        with served(Path(folder) / "bytes", options.latency_ms / 1000):
            table = Table("what", "records per second", "each round", title=str(options))
            limit = 32 / options.latency_ms * 1000
            table.add_row("32 requests under way, each for one record", f"{limit:,.0f}", "")
            first = time.perf_counter()
            rate(options)
            table.add_row("indexes made, and one epoch", "", f"{time.perf_counter() - first:.1f} s")
            cases: dict[str, Any] = {
                "single records": {"access": "random"},
                "blocks of 2 MiB": {"access": "auto", "shuffle_buffer_size": 2048},
            }
            found = {
                name: [rate(options, **case) for _ in range(options.rounds)]
                for name, case in cases.items()
            }
            for name, rates in found.items():
                each = " ".join(f"{each:,.0f}" for each in rates)
                table.add_row(name, f"{statistics.median(rates):,.0f}", each)
            Console().print(table)


def write(options: Options, folder: Path) -> None:
    """Prepares a dataset of arrays of bytes."""
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    size = options.record_bytes
    examples = ((n, {"x": rng.integers(0, 256, size, np.uint8)}) for n in range(options.records))
    feature = tfds.features.Tensor(shape=(options.record_bytes,), dtype=np.uint8, encoding="bytes")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="bytes",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"x": feature}),
        split_datasets={"train": examples},
        data_dir=folder,
        disable_shuffling=True,
        download_config=tfds.download.DownloadConfig(num_shards=options.shards),
    )


@contextmanager
def served(directory: Path, latency_s: float) -> Iterator[None]:
    """Serves a directory as `DATASETS` from another process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(directory, latency_s, theirs), daemon=True)
    server.start()
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = ours.recv()
    try:
        yield
    finally:
        server.kill()
        server.join()


def serve(directory: Path, latency_s: float, pipe: Any) -> None:
    from faulty_store import FaultyStore  # pyright: ignore  # of tests

    with FaultyStore.started() as store:
        store.put(directory, f"datasets/{directory.name}")
        store.latency_s = latency_s
        pipe.send(os.environ["TENSORSTORE_GCS_HTTP_URL"])
        time.sleep(3600)


def rate(options: Options, **fields: Any) -> float:
    """Records per second of an epoch, with its first batch."""
    from datarax_tfds import TFDSStreamingConfig, TFDSStreamingSource

    config = TFDSStreamingConfig(
        name="bytes", split="train", data_dir=DATASETS, shuffle=True, **fields
    )
    source = TFDSStreamingSource(config)
    steps = options.records // options.batch_size
    begun = time.perf_counter()
    for _ in range(steps):
        source.get_batch(options.batch_size)
    return steps * options.batch_size / (time.perf_counter() - begun)


if __name__ == "__main__":
    main(tyro.cli(Options))
