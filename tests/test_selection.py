"""Any rows of a batch, without the others: what one process of many asks for."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax_tfds.order.block_order import BlockOrder
from datarax_tfds.order.cursor import Cursor, Schedule
from datarax_tfds.order.keys import record_keys, threefry_2x32
from datarax_tfds.order.order import Order
from datarax_tfds.order.sampler import BatchAt, ByNumber

lengths = st.integers(1, 300) | st.just(70_000)


@settings(deadline=None)
@given(
    length=lengths,
    batch_size=st.integers(1, 400),
    remainder=st.sampled_from(["wrap", "pad"]),
    blocks=st.booleans(),
    data=st.data(),
)
def test_the_rows_of_a_slice_are_those_of_the_whole_batch(
    length, batch_size, remainder, blocks, data
):
    order = BlockOrder(length, 3, 8, 50) if blocks else Order(length, 3)
    cursor = Cursor(data.draw(st.integers(0, 5)), data.draw(st.integers(0, length - 1)))
    batch = BatchAt(order, Schedule(length, batch_size, remainder), cursor, seed=3)
    numbers, keys = batch.record_numbers(), batch.keys()
    assert len(numbers) == len(keys) == batch_size
    assert (numbers[: batch.records] < length).all()
    assert (numbers[batch.records :] == length).all()
    start = data.draw(st.integers(0, batch_size))
    rows = slice(start, data.draw(st.integers(start, batch_size)))
    assert np.array_equal(batch.record_numbers(rows), numbers[rows])
    assert np.array_equal(batch.keys(rows), keys[rows])


def test_a_few_rows_of_a_large_batch_are_those_of_the_order():
    """Computed alone, not with all of their chunk."""
    length, batch_size, rows = 1_000_000, 131_072, 128
    order = Order(length, 9)
    batch = BatchAt(order, Schedule(length, batch_size), Cursor(2, 900_000), seed=9)
    for start in (0, 50_048, 99_968, 130_944):
        epoch, position = divmod(900_000 + start, length)
        expected = np.concatenate(
            [
                order.host_numbers(2 + epoch, position, min(position + rows, length)),
                order.host_numbers(3 + epoch, 0, max(position + rows - length, 0)),
            ]
        )
        assert np.array_equal(batch.record_numbers(slice(start, start + rows)), expected)


def test_following_is_the_batch_after_this_one():
    schedule = Schedule(10, 4)
    batch = BatchAt(Order(10, 1), schedule, Cursor(), seed=1)
    cursors = [batch.cursor]
    for _ in range(4):
        batch = batch.following
        cursors.append(batch.cursor)
    assert cursors == [Cursor(0, 0), Cursor(0, 4), Cursor(0, 8), Cursor(1, 2), Cursor(1, 6)]
    assert batch == BatchAt(Order(10, 1), schedule, Cursor(1, 6), seed=1)


class TestKeys:
    """Seeds of a random `map_fn`: of the record and the epoch, not of the place."""

    def test_a_record_has_the_same_key_wherever_it_stands(self):
        order, schedule = Order(97, 5), Schedule(97, 24)
        keys = {}
        batch = BatchAt(order, schedule, Cursor(), seed=5)
        while batch.cursor.epoch == 0:
            rows = batch.record_numbers(slice(0, min(24, 97 - batch.cursor.index)))
            keys |= dict(zip(rows.tolist(), batch.keys().tolist(), strict=False))
            batch = batch.following
        assert len({tuple(key) for key in keys.values()}) == 97
        stored = ByNumber(order, np.arange(97), epoch=0, seed=5).keys()
        assert stored.tolist() == [keys[number] for number in range(97)]

    def test_epochs_and_seeds_have_keys_of_their_own(self):
        numbers = np.arange(1000)
        every = [record_keys(seed, epoch, numbers) for seed in (0, 1) for epoch in (0, 1)]
        words = np.concatenate(every)
        assert len(np.unique(words, axis=0)) == 4000
        assert words.dtype == np.int32
        bits = np.unpackbits(words.view(np.uint8), axis=None).mean()
        assert bits == pytest.approx(0.5, abs=0.005)

    def test_large_numbers_are_told_apart(self):
        keys = record_keys(0, 0, np.array([1, 1 + 2**32, 1 + 2**40]))
        assert len(np.unique(keys, axis=0)) == 3

    def test_the_hash_is_that_of_jax(self):
        key = jax.random.wrap_key_data(np.array([3, 7], np.uint32), impl="threefry2x32")
        folded = jax.random.key_data(jax.random.fold_in(key, 11))
        assert [int(word) for word in folded] == list(threefry_2x32((3, 7), (0, 11)))
