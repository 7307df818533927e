import jax
import pytest
from jax.sharding import AxisType

from sharding import batch_sharding, make_mesh, row_axes, row_shards


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ({"data": -1}, (8,)),
        ({"data": -1, "model": 2}, (4, 2)),
        ({"model": 8, "data": -1}, (8, 1)),
        ({"a": 2, "b": 2, "c": 2}, (2, 2, 2)),
    ],
)
def test_axes_are_filled_up_to_the_devices(axes, shape):
    mesh = make_mesh(axes)
    assert mesh.devices.shape == shape
    assert mesh.axis_names == tuple(axes)
    assert set(mesh.devices.flat) == set(jax.devices())
    assert mesh.axis_types == (AxisType.Auto,) * len(axes)


def test_a_mesh_may_be_over_some_devices_and_explicit():
    some = jax.devices()[2:5]
    mesh = make_mesh({"data": -1}, devices=some, axis_type=AxisType.Explicit)
    assert set(mesh.devices.flat) == set(some)
    assert mesh.axis_types == (AxisType.Explicit,)


@pytest.mark.parametrize(
    ("axes", "shards"), [("data", 4), (("data",), 4), (("data", "model"), 8), ((), 1)]
)
def test_a_batch_is_split_over_the_named_axes(axes, shards):
    sharding = batch_sharding(make_mesh({"data": 4, "model": 2}), axes)
    assert row_shards(sharding) == shards
    assert row_axes(sharding) == ((axes,) if isinstance(axes, str) else axes)
