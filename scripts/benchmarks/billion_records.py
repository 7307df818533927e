"""Shows what one host of a thousand does to read a split of a billion records in 10,000 files.

python scripts/benchmarks/billion_records.py

The split has 8 TB in sparse files: only the records that are read are on the disk. Its indexes are
there. Last, indexes of real files are built, on one core.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import benchmark_words  # noqa: F401  (says what takes so long)
import numpy as np
import tyro
from benchmark_data import SparseSplit
from file_operations import file_operations
from rich.console import Console
from rich.table import Table

from datarax_tfds import Cursor, TFDSStreamingConfig, TFDSStreamingSource
from datarax_tfds.files.tfrecord import scanned_starts
from datarax_tfds.order.order import Order

SEED = 7


@dataclass(frozen=True)
class Options:
    """What to read."""

    files: int = 10_000
    file_records: int = 100_000
    rows: int = 64  # those of one host, in a batch
    rounds: int = 2


def reading(options: Options, data_dir: Path) -> Table:
    """What the start of a job, its first batch and a resume cost."""
    split = SparseSplit(data_dir, options.files, options.file_records)
    order, far = Order(len(split), SEED), len(split) // 3
    first, resumed = (order.host_numbers(0, at, at + options.rows) for at in (0, far))
    split.write([0, len(split) - 1, *first, *resumed])
    config = TFDSStreamingConfig(
        name=split.name,
        split="train",
        data_dir=str(data_dir),
        shuffle=True,
        seed=SEED,
        prefetch_buffer=0,
    )
    table = Table(
        "what", "seconds", "of a core", "memory", "file operations", title=f"{len(split):,} records"
    )
    read_by_tfds(split)  # imports TensorFlow
    for _ in range(options.rounds):
        with row(table, "TFDS alone reads the metadata"):
            read_by_tfds(split)
        with row(table, "construction, in which TFDS does the same"):
            source = TFDSStreamingSource(config)
        with row(table, f"first batch of {options.rows} rows"):
            batch = source.get_batch(options.rows)
        check(batch["x"], first, split)
        state = at(source, far).get_state()
        with row(table, "construction again, and restoring a state"):
            source = TFDSStreamingSource(config)
            source.set_state(state)
        with row(table, "resumed batch"):
            batch = source.get_batch(options.rows)
        check(batch["x"], resumed, split)
        table.add_section()
    return table


def at(source: TFDSStreamingSource, index: int) -> TFDSStreamingSource:
    source.seek(Cursor(0, index))
    return source


def read_by_tfds(split: SparseSplit) -> None:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(split.directory)
    assert len(builder.info.splits["train"].file_instructions) == split.files


def check(rows: object, numbers: np.ndarray, split: SparseSplit) -> None:
    """Compares the records that were read with those of these numbers."""
    wanted = np.stack(np.divmod(numbers, split.file_records), axis=1)
    np.testing.assert_array_equal(np.asarray(rows)[:, :2], wanted)


@contextmanager
def row(table: Table, what: str) -> Iterator[None]:
    before, start, core = resident_bytes(), time.perf_counter(), time.process_time()
    with file_operations() as counts:
        yield
    seconds, core_s = time.perf_counter() - start, time.process_time() - core
    memory = f"{(resident_bytes() - before) / 2**20:+.0f} MiB"
    table.add_row(what, f"{seconds:.2f}", f"{core_s:.2f}", memory, listed(counts))


def listed(counts: Counter[str]) -> str:
    kinds = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return f"{counts.total()} ({kinds})"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def indexing(data_dir: Path) -> Table:
    """How many records of a file are found per second of a core."""
    import tensorflow as tf

    table = Table("bytes of a record", "records/s of a core", title="building an index")
    for record_bytes, records in ((100, 1_000_000), (1_000, 500_000), (20_000, 20_000)):
        path = data_dir / "real.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _ in range(records):
                writer.write(bytes(record_bytes))
        scanned_starts(path)
        start = time.process_time()
        assert len(scanned_starts(path)) == records + 1
        table.add_row(f"{record_bytes:,}", f"{records / (time.process_time() - start):,.0f}")
    return table


def main() -> None:
    options = tyro.cli(Options)
    with tempfile.TemporaryDirectory() as data_dir:
        tables = reading(options, Path(data_dir)), indexing(Path(data_dir))
    for table in tables:
        Console(width=150).print(table)


if __name__ == "__main__":
    main()
