"""The order of buckets: each record once, in runs of one bucket, as worked out one by one."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import bucketed

from datarax_tfds.order.block_order import BlockOrder
from datarax_tfds.order.bucket_order import BucketOrder, Buckets
from datarax_tfds.order.order import Order

GOLDEN = Path(__file__).parent / "golden/buckets_v1.json"


def buckets_of(length, count):
    """Of which the first is the most frequent, and the last has a few records."""
    return (np.random.default_rng(length).random(length) ** 2 * count).astype(int)


def order_of(length, count=3, seed=5, run=8, window=64, continuous=True, base=None):
    base = base or Order(length, seed)
    return BucketOrder(base, Buckets(buckets_of(length, count)), run, window, continuous)


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 400),
    count=st.integers(1, 6),
    seed=st.sampled_from([None, 5]),
    run=st.integers(1, 12),
    runs=st.integers(1, 12),
    continuous=st.booleans(),
    epoch=st.one_of(st.integers(0, 3), st.integers(0, 2**31)),
    data=st.data(),
)
@example(9, 1, 5, 4, 4, True, 1, None)  # more records lead than are left over: a run is broken
@example(3, 2, 5, 12, 1, True, 2, None)  # no run at all
def test_an_epoch_is_that_of_the_rule_in_whatever_spans_it_comes(
    length, count, seed, run, runs, continuous, epoch, data
):
    order = order_of(length, count, seed, run, run * runs, continuous)
    whole = order.host_numbers(epoch, 0, length)
    assert whole.dtype == np.int32
    assert sorted(whole.tolist()) == list(range(length))
    buckets = buckets_of(length, count).tolist()
    rule = bucketed(Order(length, seed), buckets, run, run * runs, continuous, epoch)
    assert whole.tolist() == rule
    if data is not None:
        start = data.draw(st.integers(0, length))
        stop = data.draw(st.integers(start, length))
        assert np.array_equal(order.host_numbers(epoch, start, stop), whole[start:stop])


@pytest.mark.parametrize("batch", [2, 4, 8])
@pytest.mark.parametrize("length", [97, 400, 403])
@pytest.mark.parametrize("continuous", [True, False])
def test_batches_whose_size_divides_a_run_mix_buckets_only_where_records_are_left_over(
    length, batch, continuous
):
    """Once for each bucket but one, in each window, and at the beginning of an epoch."""
    count, epochs = 4, 6
    order = order_of(length, count, continuous=continuous)
    kinds = [order.buckets.of(order.host_numbers(epoch, 0, length)) for epoch in range(epochs)]
    if continuous:
        kinds = [np.concatenate(kinds)]
    batches = [each[: len(each) // batch * batch].reshape(-1, batch) for each in kinds]
    mixed = sum(int((each != each[:, :1]).any(axis=1).sum()) for each in batches)
    windows = -(-length // 64) + 1
    assert 0 < mixed <= epochs * (windows + 1) * (count - 1)


def test_runs_come_in_another_order_in_every_epoch_and_so_do_their_records():
    order = order_of(2000, run=8, window=2048)
    firsts = [order.host_numbers(epoch, 0, 2000) for epoch in range(3)]
    kinds = [order.buckets.of(numbers)[:1600].reshape(-1, 8) for numbers in firsts]
    assert all((each == each[:, :1]).all() for each in kinds[:1])  # epoch 0 begins with a run
    for one in range(3):
        for other in range(one):
            assert (firsts[one] == firsts[other]).mean() < 0.02
    # Longer records do not come later than others.
    places = np.flatnonzero(order.buckets.of(firsts[0])[:1900] == 2)
    assert abs(places.mean() - 950) < 150


@pytest.mark.parametrize("base", [Order(300), Order(300, 9), BlockOrder(300, 9, 8, 32)])
def test_an_order_is_rebuilt_from_its_version_and_its_buckets(base):
    order = order_of(300, base=base, run=4, window=32)
    buckets = Buckets.read(order.buckets.written())
    assert BucketOrder.base_version(order.version) == base.version
    rebuilt = BucketOrder.of_version(order.version, base, buckets)
    assert rebuilt == order
    assert np.array_equal(rebuilt.host_numbers(1, 0, 300), order.host_numbers(1, 0, 300))
    other = order_of(300, count=2, base=base, run=4, window=32)
    assert BucketOrder.of_version(order.version, base, other.buckets) is None
    assert BucketOrder.base_version(base.version) is None


@pytest.mark.parametrize("part", json.loads(GOLDEN.read_text()), ids=lambda part: part["version"])
def test_golden(part):
    """A change here is another order: it needs another version."""
    order = BucketOrder(
        Order(part["length"], part["seed"]),
        Buckets(np.array(part["buckets"])),
        part["run"],
        part["window"],
        part["continuous"],
    )
    assert order.version == part["version"]
    for epoch, numbers in enumerate(part["numbers"]):
        assert order.host_numbers(epoch, 0, part["length"]).tolist() == numbers
