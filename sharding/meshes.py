"""Which devices stand where: a mesh by axis names, and how a batch lies over it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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
        ValueError: The sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
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
        ValueError: The mesh has no such axis.
    """
    names = (axes,) if isinstance(axes, str) else tuple(axes)
    unknown = [name for name in names if name not in mesh.axis_names]
    if unknown:
        raise ValueError(
            explain(
                "batch_sharding",
                f"the mesh has no axis {', '.join(map(repr, unknown))}.",
                axes=", ".join(mesh.axis_names),
                fix="name axes of this mesh, or build it with make_mesh({...})",
            )
        )
    return NamedSharding(mesh, PartitionSpec(names))
