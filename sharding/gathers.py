"""Takes rows by number from an array on the mesh, bit for bit, and locally where possible."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from sharding.exchange import RAGGED_PLATFORMS, Exchange, take, take_if_at_home
from sharding.jax_context import without_mesh
from sharding.placement import Placement, Uncommitted, row_axes, row_shards

Layout = Literal["replicated", "sharded"]

_ROWS_COLLECTED_AT_ONCE = 1024


def storage_sharding(batch: Placement, layout: Layout) -> Placement:
    """The sharding of an array from which `take_rows` takes batches.

    Args:
        batch: The sharding of the batches.
        layout: `replicated` puts every row on every device. `sharded` splits the rows over all
            devices of the mesh, also over the axes along which a batch is replicated.
    """
    if isinstance(batch, Uncommitted):
        return batch
    return NamedSharding(batch.mesh, _storage_spec(batch, layout))


def take_rows(
    rows: Any, numbers: jax.Array, batch: Placement, layout: Layout, *, aligned: bool = False
) -> Any:
    """Takes rows by number, and places them as a batch.

    With `replicated` rows no byte moves between devices. With `sharded` rows, GPUs and TPUs move
    exactly the rows that are wanted (`ragged_all_to_all`). Elsewhere shapes are fixed: a device
    receives at most 16 times the rows that it needs, for random batches on up to 4,096 devices with
    at least 8 rows each. Rows that do not fit go in further small rounds; see `sharding.exchange`.
    Bits are moved, never added, so every value is returned as it was stored, even -0.0 and the
    payload of a NaN.

    Traceable; works on Auto and Explicit meshes.

    Args:
        rows: Arrays `[n, ...]` in any pytree, placed by `storage_sharding(batch, layout)`.
        numbers: `[b]` int32, the same on every device; `b` a multiple of `row_shards(batch)`.
            A number outside of `[0, n)` gives a row of zeros.
        batch: The sharding of the result.
        layout: The layout of `rows`.
        aligned: Whether in most batches each row lies where it is wanted, so that this is looked
            at first: such a batch moves no byte.

    Returns:
        Arrays `[b, ...]` of the dtypes of `rows`.
    """

    def local(rows: Any, numbers: jax.Array) -> Any:
        bits = jax.tree.map(_bits, rows)
        if layout == "replicated" or isinstance(batch, Uncommitted):
            taken = _take_local(bits, numbers, batch)
        else:
            taken = _take_exchanged(bits, numbers, batch, aligned=aligned)
        return jax.tree.map(lambda bits, like: _valued(bits, like.dtype), taken, rows)

    in_specs = (_storage_spec(batch, layout), PartitionSpec())
    return on_each_device(local, batch, in_specs=in_specs)(rows, numbers)


def collect_rows(
    rows: Any, count: int, places_of: Callable[[jax.Array], jax.Array], batch: NamedSharding
) -> Any:
    """Copies sharded rows from their places to those of their numbers; traceable.

    Args:
        rows: Arrays `[places, ...]`, placed by `storage_sharding(batch, "sharded")`.
        count: How many rows there are.
        places_of: The places of rows `[n]` by their numbers.
        batch: The sharding of batches.

    Returns:
        Arrays `[n, ...]`, placed like `rows`; zeros follow the `count` rows.
    """
    devices = batch.num_devices
    owned = -(-count // devices)
    chunk = min(owned, _ROWS_COLLECTED_AT_ONCE)
    storage = storage_sharding(batch, "sharded")
    first = jnp.arange(devices, dtype=jnp.int32)[:, None] * owned

    def step(start: jax.Array, _: None) -> tuple[jax.Array, Any]:
        numbers = first + start + jnp.arange(chunk, dtype=jnp.int32)[None, :]
        return start + chunk, take_rows(
            rows, places_of(numbers.ravel()), storage, "sharded", aligned=True
        )

    _, chunks = lax.scan(step, jnp.int32(0), length=-(-owned // chunk))
    joined = lambda part: part.reshape(-1, *part.shape[2:])[:owned]  # noqa: E731
    by_chunk = PartitionSpec(None, _storage_axes(batch))
    return on_each_device(
        lambda chunks: jax.tree.map(joined, chunks), storage, in_specs=(by_chunk,)
    )(chunks)


def on_each_device(
    function: Callable[..., Any], batch: Placement, *, in_specs: tuple[PartitionSpec, ...]
) -> Callable[..., Any]:
    """Makes every device run a traceable function on its own part of the arguments.

    Args:
        function: Takes and returns arrays in pytrees.
        batch: The placement of the rows that it returns.
        in_specs: The placement of each of its arguments on the mesh.
    """
    if isinstance(batch, Uncommitted):
        return function
    mapped = jax.shard_map(
        function,
        mesh=batch.mesh,
        in_specs=in_specs,
        out_specs=PartitionSpec(row_axes(batch)),
        # Devices along the other axes hold the same rows, which the checker cannot infer.
        check_vma=False,
    )

    def on_own_mesh(*arguments: Any) -> Any:
        # The caller may have set another mesh.
        with without_mesh():
            return mapped(*arguments)

    return on_own_mesh


def _storage_spec(batch: Placement, layout: Layout) -> PartitionSpec:
    if isinstance(batch, Uncommitted) or layout == "replicated":
        return PartitionSpec()
    return PartitionSpec(_storage_axes(batch))


def _storage_axes(batch: NamedSharding) -> tuple[str, ...]:
    """All mesh axes, those of the batch first, so that device `d` has slice `d // replicas`."""
    axes = row_axes(batch)
    return axes + tuple(axis for axis in batch.mesh.axis_names if axis not in axes)


def _bits(rows: jax.Array) -> jax.Array:
    """Views floats as integers: XLA computes bfloat16 as float32 on a CPU, which changes NaNs."""
    if not jnp.issubdtype(rows.dtype, jnp.floating):
        return rows
    return lax.bitcast_convert_type(rows, np.dtype(f"u{rows.dtype.itemsize}"))


def _valued(bits: jax.Array, dtype: np.dtype) -> jax.Array:
    return bits if bits.dtype == dtype else lax.bitcast_convert_type(bits, dtype)


def _take_local(rows: Any, numbers: jax.Array, batch: Placement) -> Any:
    if row_shards(batch) > 1:
        numbers = numbers.reshape(row_shards(batch), -1)[lax.axis_index(row_axes(batch))]
    return take(rows, numbers)


def _take_exchanged(rows: Any, numbers: jax.Array, batch: NamedSharding, *, aligned: bool) -> Any:
    """One device's part of the exchange.

    Devices that hold the same slice of the batch each receive a part of it, and then exchange the
    parts.
    """
    axes, devices = _storage_axes(batch), batch.num_devices
    slices = numbers.reshape(row_shards(batch), -1)
    replicas = devices // len(slices)
    share = -(-slices.shape[1] // replicas)
    filling = ((0, 0), (0, share * replicas - slices.shape[1]))
    wanted = jnp.pad(slices, filling, constant_values=-1).reshape(devices, share)
    ragged = next(iter(batch.device_set)).platform in RAGGED_PLATFORMS
    exchange = lambda: Exchange(rows, wanted, axes).take(ragged=ragged)  # noqa: E731
    part = take_if_at_home(rows, wanted, axes, exchange) if aligned else exchange()
    if replicas == 1:
        return part
    others = axes[len(row_axes(batch)) :]
    return jax.tree.map(
        lambda part: lax.all_gather(part, others, tiled=True)[: slices.shape[1]], part
    )
