"""Asks the kernel which other processes of the job on this machine have died."""

import os
import select
import signal

import jax

from sharding.hosts import coordination


class LocalPeers:
    """Finds the other processes on this machine that have died, by any signal or `os._exit`.

    It finds them on Linux only. psutil cannot tell how a process ended that is not a child of this
    one, and may mistake a new process for one that had the same pid.
    """

    def __init__(self):
        self._process, self._machine = jax.process_index(), _machine()
        self._known: set[int] = set()
        self._alive: dict[int, tuple[int, int]] = {}  # the pid of each, and its descriptor
        self._dead: dict[int, str] = {}
        address = {"pid": os.getpid(), "machine": self._machine}
        coordination.put(f"address/{self._process}", address)

    def find(self) -> None:
        """Looks for the other processes, until the pids of all are known."""
        if len(self._known) == jax.process_count():
            return
        for process, address in coordination.notes_by_process("address").items():
            here = process != self._process and address["machine"] == self._machine
            if here and self._machine is not None and process not in self._known:
                try:
                    self._alive[process] = address["pid"], os.pidfd_open(address["pid"])
                except ProcessLookupError:
                    self._dead[process] = "it is gone"
                except OSError:
                    pass  # the kernel, or a sandbox, has no descriptors of processes
            self._known.add(process)

    def dead(self) -> dict[int, str]:
        """The processes that have died, and how each did, as far as the kernel tells."""
        for process, (pid, descriptor) in list(self._alive.items()):
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if poll.poll(0):
                self._dead[process] = _how(pid)
                os.close(descriptor)
                del self._alive[process]
        return dict(self._dead)


def _machine() -> str | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _how(pid: int) -> str:
    """How a process ended; unknown once its parent has waited for it."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            status = int(file.read().rpartition(")")[2].split()[-1])
    except (OSError, ValueError, IndexError):
        return "it is gone"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"it ended with exit status {code}, without telling"
    known = {number.value: number.name for number in signal.Signals}
    return f"it was ended by {known.get(-code, f'signal {-code}')}"
