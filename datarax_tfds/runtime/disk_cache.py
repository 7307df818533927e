"""Keeps content on the local disk, of which what was used last stays, up to a bound in bytes."""

import contextlib
import fcntl
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.small_files import read_plain_file
from sharding.checks import refused

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[0-9a-f]{32}")
_CRC_BYTES = 4
_TOTAL_BYTES = 8
_ROOM = 1 / 16  # of the bound is freed at once, because that looks at all files
_DISK_FRACTION = 0.5  # of the room that is free at first
LOCK_WAIT_S = 1.0
_POLL_S = 0.01


@not_copied
class DiskCache:
    """Files in a directory that several threads and processes may share.

    What is read is what was written: a file that is damaged counts as missing. A full disk, or a
    directory that is removed, costs only the content. Files of other names are left alone.

    The directory holds a lock, with the number of bytes of all files. It may be too high, as after
    a process has died; then files are counted anew sooner.

    Args:
        directory: Where the files are; it is made.
        max_bytes: The bound for all files together. By default, half of the free room.

    Raises:
        ValueError: The directory cannot be written.
    """

    def __init__(self, directory: Path, max_bytes: int | None = None):
        self._directory = directory
        self._writing = threading.Lock()
        self._warned = False
        try:
            self._open_lock().close()
            held = sum(size for _, size, _ in self._files())
            free = shutil.disk_usage(directory).free
        except OSError as error:
            raise refused(
                ValueError,
                "cache_dir",
                "nothing can be kept in this directory.",
                cache_dir=str(directory),
                error=error,
                fix="use a directory that this process can write, or leave cache_dir out",
            ) from error
        self.max_bytes = int(_DISK_FRACTION * (free + held)) if max_bytes is None else max_bytes

    def read(self, name: str) -> bytes | None:
        """The content of a name; None if it is not kept."""
        path = self._directory / name
        try:
            content = read_plain_file(path, self.max_bytes)
            os.utime(path)  # it was used last
        except OSError:
            return None  # never written, or removed
        if content is None or content[:_CRC_BYTES] != _crc(content[_CRC_BYTES:]):
            return None
        return content[_CRC_BYTES:]

    def write(self, name: str, content: bytes) -> None:
        """Keeps content under a name of 32 hexadecimal digits, if there is room for it."""
        assert _NAME.fullmatch(name)
        try:
            with self._locked() as lock:
                self._write(lock, name, _crc(content) + content)
        except OSError as error:
            level = logging.DEBUG if self._warned else logging.WARNING
            self._warned = True
            _log.log(level, "%s: blocks cannot be kept, and are read again: %s", name, error)

    def _write(self, lock: BinaryIO, name: str, content: bytes) -> None:
        lock.seek(0)
        total = lock.read(_TOTAL_BYTES)
        held = int.from_bytes(total, "little")
        if not total or held + len(content) > self.max_bytes:
            held = self._evict(int(self.max_bytes * (1 - _ROOM)) - len(content))
        if held + len(content) > self.max_bytes:
            return
        lock.seek(0)
        lock.write((held + len(content)).to_bytes(_TOTAL_BYTES, "little"))
        lock.flush()
        draft = self._directory / ".draft"  # one is enough, because of the lock
        draft.unlink(missing_ok=True)  # of a process that died
        try:
            with open(draft, "xb") as file:
                file.write(content)
            os.replace(draft, self._directory / name)
        finally:
            draft.unlink(missing_ok=True)

    def _evict(self, most: int) -> int:
        """Removes the least recently used files until the others take at most `most` bytes.

        Returns the bytes that these take.
        """
        files = sorted(self._files())
        held = sum(size for _, size, _ in files)
        for _, size, path in files:
            if held <= most:
                break
            path.unlink(missing_ok=True)
            held -= size
        return held

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """When each file was used, its size, and its path."""
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if _NAME.fullmatch(entry.name):
                        status = entry.stat(follow_symlinks=False)
                        yield status.st_mtime_ns, status.st_size, Path(entry.path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """The lock, held; it is not waited for long, since a process that holds it may hang."""
        until = time.monotonic() + LOCK_WAIT_S
        with self._writing, self._open_lock() as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(_POLL_S)
            yield lock

    def _open_lock(self) -> BinaryIO:
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / ".lock"
        return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")


def _crc(content: bytes) -> bytes:
    return google_crc32c.value(content).to_bytes(_CRC_BYTES, "little")
