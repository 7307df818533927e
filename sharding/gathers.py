"""Rows by number, out of an array that lies on the mesh: local where it can be, exact always."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from sharding.placement import row_axes, row_shards

Layout = Literal["replicated", "sharded"]


def storage_sharding(batch: NamedSharding, layout: Layout) -> NamedSharding:
    """How an array from which such batches are taken lies on their mesh.

    Args:
        batch: The sharding of the batches.
        layout: `replicated` puts every row on every device, `sharded` cuts the rows over all
            devices of the mesh, also over the axes on which a batch is replicated.
    """
    spec = PartitionSpec() if layout == "replicated" else PartitionSpec(_storage_axes(batch))
    return NamedSharding(batch.mesh, spec)


def take_rows(rows: Any, numbers: jax.Array, batch: NamedSharding, layout: Layout) -> Any:
    """Takes rows by number and leaves them placed as a batch.

    From `replicated` rows no byte moves. From `sharded` ones each row crosses the interconnect
    once, in one `all_to_all` with room for about three standard deviations more than a uniformly
    random batch needs; a batch that is lopsided beyond that (records in stored order, say)
    takes a larger exchange of as many bytes as an all-gather of the batch. Bits are moved, never
    added: every value comes out as it was stored, NaN payloads and -0.0 too.

    Traceable; works on Auto and Explicit meshes.

    Args:
        rows: Arrays `[n, ...]` in any pytree, placed by `storage_sharding(batch, layout)`.
        numbers: `[b]` int32, the same on every device; `b` a multiple of `row_shards(batch)`.
            A number outside of `[0, n)` gives a row of zeros.
        batch: How the result lies on the mesh.
        layout: That of `rows`.

    Returns:
        Arrays `[b, ...]` of the dtypes of `rows`.
    """
    take = _take_local if layout == "replicated" else _take_exchanged

    def local(rows: Any, numbers: jax.Array) -> Any:
        taken = take(jax.tree.map(_bits, rows), numbers, batch)
        return jax.tree.map(lambda bits, like: _valued(bits, like.dtype), taken, rows)

    return jax.shard_map(
        local,
        mesh=batch.mesh,
        in_specs=(storage_sharding(batch, layout).spec, PartitionSpec()),
        out_specs=PartitionSpec(row_axes(batch)),
        # Devices along the other axes hold the same rows, which the checker cannot infer.
        check_vma=False,
    )(rows, numbers)


def _storage_axes(batch: NamedSharding) -> tuple[str, ...]:
    """Every mesh axis; those of the batch first, so that `device // replicas` is its slice."""
    axes = row_axes(batch)
    return axes + tuple(axis for axis in batch.mesh.axis_names if axis not in axes)


def _bits(rows: jax.Array) -> jax.Array:
    """Floats as integers: on a CPU, XLA computes bfloat16 as float32, which changes NaNs."""
    if not jnp.issubdtype(rows.dtype, jnp.floating):
        return rows
    return lax.bitcast_convert_type(rows, np.dtype(f"u{rows.dtype.itemsize}"))


def _valued(bits: jax.Array, dtype: np.dtype) -> jax.Array:
    return bits if bits.dtype == dtype else lax.bitcast_convert_type(bits, dtype)


def _take(rows: Any, numbers: jax.Array) -> Any:
    # Unsigned, since negative numbers would count from the end.
    places = numbers.astype(jnp.uint32)
    return jax.tree.map(lambda part: part.at[places].get(mode="fill", fill_value=0), rows)


def _take_local(rows: Any, numbers: jax.Array, batch: NamedSharding) -> Any:
    if row_shards(batch) > 1:
        numbers = numbers.reshape(row_shards(batch), -1)[lax.axis_index(row_axes(batch))]
    return _take(rows, numbers)


def _take_exchanged(rows: Any, numbers: jax.Array, batch: NamedSharding) -> Any:
    """One device's part of the exchange: sends the rows it owns, receives those it serves.

    Devices that hold the same slice of the batch receive a part of it each, and share.
    """
    axes, devices = _storage_axes(batch), batch.mesh.size
    owned = jax.tree.leaves(rows)[0].shape[0]
    device = lax.axis_index(axes)

    slices = numbers.reshape(row_shards(batch), -1)
    replicas = devices // len(slices)
    share = -(-slices.shape[1] // replicas)
    filling = ((0, 0), (0, share * replicas - slices.shape[1]))
    wanted = jnp.pad(slices, filling, constant_values=devices * owned).reshape(devices, share)
    owners = wanted // owned

    # A row's seat is its rank among the rows that one owner sends to one device.
    sent = owners == device
    sent_seats = jnp.cumsum(sent, axis=1, dtype=jnp.int32) - 1
    owner = owners[device]
    from_owner = owner[:, None] == jnp.arange(devices, dtype=jnp.int32)[None, :]
    ranks = jnp.cumsum(from_owner, axis=0, dtype=jnp.int32) - 1
    seat = jnp.sum(jnp.where(from_owner, ranks, 0), axis=1, dtype=jnp.int32)

    def exchange(seats: int) -> Any:
        seated = (jnp.arange(devices)[:, None], jnp.where(sent, sent_seats, seats))
        places = jnp.full((devices, seats), owned, jnp.int32)
        places = places.at[seated].set(wanted - device * owned, mode="drop")

        def swapped(outgoing: jax.Array) -> jax.Array:
            incoming = lax.all_to_all(outgoing, axes, split_axis=0, concat_axis=0)
            return incoming.reshape(devices * seats, *incoming.shape[2:])

        return _take(jax.tree.map(swapped, _take(rows, places)), owner * seats + seat)

    fair = share / devices
    seats = min(share, math.ceil(fair + 3 * math.sqrt(fair)))
    if seats == share:
        part = exchange(share)
    else:
        pairs = jnp.arange(devices, dtype=jnp.int32)[:, None] * devices + owners
        loads = jnp.zeros(devices**2, jnp.int32).at[pairs].add(1, mode="drop")
        fits = jnp.max(loads) <= seats
        part = lax.cond(fits, lambda: exchange(seats), lambda: exchange(share))
    if replicas == 1:
        return part
    others = axes[len(row_axes(batch)) :]
    return jax.tree.map(
        lambda part: lax.all_gather(part, others, tiled=True)[: slices.shape[1]], part
    )
