"""Rows that go from the devices that hold them to the devices that serve them."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from exchange import SIZES, batches_of, received
from jax import lax
from jax.sharding import PartitionSpec as P

from sharding import make_mesh
from sharding.exchange import Exchange, Hop, Plan, plan

DEVICES, OWNED, SHARE = 8, 12, 6
ROWS = DEVICES * OWNED
AXES = ("data", "model")
HOPS = (Hop(1, 1, 2), Hop(1, 2, 2), Hop(1, 3, 2), Hop(4, 1, 2))

random = np.random.default_rng(0)
NUMBERS = {
    "random": random.permutation(ROWS)[: DEVICES * SHARE],
    "random, from few devices": random.permutation(3 * OWNED)[np.arange(DEVICES * SHARE) % 36],
    "consecutive": np.arange(DEVICES * SHARE),
    "those of the last device": np.full(DEVICES * SHARE, ROWS - 1),
    "each at home": np.arange(ROWS).reshape(DEVICES, OWNED)[:, :SHARE].ravel(),
    "from the next device": np.roll(np.arange(ROWS), OWNED)
    .reshape(DEVICES, OWNED)[:, :SHARE]
    .ravel(),
    "with some outside": np.where(np.arange(48) % 5, random.integers(0, ROWS, 48), -1),
    "all outside": np.tile(np.array([ROWS, -1, 2**31 - 1, -(2**31)]), 12),
}

WAYS = {
    "directly, in one round": lambda it: it.take_directly(Plan((), 0, SHARE)),
    "directly, in several rounds": lambda it: it.take_directly(Plan((), 0, 1)),
    "by hops": lambda it: it.take_by_hops(Plan(HOPS, DEVICES * SHARE, 1)),
    "by hops, with too little room": lambda it: it.take_by_hops(Plan(HOPS, 3, 1)),
    "ragged": lambda it: it.take_ragged(Plan((), DEVICES * SHARE, 1)),
    "ragged, in several rounds": lambda it: it.take_ragged(Plan((), 5, 1)),
    "as planned": lambda it: it.take(ragged=False),
    "as planned, ragged": lambda it: it.take(ragged=True),
}


def emulated(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    """`lax.ragged_all_to_all`, by its documentation, for backends that do not have it."""
    parts = lax.all_gather((operand, input_offsets, send_sizes, output_offsets), axis_name)
    me, row = lax.axis_index(axis_name), jnp.arange(len(output))
    wrong = jnp.any(recv_sizes != parts[2][:, me])
    for source in range(len(send_sizes)):
        operand, begins, sizes, offsets = (part[source] for part in parts)
        at = row - offsets[me]
        written = ((at >= 0) & (at < sizes[me])).reshape(-1, *[1] * (output.ndim - 1))
        moved = operand.at[begins[me] + at].get(mode="clip")
        output = jnp.where(written, moved, output)
    return jnp.where(wrong, jnp.ones_like(output), output)


@functools.cache
def taking(way):
    def local(rows, numbers):
        return WAYS[way](Exchange(rows, numbers.reshape(DEVICES, SHARE), AXES))

    mesh = make_mesh({"data": 4, "model": 2})
    specs = {"in_specs": (P(AXES), P()), "out_specs": P(AXES)}
    return jax.jit(jax.shard_map(local, mesh=mesh, check_vma=False, **specs))


@pytest.fixture(autouse=True)
def ragged(monkeypatch):
    monkeypatch.setattr(lax, "ragged_all_to_all", emulated)


def expected(rows, numbers):
    inside = (numbers >= 0) & (numbers < ROWS)
    return np.where(inside[:, None], rows[np.where(inside, numbers, 0)], np.zeros_like(rows[:1]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("numbers", NUMBERS)
def test_every_row_arrives_whatever_is_wanted(numbers, way):
    rows = {
        "wide": random.integers(0, 2**32, (ROWS, 3), np.uint32),
        "narrow": random.integers(1, 256, (ROWS, 1), np.uint8),
    }
    batch = taking(way)(rows, np.asarray(NUMBERS[numbers], np.int32))
    for name, column in rows.items():
        assert np.array_equal(batch[name], expected(column, NUMBERS[numbers]))


@pytest.mark.parametrize("way", ["by hops, with too little room", "ragged, in several rounds"])
@pytest.mark.parametrize("dtype", [np.bool_, np.complex64, ml_dtypes.int4], ids=str)
def test_rows_of_other_dtypes_arrive_unchanged(dtype, way):
    rows = random.integers(0, 2, (ROWS, 3)).astype(dtype)
    batch = np.asarray(taking(way)(rows, np.asarray(NUMBERS["random"], np.int32)))
    assert batch.dtype == dtype
    assert batch.tobytes() == rows[NUMBERS["random"]].tobytes()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_ragged_exchange_compiles_for_the_platforms_that_have_it(platform, monkeypatch):
    monkeypatch.undo()
    taking.cache_clear()
    arguments = np.zeros((ROWS, 3), np.uint32), np.zeros(DEVICES * SHARE, np.int32)
    traced = taking("as planned, ragged").trace(*arguments)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    taking.cache_clear()
    assert "ragged_all_to_all" in text
    assert "all_gather" not in text


@pytest.mark.parametrize(("devices", "rows"), [size for size in SIZES if size[0] * size[1] < 2**14])
def test_a_device_receives_at_most_sixteen_times_what_it_needs(devices, rows):
    sizes = plan(devices, rows)
    for numbers in batches_of(devices, rows, 5):
        assert received(numbers, sizes) <= 16 * rows


def test_the_plan_has_no_table_of_all_pairs_of_devices():
    sizes = plan(4096, 8)
    assert len(sizes.hops) == 18
    assert sizes.queue < 64
