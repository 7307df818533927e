"""What is read from a store ahead of its use: each record once, within the budget."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from datarax_tfds import Cursor, DataLossError
from datarax_tfds.files.prefetched_files import BUDGET_BYTES, PrefetchedFiles, records_ahead
from datarax_tfds.order.cursor import Schedule
from datarax_tfds.order.order import Order
from datarax_tfds.order.sampler import Sampler
from datarax_tfds.records.read_ahead import ReadAhead

LENGTH = 10_000


class Files:
    """Records that are read, of which one is damaged."""

    def __init__(self, damaged=None):
        self.damaged = damaged
        self.read_numbers = []
        self.lock = threading.Lock()

    def read(self, numbers):
        with self.lock:
            self.read_numbers += numbers.tolist()
        if self.damaged in numbers:
            raise DataLossError(f"record {self.damaged} is damaged")
        return [b"%d" % number for number in numbers.tolist()]


def numbers(*values):
    return np.array(values)


@pytest.mark.parametrize(("record_bytes", "alone", "records"), [
    (25_000, False, BUDGET_BYTES // 25_000),
    (25_000, True, 1024),  # requests
    (100.0, False, 1 << 15),
    (1e9, True, 0),
])  # fmt: skip
def test_the_budget_is_in_bytes_and_small_records_are_counted(record_bytes, alone, records):
    assert records_ahead(record_bytes, alone=alone) == records


def test_each_record_is_read_once_whether_it_was_prefetched_or_not():
    files = Files()
    prefetched = PrefetchedFiles(files.read, record_bytes=10)
    prefetched.prefetch(np.arange(0, 1000, 2))
    prefetched.prefetch(np.arange(0, 600, 2))
    wanted = np.random.default_rng(0).permutation(1000)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(prefetched.read, np.split(wanted, 10)))
    assert sum(found, []) == [b"%d" % number for number in wanted.tolist()]
    assert sorted(files.read_numbers) == list(range(1000))


def test_a_damaged_record_is_an_error_of_its_own_read_only():
    prefetched = PrefetchedFiles(Files(damaged=13).read, record_bytes=10)
    prefetched.prefetch(np.arange(100))
    assert prefetched.read(numbers(12, 14)) == [b"12", b"14"]
    with pytest.raises(DataLossError, match="13"):
        prefetched.read(numbers(13))


def test_what_is_never_read_is_dropped_when_more_is_prefetched():
    files = Files()
    prefetched = PrefetchedFiles(files.read, record_bytes=BUDGET_BYTES // 4)
    for start in range(0, 40, 4):
        prefetched.prefetch(np.arange(start, start + 4))
    before = len(files.read_numbers)
    assert prefetched.read(numbers(39, 0)) == [b"39", b"0"]
    assert files.read_numbers[before:].count(0) == 1  # it was dropped


@pytest.mark.parametrize(
    ("ahead", "batch_size"),
    [(64, 2), (1000, 16), (5, 2), (3, 8), (100, 1)],  # 3: at least one batch
)
def test_batches_are_prefetched_once_each_within_the_budget(ahead, batch_size):
    began, held = set(), set()  # numbers that were prefetched; and of those, not decoded yet

    def prefetch(some):
        assert not began & set(some.tolist())
        began.update(some.tolist())
        held.update(some.tolist())
        assert len(held) <= max(ahead, batch_size)

    decoded_first = set()

    def submit(_, some, *__):
        decoded_first.update(set(some.tolist()) - began)
        held.difference_update(some.tolist())
        return SimpleNamespace(cancel=lambda: None)

    reader = SimpleNamespace(
        length=LENGTH, reach=LENGTH, record_bytes=0, holds_arrays=False, stochastic=False,
        parallel=3,
        records_ahead=lambda shuffled: ahead, holds=lambda numbers: numbers < LENGTH,
    )  # fmt: skip
    decoded = SimpleNamespace(read=None, prefetch=prefetch)
    pool = SimpleNamespace(submit=submit)
    read_ahead = ReadAhead(reader, decoded, pool, lambda size: [(0, size)], depth=2)  # pyright: ignore
    sampler = Sampler(Order(LENGTH, 3), 3)
    batch = sampler.at(Schedule(LENGTH, batch_size), Cursor(0, 0))
    steps = 200
    for _ in range(steps):
        read_ahead.read(batch, lambda rows: None)
        batch = batch.following
    assert len(decoded_first) <= 4 * batch_size  # those at the start of the stream
    assert len(began | decoded_first) >= steps * batch_size
