import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sharding import global_batch, row_shards, storage_sharding, take_rows

LAYOUTS = ["replicated", "sharded"]
ROWS = 96  # over 1, 3 and 8 devices


def placed(rows, batch, layout):
    storage = storage_sharding(batch, layout)
    return global_batch(lambda part: jax.tree.map(lambda x: x[part], rows), ROWS, storage)


@functools.cache
def take(batch, layout):
    return jax.jit(lambda rows, numbers: take_rows(rows, numbers, batch, layout))


def taken(rows, numbers, batch, layout):
    return take(batch, layout)(placed(rows, batch, layout), np.asarray(numbers, np.int32))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "numbers",
    [
        np.random.default_rng(0).permutation(ROWS)[:48],
        np.arange(48),  # one or a few shards hold all of them
        np.full(48, 7),
        np.random.default_rng(1).integers(0, ROWS, 48),
    ],
    ids=["random", "consecutive", "the same", "with repeats"],
)
def test_rows_arrive_by_number_and_are_placed_as_a_batch(numbers, sharding, layout):
    rows = np.random.default_rng(2).integers(0, 2**32, (ROWS, 5), np.uint32)
    batch = taken(rows, numbers, sharding, layout)
    assert np.array_equal(batch, rows[numbers])
    expected = NamedSharding(sharding.mesh, sharding.spec)
    assert batch.sharding.is_equivalent_to(expected, batch.ndim)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_number_outside_gives_a_row_of_zeros(sharding, layout):
    rows = np.arange(1, ROWS + 1, dtype=np.int32)
    numbers = np.tile(np.array([3, ROWS, -1, 2**31 - 1], np.int32), 6)
    batch = taken(rows, numbers, sharding, layout)
    assert batch.tolist() == [4, 0, 0, 0] * 6


DTYPES = [
    np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32,
    np.float16, np.float32, np.complex64,
    ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4, ml_dtypes.uint4,
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_the_bits_of_every_dtype_survive(dtype, layout):
    from conftest import shardings

    dtype = np.dtype(dtype)
    raw = np.random.default_rng(3).integers(0, 256, (ROWS, 4 * dtype.itemsize), np.uint8)
    if dtype.kind == "b":
        rows = (raw & 1).astype(bool)
    elif dtype in (ml_dtypes.int4, ml_dtypes.uint4):
        rows = (raw & 7).astype(dtype)
    else:
        rows = raw.view(dtype)  # NaNs with payloads, -0.0 and denormals among them
    numbers = np.random.default_rng(4).permutation(ROWS)[:48]
    for name in ("8 devices", "8 devices, explicit axes"):
        batch = np.asarray(taken(rows, numbers, shardings()[name], layout))
        assert batch.dtype == rows.dtype
        assert batch.tobytes() == rows[numbers].tobytes()


def test_several_arrays_travel_together(sharding):
    rows = {"a": np.arange(ROWS), "b": np.arange(ROWS * 2.0).reshape(ROWS, 2)}
    rows = jax.tree.map(lambda x: x.astype(np.float32), rows)
    numbers = np.arange(ROWS)[::-1][: 8 * row_shards(sharding)]
    batch = taken(rows, numbers, sharding, "sharded")
    for name, column in rows.items():
        assert np.array_equal(batch[name], column[numbers])


def test_a_gather_works_within_a_loop():
    from conftest import shardings

    batch = shardings()["8 devices"]
    rows = placed(np.arange(ROWS, dtype=np.float32), batch, "sharded")

    @jax.jit
    def total(rows):
        def body(step, total):
            return total + take_rows(rows, jnp.arange(8) + 8 * step, batch, "sharded").sum()

        return jax.lax.fori_loop(0, ROWS // 8, body, jnp.float32(0))

    assert total(rows) == sum(range(ROWS))


def test_a_replicated_batch_takes_every_row_to_every_device():
    from conftest import shardings

    batch = NamedSharding(shardings()["4 x 2, replicas"].mesh, PartitionSpec())
    rows = np.arange(ROWS, dtype=np.int32)
    for layout in LAYOUTS:
        result = taken(rows, [5, 1, 95], batch, layout)
        assert result.tolist() == [5, 1, 95]
        assert result.sharding.is_fully_replicated
