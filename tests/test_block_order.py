"""The order for stores where small reads are slow: every record once, and anew each epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax_tfds.order.block_order import BlockOrder


@settings(deadline=None)
@given(
    length=st.integers(1, 3000),
    block_size=st.integers(1, 40),
    window=st.integers(1, 500),
    epoch=st.integers(0, 2**31),
    data=st.data(),
)
def test_an_epoch_holds_every_record_once_in_whatever_spans_it_comes(
    length, block_size, window, epoch, data
):
    order = BlockOrder(length, 7, block_size, window)
    whole = order.host_numbers(epoch, 0, length)
    assert np.array_equal(np.sort(whole), np.arange(length))
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    assert np.array_equal(order.host_numbers(epoch, start, stop), whole[start:stop])


def test_golden_prefix():
    order = BlockOrder(100, seed=5, block_size=8, window=30)
    assert order.host_numbers(0, 0, 12).tolist() == [55, 25, 51, 26, 49, 24, 54, 31, 52, 29, 50, 27]
    assert order.version == "blocks of 8 in windows of 2 blocks, 1"


def test_golden_epoch_with_a_short_block():
    """Records 16 to 20 are in it: dealt out from the first round on, while there are any."""
    order = BlockOrder(21, seed=5, block_size=8, window=24)
    rounds = [16, 1, 17, 3, 20, 5, 18, 7, 19, 2, 4, 0, 6]
    assert order.host_numbers(2, 0, 21).tolist() == [*rounds, 11, 12, 14, 13, 15, 9, 8, 10]


def test_seeds_and_epochs_are_unrelated():
    orders = [BlockOrder(10_000, seed, 8, 1000).host_numbers(epoch, 0, 10_000)
              for seed in (0, 1) for epoch in (0, 1)]  # fmt: skip
    for one in range(4):
        for other in range(one):
            assert (orders[one] == orders[other]).mean() < 0.002


def test_a_round_takes_one_record_of_each_of_the_blocks_in_a_window():
    order = BlockOrder(8 * 512, 3, block_size=8, window=1000)  # 64 blocks, 512 records
    for window in range(8):
        blocks = order.host_numbers(0, window * 512, (window + 1) * 512).reshape(8, 64) // 8
        assert len(set(blocks[0])) == 64
        assert (blocks == blocks[0]).all()


def test_the_last_block_comes_at_any_place():
    """Else `drop` would leave out the same records in every epoch."""
    places = [np.flatnonzero(BlockOrder(83, 1, 8, 16).host_numbers(epoch, 0, 83) == 82)[0]
              for epoch in range(200)]  # fmt: skip
    assert min(places) < 10
    assert max(places) > 72
    assert len(set(places)) > 25


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_each_process_reads_blocks_of_its_own(processes):
    """Where the batch size divides the blocks of a window: 64 of them here."""
    batch_size, rows = 64, 64 // processes
    order = BlockOrder(40_000, 1, block_size=8, window=1000)
    numbers = order.host_numbers(0, 0, 40_000 // batch_size * batch_size).reshape(
        -1, processes, rows
    )
    readers = [set(np.unique(numbers[:, process] // 8)) for process in range(processes)]
    assert sum(map(len, readers)) < 1.05 * len(set().union(*readers))


@pytest.mark.parametrize(
    ("window", "blocks"), [(1, 1), (4, 1), (7, 1), (8, 2), (15, 2), (16, 4), (1000, 128)]
)
def test_a_window_holds_a_power_of_two_of_whole_blocks(window, blocks):
    order = BlockOrder(97, 5, 4, window)
    assert order.version == f"blocks of 4 in windows of {blocks} blocks, 1"


@pytest.mark.parametrize(("block_size", "window"), [(1, 1), (4, 32), (8, 1000), (7, 3), (3, 100)])
def test_an_order_of_blocks_is_rebuilt_from_its_version(block_size, window):
    order = BlockOrder(97, 5, block_size, window)
    rebuilt = BlockOrder.of_version(order.version, 97, 5)
    assert np.array_equal(rebuilt.host_numbers(3, 0, 97), order.host_numbers(3, 0, 97))
    assert rebuilt.version == order.version


@pytest.mark.parametrize(
    "version", ["", "1", "blocks of 0 in windows of 1 blocks, 1",
                "blocks of 4 in windows of 3 blocks, 1", "blocks of 4 in windows of 8 blocks, 2"],
)  # fmt: skip
def test_an_order_of_other_blocks_is_not_known(version):
    assert BlockOrder.of_version(version, 97, 5) is None
