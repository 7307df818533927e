"""Ends, or fails, what happens in a directory at a chosen call to the file system."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CALLS = {
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("shutil.rmtree", "shutil.move", "os.chmod", "os.utime"),
}


class Killed(BaseException):
    """The process is no more: whatever it still tries does not happen."""


class _Plan:
    def __init__(self, directory: Path, at: int, failure: int | None):
        self.directory, self.at, self.failure = str(directory), at, failure
        self.calls = 0
        self.dead = False
        self.last = ""

    def called(self, name: str) -> None:
        self.calls += 1
        if self.dead or (self.failure is None and self.calls == self.at):
            self.dead, self.last = True, self.last or name
            raise Killed(name)
        if self.calls == self.at:
            raise OSError(self.failure, os.strerror(self.failure), name)


_plan: _Plan | None = None


def _watch(event: str, args: tuple) -> None:
    if _plan is None:
        return
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    if (writes or event in _CALLS) and str(args[0]).startswith(_plan.directory):
        _plan.called(f"{event} {args[0]}")


sys.addaudithook(_watch)  # there is no way to take it back: it looks at `_plan`


@contextmanager
def at_call(directory: Path, number: int, failure: int | None = None) -> Iterator[_Plan]:
    """Kills at that call under a directory, from 1, or lets it alone fail with an errno.

    An fsync is a call, too. Within a kill, nothing that follows happens either.
    """
    global _plan
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.startswith(str(directory)):
            plan.called(f"fsync {path}")
        fsync(descriptor)

    plan = _plan = _Plan(directory, number, failure)
    os.fsync = counted
    try:
        yield plan
    finally:
        os.fsync, _plan = fsync, None


FAILURES = {"killed": None, "disk full": errno.ENOSPC, "broken": errno.EIO, "quota": errno.EDQUOT}
