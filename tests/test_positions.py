"""Positions on the host and within compiled functions are the same, with or without a key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datarax_tfds.cursor import Cursor, Schedule
from datarax_tfds.hashing import record_keys
from datarax_tfds.order import Order, index_shuffle
from datarax_tfds.positions import Positions, key_word

N = 11
SHUFFLED = Positions(Order(N, 5), 5)
STORED = Positions(Order(N), 5)
EPOCHS = np.repeat(np.arange(9), N)


def sequence(positions: Positions) -> np.ndarray:
    return np.concatenate([positions.order.span(epoch, 0, N) for epoch in range(9)])


@pytest.mark.parametrize("positions", [SHUFFLED, STORED], ids=["shuffled", "stored"])
@pytest.mark.parametrize(("epoch", "start", "size"), [
    (0, 0, 4), (2, 3, 8), (0, 9, 4), (1, 10, 25),
    (1, 40, 3),   # a position may lie beyond the epoch
    (0, 22, 11),  # a whole epoch later on
])  # fmt: skip
def test_positions_run_on_into_the_epochs_that_follow(positions, epoch, start, size):
    first = epoch * N + start
    expected = sequence(positions)[first : first + size]
    assert positions.numbers(epoch, start, size, None).tolist() == expected.tolist()
    within = jax.jit(positions.numbers_within, static_argnums=2)
    epochs, numbers = within(epoch, jnp.int32(start), size)
    assert numbers.tolist() == expected.tolist()
    assert epochs.tolist() == EPOCHS[first : first + size].tolist()


@pytest.mark.parametrize("positions", [SHUFFLED, STORED], ids=["shuffled", "stored"])
@pytest.mark.parametrize("start", [0, 3, 10, 25])
def test_with_a_key_positions_wrap_around_in_an_order_of_its_own(positions, start):
    key = jax.random.key(7)
    places = np.arange(start, start + 15) % N
    word = np.bitwise_xor.reduce(np.asarray(jax.random.key_data(key)))
    expected = index_shuffle(places, N, int(word)) if positions is SHUFFLED else places
    assert positions.numbers(0, start, 15, key).tolist() == expected.tolist()
    within = jax.jit(positions.numbers_within, static_argnums=2)
    epochs, numbers = within(0, start, 15, key)
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
    assert np.array_equal(batch.keys(), record_keys(5, epochs, batch.numbers()))
    chosen = STORED.chosen(np.array([4, 1]), epoch=6)
    assert np.array_equal(chosen.keys(), record_keys(5, 6, np.array([4, 1])))
    traced = STORED.keys_within(jnp.array([6, 6]), jnp.array([4, 1]))
    assert np.array_equal(traced, chosen.keys())
