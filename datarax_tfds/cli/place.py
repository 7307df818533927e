"""`datarax-tfds place`: which host and device holds which rows of a batch, on any mesh."""

import itertools
import math
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from datarax_tfds.cli.config_file import ConfigFile
from datarax_tfds.cli.terminal import doing, print_json, print_table, wrong_usage

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from datarax_tfds.pictures.placement import DeviceRows


@dataclass(frozen=True)
class Command:
    """Prints which host and device holds which rows of a batch, on a mesh that need not exist here.

    Devices have their places in the mesh in the order of their numbers, as on CPUs and GPUs. On
    TPUs, make_mesh lays them out along the interconnect.

    Args:
        config: The config of a training program, which may say the mesh and the batch size.
        batch_size: Rows over all hosts. By default, as many as the config says.
        mesh: The size of each axis, outermost first; one may be -1, for all devices that are left.
            By default, what the config says, or data=-1.
        devices: The number of devices of all hosts. By default, the product of the axes.
        hosts: The number of hosts.
        axes: The axes along which batches are split; the others hold replicas. By default, the
            first one of the config, or data.
        picture: Also draw it into this file, as rows.png.
        json: Print JSON.
    """

    config: Annotated[Positional[Path | None], arg(metavar="CONFIG")] = None
    batch_size: int | None = None
    mesh: Annotated[str | None, arg(metavar="data=4,model=2")] = None
    devices: Annotated[int | None, arg(metavar="N")] = None
    hosts: int = 1
    axes: Annotated[str | None, arg(metavar="AXIS[,AXIS]")] = None
    picture: Annotated[Path | None, arg(metavar="FILE")] = None
    json: bool = False

    def run(self) -> int:
        file = None if self.config is None else ConfigFile.read(self.config)
        batch_size = self.batch_size or (file and file.batch_size)
        if not batch_size:
            return wrong_usage("place", "give --batch-size, or a config that says it")
        doing("importing JAX")
        from datarax_tfds.pictures.placement import device_rows, draw_placement
        from sharding import batch_sharding
        from sharding.meshes import complete_sizes

        axes = (file and file.mesh) or {"data": -1}
        sizes = complete_sizes(axes if self.mesh is None else _parsed(self.mesh), self.devices)
        if sizes is None or math.prod(sizes.values()) % max(self.hosts, 1) or self.hosts < 1:
            return wrong_usage(
                "place",
                "--mesh must be sizes by name, as data=4,model=2, whose product is the number of"
                " --devices, and a multiple of the number of --hosts; one size may be -1 if"
                f" --devices is given; got --mesh {self.mesh or axes} --devices {self.devices}"
                f" --hosts {self.hosts}",
            )
        # Our training scripts split batches along the first axis of the config.
        split_axes = self.axes or (next(iter(axes)) if self.mesh is None else "data")
        sharding = batch_sharding(_imagined(sizes, self.hosts), split_axes.split(","))
        held = device_rows(sharding, batch_size)
        if self.picture is not None:
            draw_placement(sharding, batch_size).save(self.picture)
        if self.json:
            print_json([asdict(each) for each in held])
        else:
            _print(held)
        return 0


@dataclass(frozen=True)
class _Device:
    """What a mesh, and those who ask it who holds what, need to know of a device."""

    id: int
    process_index: int
    platform: str = "imagined"
    device_kind: str = "imagined"  # JAX 0.12 asks for it

    def default_memory(self) -> Any:
        return SimpleNamespace(kind="device")


def _parsed(text: str) -> dict[str, int]:
    """The sizes of axes that a text like `data=4,model=2` gives; empty if it gives none."""
    parts = [part.partition("=") for part in text.split(",")]
    sizes = {name: int(size) for name, _, size in parts if name and re.fullmatch(r"-?\d+", size)}
    return sizes if len(sizes) == len(parts) else {}


def _imagined(sizes: dict[str, int], hosts: int) -> "Mesh":
    """A mesh of devices that are not here, those of a host one after the other."""
    import numpy as np
    from jax.sharding import Mesh

    count = math.prod(sizes.values())
    devices = [_Device(number, number * hosts // count) for number in range(count)]
    return Mesh(np.array(devices).reshape(tuple(sizes.values())), tuple(sizes))


def _print(held: "list[DeviceRows]") -> None:
    from datarax_tfds.pictures.placement import merged

    axes = list(held[0].place)
    rows = [
        (each.process, each.device, *each.place.values(), f"{each.start}:{each.stop}")
        for each in held
    ]
    print_table(["host", "device", *axes, "rows"], rows)
    by_host = itertools.groupby(held, lambda each: each.process)
    for host, devices in by_host:
        slices = merged(devices)
        count = sum(stop - start for start, stop in slices)
        read = ", ".join(f"{start}:{stop}" for start, stop in slices)
        sys.stdout.write(f"host {host} reads {count:,} rows: {read}\n")
