"""Keeps the numbers of tokens of documents on the disk, or other counts of each record.

They are kept in `.token_counts` beside the data, or in the user's cache directory if that cannot be
written. Many processes may write and read them at once, because each writes a temporary file and
renames it. A file that is damaged is not used, and its documents are counted again.

The content of a file, little-endian:

    32 bytes       SHA-256 of the rest
    3 int64        format; the first document, and the one after the last
    n uint32       the tokens of each document; of several columns, those of one record are together
"""

import contextlib
import hashlib
import logging
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datarax_tfds.runtime.small_files import (
    cache_directory,
    draft_of,
    name_in_cache,
    read_plain_file,
)

FORMAT = 1
_WORDS = struct.Struct("<3q")
_DIGEST_BYTES = 32

_log = logging.getLogger(__name__)


class CountFiles:
    """The files of one split and one tokenizer.

    Args:
        directory: The directory of the data; None if they are in a store.
        key: Identifies the documents and the tokenizer, as a name of a file.
        folder: The name of the directory of such counts.
        columns: How many counts each record has.

    Attributes:
        places: The directories in which the files may be, the preferred one first.
    """

    def __init__(
        self, directory: Path | None, key: str, folder: str = "token_counts", columns: int = 1
    ):
        self._columns = columns
        self.places: list[Path] = []
        if directory is not None and not (beside := directory / f".{folder}").is_symlink():
            self.places.append(beside / key)
        if (cache := cache_directory(folder)) is not None:
            path = Path() if directory is None else directory.resolve()
            self.places.append(cache / name_in_cache(path, key.encode()))

    def load(self, start: int, stop: int) -> np.ndarray | None:
        """The tokens of each document in `[start, stop)`; None if no sound file has them."""
        rows = stop - start
        shape = (rows,) if self._columns == 1 else (rows, self._columns)
        max_bytes = _DIGEST_BYTES + _WORDS.size + 4 * math.prod(shape)
        for place in self.places:
            with contextlib.suppress(OSError):
                content = read_plain_file(place / _name(start, stop), max_bytes) or b""
                digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
                if len(content) != max_bytes or hashlib.sha256(body).digest() != digest:
                    continue
                if _WORDS.unpack_from(body) == (FORMAT, start, stop):
                    counts = np.frombuffer(body, "<u4", offset=_WORDS.size)
                    return counts.astype(np.uint32).reshape(shape)
        return None

    def keep(self, start: int, counts: np.ndarray) -> None:
        """Writes the tokens of consecutive documents to the first place that can be written."""
        stop = start + len(counts)
        body = _WORDS.pack(FORMAT, start, stop) + counts.astype("<u4").tobytes()
        for place in self.places:
            try:
                place.mkdir(parents=True, exist_ok=True)
                with draft_of(place / _name(start, stop)) as draft:
                    draft.write(hashlib.sha256(body).digest() + body)
                return
            except OSError as error:
                _log.info("no counts can be written to %s: %s", place, error)

    def remove_parts(self, documents: int) -> None:
        """Removes all files but that of all documents."""
        for place in self.places:
            with contextlib.suppress(OSError):
                for path in _parts_in(place):
                    if path.name != _name(0, documents):
                        path.unlink(missing_ok=True)

    def __str__(self) -> str:
        return " and ".join(map(str, self.places)) or "memory only"


def _name(start: int, stop: int) -> str:
    return f"{start}-{stop}"


def _parts_in(place: Path) -> Iterator[Path]:
    yield from place.glob("[0-9]*-*")
