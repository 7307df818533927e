"""Says which rows of a batch this process holds, and builds global arrays from those rows."""

import functools
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import jax.core
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sharding.checks import is_integer, refused, whole_number
from sharding.jax_context import OwnContext, guards_transfers, users_context


@dataclass(frozen=True)
class Uncommitted:
    """The placement of whole batches on one device, which combine with arrays on any devices.

    JAX calls such arrays uncommitted, as those of `jnp.asarray` are, and moves them to the devices
    of the other arguments of a computation. The properties are those of a sharding.
    """

    device: Any
    num_devices = 1

    @property
    def device_set(self) -> set[Any]:
        return {self.device}

    @property
    def addressable_devices(self) -> set[Any]:
        return {self.device}


Placement = NamedSharding | Uncommitted


def device_of(placement: Placement) -> Any | None:
    """The device of uncommitted batches; None for batches that a sharding places."""
    return placement.device if isinstance(placement, Uncommitted) else None


def mesh_of(placement: Placement) -> Mesh | None:
    """The mesh of batches; None for uncommitted ones."""
    return None if isinstance(placement, Uncommitted) else placement.mesh  # type: ignore[return-value]


def context_within(placement: Placement) -> AbstractContextManager[Any]:
    """The context in which our part of a caller's program is traced: the mesh of the batches.

    Uncommitted rows use the mesh of the caller, as other uncommitted arrays do.
    """
    uncommitted = isinstance(placement, Uncommitted)
    return nullcontext() if uncommitted else users_context(mesh_of(placement))


def row_axes(placement: Placement) -> tuple[str, ...]:
    """The mesh axes that split axis 0, the slowest first; empty if batches are replicated.

    Raises:
        TypeError: `placement` is not a `NamedSharding` over devices.
        ValueError: A batch cannot have this sharding: it splits an axis other than 0, is unreduced,
            is of another kind of memory, or has the mesh of a running `shard_map`.
    """
    if isinstance(placement, Uncommitted):
        return ()
    if not isinstance(placement, NamedSharding):
        raise refused(
            TypeError,
            "sharding",
            "it must be a NamedSharding.",
            got=type(placement).__name__,
            fix="build one with batch_sharding(make_mesh({'data': -1}))",
        )
    return _checked_row_axes(placement)


@functools.lru_cache(maxsize=64)  # called for every batch
def _checked_row_axes(sharding: NamedSharding) -> tuple[str, ...]:
    mesh, spec = sharding.mesh, sharding.spec
    if not isinstance(mesh, Mesh) or mesh.empty:
        raise refused(
            TypeError,
            "sharding",
            "its mesh must consist of devices, and this mesh has none.",
            mesh=f"{type(mesh).__name__} of axes {dict(mesh.shape)}",
            fix="build the mesh with make_mesh({'data': -1})",
        )
    if spec.unreduced or spec.reduced:
        raise refused(
            ValueError,
            "sharding",
            "it must not be unreduced or reduced: batches hold records, and no sums.",
            spec=spec,
            fix="use PartitionSpec(axes) without unreduced and reduced",
        )
    first, *others = tuple(spec) or (None,)
    if any(axis is not None for axis in others) or first is PartitionSpec.UNCONSTRAINED:
        raise refused(
            ValueError,
            "sharding",
            "it must split batches along axis 0 only.",
            spec=spec,
            fix="use batch_sharding(mesh, axis), and reshard other axes inside your own jit",
        )
    if AxisType.Manual in mesh.axis_types:
        raise refused(
            ValueError,
            "sharding",
            "its mesh must not have Manual axes, which exist only within a shard_map.",
            axis_types=mesh.axis_types,
            fix="build the source with the mesh that the shard_map is over",
        )
    default = next(iter(mesh.devices.flat)).default_memory().kind
    if sharding.memory_kind not in (None, default):
        raise refused(
            ValueError,
            "sharding",
            f"its memory_kind must be {default!r}, the memory that the devices compute with.",
            memory_kind=repr(sharding.memory_kind),
            fix="leave memory_kind out, and move a batch with"
            f" jax.device_put(batch, sharding.with_memory_kind({sharding.memory_kind!r}))",
        )
    if first is None:
        return ()
    return (first,) if isinstance(first, str) else tuple(first)


