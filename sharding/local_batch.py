"""Reads the rows of a global batch that this process holds, as NumPy arrays."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sharding.jax_context import OwnContext
from sharding.placement import Placement, Uncommitted, row_axes


def local_batch(batch: Any, batch_size: int, placement: Placement) -> Any:
    """The rows of a global batch that the devices of this process hold, on the host.

    They come in the order of the global batch, each of them once, whatever the order of the devices
    is. If several processes hold a row, as along a model axis, each of them gets it. An array
    without rows, as a stage may return, comes whole.

    Args:
        batch: Arrays `[batch_size, ...]`, in any pytree. Leaves that are not `jax.Array`s are on
            the host already, and returned as they are.
        batch_size: Rows over all processes.
        placement: Where the rows are.

    Returns:
        The same structure of NumPy arrays `[rows, ...]`. On a CPU they share the memory of the
        batch if the rows are on one device, and then cannot be written to.
    """
    leaves, structure = jax.tree.flatten(batch)
    with OwnContext(None):
        # In one call, which starts all transfers before it waits for the first one.
        parts = jax.device_get([_parts(leaf, batch_size, placement) for leaf in leaves])
    return structure.unflatten(
        part[0] if len(part) == 1 else np.concatenate(part) for part in parts
    )


def _parts(leaf: Any, batch_size: int, placement: Placement) -> list[Any]:
    """What this process holds of an array, in order, as arrays of one device each."""
    if not isinstance(leaf, jax.Array) or isinstance(placement, Uncommitted):
        return [leaf]
    has_rows = leaf.ndim > 0 and leaf.shape[0] == batch_size
    spec = PartitionSpec(row_axes(placement)) if has_rows else PartitionSpec()
    wanted = NamedSharding(placement.mesh, spec)
    if not leaf.sharding.is_equivalent_to(wanted, leaf.ndim):
        leaf = _resharding(wanted)(leaf)  # XLA may place what a stage returns in any way
    if not has_rows:
        return [leaf.addressable_data(0)]
    parts = {shard.index[0].indices(batch_size)[0]: shard.data for shard in leaf.addressable_shards}
    return [parts[start] for start in sorted(parts)]


@functools.lru_cache(maxsize=64)
def _resharding(wanted: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda array: array, out_shardings=wanted)
