"""Positions on the host and within compiled functions are the same, with or without a key."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import numbers_of_epochs

from datarax_tfds.order.cipher import index_shuffle
from datarax_tfds.order.cursor import Cursor, Schedule
from datarax_tfds.order.keys import record_keys
from datarax_tfds.order.order import Order
from datarax_tfds.order.sampler import Sampler, Traced, key_word

N = 11
SHUFFLED = Sampler(Order(N, 5), 5)
STORED = Sampler(Order(N), 5)
EPOCHS = np.repeat(np.arange(9), N)


def traced(sampler: Sampler, *positions: Any) -> tuple[jax.Array, jax.Array]:
    """The epochs and the numbers of consecutive positions, in a compiled function."""
    epoch, start, size, *key = positions

    @jax.jit
    def program(epoch, start, key):
        batch = sampler.traced_positions(epoch, start, size, *key)
        return batch.epochs, batch.record_numbers()

    return program(epoch, start, key)


@pytest.mark.parametrize("sampler", [SHUFFLED, STORED], ids=["shuffled", "stored"])
@pytest.mark.parametrize(("epoch", "start", "size"), [
    (0, 0, 4), (2, 3, 8), (0, 9, 4), (1, 10, 25),
    (1, 40, 3),   # a position may lie beyond the epoch
    (0, 22, 11),  # a whole epoch later on
])  # fmt: skip
def test_positions_run_on_into_the_epochs_that_follow(sampler, epoch, start, size):
    first = epoch * N + start
    expected = numbers_of_epochs(sampler.order, 9)[first : first + size]
    on_host = sampler.positions(epoch, start, size)
    assert on_host.record_numbers().tolist() == expected.tolist()
    epochs, numbers = traced(sampler, epoch, jnp.int32(start), size)
    assert numbers.tolist() == expected.tolist()
    assert epochs.tolist() == EPOCHS[first : first + size].tolist()


@pytest.mark.parametrize("sampler", [SHUFFLED, STORED], ids=["shuffled", "stored"])
@pytest.mark.parametrize("start", [0, 3, 10, 25])
def test_with_a_key_positions_wrap_around_in_an_order_of_its_own(sampler, start):
    key = jax.random.key(7)
    places = np.arange(start, start + 15) % N
    word = np.bitwise_xor.reduce(np.asarray(jax.random.key_data(key)))
    expected = index_shuffle(places, N, int(word)) if sampler is SHUFFLED else places
    on_host = sampler.positions(0, start, 15, key)
    assert on_host.record_numbers().tolist() == expected.tolist()
    epochs, numbers = traced(sampler, 0, start, 15, key)
    assert numbers.tolist() == expected.tolist()
    assert epochs.tolist() == ((start + np.arange(15)) // N).tolist()


def test_a_key_is_one_word_typed_or_raw_of_any_length():
    words = jnp.array([3, 5], jnp.uint32)
    assert key_word(words) == 6
    assert key_word(jax.random.wrap_key_data(words, impl="threefry2x32")) == 6
    assert key_word(jnp.array([1, 2, 4, 8], jnp.uint32)) == 15
    assert key_word(jnp.array([9], jnp.uint32)) == 9


def test_selections_have_the_seed_of_their_source():
    batch = SHUFFLED.at(Schedule(N, 4), Cursor(2, 9))
    epochs = np.array([2, 2, 3, 3])
    assert np.array_equal(batch.keys(), record_keys(5, epochs, batch.record_numbers()))
    selected = STORED.positions(6, 4, 3, jax.random.key(7))
    assert np.array_equal(selected.keys(), record_keys(5, 6, selected.record_numbers()))


@pytest.mark.parametrize("sampler", [SHUFFLED, STORED], ids=["shuffled", "stored"])
@pytest.mark.parametrize("remainder", ["wrap", "drop", "pad"])
def test_a_traced_batch_has_the_numbers_and_keys_of_one_on_the_host(sampler, remainder):
    schedule = Schedule(N, 4, remainder)

    @jax.jit
    def program(epoch, index):
        batch = sampler.select(schedule, Cursor(epoch, index))
        assert isinstance(batch, Traced)
        return batch.record_numbers(), batch.keys(), batch.records

    for cursor in (Cursor(0, 0), Cursor(2, 8), Cursor(3, 10)):
        numbers, keys, records = program(jnp.int32(cursor.epoch), jnp.int32(cursor.index))
        on_host = sampler.select(schedule, cursor)
        assert np.array_equal(numbers, on_host.record_numbers())
        assert np.array_equal(keys, on_host.keys())
        assert (on_host.batch_size if records is None else records) == on_host.records
