import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grain.experimental import index_shuffle as grains
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax_tfds.order.cipher import index_shuffle
from datarax_tfds.order.keys import epoch_key
from datarax_tfds.order.order import Order

GOLDEN = Path(__file__).parent / "golden"
NEIGHBOURS = sorted({2**power + offset for power in range(1, 21) for offset in (-1, 0, 1)})
SEEDS = st.integers(0, 2**32 - 1)


def whole(order: Order, epoch: int) -> np.ndarray:
    return order.host_numbers(epoch, 0, order.length)


@pytest.mark.parametrize("length", [1, 2, 3, 60_000, *NEIGHBOURS])
def test_every_epoch_is_a_permutation(length):
    for epoch in (0, 1):
        assert np.array_equal(np.sort(whole(Order(length, seed=5), epoch)), np.arange(length))


@pytest.mark.parametrize("golden", json.loads((GOLDEN / "order_v1.json").read_text()), ids=str)
def test_the_order_never_changes_within_a_version(golden):
    """The file was computed with Grain. Another result is another order.VERSION."""
    order = Order(golden["length"], golden["seed"])
    assert order.host_numbers(golden["epoch"], 0, 10).tolist() == golden["first"]


@settings(max_examples=200, deadline=None)
@given(
    length=st.one_of(st.integers(2, 300), st.integers(2, 2**31 - 1), st.integers(2, 2**47)),
    seed=SEEDS,
    rounds=st.sampled_from([4, 6, 8, 16]),
    data=st.data(),
)
def test_numpy_equals_grain(length, seed, rounds, data):
    if (length - 1).bit_length() != max(length - 2, 1).bit_length():
        length += 1  # lengths 4**k + 1: see the next test
    position = data.draw(st.integers(0, length - 1))
    ours = index_shuffle(np.array([position]), length, seed, rounds)
    assert ours[0] == grains(position, max_index=length - 1, seed=seed, rounds=rounds)


