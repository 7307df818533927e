"""Records with hundreds of features: the right values, and programs that stay small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmark_data import InMemory
from conftest import shardings
from flax import nnx
from tfds_datasets import store

from datarax_tfds import Pipeline, TFDSEagerConfig, TFDSEagerSource, TFDSStreamingSource
from datarax_tfds.config.config import TFDSStreamingConfig
from datarax_tfds.order.order import Order
from datarax_tfds.order.sampler import ByNumber, Traced
from datarax_tfds.records.eager import EagerRecords
from datarax_tfds.records.packing import Packing

WIDE = 20  # features of each kind
KINDS = [
    ((), np.float32),
    ((), np.int32),
    ((), np.bool_),
    ((3,), np.uint8),
    ((2, 2), np.float16),
    ((), np.complex64),
    ((0,), np.int32),
    ((), np.dtype(jnp.bfloat16)),
]


def wide_columns(rows, kinds=KINDS, count=WIDE):
    """Columns of random bits, whose names mix the kinds."""
    rng = np.random.default_rng(0)
    columns = {}
    for kind, (shape, dtype) in enumerate(kinds):
        for number in range(count):
            size = np.dtype(dtype).itemsize
            bits = rng.integers(0, 256, (rows, *shape, size), np.uint8)
            values = bits[..., 0] > 99 if dtype is np.bool_ else bits.view(dtype)[..., 0]
            columns[f"{number}-{kind}"] = values
    return columns


@pytest.mark.parametrize("layout", ["replicated", "sharded"])
@pytest.mark.parametrize("mesh", ["one device", "8 devices", "4 x 2, replicas"])
def test_every_column_of_a_wide_table_keeps_its_bits(mesh, layout):
    columns = wide_columns(24)
    records = EagerRecords(InMemory(**columns), batch=shardings()[mesh], layout=layout)
    everything = records.all_records(keep=False)
    order = Order(24)
    take = jax.jit(lambda numbers: records.batch(Traced(order, 0, numbers, seed=0)))
    taken = take(jnp.arange(24)[::-1][:8])
    for name, column in columns.items():
        assert np.asarray(everything[name])[:24].tobytes() == column.tobytes(), name
        assert np.asarray(taken[name]).tobytes() == column[::-1][:8].tobytes(), name


def program(features, mesh="one device"):
    """What is compiled for a batch of a table of that many scalars."""
    columns = wide_columns(8, kinds=KINDS[:1], count=features)
    records = EagerRecords(InMemory(**columns), batch=shardings()[mesh], layout="replicated")
    on_devices, _ = records.inputs(ByNumber(Order(records.length), np.arange(8), epoch=0, seed=0))
    return jax.jit(lambda on_devices: records.assemble(on_devices)).lower(on_devices)


@pytest.mark.parametrize("mesh", ["one device", "8 devices"])
def test_a_wide_table_needs_one_kernel_and_not_one_for_each_column(mesh):
    """Each slice at a place known to the compiler is a kernel of its own: 10 ms to compile."""
    few, many = (program(features, mesh).as_text() for features in (40, 160))
    assert few.count("stablehlo.slice ") == many.count("stablehlo.slice ") == 0
    assert many.count("stablehlo.dynamic_slice ") - few.count("stablehlo.dynamic_slice ") == 120


def test_the_compiled_size_grows_linearly_with_the_columns():
    lines = {n: len(program(n).compile().as_text().splitlines()) for n in (50, 100, 200)}
    assert lines[200] - lines[100] < 2.2 * (lines[100] - lines[50])


@pytest.mark.parametrize(
    ("count", "most"),
    [
        (1, 0),  # nothing beside the rows, so that a step of a common dataset costs what it did
        (15, 0),
        (16, 8),
        (400, 40),
        (10_000, 200),
    ],
)
def test_the_positions_of_columns_take_few_arguments(count, most):
    spec = {f"{n}": jax.ShapeDtypeStruct((), np.float32) for n in range(count)}
    assert len(Packing(spec).starts) == most


@pytest.fixture(scope="module")
def wide_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wide")
    features = {f"f{n}": np.float32 for n in range(60)} | {"id": np.int32}
    records = [{f"f{n}": r + n / 64 for n in range(60)} | {"id": r} for r in range(12)]
    store(directory, "wide", features, records)
    return str(directory)


@pytest.mark.parametrize("mesh", ["one device", "8 devices, explicit axes"])
def test_a_wide_table_is_the_same_in_every_way_of_taking_a_batch(wide_dir, mesh):
    fields = {"name": "wide", "split": "train", "data_dir": wide_dir}
    sharding = shardings()[mesh]
    eager = TFDSEagerSource(TFDSEagerConfig(**fields), sharding=sharding)
    stream = TFDSStreamingSource(TFDSStreamingConfig(**fields), sharding=sharding)

    def rows_of(batch):
        return np.stack([np.asarray(batch[f"f{n}"]) for n in range(60)], axis=-1)

    expected = (np.arange(8)[:, None] + np.arange(60) / 64).astype(np.float32)
    assert np.array_equal(rows_of(eager.get_batch(8)), expected)
    assert np.array_equal(rows_of(stream.get_batch(8)), expected)
    assert np.array_equal(rows_of(eager[3]), expected[3])
    assert np.array_equal(rows_of(stream[3]), expected[3])
    eager.reset()
    pipeline = Pipeline(source=eager, stages=[lambda batch: batch], batch_size=8)
    assert np.array_equal(rows_of(pipeline.step()), expected)
    pipeline.reset()
    assert np.array_equal(rows_of(nnx.jit(lambda p: p.step())(pipeline)), expected)
    pipeline.reset()
    scanned = pipeline.scan(lambda batch: batch, length=1)
    assert np.array_equal(rows_of(jax.tree.map(lambda x: x[0], scanned)), expected)
