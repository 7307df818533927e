"""Exchanges notes between the processes of a job, in the key-value store of JAX's coordinator.

A note is short JSON: digests, positions, names, error texts. The coordinator does not ask for a
password: keep it on a private network.

The coordinator answers a few thousand requests a second, however many processes there are. So no
process asks again and again for what another one will say: it asks once, and the coordinator
answers when the note is there (`arrival`), or when all have come (`meet`).
"""

import datetime
import hashlib
import json
import os
import platform
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax

# JAX has no public name for its store; Orbax uses this one, too.
from jax._src import distributed

from sharding.checks import refused

_ROOT = "datarax_tfds"
# The key that JAX's preemption service reads (XLA: preemption_sync_manager).
_PREEMPTION = "RECEIVED_PREEMPTION_NOTICE"
_LONGEST_WAIT_MS = 2**31 - 1  # 24 days
_CLOSE_S = 10.0
_TASKS = Path("/proc/self/task")
MAX_LISTED = 8  # processes that a message names


class Coordinator:
    """The coordinator of the job, as this process uses it."""

    in_forked_child = False  # of a process that is connected to the others

    def __init__(self):
        self._waiting: list[threading.Thread] = []

    @property
    def process(self) -> int:
        return jax.process_index()

    @property
    def count(self) -> int:
        """The processes of the job."""
        return jax.process_count()

    @property
    def host(self) -> str:
        """The name of this machine."""
        return platform.node()

    @property
    def machine(self) -> str:
        """Tells machines, and containers on one machine, from each other."""
        try:
            with open("/proc/sys/kernel/random/boot_id") as file:
                identity = f"{file.read()} {os.readlink('/proc/self/ns/pid')}"
        except OSError:
            identity = self.host
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    def put(self, place: str, note: Any) -> None:
        """Writes a note, which replaces an earlier one at the same place."""
        self._asked("key_value_set", f"{_ROOT}/{place}", json.dumps(note), allow_overwrite=True)

    def put_first(self, place: str, note: Any) -> Any:
        """Writes a note unless there is one at the place; returns the one that is there then."""
        try:
            self._asked("key_value_set", f"{_ROOT}/{place}", json.dumps(note))
        except ConnectionError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise
            return self.note(place)
        return note

    def note(self, place: str) -> Any:
        """The note at a place; None if there is none."""
        try:
            return json.loads(self._asked("key_value_try_get", f"{_ROOT}/{place}"))
        except ConnectionError as error:
            if "NOT_FOUND" not in str(error):
                raise
            return None

    def notes(self, folder: str) -> dict[int, Any]:
        """All notes that are in a folder now, of which each process writes one, by its number.

        With thousands of processes this is large, so only one of them asks for it.
        """
        found = self._asked("key_value_dir_get", f"{_ROOT}/{folder}/")
        return {int(place.rpartition("/")[2]): json.loads(text) for place, text in found}

    def arrival(self, place: str) -> Future[Any]:
        """The note at a place, as soon as there is one.

        The coordinator keeps 35 kB for each such request until then.
        """
        future: Future[Any] = Future()

        def wait() -> None:
            try:
                key = f"{_ROOT}/{place}"
                text = self._asked("blocking_key_value_get", key, _LONGEST_WAIT_MS)
                future.set_result(json.loads(text))
            except ConnectionError as error:
                future.set_exception(error)

        thread = threading.Thread(target=wait, name=f"datarax_tfds {place}", daemon=True)
        thread.start()
        self._waiting = [*filter(threading.Thread.is_alive, self._waiting), thread]
        return future

    def close(self) -> None:
        """Ends the requests that wait for a note, together with `jax.distributed`, at the exit.

        Python would end their threads by an exception that C++ does not let through, which aborts
        the process.
        """
        if any(thread.is_alive() for thread in self._waiting):
            jax.distributed.shutdown()
            for thread in self._waiting:
                thread.join(timeout=_CLOSE_S)

    def meet(self, name: str, timeout_s: float, *, without: int | None = None) -> None:
        """Returns when all processes have called this, if need be without one that has died.

        Raises:
            ConnectionError: They have not called it in time.
        """
        some = None if without is None else [n for n in range(self.count) if n != without]
        self._asked("wait_at_barrier", f"{_ROOT}/{name}", round(timeout_s * 1000), some)

    def notify_preemption(self) -> None:
        """Notifies JAX's preemption service, as SIGTERM otherwise does."""
        now = datetime.datetime.now(datetime.UTC).isoformat()
        self._asked("key_value_set", _PREEMPTION, now, allow_overwrite=True)

    def preemption_noticed(self) -> bool:
        """Whether JAX's preemption service has been notified on any process."""
        try:
            return bool(self._asked("key_value_try_get", _PREEMPTION))
        except ConnectionError as error:
            if "NOT_FOUND" not in str(error):
                raise
            return False

    def refuse_in_forked_child(self) -> None:
        """Raises in a child that was forked after its parent had joined a job.

        A request of a child would break the connection of its parent (seen as "Missing :authority
        header"), and the child would wait for the answer for ever, as for the devices of others.
        """
        if self.in_forked_child:
            raise refused(
                ConnectionError,
                "jax.distributed",
                "a forked child cannot ask the coordinator of the job.",
                process=os.getpid(),
                fix="do this in the process that called initialize(); start others with"
                " multiprocessing.get_context('spawn')",
            )

    def _asked(self, request: str, *args: Any, **options: Any) -> Any:
        self.refuse_in_forked_child()
        client = distributed.global_state.client
        reason: object = "jax.distributed has not begun, or has ended"
        if client is not None:
            try:
                return getattr(client, request)(*args, **options)
            except jax.errors.JaxRuntimeError as error:
                reason = error
        raise refused(
            ConnectionError,
            "jax.distributed",
            "the coordinator of the job does not answer.",
            error=reason,
            fix="call initialize() first; if that was done, look in the log of process 0, which"
            " runs the coordinator, for why it ended, and start the job again",
        )


def _note_fork() -> None:
    Coordinator.in_forked_child = distributed.global_state.client is not None


os.register_at_fork(after_in_child=_note_fork)
if _TASKS.is_dir() and len(list(_TASKS.iterdir())) <= threading.active_count():
    # The threads of a client are gone, so this module is imported in a forked child.
    _note_fork()


def listed(who: Sequence[str], separator: str = ", ", more: int = 0) -> str:
    """Joins names of processes for a message; those after the eighth are only counted."""
    more += max(0, len(who) - MAX_LISTED)
    return separator.join(who[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def named(process: int, host: str) -> str:
    """The name of a process in messages."""
    return f"process {process} (host {host})"
