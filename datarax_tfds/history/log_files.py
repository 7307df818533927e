"""Appends lines to logs, and reads them: in a file, or in a directory of a store.

Nothing can be appended to an object of a store. So a log in a store is a directory of objects, each
with some lines, whose names sort as the lines do:

    cursors-0.jsonl/000001-5f3a9c21-000001.jsonl    the first lines of the first run
    cursors-0.jsonl/000001-5f3a9c21-000002.jsonl    the following lines
    cursors-0.jsonl/000002-8e01b7d4-000001.jsonl    the second run
"""

import os
import threading
import uuid
from collections.abc import Iterator
from typing import Protocol

from datarax_tfds.runtime.forks import refuse_in_forked_child
from datarax_tfds.state.before_saving import flush_before_saving
from datarax_tfds.stores.object_path import ObjectPath
from datarax_tfds.stores.object_store import names, read_object, read_objects, write_object
from sharding.checks import refused

# Google Cloud Storage lets an object be written once a second.
_INTERVAL_S = 1.0
_OBJECT_BYTES = 256 << 10  # so that a day of five steps a second takes 100 objects
_AT_ONCE = 32


class Log(Protocol):
    """A log that lines can be appended to."""

    def append(self, line: bytes) -> None: ...

    def flush(self) -> None: ...


def log_at(path: str | os.PathLike[str]) -> Log:
    """The log at a path, which need not exist."""
    store = ObjectPath.parse(os.fspath(path))
    return LogFile(path) if store is None else StoredLog(store)


def log_lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yields the lines of a log.

    Raises:
        FileNotFoundError: There is no log.
        OSError: The log cannot be read.
    """
    store = ObjectPath.parse(os.fspath(path))
    if store is None:
        with open(path) as file:
            yield from file
        return
    parts = [store / name for name in names(store)]
    if not parts and (found := read_object(store)) is not None:  # the copy of a file
        yield from found.content.decode().splitlines(keepends=True)
    elif not parts:
        raise refused(
            FileNotFoundError,
            str(path),
            "there is no log of cursors.",
            bucket=store.bucket,
            fix="pass the path that CursorLog was given",
        )
    for start in range(0, len(parts), _AT_ONCE):
        for found in read_objects(parts[start : start + _AT_ONCE]):
            if found is not None:
                yield from found.content.decode().splitlines(keepends=True)


class LogFile:
    """A log in a file, to which each line is written at once."""

    def __init__(self, path: str | os.PathLike[str]):
        self._path = path
        self.append(b"\n")  # ends the partial line of a run that was killed

    def append(self, line: bytes) -> None:
        # Opened for each line, which takes 20 us, so that nobody has to close the log.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with open(os.open(self._path, flags, 0o644), "ab", buffering=0) as file:
            file.write(line)

    def flush(self) -> None:
        pass


class StoredLog:
    """A log in a store, to which lines are written in the background, every second.

    The thread that writes is no daemon, and ends when all is written. So the interpreter waits for
    the last lines when it exits, without a hook.

    Args:
        directory: The directory of the log.
    """

    def __init__(self, directory: ObjectPath):
        earlier = [int(name[:6]) for name in names(directory) if name[:6].isdecimal()]
        self._run = directory / f"{max(earlier, default=0) + 1:06}-{uuid.uuid4().hex[:8]}"
        self._number = 1  # of the object that is written
        self._content = b""  # of that object, as far as it is written
        self._lines: list[bytes] = []  # those that are not written yet
        self._hurry = False
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        flush_before_saving(self)

    def append(self, line: bytes) -> None:
        """Takes a line, which is written within seconds.

        Raises:
            OSError: Lines before could not be written. They are kept, and tried again.
        """
        refuse_in_forked_child("CursorLog")
        with self._changed:
            self._lines.append(line)
            self._start()
            self._raise_error()

    def flush(self) -> None:
        """Waits until all lines are written; raises as `append`."""
        with self._changed:
            if not self._lines:
                return
            self._start()
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._thread is None)
            self._raise_error()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="datarax_tfds log")
            self._thread.start()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self) -> None:
        """Writes lines until there are no more, or until they cannot be written."""
        while lines := self._next_lines():
            content = self._content + b"".join(lines)
            part = self._run.with_name(f"{self._run.name}-{self._number:06}.jsonl")
            try:
                write_object(part, content)
            except Exception as error:  # raised by `append` or `flush`
                self._end(error)
                return
            with self._changed:
                del self._lines[: len(lines)]
                self._content = content
                if self._hurry or len(content) >= _OBJECT_BYTES:
                    self._number, self._content = self._number + 1, b""

    def _next_lines(self) -> list[bytes]:
        """The lines to write, after a while in which more may come; the thread ends without any."""
        with self._changed:
            self._changed.wait_for(lambda: self._hurry, _INTERVAL_S)
            if not self._lines:
                self._end(None)
            return list(self._lines)

    def _end(self, error: Exception | None) -> None:
        with self._changed:
            self._error, self._thread, self._hurry = error, None, False
            self._changed.notify_all()
