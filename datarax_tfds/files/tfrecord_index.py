"""The index of a TFRecord file: a small file that says where the records begin.

It is built once and kept in `.record_index` beside the data, or in the user's cache directory if
that cannot be written. Many processes may build and read it at once, because each writes a
temporary file and renames it. An index that is damaged or does not fit the data is built again.
"""

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datarax_tfds.errors import DataLossError
from datarax_tfds.files.tfrecord import FRAME_BYTES, TFRecordFile, scanned_starts
from datarax_tfds.runtime.small_files import draft_of, read_plain_file

_log = logging.getLogger(__name__)

_FORMAT = 1
_DIGEST_BYTES = 32
_WORD_BYTES = 8


class TFRecordOpener:
    """Opens the TFRecord files of a split, and reads the index of each once."""

    def __init__(self):
        self._starts: dict[Path, tuple[tuple[int, ...], np.ndarray]] = {}
        self._rebuilt: set[Path] = set()
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> TFRecordFile:
        if path not in self._starts:
            version = _version(path)
            self._starts[path] = version, record_starts(path)
        return TFRecordFile(path, self._starts[path][1])

    def rebuild_index(self, path: Path) -> bool:
        """Builds the index of a file again, at most once; returns whether it was wrong.

        The index is wrong if the file was replaced by one of the same size and modification time.
        """
        with self._lock:
            first = path not in self._rebuilt
            self._rebuilt.add(path)
        if not first or path not in self._starts:
            return False
        version, starts = self._starts[path]
        if version != _version(path):
            return False  # the error stands, because a file in use must not be replaced
        try:
            found = scanned_starts(path)
        except DataLossError:
            return False  # the first error says more
        if np.array_equal(found, starts):
            return False
        _log.warning("%s: the index was that of another file, and is built again.", path)
        self._starts[path] = version, found
        _keep(path, found)
        return True


def record_starts(path: Path) -> np.ndarray:
    """Returns what `scanned_starts` returns, from the index of the file if that is up to date.

    Raises:
        DataLossError: As `scanned_starts`.
    """
    header = _header(path)
    # The size with as many records as fit into the file; anything larger is not an index.
    max_bytes = _DIGEST_BYTES + header.nbytes + _WORD_BYTES * (header[1] // FRAME_BYTES + 1)
    for place in index_paths(path):
        with contextlib.suppress(OSError):
            content = read_plain_file(place, int(max_bytes))
            if content is not None and (starts := parse_index(content, header)) is not None:
                return starts
    starts = scanned_starts(path)
    _keep(path, starts)
    return starts


def _keep(path: Path, starts: np.ndarray) -> None:
    """Writes the index of a file to the first of its places that can be written."""
    body = _header(path).tobytes() + starts.astype("<i8").tobytes()
    for place in index_paths(path):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with draft_of(place) as file:
                file.write(hashlib.sha256(body).digest() + body)
            break
        except OSError as error:
            _log.info("no index can be written to %s: %s", place.parent, error)


def _header(path: Path) -> np.ndarray:
    """The first words of an index: its format, and the size and modification time of the file."""
    stat = path.stat()
    return np.array([_FORMAT, stat.st_size, stat.st_mtime_ns], "<i8")


def _version(path: Path) -> tuple[int, ...]:
    """A value that changes when the file is written or replaced."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def index_paths(path: Path) -> Iterator[Path]:
    """Where the index of a file may be, the best place first."""
    beside = path.parent / ".record_index"
    if not beside.is_symlink():  # anybody may have chosen the target of a link
        yield beside / path.name
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(home):  # expanduser leaves `~` in the path of a user without a home
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
        yield Path(home) / "datarax_tfds" / "record_index" / name


def parse_index(content: bytes, header: np.ndarray) -> np.ndarray | None:
    """The starts in an index; None if it is damaged, or of a file with another header."""
    digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest or len(body) % _WORD_BYTES:
        return None
    words = np.frombuffer(body, "<i8")
    if not np.array_equal(words[: len(header)], header):
        return None
    starts = words[len(header) :].astype(np.int64, copy=False)
    whole = len(starts) and starts[0] == 0 and starts[-1] == header[1]
    return starts if whole and (np.diff(starts) >= FRAME_BYTES).all() else None
