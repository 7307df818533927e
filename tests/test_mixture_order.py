"""The order of a mixture: shares, stages, the same on host and device, and one by one by hand."""

import json
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import drawn, mixed
from refusals import refused

from datarax_tfds.order.block_order import BlockOrder
from datarax_tfds.order.mixture import MixtureOrder, Stage, located, stages_of_version
from datarax_tfds.order.order import Order
from datarax_tfds.order.shares import MAX_SUM, Shares, whole_weights
from datarax_tfds.order.weights import weights_of_parts

NAMES = ("web", "code", "books", "math", "news", "wiki")
GOLDEN = Path(__file__).parent / "golden/mixture_v1.json"

weights_of = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any)


def order_of(weights, lengths=(97, 40, 13, 300, 1, 7), length=150, stages=()):
    parts = tuple(
        Order(length, seed if seed % 3 else None)
        for seed, length in enumerate(lengths[: len(weights)], start=5)
    )
    every = (Stage(0, tuple(weights)), *(Stage(*stage) for stage in stages))
    return MixtureOrder(NAMES[: len(weights)], parts, length, every)


def named(order, numbers):
    parts, within = located(order.starts, numbers)
    return [(order.names[part], int(n)) for part, n in zip(parts, within, strict=True)]


@given(weights_of, weights_of, st.integers(0, 200))
@settings(max_examples=60)
@example([7, 3], [1, 1], 36)
@example([5, 4, 3, 2, 1, 1], [0, 0, 0, 0, 0, 1], 0)
def test_each_record_is_that_of_the_rule_worked_out_one_by_one(weights, later, start):
    later = (later * 6)[: len(weights)]
    stages = [(start + 1, tuple(later))] if any(later) else []
    order = order_of(weights, stages=stages)
    numbers = np.concatenate([order.host_numbers(epoch, 0, 150) for epoch in range(2)])
    by_name = [(0, weights), *stages]
    by_name = [(at, dict(zip(order.names, each, strict=True))) for at, each in by_name]
    orders = dict(zip(order.names, order.parts, strict=True))
    assert named(order, numbers) == mixed(by_name, orders, 300)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=100))
@settings(max_examples=40)
@example([1] * 100)
@example([2, 1, 1, 10**6])  # of this, a chain of floors would leave out the last part for long
@example([10**6, 1])
def test_every_prefix_has_the_share_of_each_part_up_to_less_than_a_record(weights):
    """Of up to four parts; less than two records, of more."""
    shares = Shares(tuple(weights), tuple(f"{n:03}" for n in range(len(weights))))
    parts = shares.parts(0, 3000)
    counts = np.stack([(parts == n).cumsum() for n in range(len(weights))], axis=1)
    wanted = np.arange(1, 3001)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(counts - wanted).max() < (1 if len(weights) <= 4 else 2)
    assert shares.counts(3000) == counts[-1].tolist()


