"""Says and draws which process and device holds which rows of a batch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from datarax_tfds.pictures.picture import Picture, new_figure
from sharding.placement import check_batch_size, row_axes

_MAX_LABELS = 64  # devices; the labels of more would overlap


@dataclass(frozen=True)
class DeviceRows:
    """The rows of a batch on one device.

    Args:
        process: The number of its process.
        device: The number of the device.
        place: Its place on each axis of the mesh, by name.
        start: The first row.
        stop: The row after the last one.
    """

    process: int
    device: int
    place: dict[str, int]
    start: int
    stop: int


def device_rows(sharding: NamedSharding, batch_size: int) -> list[DeviceRows]:
    """Which rows each device of a mesh holds, by process and device.

    Raises:
        TypeError: `sharding` is not a `NamedSharding` over devices.
        ValueError: `batch_size` is not a multiple of the number of row shards, or batches cannot
            have this sharding.
    """
    check_batch_size(batch_size, sharding)
    mesh = sharding.mesh
    split = NamedSharding(mesh, PartitionSpec(row_axes(sharding)))  # pyright: ignore
    slices = split.devices_indices_map((batch_size,))
    found = []
    for place, device in np.ndenumerate(mesh.devices):  # pyright: ignore
        start, stop, _ = slices[device][0].indices(batch_size)  # pyright: ignore
        axes = dict(zip(mesh.axis_names, place, strict=True))
        found.append(DeviceRows(device.process_index, device.id, axes, start, stop))
    return sorted(found, key=lambda each: (each.process, each.device))


def merged(held: Iterable[DeviceRows]) -> list[tuple[int, int]]:
    """The rows of several devices together, as slices `[start, stop)` that do not touch."""
    slices: list[tuple[int, int]] = []
    for start, stop in sorted({(each.start, each.stop) for each in held}):
        if slices and slices[-1][1] == start:
            start = slices.pop()[0]
        slices.append((start, stop))
    return slices


def draw_placement(sharding: NamedSharding, batch_size: int) -> Picture:
    """Draws which rows of a batch each device holds, in one colour for each process.

        rows = dt.batch_sharding(dt.make_mesh({"data": -1}), "data")
        dt.draw_placement(rows, 64).save("rows.png")

    A notebook shows it, if it is the value of a cell.

    Args:
        sharding: The placement of batches, as for a source.
        batch_size: Rows over all processes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `sharding` is not a `NamedSharding` over devices.
        ValueError: `batch_size` is not a multiple of the number of row shards, or batches cannot
            have this sharding.
    """
    held = device_rows(sharding, batch_size)
    figure = new_figure(8, 1.2 + 0.28 * min(len(held), _MAX_LABELS), "draw_placement")
    axes = figure.subplots()
    axes.set_facecolor("#eeeeee")
    axes.add_collection(_bars(held))
    if len(held) <= _MAX_LABELS:
        for line, each in enumerate(held):
            middle = (each.start + each.stop) / 2
            axes.text(middle, line, f"{each.start}-{each.stop - 1}", ha="center", va="center")
        axes.set_yticks(range(len(held)), [_label(each) for each in held])
    else:
        axes.set_ylabel(f"{len(held)} devices, by process")
    axes.set_ylim(len(held) - 0.5, -0.5)
    axes.set_xlim(0, batch_size)
    axes.set_xlabel("row of the batch")
    processes = len({each.process for each in held})
    shape = ", ".join(f"{name}={size}" for name, size in sharding.mesh.shape.items())
    axes.set_title(f"{batch_size} rows, mesh {shape}, {processes} processes", loc="left")
    return Picture(figure)


def _bars(held: list[DeviceRows]) -> Any:
    """A bar for each device, all in one object, which matplotlib draws at once, also thousands."""
    from matplotlib.collections import PolyCollection

    corners = [
        [(x, line + side) for x, side in zip(edges, (-0.4, -0.4, 0.4, 0.4), strict=True)]
        for line, each in enumerate(held)
        for edges in [(each.start, each.stop, each.stop, each.start)]
    ]
    return PolyCollection(corners, facecolors=_colours(held))


def _label(each: DeviceRows) -> str:
    place = ", ".join(f"{name} {at}" for name, at in each.place.items())
    return f"process {each.process}, device {each.device} ({place})"


def _colours(held: list[DeviceRows]) -> list[str]:
    """One of matplotlib's ten colours for each process, of which neighbours differ."""
    numbers = {process: at for at, process in enumerate(sorted({each.process for each in held}))}
    return [f"C{numbers[each.process] % 10}" for each in held]
