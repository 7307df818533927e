"""Refuses to read in a forked child if its parent had already used JAX or TensorFlow.

A fork copies only the thread that forks. JAX and TensorFlow need their other threads, so their
first call in such a child would wait for ever.
"""

import os
import sys
import threading
from pathlib import Path

_TASKS = Path("/proc/self/task")

_used_by_parent: list[str] = []


def refuse_in_forked_child(subject: str) -> None:
    """Raises a `RuntimeError` in a child that was forked after JAX or TensorFlow was used."""
    if _used_by_parent:
        from sharding.checks import refused  # here, because the package sharding imports JAX

        raise refused(
            RuntimeError,
            subject,
            "it cannot be used in a forked child, which lacks the threads of its parent.",
            process=os.getpid(),
            used_before_the_fork=", ".join(_used_by_parent),
            fix="start processes with multiprocessing.get_context('spawn') and build the source"
            " there, or fork before JAX and TensorFlow are first used",
        )


def _in_use() -> list[str]:
    """The libraries that have started threads.

    Takes no lock, because another thread of the parent may have held it during the fork.
    """
    bridge = sys.modules.get("jax._src.xla_bridge")
    joined = getattr(sys.modules.get("jax.distributed"), "is_initialized", bool)()
    context = getattr(sys.modules.get("tensorflow.python.eager.context"), "_context", None)
    used = {
        "JAX": bool(getattr(bridge, "_backends", None)) or joined,
        "TensorFlow": bool(getattr(context, "_initialized", False)),
    }
    return [library for library, started in used.items() if started]


def _note_fork() -> None:
    _used_by_parent[:] = _used_by_parent or _in_use()


os.register_at_fork(after_in_child=_note_fork)
if _TASKS.is_dir() and len(list(_TASKS.iterdir())) <= threading.active_count():
    # There are no native threads, so a library that is in use was used before a fork.
    _note_fork()
