"""Opens files of records that are objects of a store.

The index of a TFRecord object is made once, by reading the object from front to back, for the
generation that it then has. It is kept in `.record_index` beside the data if that can be written,
and always in the user's cache directory. ArrayRecord has its index inside, and a library that reads
no store but `gs://`: such objects are copied to the local disk when they are first needed.
"""

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence, Set
from pathlib import Path, PurePath
from typing import Any, cast

from datarax_tfds.errors import DataLossError
from datarax_tfds.files.array_record import ArrayRecordFile, ArrayRecordOpener
from datarax_tfds.files.formats import FileOpener
from datarax_tfds.files.kept_blocks import KeptBlocks
from datarax_tfds.files.record_index import RecordIndex, index_content, reader_of, size_in_index
from datarax_tfds.files.stored_file import StoredFile, file_names
from datarax_tfds.files.stored_object import ObjectStream, StoredObject, require_same, version_of
from datarax_tfds.files.tfrecord import TFRecordFile, first_record, scanned_starts
from datarax_tfds.files.tfrecord_index import TFRecordOpener
from datarax_tfds.runtime.disk_cache import DiskCache
from datarax_tfds.runtime.small_files import cache_directory, draft_of, name_in_cache
from datarax_tfds.stores.object_path import ObjectPath
from datarax_tfds.stores.object_store import generation, read_object, write_object
from sharding.checks import refused

_log = logging.getLogger(__name__)

_COPY_BYTES = 8 << 20  # written to the disk at once
_DISK_FRACTION = 0.5  # of the room that copies and free space take together
_MORE_ROOM = (
    "free room there, set XDG_CACHE_HOME to a directory on a larger disk, or write the dataset as"
    " TFRecord, which is read without copies"
)


class _Generations:
    """The generations of the objects that were opened, each of which stays the only one."""

    def __init__(self):
        self._known: dict[ObjectPath, bytes] = {}
        self._lock = threading.Lock()

    def of(self, path: ObjectPath) -> bytes:
        """The present generation, by a small request; raises if it was another one before."""
        now = generation(path)
        with self._lock:
            require_same(path, self._known.setdefault(path, now), now)
        return now


class TFRecordObjectOpener:
    """Opens TFRecord objects.

    Args:
        names_in: The names of the objects in a directory, as they have been listed.
        cache: Where to keep blocks of records; None to read them from the store each time.
    """

    index_bytes = TFRecordOpener.index_bytes

    def __init__(self, names_in: Callable[[PurePath], set[str]], cache: DiskCache | None):
        self._names_in = names_in
        self._cache = cache
        self._generations = _Generations()
        self._rebuilt: set[ObjectPath] = set()

    def __call__(self, path: PurePath) -> TFRecordFile | KeptBlocks:
        path = cast(ObjectPath, path)
        now = self._generations.of(path)
        index = _kept_index(path, now)
        if index is None:
            index = _built_index(path, now)
        file = TFRecordFile(path, StoredObject(path, now, index.file_bytes), index)
        if self._cache is None:
            return file
        return KeptBlocks(file, f"{path} ".encode() + now, self._cache)

    def first_record(self, path: PurePath) -> bytes | None:
        """The first record of an object. It needs no index, for which all of it would be read."""
        path = cast(ObjectPath, path)
        return first_record(StoredObject(path, self._generations.of(path), 0))

    def rebuild_index(self, path: PurePath) -> bool:
        """Builds the index of an object again, at most once; returns whether it did."""
        path = cast(ObjectPath, path)
        if path in self._rebuilt:
            return False
        self._rebuilt.add(path)
        try:
            _built_index(path, self._generations.of(path))
        except DataLossError:
            return False  # the first error says more
        return True

    def unindexed(self, paths: Sequence[PurePath]) -> list[PurePath]:
        """The objects among these that had no index when the places of indexes were listed."""
        cache = cache_directory("record_index")
        cached = set() if cache is None else file_names(cache)
        return [
            path
            for path in paths
            if path.name not in self._names_in(path.parent / ".record_index")
            and name_in_cache(path) not in cached
        ]


def _kept_index(path: ObjectPath, now: bytes) -> RecordIndex | None:
    """The index in the cache directory, or that beside the data; None if neither fits."""
    cache = cache_directory("record_index")
    if cache is not None:
        with contextlib.suppress(OSError):
            file = StoredFile(cache / name_in_cache(path), own=True)
            if (found := _opened_index(path, now, file.read_at, file.version().size)) is not None:
                return found
    beside = read_object(index_beside(path))
    return None if beside is None else _local_index(path, now, beside.content)


def index_beside(path: ObjectPath) -> ObjectPath:
    """Where the index of an object is, for all hosts."""
    return path.parent / ".record_index" / path.name