@given(weights_of, st.integers(0, 2**62 // 150), st.integers(0, 149), st.integers(1, 100))
@settings(max_examples=40)
@example([7, 2, 1], 2**53 // 150 + 1, 0, 150)
@example([7, 2, 1], 2**31 // 150, 0, 150)
def test_a_part_of_an_epoch_anywhere_is_that_of_the_whole(weights, epoch, start, size):
    order = order_of(weights, stages=[(2**40, tuple(weights[::-1]))])
    stop = min(start + size, 150)
    some = order.host_numbers(epoch, start, stop)
    assert some.tolist() == order.host_numbers(epoch, 0, 150)[start:stop].tolist()
    epochs = order.host_epochs(epoch, start, stop)
    parts, _ = located(order.starts, some)
    begun = [order.length * epoch * weights[part] // sum(weights) for part in parts]
    lengths = np.array([part.length for part in order.parts])[parts]
    if epoch * 150 < 2**40:
        assert np.all(np.abs(epochs - np.array(begun) // lengths) <= 1 + 150 // lengths)


# The sum of weights with the largest products; epochs below and above 2**31 positions.
@pytest.mark.parametrize("weights", [(7, 2, 1), (2**30 - 3, 2, 1), (0, 1, 0), (1, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize("length", [150, 2**31 - 1])
def test_host_and_device_agree_at_any_position(weights, length):
    lengths = (97, 40, 13, 300, 1, 7)
    if length > 150:  # of short parts, the host would work out hundreds of epochs for one position
        lengths = tuple(1000 * each for each in lengths)
    stages = [(170, weights[::-1]), (2**41, weights)]
    order = order_of(weights, lengths, length=length, stages=stages)
    epochs = np.array([0, 1, 2, 2**20, 2**31 - 2], np.int32).repeat(6)
    offsets = np.array([0, 1, 7, 20, 100, 149], np.int64)
    positions = np.tile(np.minimum(offsets * (length // 150), length - 1), 5).astype(np.int32)
    numbers, of_parts = jax.jit(lambda *at: (order.device_numbers(*at), order.device_epochs(*at)))(
        jnp.asarray(epochs), jnp.asarray(positions)
    )
    for row, (epoch, position) in enumerate(zip(epochs.tolist(), positions.tolist(), strict=True)):
        assert numbers[row] == order.host_numbers(epoch, position, position + 1)[0]
        wanted = int(order.host_epochs(epoch, position, position + 1)[0])
        assert of_parts[row] == np.int64(wanted).astype(np.int32)


def test_each_record_of_a_part_comes_once_in_each_of_its_epochs():
    order = order_of((7, 2, 1), stages=[(100, (1, 1, 1)), (1234, (1, 0, 5))])
    seen = {name: [] for name in order.names}
    for epoch in range(20):
        numbers = order.host_numbers(epoch, 0, 150)
        epochs = order.host_epochs(epoch, 0, 150).tolist()
        for (name, number), of_part in zip(named(order, numbers), epochs, strict=True):
            seen[name].append((of_part, number))
    for part, name in zip(order.parts, order.names, strict=True):
        for start in range(0, len(seen[name]), part.length):
            epoch = seen[name][start : start + part.length]
            assert {of for of, _ in epoch} == {start // part.length}
            assert len(set(epoch)) == len(epoch)
            if len(epoch) == part.length:
                assert sorted(number for _, number in epoch) == list(range(part.length))


def test_the_golden_order():
    golden = json.loads(GOLDEN.read_text())
    parts = (Order(97, 5), BlockOrder(40, 7, 8, 16), Order(13))
    stages = tuple(Stage(start, tuple(weights)) for start, weights in golden["stages"])
    order = MixtureOrder(("web", "code", "books"), parts, 150, stages)
    assert order.version == golden["version"]
    numbers = [order.host_numbers(epoch, 0, 150).tolist() for epoch in range(2)]
    assert numbers == golden["numbers"]
    assert stages_of_version(order.version, 3) == tuple(
        Stage(start, (weights[2], weights[1], weights[0])) for start, weights in stages
    )


@given(st.integers(1, 100), st.integers(1, 100))
@settings(max_examples=20)
def test_two_parts_have_the_shares_of_grain_up_to_one_record(one, other):
    import grain

    lists = {"web": grain.MapDataset.range(10**6), "code": grain.MapDataset.range(10**6, 2 * 10**6)}
    peer = grain.MapDataset.mix(list(lists.values()), [float(one), float(other)])
    theirs = np.array([peer[n] >= 10**6 for n in range(300)]).cumsum()
    ours = Shares((one, other), ("web", "code")).parts(0, 300).cumsum()
    scale = 100 / min(one, other)  # Grain's own rounding of weights is not ours
    rounded = int(one * scale), int(other * scale)
    drift = abs(rounded[1] / sum(rounded) - other / (one + other))
    assert np.abs(ours - theirs).max() <= 1 + 300 * drift


@pytest.mark.parametrize(("weights", "whole"), [
    ({"a": 0.7, "b": 0.3}, (7, 3)),
    ({"a": 70, "b": 30}, (7, 3)),  # they need not sum to one
    ({"b": Fraction(1, 3), "a": Fraction(2, 3)}, (2, 1)),
    ({"a": 1 / 3, "b": 1 / 3}, (1, 1)),
    ({"a": np.float32(0.7), "b": np.int64(0)}, (1, 0)),
    ({"a": 2**30 - 1, "b": 1}, (2**30 - 1, 1)),
    ({"a": 2**30, "b": 1}, (10**6 - 1 + 1, 1)),  # rounded to millionths, and at least one of them
    ({"a": 0.1234567891234567, "b": 0.8765432108765433}, (123457, 876543)),
])  # fmt: skip
def test_weights_become_whole_numbers(weights, whole):
    assert weights_of_parts(weights, ("a", "b"), set(), "mixture") == whole
    assert sum(whole) <= MAX_SUM


@pytest.mark.parametrize(("weights", "error", "says"), [
    ({"a": -0.1, "b": 1}, ValueError, "finite, and at least 0"),
    ({"a": float("nan"), "b": 1}, ValueError, "finite"),
    ({"a": float("inf"), "b": 1}, ValueError, "finite"),
    ({"a": "0.7", "b": 1}, TypeError, "must be a number"),
    ({"a": True, "b": 1}, TypeError, "must be a number"),
    ({"a": 0, "b": 0.0}, ValueError, "must not all be zero"),
    ({}, ValueError, "names of the parts"),
    ({"a": 1}, ValueError, "missing: +'b'"),
    ({"a": 1, "b": 1, "c": 1}, ValueError, "unknown: +'c'"),
    ([0.7, 0.3], TypeError, "must be a dict"),
])  # fmt: skip
def test_wrong_weights_are_refused(weights, error, says):
    with refused(error, says):
        weights_of_parts(weights, ("a", "b"), set(), "mixture")


def test_whole_weights_keep_a_part_of_any_weight():
    whole = whole_weights([Fraction(1, 10**12), Fraction(1), Fraction(0)])
    assert whole == (1, 10**6, 0)


@pytest.mark.parametrize("version", [
    "mixture 2; 0: 7 3",  # of a later version
    "mixture 1; 1: 7 3",  # the first stage must start at 0
    "mixture 1; 0: 7 3; 0: 1 1",
    "mixture 1; 0: 7",
    "mixture 1; 0: 0 0",
    "mixture 1; 0: 7 -3",
    "8 strata, 1",
])  # fmt: skip
def test_other_versions_are_none_of_a_mixture(version):
    assert stages_of_version(version, 2) is None


def test_weights_of_a_later_stage_replace_those_that_were_meant_for_then():
    order = order_of((7, 2, 1))
    one = order.with_weights((1, 1, 1), 50).with_weights((0, 0, 1), 90)
    assert [stage.start for stage in one.stages] == [0, 50, 90]
    assert one.with_weights((3, 2, 1), 60).stages == (*one.stages[:2], Stage(60, (3, 2, 1)))
    assert one.with_weights((7, 2, 1), 20) == order
    assert (
        one.host_numbers(0, 0, 90).tolist()
        == order.with_weights((1, 1, 1), 50).host_numbers(0, 0, 90).tolist()
    )


def test_a_removed_part_takes_its_positions_and_no_records():
    order = order_of((7, 2, 1))
    without = MixtureOrder(order.names, (order.parts[0], None, order.parts[2]), 150, order.stages)
    whole, rest = (each.host_numbers(3, 0, 150) for each in (order, without))
    parts, within = located(order.starts, whole)
    assert np.all(rest[parts == 1] == without.records)
    for part in (0, 2):
        here = parts == part
        assert rest[here].tolist() == (within[here] + without.starts[part]).tolist()


def test_a_record_of_a_part_has_one_random_key_wherever_its_part_stands():
    """So parts can be added and removed, and two parts never share keys."""
    order = order_of((7, 2, 1))
    swapped = MixtureOrder(order.names[::-1], order.parts[::-1], 150, (Stage(0, (1, 2, 7)),))
    salts = {}
    for each in (order, swapped):
        numbers = np.arange(each.records)
        found, within = each.salted(numbers)
        keys = list(zip(named(each, numbers), found.tolist(), within.tolist(), strict=True))
        salts[each] = sorted(keys)
        on_device = each.salted(jnp.asarray(numbers, jnp.int32))
        assert np.array_equal(on_device[0], found)
        assert np.array_equal(on_device[1], within)
    assert salts[order] == salts[swapped]
    assert len({(salt, n) for _, salt, n in salts[order]}) == order.records


def test_the_oracle_knows_the_rule_by_heart():
    """By hand: 0.3 n + 1/2 reaches 1, 2 and 3 at n = 2, 5 and 9."""
    assert "".join(name for name, _ in drawn([(0, {"a": 7, "b": 3})], 10)) == "abaabaaaba"
