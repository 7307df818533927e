"""Decides whether the records of a split are replicated or sharded, by their size."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from datarax_tfds.config.config import LayoutChoice
from datarax_tfds.order.wide_numbers import is_wide
from sharding import Layout, global_batch, storage_sharding
from sharding.checks import refused
from sharding.jax_context import OwnContext
from sharding.placement import Placement

EAGER_MEMORY_FRACTION = 0.1  # of a device's free memory: the rest is for the model


def choose_layout(
    layout: LayoutChoice, rows: int, row_bytes: int, batch: Placement, subject: str
) -> Layout:
    """Decides, before any row is read, how rows are placed; the same on every process.

    Args:
        layout: What the config asks for.
        rows: Number of rows.
        row_bytes: Bytes of a row on the device.
        batch: How batches lie on the devices.
        subject: Who asks, for messages.

    Raises:
        ValueError: There are 2**31 rows or more, or they do not fit the free memory of the devices
            in this layout.
    """
    if is_wide(rows):
        raise refused(
            ValueError,
            subject,
            "an eager source must have fewer than 2**31 records, as an axis of an array has.",
            records=rows,
            fix="stream the records with a TFDSStreamingSource, or read a part of the split, as"
            " split='train[:50%]'",
        )
    free = free_device_bytes(batch)
    devices = batch.num_devices
    needed = {
        "replicated": rows * row_bytes,
        "sharded": math.ceil(rows / devices) * row_bytes,
    }
    chosen: Layout
    if layout == "auto":
        easy = devices == 1 or needed["replicated"] <= EAGER_MEMORY_FRACTION * free
        chosen = "replicated" if easy else "sharded"
    else:
        chosen = layout
    if needed[chosen] > free:
        raise refused(
            ValueError,
            subject,
            f"the records do not fit the devices ({chosen}).",
            needed=f"{needed[chosen]:,} bytes a device",
            free=f"{free:,} bytes a device",
            fix="use layout='sharded' on more devices, leave features out with exclude_keys,"
            " read a part of the split, as split='train[:50%]', or stream the records with a"
            " TFDSStreamingSource",
        )
    return chosen


def memory_share(rows: int, row_bytes: int, batch: Placement) -> float:
    """The fraction of the fullest device's free memory that rows take, sharded over all devices."""
    return math.ceil(rows / batch.num_devices) * row_bytes / max(free_device_bytes(batch), 1)


def free_device_bytes(batch: Placement) -> int:
    """Free memory of the fullest device of the mesh: the same number on every process."""
    devices = batch.addressable_devices
    stats = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in stat for stat in stats):
        free = min(stat["bytes_limit"] - stat.get("bytes_in_use", 0) for stat in stats)
    else:
        free = free_host_bytes() // len(devices)
    if jax.process_count() == 1:
        return free
    # In MiB: a number of bytes does not fit int32, and 64-bit types may be off.
    every = global_batch(
        lambda part: np.full(part.stop - part.start, free >> 20, np.int32),
        batch.num_devices,
        storage_sharding(batch, "sharded"),
    )
    with OwnContext(None):
        return int(jax.device_get(jax.jit(jnp.min)(every))) << 20


def free_host_bytes() -> int:
    """The free memory of the host, which the devices of the CPU backend share."""
    free = psutil.virtual_memory().available
    limit = Path("/sys/fs/cgroup/memory.max")  # the limit of a container
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        free = min(free, int(text))
    return free
