"""Whether the records of a split lie on every device or are cut over them: by their size."""

import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

import sharding
from datarax_tfds import config
from sharding.messages import explain

EASY_SHARE = 0.1  # of a device's free memory, which leaves the rest to the model


def choose_layout(
    layout: config.Layout, rows: int, row_bytes: int, batch: NamedSharding, subject: str
) -> sharding.Layout:
    """Decides where rows lie, alike on every process, before any is read.

    Args:
        layout: What the config asks for.
        rows: Number of rows.
        row_bytes: Bytes of a row on the device.
        batch: How batches lie on the devices.
        subject: Who asks, for messages.

    Raises:
        ValueError: The rows do not fit the free memory of the devices in this layout.
    """
    free = _free_bytes(batch)
    devices = batch.mesh.size
    needed = {
        "replicated": rows * row_bytes,
        "sharded": math.ceil(rows / devices) * row_bytes,
    }
    chosen: sharding.Layout
    if layout == "auto":
        easy = devices == 1 or needed["replicated"] <= EASY_SHARE * free
        chosen = "replicated" if easy else "sharded"
    else:
        chosen = layout
    if needed[chosen] > free:
        raise ValueError(
            explain(
                subject,
                f"the records do not fit the devices ({chosen}).",
                needed=f"{needed[chosen]:,} bytes a device",
                free=f"{free:,} bytes a device",
                fix="read a part of the split, leave features out, or use layout='sharded' and"
                " more devices",
            )
        )
    return chosen


def memory_share(rows: int, row_bytes: int, batch: NamedSharding) -> float:
    """Which part of the free memory of the fullest device rows take, cut over all devices."""
    return math.ceil(rows / batch.mesh.size) * row_bytes / max(_free_bytes(batch), 1)


def _free_bytes(batch: NamedSharding) -> int:
    """Free memory of the fullest device of the mesh: the same number on every process."""
    devices = batch.addressable_devices
    stats = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in stat for stat in stats):
        free = min(stat["bytes_limit"] - stat.get("bytes_in_use", 0) for stat in stats)
    else:
        free = free_host_bytes() // len(devices)
    if jax.process_count() == 1:
        return free
    # In MiB: with 64-bit types off, bytes would not survive the trip.
    every = sharding.global_batch(
        lambda part: np.full(part.stop - part.start, free >> 20, np.int32),
        batch.mesh.size,
        sharding.storage_sharding(batch, "sharded"),
    )
    return int(jax.jit(jnp.min)(every)) << 20


def free_host_bytes() -> int:
    """What the host can still give: the devices of the CPU backend share its memory."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's share
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        free = min(free, int(text))
    return free
