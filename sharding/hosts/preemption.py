"""Stops all processes of a job at the same step when a machine is about to be taken away."""

import logging
import os
import signal
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from sharding.checks import refused
from sharding.hosts.job import job

_log = logging.getLogger(f"datarax_tfds.{__name__}")


class Preemption:
    """Says when to save and stop: a signal to any process stops all of them at the same step.

        preemption = Preemption(signals=(signal.SIGTERM, signal.SIGUSR1))
        for batch in pipeline:
            train_step(batch)
            step += 1
            if preemption.reached(step):
                save(step)
                break

    Clouds and Kubernetes send SIGTERM; Slurm sends what `sbatch --signal=USR1@120` names. With
    several processes, JAX's preemption service carries the notice to all of them and chooses the
    step. Handlers that the program had set before are called as well.

    These signals still end a forked child.

    Call `reached` at every step, on every process, starting at the same step. `close()`, or the end
    of a `with` block, restores the earlier handlers.

    Args:
        signals: The signals that announce a preemption.

    Raises:
        RuntimeError: It is built outside of the main thread.
        TypeError: `signals` is not a list.
        ValueError: A signal that no process can handle, such as SIGKILL.
    """

    def __init__(self, *, signals: Iterable[int] = (signal.SIGTERM,)):
        self._process = os.getpid()
        self._noticed = self._told = self._closed = False
        self._handler = self._notice  # kept, because each look-up of the method is a new object
        self._previous: dict[int, Any] = {}
        self._replaced: set[int] = set()
        wanted = _checked(signals)
        for number in wanted:
            self._previous[number] = signal.signal(number, self._handler)
        job.handles_preemption = True
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(wanted)
        if blocked:
            _log.warning(
                "Preemption: %s cannot arrive, because this thread blocks it; unblock it with"
                " signal.pthread_sigmask",
                ", ".join(sorted(signal.Signals(number).name for number in blocked)),
            )

    def reached(self, step: int) -> bool:
        """Whether to save and stop now, after this step."""
        self._warn_of_other_handlers()
        if jax.process_count() == 1:
            return self._noticed
        if self._noticed and not self._told:
            job.coordinator.notify_preemption()
            self._told = True
        return multihost_utils.reached_preemption_sync_point(step)

    def close(self) -> None:
        """Restores the handler that each signal had, unless another one was set since."""
        self._closed = True
        for number, previous in self._previous.items():
            # None stands for a handler of C code, which Python cannot restore, so ours stays.
            if signal.getsignal(number) is self._handler and previous is not None:
                signal.signal(number, previous)

    def __enter__(self) -> "Preemption":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _notice(self, number: int, frame: FrameType | None) -> None:
        # A signal handler must not take a lock, so it must not log or call the coordinator.
        if not self._closed:
            self._noticed = True
        previous = self._previous.get(number)
        if callable(previous):
            previous(number, frame)
        elif os.getpid() != self._process and previous != signal.SIG_IGN:
            # In a forked child, which `multiprocessing` ends by SIGTERM, and then waits for.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _warn_of_other_handlers(self) -> None:
        for number in self._previous:
            current = signal.getsignal(number)
            if current is self._handler or number in self._replaced:
                continue
            if getattr(current, "__func__", None) is Preemption._notice:
                continue  # a later Preemption, which calls this one
            self._replaced.add(number)
            _log.warning(
                "Preemption: another handler was set for %s after this was built. Unless it calls"
                " ours, the signal does not stop the job; set yours first, and both are called.",
                signal.Signals(number).name,
            )


def _checked(signals: Iterable[int]) -> list[int]:
    if threading.current_thread() is not threading.main_thread():
        raise refused(
            RuntimeError,
            "Preemption",
            "it must be built in the main thread, because Python sets signal handlers only there.",
            thread=threading.current_thread().name,
            fix="build it in the main thread, and pass it to the thread that trains",
        )
    if not isinstance(signals, Iterable):
        raise refused(
            TypeError,
            "Preemption",
            "signals must be a list of signals.",
            got=repr(signals),
            fix="pass a list, as signals=(signal.SIGTERM,)",
        )
    wanted = list(signals)
    for number in wanted:
        if number in (signal.SIGKILL, signal.SIGSTOP) or number not in signal.valid_signals():
            raise refused(
                ValueError,
                "Preemption",
                "signals must be signals that a process can handle.",
                got=repr(number),
                fix="use for example signals=(signal.SIGTERM, signal.SIGUSR1)",
            )
    return wanted
