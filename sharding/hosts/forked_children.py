"""Keeps the forked children of a process from harming the job when they end.

A child inherits JAX's connection to the coordinator, and in process 0 the coordinator itself. When
the interpreter of the child is torn down, JAX closes both (seen with jax 0.10 and 0.12): the parent
can no longer reach the coordinator, or the whole job ends.
"""

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress

from sharding.hosts.exit_cause import ExitCause


def isolate_forked_children(exit_cause: ExitCause) -> None:
    """Makes children that this process forks from now on exit without closing JAX's connections."""
    masks = threading.local()

    def before() -> None:
        # Holds back a SIGTERM to the child until the child can handle it.
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def after() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def in_child() -> None:
        # Runs before the exit hooks that the child inherits, and after those that it registers.
        atexit.register(_leave, exit_cause)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            # JAX's own handler, which Python does not know, takes SIGTERM for a notice of
            # preemption. `multiprocessing` would wait for ever for a child that it terminates.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        after()

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=in_child)


def _leave(exit_cause: ExitCause) -> None:
    failure, unknown = exit_cause.failure(), exit_cause.remarks()["exit"]
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or None
            stream.flush()
    # An unknown status must not pass for success.
    os._exit(int(unknown is not None) if failure is None else failure[1])