def row_shards(sharding: Placement) -> int:
    """The number of slices that the rows of a batch are cut into."""
    if isinstance(sharding, Uncommitted):
        return 1
    return math.prod(sharding.mesh.shape[axis] for axis in row_axes(sharding))


def check_batch_size(batch_size: int, sharding: Placement) -> None:
    """Raises a `ValueError` unless `batch_size` is a positive multiple of the row shards.

    The message gives both, and the nearest sizes that fit.
    """
    shards = row_shards(sharding)
    positive = is_integer(batch_size, 1)
    if positive and batch_size % shards == 0:
        return
    must = f"a multiple of {shards} (the mesh has {shards} row shards)"
    if not positive:
        must = "an integer of at least 1" if shards == 1 else f"a positive integer, {must}"
    wanted = max(whole_number(batch_size) or 0, 0)
    below = wanted // shards * shards
    nearest = {below, below if below and below == wanted else below + shards} - {0}
    shown = batch_size if positive else f"{batch_size!r}"[:40].partition("\n")[0]
    mesh = mesh_of(sharding)
    split = "" if mesh is None else f", mesh axes {row_axes(sharding)} of {dict(mesh.shape)}"
    raise refused(
        ValueError,
        "batch_size",
        f"it must be {must}, got {shown}.",
        row_shards=f"{shards}{split}",
        fix=f"use {' or '.join(map(str, sorted(nearest)))}",
    )


def processes_of(sharding: Placement) -> list[int]:
    """The numbers of the processes that have devices of the mesh, in ascending order."""
    return sorted({device.process_index for device in sharding.device_set})


@functools.lru_cache(maxsize=64)  # called for every batch, and takes 60 us
def local_rows(sharding: Placement, rows: int) -> Mapping[tuple[int, int], list[Any]]:
    """Which slices `[start, stop)` of `rows` rows this process holds, and on which devices.

    Devices that hold the same slice, as along a model axis, are in one list: read the slice once,
    and place it on each of them.

    Raises:
        ValueError: No device of the mesh belongs to this process.
    """
    if isinstance(sharding, Uncommitted):
        return {(0, rows): [sharding.device]}
    places: dict[tuple[int, int], list[Any]] = {}
    split = NamedSharding(sharding.mesh, PartitionSpec(row_axes(sharding)))
    for device, index in split.addressable_devices_indices_map((rows,)).items():
        start, stop, _ = index[0].indices(rows)  # pyright: ignore[reportOptionalSubscript]
        places.setdefault((start, stop), []).append(device)
    if not places:
        raise refused(
            ValueError,
            "sharding",
            f"process {jax.process_index()} holds no device of the mesh.",
            mesh=dict(sharding.mesh.shape),
            processes=processes_of(sharding),
            fix="build the mesh over devices of every process, or leave this process out",
        )
    return places


