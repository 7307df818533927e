"""Opens TFRecord files with their indexes, which are built at first use and kept on disk.

An index is kept in `.record_index` beside the data, or in the user's cache directory if that cannot
be written. Many processes may build and read it at once, because each writes a temporary file and
renames it. An index that is damaged or does not fit the data is built again.
"""

import contextlib
import hashlib
import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

import numpy as np

from datarax_tfds.errors import DataLossError
from datarax_tfds.files.mapped_file import MappedFile
from datarax_tfds.files.record_index import RecordIndex, index_content, reader_of
from datarax_tfds.files.stored_file import FileVersion, StoredFile, file_names
from datarax_tfds.files.tfrecord import FRAME_BYTES, TFRecordFile, scanned_starts
from datarax_tfds.runtime.small_files import cache_directory, draft_of, name_in_cache
from sharding.checks import refused

_log = logging.getLogger(__name__)

_DIGEST_BYTES = 32
_WORD_BYTES = 8


class TFRecordOpener:
    """Opens the TFRecord files of a split, and refuses one that changes while it is in use."""

    index_bytes = 0

    def __init__(self):
        # The version of each file when it was first opened, and the digest of its index.
        self._opened: dict[Path, tuple[FileVersion, bytes]] = {}
        self._unkept: dict[Path, RecordIndex] = {}  # those that could not be written anywhere
        self._rebuilt: set[Path] = set()
        self._lock = threading.Lock()

    def __call__(self, path: PurePath) -> TFRecordFile:
        path = Path(path)
        file = StoredFile(path)
        version = file.version()
        before, _ = self._opened.get(path, (version, b""))
        if (before.size, before.modified_ns) != (version.size, version.modified_ns):
            raise refused(
                DataLossError,
                str(path),
                "the file has changed since its records were counted.",
                bytes=f"{before.size} then, {version.size} now",
                modified_ns=f"{before.modified_ns} then, {version.modified_ns} now",
                fix="put back the file as it was, with its time (cp -p), or build the source anew",
            )
        index = self._unkept.get(path)
        if index is None:
            index, kept = open_index(path, version)
            if not kept:
                self._unkept[path] = index
        self._opened[path] = before, index.digest
        return TFRecordFile(path, file, index, MappedFile(file, version.size))

    def rebuild_index(self, path: PurePath) -> bool:
        """Builds the index of a file again, at most once; returns whether it did.

        The index is wrong if its pages are damaged, or if the file was replaced by one of the same
        size and modification time.
        """
        path = Path(path)
        with self._lock:
            first = path not in self._rebuilt
            self._rebuilt.add(path)
        if not first or path not in self._opened:
            return False
        version, digest = self._opened[path]
        if version != StoredFile(path).version():
            return False  # the error stands, because a file in use must not be replaced
        try:
            starts = scanned_starts(path)
        except DataLossError:
            return False  # the first error says more
        index, kept = _keep(path, version, starts)
        if index.digest != digest:
            _log.warning("%s: the index was that of another file, and is built again.", path)
        self._unkept.pop(path, None)
        if not kept:
            self._unkept[path] = index
        return True

    def first_record(self, path: PurePath) -> None:  # noqa: ARG002
        return None  # all processes of a host share the pages of the file

    def unindexed(self, paths: Sequence[PurePath]) -> list[PurePath]:
        """The files among these that have no index yet, found by listing the places of indexes."""
        found: list[PurePath] = []
        for directory, files in itertools.groupby(map(Path, paths), lambda path: path.parent):
            beside, cache = _beside(directory), cache_directory("record_index")
            there = _names(beside)
            missing = [path for path in files if path.name not in there]
            if missing and cache is not None:
                real, there = directory.resolve(), _names(cache)
                missing = [path for path in missing if name_in_cache(real / path.name) not in there]
            found += missing
        return found


def open_index(path: Path, version: FileVersion) -> tuple[RecordIndex, bool]:
    """The index of a file, which is built if there is none that fits; and whether it is on disk.

    Raises:
        DataLossError: As `scanned_starts`.
    """
    for place in index_paths(path):
        with contextlib.suppress(OSError):
            file = StoredFile(place, own=True)
            index_bytes = file.version().size
            index = RecordIndex.opened(file.read_at, index_bytes, version, str(path))
            if index is not None:
                return index, True
            # The size with as many records as fit into the file; anything larger is not an index.
            max_bytes = _DIGEST_BYTES + _WORD_BYTES * (version.size // FRAME_BYTES + 4)
            content = file.read_at(0, index_bytes) if index_bytes <= max_bytes else b""
            if (starts := parse_format_1(content, version)) is not None:
                return _keep(path, version, starts)
    return _keep(path, version, scanned_starts(path))


def _keep(path: Path, version: FileVersion, starts: np.ndarray) -> tuple[RecordIndex, bool]:
    """Writes an index to the first of its places that can be written, and opens it; else opens it
    in memory. Also returns whether it is on disk.
    """
    content = index_content(starts, version)
    for place in index_paths(path):
        try:
            with draft_of(place) as draft:
                draft.write(content)
        except OSError as error:
            _log.info("no index can be written to %s: %s", place.parent, error)
            continue
        with contextlib.suppress(OSError):  # another process may have removed or replaced it
            file = StoredFile(place, own=True)
            index = RecordIndex.opened(file.read_at, len(content), version, str(path))
            if index is not None and index.digest == content[:_DIGEST_BYTES]:
                return index, True
        break
    index = RecordIndex.opened(reader_of(content), len(content), version, str(path))
    assert index is not None
    return index, False


def index_paths(path: Path) -> Iterator[Path]:
    """Where the index of a file may be, the best place first."""
    if (beside := _beside(path.parent)) is not None:
        yield beside / path.name
    if (cache := cache_directory("record_index")) is not None:
        yield cache / name_in_cache(path.resolve())


def _beside(directory: Path) -> Path | None:
    beside = directory / ".record_index"
    return None if beside.is_symlink() else beside  # anybody may have chosen the target of a link


def _names(directory: Path | None) -> set[str]:
    with contextlib.suppress(OSError):
        return set() if directory is None else file_names(directory)
    return set()


def parse_format_1(content: bytes, version: FileVersion) -> np.ndarray | None:
    """The offsets in an index of format 1; None if it is damaged, or of another file.

    It holds a SHA-256 of the rest, three words (format, size, modification time), and the offsets.
    """
    digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest or len(body) % _WORD_BYTES:
        return None
    words = np.frombuffer(body, "<i8")
    if words[:3].tolist() != [1, version.size, version.modified_ns]:
        return None
    starts = words[3:].astype(np.int64, copy=False)
    whole = len(starts) and starts[0] == 0 and starts[-1] == version.size
    return starts if whole and (np.diff(starts) >= FRAME_BYTES).all() else None
