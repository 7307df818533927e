"""What batches are as arrays: where they lie, what they combine with, and who may donate them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmark_data import InMemory
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from datarax_tfds import (
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    make_mesh,
)
from datarax_tfds.records.eager import EagerRecords
from sharding import row_axes
from sharding.placement import Uncommitted


@pytest.fixture(scope="module", params=["eager", "streaming"])
def source(request, data_dir):
    fields = {"name": "tiny", "split": "train", "data_dir": str(data_dir), "cacheable": True}
    if request.param == "eager":
        return TFDSEagerSource(TFDSEagerConfig(**fields))
    return TFDSStreamingSource(TFDSStreamingConfig(**fields))


def test_arrays_of_a_source_without_a_sharding_combine_with_any(source):
    mesh = make_mesh({"data": 8})
    parameters = jax.device_put(np.ones(8, np.int32), NamedSharding(mesh, PartitionSpec("data")))
    for batch in (source.get_batch(8), source.get_batch_at(3, 8), source.get_records(range(8))):
        assert not any(leaf.committed for leaf in jax.tree.leaves(batch))
        assert (batch["label"] + parameters).shape == (8,)
    assert not any(leaf.committed for leaf in jax.tree.leaves(source[3]))


def test_a_source_is_made_on_the_default_device(data_dir):
    fields = {"name": "tiny", "split": "train", "data_dir": str(data_dir)}
    device = jax.devices()[3]
    with jax.default_device(device):
        source = TFDSEagerSource(TFDSEagerConfig(**fields))
    assert source.get_batch(8)["label"].device == device


def donate(arrays):
    jax.jit(lambda arrays: jax.tree.map(jnp.negative, arrays), donate_argnums=0)(arrays)


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_donated_batches_are_not_missed(source):
    expected = np.asarray(source.get_batch_at(0, 8)["image"])
    for take in (lambda: source.get_batch_at(0, 8), source.collect_to_array):
        arrays = take()
        donate({"image": arrays["image"], "id": arrays["id"]})
        assert np.array_equal(take()["image"][:8], expected)
    assert np.array_equal(source.get_batch_at(0, 8)["image"], expected)


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_all_records_are_never_the_rows_that_a_source_serves():
    """JAX hands out what comes unchanged through a program as the argument that it was."""
    rows = np.arange(24, dtype=np.uint32).reshape(8, 3)
    reader = InMemory(x=rows)
    records = EagerRecords(reader, batch=Uncommitted(jax.devices()[0]), layout="auto")
    for _ in range(2):
        arrays = records.all_records(keep=False)
        assert np.array_equal(arrays["x"], rows)
        jax.tree.map(lambda leaf: leaf.delete(), arrays)


MESH = {"data": 4, "model": 2}
P = PartitionSpec


# JAX allows sums on Explicit axes only, and UNCONSTRAINED on others only. For the other cases
# see the tables of test_advice_hosts.py.
@pytest.mark.parametrize(
    ("spec", "axis_type", "match"),
    [
        (P("data", reduced={"model"}), AxisType.Explicit, "sums"),
        (P(P.UNCONSTRAINED), AxisType.Auto, "axis 0 only"),
    ],
)
def test_every_part_of_a_sharding_is_honoured_or_refused(spec, axis_type, match):
    with pytest.raises(ValueError, match=match):
        row_axes(NamedSharding(make_mesh(MESH, axis_type=axis_type), spec))


@pytest.mark.parametrize("spec", [P("data"), P("data", None), P(("data",), None, None)])
@pytest.mark.parametrize("memory_kind", [None, "device"])
def test_axes_that_are_not_split_may_be_named(spec, memory_kind):
    sharding = NamedSharding(make_mesh(MESH), spec, memory_kind=memory_kind)
    assert row_axes(sharding) == ("data",)
