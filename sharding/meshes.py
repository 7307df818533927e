"""Builds meshes by axis names, and the shardings of batches over them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sharding.checks import is_integer, nearest, refused


def make_mesh(
    axes: Mapping[str, int],
    *,
    devices: Sequence[Any] | None = None,
    axis_type: AxisType = AxisType.Auto,
) -> Mesh:
    """Lays devices out over named axes, near neighbours on the last axis.

        make_mesh({"data": -1, "model": 2})    # 8 devices: data=4, model=2

    Args:
        axes: The size of each axis, outermost first; one may be -1, for all devices that are left.
        devices: The devices to use; by default, all devices of all processes.
        axis_type: How `jit` treats shardings along the axes.

    Returns:
        A mesh of exactly these devices, in an order that suits the interconnect.

    Raises:
        TypeError: `axes` is not a dict of sizes by name, or `devices` not a list of devices.
        ValueError: The sizes do not multiply to the number of devices.
    """
    if not isinstance(axes, Mapping) or not all(
        isinstance(name, str) and name and is_integer(size) for name, size in axes.items()
    ):
        raise refused(
            TypeError,
            "make_mesh",
            "axes must be a dict of sizes by name.",
            axes=repr(axes),
            fix="use axes={'data': -1}, which takes all devices",
        )
    devices = jax.devices() if devices is None else devices
    kinds = {type(device) for device in (devices if isinstance(devices, Iterable) else [devices])}
    if not all(issubclass(kind, jax.Device) for kind in kinds):
        raise refused(
            TypeError,
            "make_mesh",
            "devices must be a list of JAX devices.",
            devices=", ".join(sorted(kind.__name__ for kind in kinds)),
            fix="use devices=jax.devices(), or leave devices out",
        )
    sizes = complete_sizes(axes, len(devices))
    if sizes is None:
        raise refused(
            ValueError,
            "make_mesh",
            "the axes do not multiply to the number of devices.",
            axes=dict(axes),
            devices=len(devices),
            fix=f"give positive sizes whose product is {len(devices)}, or make one of them -1"
            " for all that are left, as axes={'data': -1}",
        )
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), (axis_type,) * len(sizes), devices=devices
    )


def complete_sizes(axes: Mapping[str, int], devices: int | None) -> dict[str, int] | None:
    """Replaces the size -1 of an axis by the number of devices that are left for it.

    Args:
        axes: The sizes of the axes, by name.
        devices: The number of devices; None if it is not known, so that no size may be -1.

    Returns:
        The sizes; None if they do not fit the devices.
    """
    sizes = dict(axes)
    open_axes = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(open_axes) == 1 and devices is not None and known > 0:
        sizes[open_axes[0]] = devices // known
    fits = sizes and min(sizes.values()) > 0 and devices in (None, math.prod(sizes.values()))
    return sizes if fits else None


def batch_sharding(mesh: Mesh, axes: str | Sequence[str] = "data") -> NamedSharding:
    """Splits axis 0 of a batch over one or several mesh axes; the others hold replicas.

    Args:
        mesh: Any mesh, Auto or Explicit, its devices in any order.
        axes: The mesh axes to split over, the outermost first.

    Raises:
        TypeError: `mesh` is not a `jax.sharding.Mesh`.
        ValueError: The mesh has no such axis, or one is named twice.
    """
    if not isinstance(mesh, Mesh):
        raise refused(
            TypeError,
            "batch_sharding",
            "mesh must be a jax.sharding.Mesh.",
            mesh=type(mesh).__name__,
            fix="pass mesh=make_mesh({'data': -1})",
        )
    names: tuple[Any, ...] = tuple(axes) if isinstance(axes, list | tuple) else (axes,)
    unknown = [name for name in names if name not in mesh.axis_names]
    if unknown or len(set(names)) < len(names):
        problem = f"the mesh has no axis {', '.join(map(repr, unknown))}."
        meant = nearest(str((unknown or names)[0]), mesh.axis_names) or mesh.axis_names[0]
        raise refused(
            ValueError,
            "batch_sharding",
            problem if unknown else f"an axis is named twice: {', '.join(names)}.",
            axes=", ".join(mesh.axis_names),
            fix=f"use axes={meant!r}",
        )
    return NamedSharding(mesh, PartitionSpec(names))
