"""Compares reading from an object store with latency with tf.data, and with what the store can do.

python scripts/benchmarks/benchmark_object_store.py

The store is a process on loopback that answers each request late. TensorStore and the file system
of TensorFlow both reach it as storage.googleapis.com, by TLS through the same proxy. The records
are arrays of bytes, so that decoding takes little. What is compared is measured in turn, and each
ratio is that of one round.
"""

import itertools
import multiprocessing
import os
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmark_words  # noqa: F401  (says what takes so long)
import numpy as np
import psutil
import tyro
from rich.console import Console
from rich.table import Table

sys.path[:0] = [str(Path(__file__).parents[2] / part) for part in ("tests", "scripts")]

DATASETS = "gs://benchmark/datasets"
HOSTS = "subjectAltName=DNS:storage.googleapis.com,DNS:www.googleapis.com"


@dataclass(frozen=True)
class Options:
    """What to read."""

    records: int = 4000
    record_bytes: int = 25_000
    shards: int = 100
    large_shard_bytes: int = 75_000_000
    latency_ms: float = 30.0
    batch_size: int = 64
    rounds: int = 5


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write("bytes", options.records, options.shards, options, Path(folder))
        write("large", options.large_shard_bytes // options.record_bytes, 1, options, Path(folder))
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        with served(Path(folder), options.latency_ms / 1000) as set_latency:
            table = Table("what", "median", "each round", title=str(options))
            for line in rates(options, Path(folder)):
                table.add_row(*line)
            table.add_row(*index_pass(options))
            table.add_row(*first_batch(options, set_latency))
            Console().print(table)


def rates(options: Options, folder: Path) -> Iterator[tuple[str, str, str]]:
    limit = 32 / options.latency_ms * 1000
    read_ours(options, access="random")  # makes the indexes, and imports what is needed
    before = psutil.Process().memory_info().rss
    cases: dict[str, Callable[[], float]] = {
        "single records": lambda: read_ours(options, access="random"),
        "blocks of 2 MiB": lambda: read_ours(options, shuffle_buffer_size=2048),
        "blocks on the local disk": lambda: read_ours(
            options, shuffle_buffer_size=2048, cache_dir=f"{folder}/kept"
        ),
        "tf.data": lambda: read_tf_data(options),
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, measure in cases.items():
            found[name].append(measure())
            print(f"{name}: {found[name][-1]:,.0f} records per second", flush=True)
    for name, each in found.items():
        yield summary(f"{name}, records per second", each, ",.0f")
    single, blocks, _, peer = found.values()
    yield summary("single records / (32 requests / latency)", [a / limit for a in single])
    yield summary("blocks / single records", ratios(blocks, single))
    yield summary("blocks / tf.data", ratios(blocks, peer))
    yield summary("single records / tf.data", ratios(single, peer))
    grown = psutil.Process().memory_info().rss - before
    yield "memory of the process after this, more than before, MB", f"{grown / 1e6:,.0f}", ""


def ratios(some: list[float], others: list[float]) -> list[float]:
    return [a / b for a, b in zip(some, others, strict=True)]


def summary(what: str, each: list[float], form: str = ".2f") -> tuple[str, str, str]:
    return what, format(statistics.median(each), form), " ".join(format(a, form) for a in each)


def read_ours(options: Options, **fields: Any) -> float:
    """Records per second."""
    from datarax_tfds import TFDSStreamingConfig, TFDSStreamingSource

    config = TFDSStreamingConfig(
        name="bytes", split="train", data_dir=DATASETS, shuffle=True, **fields
    )
    source = TFDSStreamingSource(config)
    return rate(iter(lambda: source.get_batch(options.batch_size), None), options)


def read_tf_data(options: Options) -> float:
    """The same by tf.data: 32 files at once, and as large a buffer to shuffle in."""
    import tensorflow as tf

    name = f"{DATASETS}/bytes/1.0.0/bytes-train.tfrecord-{{:05}}-of-{{:05}}"
    files = [name.format(shard, options.shards) for shard in range(options.shards)]
    spec = {"x": tf.io.FixedLenFeature([], tf.string)}

    def opened(file: Any) -> Any:
        return tf.data.TFRecordDataset(file, buffer_size=4 << 20)  # a file takes one request

    def decode(record: Any) -> Any:
        return tf.io.decode_raw(tf.io.parse_single_example(record, spec)["x"], tf.uint8)

    dataset = (
        tf.data.Dataset.from_tensor_slices(files)
        .shuffle(options.shards)
        .repeat()
        .interleave(opened, cycle_length=32, num_parallel_calls=32, deterministic=False)
        .shuffle(2048)
        .map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(options.batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )
    return rate(dataset.as_numpy_iterator(), options)


def rate(batches: Iterator[Any], options: Options) -> float:
    """Records per second of three epochs, much more than is read ahead, after a first one."""
    steps = options.records // options.batch_size
    for _ in itertools.islice(batches, steps):
        pass
    steps *= 3
    begun = time.perf_counter()
    for _ in itertools.islice(batches, steps):
        pass
    return steps * options.batch_size / (time.perf_counter() - begun)


def index_pass(options: Options) -> tuple[str, str, str]:
    """How fast an index is made, as a part of how fast TensorStore reads the same object."""
    from datarax_tfds.files.stored_object import ObjectStream
    from datarax_tfds.files.tfrecord import scanned_starts
    from datarax_tfds.stores.object_path import ObjectPath
    from datarax_tfds.stores.object_store import generation

    path = ObjectPath.parse(f"{DATASETS}/large/1.0.0/large-train.tfrecord-00000-of-00001")
    assert path is not None
    now = generation(path)
    parts = []
    for _ in range(options.rounds):
        begun = time.perf_counter()
        starts = scanned_starts(path, ObjectStream(path, now))
        made = time.perf_counter()
        read_at_once(path, int(starts[-1]))
        parts.append((time.perf_counter() - made) / (made - begun))
    return summary("pass of the index / bandwidth of 32 requests", parts)


def read_at_once(path: Any, size: int) -> None:
    """Reads an object as fast as TensorStore can: all of it at once, in requests of 4 MiB."""
    from datarax_tfds.stores.object_store import PendingRanges

    step = 4 << 20
    pending = [
        PendingRanges(path, [(start, min(start + step, size))]) for start in range(0, size, step)
    ]
    for each in pending:
        each.result()


def first_batch(options: Options, set_latency: Callable[[float], None]) -> tuple[str, str, str]:
    """In round trips: how much later the first batch comes if each answer comes a second later."""
    from datarax_tfds import TFDSStreamingConfig, TFDSStreamingSource

    def seconds(latency_s: float) -> float:
        set_latency(latency_s)
        begun = time.perf_counter()
        config = TFDSStreamingConfig(name="bytes", split="train", data_dir=DATASETS, shuffle=True)
        TFDSStreamingSource(config).get_batch(options.batch_size)
        return time.perf_counter() - begun

    trips = [seconds(1.0) - seconds(0.0) for _ in range(options.rounds)]
    set_latency(options.latency_ms / 1000)
    return summary(f"round trips to the first batch of {options.shards} shards", trips, ".1f")


def write(name: str, records: int, shards: int, options: Options, folder: Path) -> None:
    """Prepares a dataset of arrays of bytes."""
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    size = options.record_bytes
    examples = ((n, {"x": rng.integers(0, 256, size, np.uint8)}) for n in range(records))
    feature = tfds.features.Tensor(shape=(size,), dtype=np.uint8, encoding="bytes")
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict({"x": feature}),
        split_datasets={"train": examples},
        data_dir=folder,
        disable_shuffling=True,
        download_config=tfds.download.DownloadConfig(num_shards=shards),
    )


@contextmanager
def served(folder: Path, latency_s: float) -> Iterator[Callable[[float], None]]:
    """Serves the datasets of a directory as `DATASETS` from another process.

    Gives the function that sets the latency of each answer.
    """
    subprocess.run(
        [shutil.which("openssl") or "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=store",
         "-addext", HOSTS,
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(folder, theirs), daemon=True)
    server.start()
    theirs.close()  # so that a server that dies is noticed
    proxy = ours.recv()
    os.environ |= {
        "https_proxy": proxy,
        "no_proxy": "",
        "CURL_CA_BUNDLE": str(folder / "cert.pem"),  # for TensorFlow
        "TENSORSTORE_CA_BUNDLE": str(folder / "cert.pem"),
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        "NO_GCE_CHECK": "true",
    }

    def set_latency(latency_s: float) -> None:
        ours.send(latency_s)
        ours.recv()

    try:
        set_latency(latency_s)
        yield set_latency
    finally:
        server.kill()
        server.join()


def serve(folder: Path, pipe: Any) -> None:
    from faulty_store import FaultyStore  # pyright: ignore  # of tests

    with FaultyStore.started() as store:
        store.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        store.tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        for name in ("bytes", "large"):
            store.put(folder / name, f"datasets/{name}")
        pipe.send(os.environ["TENSORSTORE_GCS_HTTP_URL"])
        while True:
            store.latency_s = pipe.recv()
            pipe.send("set")


if __name__ == "__main__":
    main(tyro.cli(Options))
