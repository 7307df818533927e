"""Keeps counts of each record on the disk: of the tokens of documents, or the lengths of features.

They are in a directory beside the data, such as `.token_counts`, or in the user's cache directory
if that cannot be written. Many processes may write and read them at once, because each writes a
temporary file and renames it. A file that is damaged is not used, and its records are counted
again.

The content of a file, little-endian:

    32 bytes       SHA-256 of the rest
    3 int64        format; the first record, and the one after the last
    n uint32       the counts of each record, those of its columns one after the other
"""

import contextlib
import hashlib
import logging
import math
import struct
from pathlib import Path
from typing import Self

import numpy as np

from datarax_tfds.decoding.reader import RecordReader
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
    """The files with the counts of one split: of tokens by one tokenizer, or other counts.

    Args:
        directory: The directory of the data; None if they are in a store.
        key: Identifies the records and what is counted of them, as a name of a directory.
        folder: The name of the directory of all such counts, without the dot.
        columns: How many counts each record has.

    Attributes:
        key: As given.
        places: The directories in which the files may be, the preferred one first.
    """

    def __init__(
        self, directory: Path | None, key: str, folder: str = "token_counts", columns: int = 1
    ):
        self.key = key
        self._columns = columns
        self.places: list[Path] = []
        if directory is not None and not (beside := directory / f".{folder}").is_symlink():
            self.places.append(beside / key)
        if (cache := cache_directory(folder)) is not None:
            path = Path() if directory is None else directory.resolve()
            self.places.append(cache / name_in_cache(path, key.encode()))

    @classmethod
    def of_reader(
        cls, reader: RecordReader, what: str, folder: str = "token_counts", columns: int = 1
    ) -> Self:
        """The files of what is counted of the records that a reader reads."""
        split, code = reader.split, reader.user_code
        if code is None and reader.mapped_by is not None:
            # Its code has no digest, but its records are not those of the split without it.
            code = f"a stateful {reader.mapped_by}"
        of = f"{FORMAT}, {split.dataset}, {split.ranges}, {split.fingerprint}, {what}, {code}"
        key = hashlib.sha256(of.encode()).hexdigest()[:32]
        directory = None if split.in_store else Path(split.info.data_dir)
        return cls(directory, key, folder, columns)

    def load(self, start: int, stop: int) -> np.ndarray | None:
        """The counts of the records `[start, stop)`, uint32 `[n]`, or `[n, columns]` if there are
        several; None if no sound file has them.
        """
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
        """Writes the counts of consecutive records to the first place that can be written."""
        stop = start + len(counts)
        body = _WORDS.pack(FORMAT, start, stop) + counts.astype("<u4").tobytes()
        for place in self.places:
            try:
                with draft_of(place / _name(start, stop)) as draft:
                    draft.write(hashlib.sha256(body).digest() + body)
                return
            except OSError as error:
                _log.info("no counts can be written to %s: %s", place, error)

    def remove_parts(self, records: int) -> None:
        """Removes all files but the one that has the counts of all records."""
        for place in self.places:
            with contextlib.suppress(OSError):
                for path in place.glob("[0-9]*-*"):
                    if path.name != _name(0, records):
                        path.unlink(missing_ok=True)

    def __str__(self) -> str:
        return " and ".join(map(str, self.places)) or "memory only"


def _name(start: int, stop: int) -> str:
    return f"{start}-{stop}"
