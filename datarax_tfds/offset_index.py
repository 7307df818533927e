"""Where the records of a TFRecord file begin: found once, then kept in a small file.

Kept in `.record_index` beside the data, or where nothing can be written there, in the user's
cache directory. Many processes may build and read it at once: each writes a file of its own and
renames it, and what is not whole, or is of another state of the data, is built again.
"""

import contextlib
import hashlib
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datarax_tfds.tfrecord import FRAME_BYTES, scanned_starts

_log = logging.getLogger(__name__)

_FORMAT = 1
_DIGEST_BYTES = 32


def record_starts(path: Path) -> np.ndarray:
    """What `scanned_starts` says of a TFRecord file, from its index if that is up to date.

    Raises:
        DataLossError: The file is cut short, or a length in it is not what was written.
    """
    stat = path.stat()
    header = np.array([_FORMAT, stat.st_size, stat.st_mtime_ns], "<i8")
    for place in _places(path):
        with contextlib.suppress(OSError):
            starts = _checked(place.read_bytes(), header)
            if starts is not None:
                return starts
    starts = scanned_starts(path)
    for place in _places(path):
        try:
            _write(place, header, starts)
            break
        except OSError as error:
            _log.info("No index of records can be kept in %s: %s", place.parent, error)
    return starts


def _places(path: Path) -> Iterator[Path]:
    """Where the index of a file may be, the best first."""
    beside = path.parent / ".record_index"
    if not beside.is_symlink():  # whose target somebody else has chosen
        yield beside / path.name
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(home):  # `~` stays as it is where no home is known
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
        yield Path(home) / "datarax_tfds" / "record_index" / name


def _checked(content: bytes, header: np.ndarray) -> np.ndarray | None:
    """The starts in an index, if it is whole and of this state of the file."""
    digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None
    words = np.frombuffer(body, "<i8")
    if not np.array_equal(words[: len(header)], header):
        return None
    starts = words[len(header) :].astype(np.int64, copy=False)
    whole = len(starts) and starts[0] == 0 and starts[-1] == header[1]
    return starts if whole and (np.diff(starts) >= FRAME_BYTES).all() else None


def _write(place: Path, header: np.ndarray, starts: np.ndarray) -> None:
    body = header.tobytes() + starts.astype("<i8").tobytes()
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    try:
        with open(draft, "xb") as file:
            file.write(hashlib.sha256(body).digest() + body)
        os.replace(draft, place)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