@pytest.mark.parametrize("length", [4**k - less for k in (8, 9, 16, 17) for less in (0, 1, 2)])
def test_numpy_equals_grain_where_a_block_is_full(length):
    positions = np.array([0, 1, length // 3, length - 1])
    theirs = [grains(int(p), max_index=length - 1, seed=9, rounds=16) for p in positions]
    assert index_shuffle(positions, length, 9).tolist() == theirs


def test_where_grain_is_no_permutation_ours_is():
    length = 4**8 + 1
    theirs = {grains(i, max_index=length - 1, seed=5, rounds=16) for i in (0, length - 1)}
    assert len(theirs) == 1
    ours = index_shuffle(np.array([0, length - 1]), length, 5)
    assert ours[0] != ours[1]


def test_a_value_equal_to_the_length_is_encrypted_again():
    length, key = 65_534, 12_983  # under that key the block takes 65,535 to 65,534
    numbers = index_shuffle(np.arange(length), length, key)
    assert np.array_equal(np.sort(numbers), np.arange(length))


@functools.cache
def jitted(length: int):
    return jax.jit(functools.partial(index_shuffle, length=length))


@pytest.mark.parametrize("length", [1, 2, 3, 97, 1797, 60_000, 65_537, 10**7, 2**31 - 1])
@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_jax_equals_numpy(length, seed):
    positions = np.unique(np.linspace(0, length - 1, 40, dtype=np.int64))
    on_device = jitted(length)(jnp.asarray(positions, jnp.int32), key=jnp.uint32(seed))
    assert on_device.dtype == jnp.int32
    assert np.array_equal(on_device, index_shuffle(positions, length, seed))


def test_jax_takes_every_position_with_its_own_epoch():
    order = Order(97, seed=3)
    epochs = np.repeat(np.arange(4), 97)
    positions = np.tile(np.arange(97), 4)
    numbers = jax.jit(order.device_numbers)(jnp.asarray(epochs), jnp.asarray(positions))
    assert np.array_equal(numbers, np.concatenate([whole(order, epoch) for epoch in range(4)]))


@given(seed=SEEDS, epoch=st.integers(0, 2**31 - 1))
def test_epoch_keys_are_those_of_jax_random(seed, epoch):
    key = jax.random.fold_in(jax.random.key(np.uint32(seed), impl="threefry2x32"), epoch)
    assert epoch_key(seed, epoch) == np.asarray(jax.random.key_data(key))[0]


@given(length=st.integers(1, 200_000), seed=SEEDS, epoch=st.integers(0, 99), data=st.data())
@settings(max_examples=50, deadline=None)
def test_any_span_is_the_same_piece_of_the_epoch(length, seed, epoch, data):
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    order = Order(length, seed)
    assert np.array_equal(order.host_numbers(epoch, start, stop), whole(order, epoch)[start:stop])


@pytest.mark.parametrize("stride", [0, 15 * 20, 16 * 20, 10**6])
@pytest.mark.parametrize("length", [2**16, 2**16 + 1, 100_000])
def test_a_span_alone_is_that_of_its_chunk(length, stride):
    order = Order(length, 3)
    for start in (0, 1, length // 2, 2**16 - 21, 2**16 - 10, length - 20):
        stop = min(start + 20, length)
        assert np.array_equal(
            order.host_numbers(1, start, stop, stride), whole(order, 1)[start:stop]
        )


@pytest.mark.parametrize(("length", "dtype"), [(2**31 - 1, np.int32), (2**31, np.int64)])
@pytest.mark.parametrize("seed", [None, 5])
def test_numbers_are_int32_where_that_holds_them(length, dtype, seed):
    order = Order(length, seed)
    assert order.host_numbers(0, 0, 3).dtype == dtype
    assert order.host_numbers(0, length - 2, length, stride=99).dtype == dtype
    assert order.version == 1


def test_an_order_has_records():
    with pytest.raises(ValueError, match=r"no records(.|\n)*fix:"):
        Order(0)


def test_without_a_seed_the_order_is_as_stored():
    order = Order(10)
    assert order.host_numbers(3, 2, 5).tolist() == [2, 3, 4]
    assert order.device_numbers(jnp.zeros(2, jnp.int32), jnp.arange(2)).tolist() == [0, 1]


class TestRandomness:
    """At 60,000 records, within what chance allows (the bounds are four standard deviations)."""

    N = 60_000

    @pytest.mark.parametrize("lag", [1, 2, 3, 7, 128])
    def test_neighbours_do_not_correlate(self, lag):
        for epoch in range(3):
            numbers = whole(Order(self.N, seed=42), epoch).astype(float)
            correlation = np.corrcoef(numbers[:-lag], numbers[lag:])[0, 1]
            assert abs(correlation) < 4 / np.sqrt(self.N)

    def test_four_rounds_would_fail_that(self):
        numbers = index_shuffle(np.arange(self.N), self.N, 42, rounds=4).astype(float)
        assert abs(np.corrcoef(numbers[:-2], numbers[2:])[0, 1]) > 0.1

    def test_batches_are_as_balanced_as_random_ones(self):
        # Records stored by class, ten classes: how many of class 0 a batch of 100 holds is
        # hypergeometric, with a variance of 100 * 0.1 * 0.9 * (N - 100) / (N - 1).
        counts = (whole(Order(self.N, seed=1), 0).reshape(-1, 100) < self.N // 10).sum(axis=1)
        expected = 9 * (self.N - 100) / (self.N - 1)
        error = expected * np.sqrt(2 / len(counts))
        assert abs(counts.mean() - 10) < 1e-9
        assert abs(counts.var() - expected) < 4 * error

    @pytest.mark.parametrize(
        ("one", "other"),
        [((42, 0), (42, 1)), ((42, 1), (43, 0)), ((0, 5), (5, 0)), ((1, 0), (2**31 + 1, 0))],
    )
    def test_seeds_and_epochs_are_unrelated(self, one, other):
        a, b = (whole(Order(self.N, seed), epoch) for seed, epoch in (one, other))
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(self.N)
        assert (a == b).sum() < 8  # one on average


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40, 1.5, True, "1"])
def test_a_seed_is_an_integer_of_32_bits(seed):
    with pytest.raises(ValueError, match=r"integer in \[0, 2\*\*32\)(.|\n)*fix:"):
        Order(10, seed)