def global_batch(read: Callable[[slice], Any], batch_size: int, sharding: Placement) -> Any:
    """Builds a batch that spans the mesh; each process reads only the rows it holds.

    Row `i` of the result is row `i` of `read(slice(0, batch_size))` on every mesh, process
    count and device order, so training does not depend on where it runs.

        batch = global_batch(lambda rows: records.take(numbers[rows]), 1024, sharding)

    The arrays that `read` returns may be aliased by the result: do not write to them again.

    Args:
        read: Returns the rows of a slice of `[0, batch_size)` as NumPy arrays `[rows, ...]`,
            in any pytree. Called once per distinct slice that this process holds.
        batch_size: Rows over all processes.
        sharding: Places axis 0. Other axes are replicated.

    Returns:
        The structure that `read` returns, with `jax.Array` leaves `[batch_size, ...]`.

    Raises:
        TypeError: `read` is not a function.
        ValueError: `batch_size` is not a multiple of the number of row shards; the
            message gives both and the nearest sizes that fit. Or `read` returns another number of
            rows than its slice has.
    """
    check_batch_size(batch_size, sharding)
    if not callable(read):
        raise refused(
            TypeError,
            "global_batch",
            "read must be a function.",
            read=type(read).__name__,
            fix="pass a function of a slice, as lambda rows: records[rows]",
        )
    pieces: list[list[jax.Array]] = []
    structure = None
    for (start, stop), devices in local_rows(sharding, batch_size).items():
        rows = read(slice(start, stop))
        leaves, structure = jax.tree.flatten(rows)
        if not leaves or any(np.shape(leaf)[:1] != (stop - start,) for leaf in leaves):
            raise refused(
                ValueError,
                "global_batch",
                "read must return exactly the rows of its slice.",
                rows=f"[{start}, {stop})",
                returned=jax.tree.map(np.shape, rows),
                fix=f"return arrays [{stop - start}, ...] for this slice",
            )
        # All leaves in one call, which costs 0.1 ms for any number of them.
        with OwnContext(device_of(sharding)):
            if isinstance(sharding, Uncommitted):
                return jax.tree.unflatten(structure, jax.device_put(leaves))
            pieces += [jax.device_put(leaves, device) for device in devices]
    assert structure is not None
    assert not isinstance(sharding, Uncommitted)
    split = NamedSharding(sharding.mesh, PartitionSpec(row_axes(sharding)))
    return jax.tree.unflatten(structure, _spanning(pieces, split, batch_size))


def _spanning(pieces: list[list[Any]], sharding: NamedSharding, *rows: int) -> list[jax.Array]:
    """Joins the arrays on the devices of this process to arrays that span processes.

    This takes 1 to 10 ms for 16 MiB. `device_put` with a global sharding takes 529 ms, because it
    compares the value on all processes.
    """
    return [
        jax.make_array_from_single_device_arrays(
            rows + shards[0].shape[len(rows) :], sharding, list(shards)
        )
        for shards in zip(*pieces, strict=True)
    ]


def on_mesh(values: Any, placement: Placement) -> Any:
    """Copies arrays, equal on every process, to all devices, unless they are committed already.

    A compiled function returns its results on the mesh. If its arguments are there from the start,
    its second call has arguments of the same kind, and JAX does not compile it again. All transfers
    are explicit, which `jax.transfer_guard` allows.
    """
    leaves, structure = jax.tree.flatten(values)
    loose = [place for place, leaf in enumerate(leaves) if not _has_place(leaf, placement)]
    given = [leaves[place] for place in loose]
    moved = [leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for leaf in given]
    with OwnContext(device_of(placement)):
        # All in one call for each device, since a call costs 30 us.
        if isinstance(placement, Uncommitted):
            arrays = jax.device_put(moved)
        else:
            devices = placement.mesh.local_devices or ()
            copies = [jax.device_put(moved, device) for device in devices]
            arrays = _spanning(copies, NamedSharding(placement.mesh, PartitionSpec()))
    for place, array in zip(loose, arrays, strict=True):
        leaves[place] = array
    return structure.unflatten(leaves)


def _has_place(value: Any, placement: Placement) -> bool:
    if isinstance(value, jax.core.Tracer):
        return True
    uncommitted = isinstance(placement, Uncommitted)
    return isinstance(value, jax.Array) and (uncommitted or value.committed)


def as_arguments(values: Any, placement: Placement) -> Any:
    """Arguments for a compiled function, made by `on_mesh` if a `jax.transfer_guard` demands it.

    Without a guard they are the values themselves, which is quicker (3 us against 40).
    """
    return on_mesh(values, placement) if guards_transfers() else values
