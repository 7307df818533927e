"""Which devices stand where: a mesh by axis names, and how a batch lies over it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sharding.integers import is_integer
from sharding.messages import explain


def make_mesh(
    axes: Mapping[str, int],
    *,
    devices: Sequence[Any] | None = None,
    axis_type: AxisType = AxisType.Auto,
) -> Mesh:
    """Lays devices out over named axes, near neighbours on the last axis.

        make_mesh({"data": -1, "model": 2})    # 8 devices: data=4, model=2

    Args:
        axes: Size of each axis, outermost first; at most one may be -1, "what is left".
        devices: The devices to use, all of every process by default.
        axis_type: How `jit` treats shardings along the axes.

    Returns:
        A mesh of exactly these devices, in an order that suits the interconnect.

    Raises:
        TypeError: `axes` are no names and sizes, or `devices` no devices.
        ValueError: The sizes do not multiply to the number of devices.
    """
    if not isinstance(axes, Mapping) or not all(
        isinstance(name, str) and name and is_integer(size) for name, size in axes.items()
    ):
        raise TypeError(
            explain(
                "make_mesh",
                "axes are names and sizes.",
                axes=repr(axes),
                fix="use a dict of integers by name, as {'data': -1}",
            )
        )
    devices = jax.devices() if devices is None else devices
    kinds = {type(device) for device in (devices if isinstance(devices, Iterable) else [devices])}
    if not all(issubclass(kind, jax.Device) for kind in kinds):
        raise TypeError(
            explain(
                "make_mesh",
                "a mesh is made of devices.",
                axes=dict(axes),
                devices=", ".join(sorted(kind.__name__ for kind in kinds)),
                fix="use some of jax.devices(), or leave devices out",
            )
        )
    sizes = dict(axes)
    open_axes = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(open_axes) == 1 and known > 0 and len(devices) % known == 0:
        sizes[open_axes[0]] = len(devices) // known
    if not sizes or min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
        raise ValueError(
            explain(
                "make_mesh",
                "the axes do not multiply to the number of devices.",
                axes=dict(axes),
                devices=len(devices),
                fix="give positive sizes whose product is the number of devices, at most one -1",
            )
        )
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), (axis_type,) * len(sizes), devices=devices
    )


def batch_sharding(mesh: Mesh, axes: str | Sequence[str] = "data") -> NamedSharding:
    """Splits axis 0 of a batch over one or several mesh axes; the others hold replicas.

    Args:
        mesh: Any mesh, Auto or Explicit, its devices in any order.
        axes: The mesh axes to split over, the one that varies slowest first.

    Raises:
        TypeError: `mesh` is none.
        ValueError: The mesh has no such axis, or one is named twice.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(
            explain(
                "batch_sharding",
                "a batch lies on a mesh of devices.",
                mesh=type(mesh).__name__,
                fix="build one with make_mesh({'data': -1})",
            )
        )
    names: tuple[Any, ...] = tuple(axes) if isinstance(axes, list | tuple) else (axes,)
    unknown = [name for name in names if name not in mesh.axis_names]
    if unknown or len(set(names)) < len(names):
        problem = f"the mesh has no axis {', '.join(map(repr, unknown))}."
        raise ValueError(
            explain(
                "batch_sharding",
                problem if unknown else f"an axis is named twice: {', '.join(names)}.",
                axes=", ".join(mesh.axis_names),
                fix="name axes of this mesh, or build it with make_mesh({...})",
            )
        )
    return NamedSharding(mesh, PartitionSpec(names))
