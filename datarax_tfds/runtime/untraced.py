"""Runs code outside of every JAX transformation, so that no tracer is kept for later."""

import threading
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import TypeVar

import jax
from jax.extend.core import get_opaque_trace_state

from datarax_tfds.runtime.threads import ThreadPool
from sharding.checks import refused
from sharding.jax_context import mesh_of_context


def _trace_state() -> object:
    return get_opaque_trace_state(convention="nnx")


_untraced_states: list[object] = []
# In its own thread, because a transformation of the importing thread is not known to other threads.
_first = threading.Thread(target=lambda: _untraced_states.append(_trace_state()))
_first.start()
_first.join()

Result = TypeVar("Result")


def is_traced() -> bool:
    """Whether `jit`, `vmap`, `grad` or another JAX transformation runs the calling function."""
    return _trace_state() != _untraced_states[0]


def refuse_while_traced(subject: str, records_of: str | None) -> None:
    """Raises a `RuntimeError` where a transformation runs the constructor of a source."""
    if is_traced():
        raise refused(
            RuntimeError,
            subject,
            "a source cannot be built inside a function that is being traced by JAX.",
            records_of=records_of,
            fix="build the source outside, and pass it to nnx.jit as an argument",
        )


def untraced(make: Callable[[], Result]) -> Result:
    """Calls `make` outside of every transformation, and returns its result.

    A transformation is known to its own thread only, so `make` runs in another one, within the
    caller's mesh. `jax.ensure_compile_time_eval` is not enough: it may give tracers under `vmap`
    and `grad`, and raise under `jit(grad)` on a mesh with Explicit axes.
    """
    if not is_traced():
        return make()
    mesh = mesh_of_context()

    def make_in_mesh() -> Result:
        with nullcontext() if mesh is None else jax.set_mesh(mesh):
            return make()

    with closing(ThreadPool(1, "datarax_tfds_untraced")) as pool:
        return pool.submit(make_in_mesh).result()