def write_index_beside(path: ObjectPath) -> None:
    """Builds the index of a TFRecord object, and writes it beside the data.

    Raises:
        DataLossError: The object is damaged.
        OSError: The store does not answer, or cannot be written.
    """
    write_object(index_beside(path), _index_content(path, generation(path)))


def _index_content(path: ObjectPath, now: bytes) -> bytes:
    starts = scanned_starts(path, ObjectStream(path, now))
    return index_content(starts, version_of(now, int(starts[-1])))


def _built_index(path: ObjectPath, now: bytes) -> RecordIndex:
    content = _index_content(path, now)
    beside = index_beside(path)
    try:
        write_object(beside, content)
    except OSError as error:
        _log.info("%s: no index can be written there: %s", beside, error)
    index = _local_index(path, now, content)
    assert index is not None
    return index


def _local_index(path: ObjectPath, now: bytes, content: bytes) -> RecordIndex | None:
    """An index that was read or built, kept in the cache directory, or else in memory."""
    index = _opened_index(path, now, reader_of(content), len(content))
    cache = cache_directory("record_index")
    if index is None or cache is None:
        return index
    try:
        with draft_of(cache / name_in_cache(path)) as draft:
            draft.write(content)
        file = StoredFile(cache / name_in_cache(path), own=True)
        return _opened_index(path, now, file.read_at, file.version().size)
    except OSError as error:
        _log.info("no index can be written to %s: %s", cache, error)
        return index


def _opened_index(
    path: ObjectPath, now: bytes, read_at: Callable[[int, int], bytes], index_bytes: int
) -> RecordIndex | None:
    version = version_of(now, size_in_index(read_at))
    return RecordIndex.opened(read_at, index_bytes, version, str(path))


class ArrayRecordObjectOpener(ArrayRecordOpener):
    """Opens ArrayRecord objects, of which it keeps copies on the local disk.

    The copies stay there until others need their room: together they fill half of the disk at most.
    They make a cache of blocks and a listing of indexes needless.
    """

    def __init__(self, *_: Any):
        self._generations = _Generations()
        self._own: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, path: PurePath) -> ArrayRecordFile:
        path = cast(ObjectPath, path)
        now = self._generations.of(path)
        copies = cache_directory("array_record")
        if copies is None:
            raise self._no_room(path, "there is no home directory")
        copy = copies / name_in_cache(path, now)
        self._own.add(copy.name)
        if not copy.exists():
            level = logging.INFO if len(self._own) > 1 else logging.WARNING
            _log.log(level, "%s: ArrayRecord is read from a local copy, %s", path, copy)
            stream = ObjectStream(path, now)
            try:
                self._fetch(stream, copy)
            except OSError as error:
                if error.errno is None:
                    raise  # of the store, or ours
                raise self._no_room(path, error) from error
        with contextlib.suppress(OSError):
            os.utime(copy)  # it was used last
        return ArrayRecordFile(copy, named=path)

    def _fetch(self, stream: ObjectStream, copy: Path) -> None:
        with draft_of(copy) as draft:
            own = {*self._own, Path(draft.name).name}
            start = 0
            while window := stream.read_at(start, _COPY_BYTES):
                with self._lock:
                    _make_room(copy.parent, len(window), own)
                    draft.write(window)
                start += len(window)

    def _no_room(self, path: ObjectPath, error: object) -> OSError:
        return refused(
            OSError,
            str(path),
            "the object cannot be copied to the local disk, from which ArrayRecord is read.",
            error=error,
            fix=_MORE_ROOM,
        )


def _make_room(directory: Path, wanted: int, own: Set[str]) -> None:
    """Removes the copies used least recently, except our own, until copies fill half of the disk.

    Raises:
        OSError: Our own copies need more.
    """
    copies = []
    for copy in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            status = copy.stat()
            copies.append((status.st_mtime_ns, status.st_size, copy.name))
    copies.sort()
    held = sum(size for _, size, _ in copies)
    bound = int(_DISK_FRACTION * (shutil.disk_usage(directory).free + held))
    for _, size, name in copies:
        if held + wanted <= bound:
            return
        if name not in own:
            (directory / name).unlink(missing_ok=True)
            held -= size
    if held + wanted > bound:
        raise refused(
            OSError,
            str(directory),
            "the copies of the split would fill more than half of the disk.",
            bytes=held + wanted,
            bound=bound,
            fix=_MORE_ROOM,
        )


OBJECT_FORMATS: dict[
    str, Callable[[Callable[[PurePath], set[str]], DiskCache | None], FileOpener]
] = {
    "tfrecord": TFRecordObjectOpener,
    "array_record": ArrayRecordObjectOpener,
}
