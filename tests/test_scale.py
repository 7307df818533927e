"""What a process does to start and to read does not grow with the files and records of a split."""

import os
import tracemalloc

import jax
import numpy as np
import pytest
from benchmark_data import SparseSplit
from file_operations import file_operations

from datarax_tfds import Cursor, TFDSStreamingConfig, TFDSStreamingSource
from datarax_tfds.order.order import Order
from datarax_tfds.records.cache import RecordCache

ROWS, SEED = 16, 7


@pytest.fixture
def split_of(tmp_path):
    """Writes a split with the records that its first batch and one far in the epoch need."""

    def written(files, file_records):
        split = SparseSplit(tmp_path / f"{files}-{file_records}", files, file_records)
        split.write([0, len(split) - 1, *needed(split, 0), *needed(split, len(split) // 2)])
        return split

    return written


def needed(split, index):
    return Order(len(split), SEED).host_numbers(0, index, index + ROWS)


def opened(split):
    fields = {"name": split.name, "split": "train", "data_dir": str(split.data_dir)}
    return TFDSStreamingSource(
        TFDSStreamingConfig(**fields, shuffle=True, seed=SEED, prefetch_buffer=0)
    )


def read(source, split, index):
    found = np.asarray(source.get_batch(ROWS)["x"])[:, :2]
    assert (
        found.tolist() == np.stack(np.divmod(needed(split, index), split.file_records), 1).tolist()
    )


def test_a_start_and_a_resume_take_as_many_file_operations_for_ten_files_as_for_hundreds(split_of):
    counted = []
    for files in (10, 300):
        split = split_of(files, 1000)
        opened(split)  # imports modules
        with file_operations() as construction:
            source = opened(split)
        state = source.get_state()
        source.seek(Cursor(0, len(split) // 2))
        state = source.get_state()
        with file_operations() as restoring:
            source.set_state(state)
        with file_operations() as batch:
            read(source, split, len(split) // 2)
        counted.append([dict(construction), dict(restoring)])
        assert construction.total() < 100
        assert batch.total() <= 8 * ROWS
    assert counted[0] == counted[1]
    assert counted[0][1] == {}


def test_a_batch_reads_its_records_and_a_few_pages_of_indexes(split_of, monkeypatch):
    split, read_bytes, pread = split_of(20, 500_000), [], os.pread
    source = opened(split)

    def counting(*args):
        content = pread(*args)
        read_bytes.append(len(content))
        return content

    monkeypatch.setattr(os, "pread", counting)
    read(source, split, 0)
    assert sum(read_bytes) <= ROWS * (split.frame_bytes + 4 * 4096)  # an index has 2 MB


def test_memory_does_not_grow_with_the_number_of_records(split_of):
    kept = []
    for file_records in (1000, 1_000_000):
        split = split_of(20, file_records)
        read(opened(split), split, 0)
        tracemalloc.start()
        source = opened(split)
        read(source, split, 0)
        kept.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert kept[1] < kept[0] + (1 << 20)  # 4 bytes a record would be 80 MB


def test_an_index_that_is_missing_is_built_at_the_start_and_the_others_are_not_looked_at(data_dir):
    name, fields = "tiny", {"split": "train", "data_dir": str(data_dir)}
    config = TFDSStreamingConfig(name=name, **fields, prefetch_buffer=0)
    TFDSStreamingSource(config)
    missing, *others = sorted((data_dir / name / "1.0.0" / ".record_index").glob("*train*"))
    content = missing.read_bytes()
    missing.unlink()
    times = [path.stat().st_mtime_ns for path in others]
    with file_operations() as counts:
        TFDSStreamingSource(config)
    assert missing.read_bytes() == content
    assert counts["replace"] == 1
    assert [path.stat().st_mtime_ns for path in others] == times


class TestRecordCache:
    """It keeps the first records that come, and nothing for the others."""

    length = 10**12

    def cache(self, max_bytes):
        reads = []

        def read(numbers):
            reads.extend(numbers.tolist())
            return {"x": numbers * 3}

        spec = {"x": jax.ShapeDtypeStruct((), np.int64)}
        return RecordCache(
            read, lambda _: None, spec, length=self.length, max_bytes=max_bytes
        ), reads

    def test_it_returns_what_was_read_whatever_it_holds(self):
        cache, reads = self.cache(max_bytes=1600)  # a hundred records
        numbers, asked = np.random.default_rng(0).integers(0, self.length, 1000), 0
        for size in (1, 7, 50, 300):
            for start in range(0, 1000, size):
                part = np.append(numbers[start : start + size], numbers[start])  # one twice
                assert cache.read(part)["x"].tolist() == (3 * part).tolist()
                asked += len(part)
        assert len(reads) < asked - 3 * 100

    def test_it_never_evicts_and_fills_itself(self):
        cache, reads = self.cache(max_bytes=1600)
        cache.read(np.arange(self.length - 1000, self.length))
        reads.clear()
        cache.read(np.arange(self.length - 1000, self.length))
        assert reads == list(range(self.length - 900, self.length))
        cache.clear()
        reads.clear()
        cache.read(np.arange(10))
        assert reads == list(range(10))

    def test_records_that_share_a_place_are_told_apart(self):
        cache, reads = self.cache(max_bytes=16)  # one record
        for numbers in ([5, 6, 5], [6, 5], [7]):
            assert cache.read(np.array(numbers))["x"].tolist() == [3 * n for n in numbers]
        assert reads == [5, 6, 5, 6, 7]

    def test_without_room_for_a_record_it_only_reads(self):
        cache, reads = self.cache(max_bytes=15)
        for _ in range(2):
            assert cache.read(np.array([1]))["x"].tolist() == [3]
        assert reads == [1, 1]
