"""Protects our programs from what callers set around their own JAX code."""

import contextlib
from typing import Any

import jax

# JAX has no public name for the devices of the current mesh within a trace.
from jax._src.mesh import get_concrete_mesh
from jax.sharding import AbstractMesh, Mesh

_NO_MESH = AbstractMesh((), ())


def without_mesh() -> Any:
    """A context that unsets the mesh of the caller; it works within a trace, too.

    Our programs name their mesh themselves, and JAX refuses a `shard_map` over one mesh while
    another one is set.
    """
    try:
        return jax.set_mesh(None)
    except ValueError:  # within a trace
        return jax.sharding.use_abstract_mesh(_NO_MESH)


def mesh_of_context() -> Mesh | None:
    """The mesh that the caller has set, with its devices; within a trace, too."""
    mesh = get_concrete_mesh()
    return None if mesh is None or mesh.empty else mesh


class OwnContext:
    """The context of our programs, in which the caller's settings do not change their results.

    No mesh is set. Uncommitted arrays go to `device`, not to `jax.default_device`. Programs are
    compiled even under `jax.disable_jit`. `jax_debug_nans` and `jax_debug_infs` do not report NaNs
    and infinities, because the data may hold them.

    It is a class because it is entered for every batch: entering it takes 2 us, where a generator
    with an `ExitStack` takes 7.

    Args:
        device: Where uncommitted arrays go; None for programs without such arguments.
    """

    def __init__(self, device: Any | None):
        self._device = device
        self._entered: list[Any] = []

    def __enter__(self) -> None:
        config: Any = jax.config
        self._enter(without_mesh())
        self._enter(jax.default_device(self._device))
        if config.jax_debug_nans:
            self._enter(jax.debug_nans(False))
        if config.jax_debug_infs:
            self._enter(jax.debug_infs(False))
        if config.jax_disable_jit:
            self._enter(jax.disable_jit(False))

    def _enter(self, context: Any) -> None:
        context.__enter__()
        self._entered.append(context)

    def __exit__(self, *raised: object) -> None:
        while self._entered:
            self._entered.pop().__exit__(*raised)


def users_context(mesh: Mesh | None) -> Any:
    """The context of programs that call functions of the caller.

    If the caller has set `mesh`, the mesh of the batches, it stays set, so that these functions can
    name its axes. Any other mesh is unset.
    """
    if mesh is not None and jax.sharding.get_abstract_mesh() == mesh.abstract_mesh:
        return contextlib.nullcontext()
    return without_mesh()


def guards_transfers() -> bool:
    """Whether a `jax.transfer_guard` forbids or logs implicit transfers to or between devices."""
    config: Any = jax.config
    unguarded = (None, "allow")
    return (
        config.jax_transfer_guard_host_to_device not in unguarded
        or config.jax_transfer_guard_device_to_device not in unguarded
    )
