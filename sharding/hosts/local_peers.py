"""Asks the kernel which other processes of the job on this machine have died."""

import os
import select
import signal

from sharding.hosts.job import Job


class LocalPeers:
    """Finds the other processes on this machine that have died, by any signal or `os._exit`.

    It finds them on Linux only. psutil cannot tell how a process ended that is not a child of this
    one, and may mistake a new process for one that had the same pid.
    """

    def __init__(self, job: Job):
        self._job, self._coordinator = job, job.coordinator
        self._known: set[int] = set()
        self._alive: dict[int, tuple[int, int]] = {}  # the pid of each, and its descriptor
        self._dead: dict[int, str] = {}
        self._folder = f"pid/{self._coordinator.machine}"
        self._coordinator.put(f"{self._folder}/{self._coordinator.process}", os.getpid())

    def find(self) -> None:
        """Looks for the other processes on this machine."""
        pids = self._coordinator.notes(self._folder)
        self._job.processes_here = len(pids)
        for process, pid in pids.items():
            if process != self._coordinator.process and process not in self._known:
                try:
                    self._alive[process] = pid, os.pidfd_open(pid)
                except ProcessLookupError:
                    self._dead[process] = "it is gone"
                except (OSError, AttributeError):
                    pass  # the system, or a sandbox, has no descriptors of processes
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
