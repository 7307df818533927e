"""A process that imports JAX and TensorFlow, and is copied for `warmed.Popen` from then on.

A fork copies one thread only, so nothing here may start another. Our own packages tell a forked
child from a new process, so they are imported in the copies only.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import types
import warnings
from pathlib import Path

MODULES = ("jax", "flax.nnx", "tensorflow", "tensorflow_datasets", "orbax.checkpoint")


class Copy:
    """One copy, and the channel on which it is told how the copy ends.

    It keeps its process id until the other side has closed the channel, so that no signal reaches
    another process, and it is killed if that happens while it runs.
    """

    def __init__(self, pid: int, channel: socket.socket):
        self.pid, self.channel = pid, channel
        self.ended = os.pidfd_open(pid)
        self.status: int | None = None

    def tell(self) -> None:
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self.status = found.si_status * (1 if found.si_code == os.CLD_EXITED else -1)
        with contextlib.suppress(BrokenPipeError):  # nobody wants to know
            self.channel.sendall(json.dumps({"status": self.status}).encode() + b"\n")

    def end(self) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):  # it has made no group yet
                os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def close(self) -> None:
        self.channel.close()
        os.close(self.ended)


def copied(tests: socket.socket) -> dict:
    """Makes a copy for each request, until the tests have ended. Returns in the copies only."""
    ready = select.epoll()
    ready.register(tests, select.EPOLLIN)
    copies: dict[int, Copy] = {}  # by their two descriptors
    while True:
        for descriptor, _ in ready.poll():
            copy = copies.get(descriptor)
            if descriptor == tests.fileno():
                byte, descriptors, _, _ = socket.recv_fds(tests, 1, 4)
                if not byte:
                    for copy in set(copies.values()):
                        copy.end()
                    os._exit(0)
                *streams, channel = descriptors
                pid = os.fork()
                if pid == 0:
                    for other in (tests, ready, *set(copies.values())):
                        other.close()
                    return request_of(socket.socket(fileno=channel), streams)
                for stream in streams:
                    os.close(stream)
                copy = Copy(pid, socket.socket(fileno=channel))
                copies |= {channel: copy, copy.ended: copy}
                ready.register(channel, select.EPOLLHUP)  # the copy itself reads what comes
                ready.register(copy.ended, select.EPOLLIN)
            elif copy is not None and descriptor == copy.ended:
                copy.tell()
                ready.modify(copy.ended, 0)
            elif copy is not None:
                copy.end()
                for one in (descriptor, copy.ended):
                    ready.unregister(one)
                    del copies[one]
                copy.close()


def request_of(channel: socket.socket, streams: list[int]) -> dict:
    """In a new copy: takes its streams, and reads what it is to be."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    with channel, channel.makefile() as requests:
        request = json.loads(requests.readline())
        channel.sendall(json.dumps({"pid": os.getpid()}).encode() + b"\n")
    return request


def become(command: list[str], environment: dict[str, str], cwd: str) -> None:
    """Runs a script, or the code after `-c`, as Python does. What it raises ends the process."""
    gc.enable()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    module = types.ModuleType("__main__")
    if command[0] == "-c":
        code, name, folder = command.pop(1), "<string>", ""
    else:
        name = module.__file__ = command[0]
        code, folder = Path(name).read_bytes(), os.path.dirname(os.path.abspath(name))
    sys.argv, sys.path[0], sys.modules["__main__"] = command, folder, module
    exec(compile(code, name, "exec"), module.__dict__)


if __name__ == "__main__":
    tests = socket.socket(fileno=int(sys.argv[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in MODULES:
            importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"the import of {', '.join(MODULES)} has started {threads - 1} threads"
    # Otherwise the collector would write to all objects in each copy, which copies their memory.
    gc.disable()
    gc.freeze()
    tests.sendall(json.dumps(dict(os.environ)).encode() + b"\n")
    become(**copied(tests))
