"""Keeps blocks of records of a store on the local disk, so that later epochs find them there."""

import hashlib
from collections.abc import Sequence

import numpy as np

from datarax_tfds.files.tfrecord import TFRecordFile
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.disk_cache import DiskCache

LENGTH_BYTES = 8  # of the length of a record, which is kept with the record


@not_copied
class KeptBlocks:
    """An open file of which consecutive records that are read together are kept.

    Only records whose checksums match are kept.

    Args:
        file: The file.
        version: Names the file, and changes when it is replaced.
        cache: Where to keep them.
    """

    def __init__(self, file: TFRecordFile, version: bytes, cache: DiskCache):
        self._file = file
        self._version = version
        self._cache = cache

    def __len__(self) -> int:
        return len(self._file)

    def where(self, place: int) -> str:
        return self._file.where(place)

    def read(self, places: Sequence[int]) -> list[bytes]:
        """As `TFRecordFile.read`."""
        first, last = places[0], places[-1]
        if list(places) != list(range(first, last + 1)):
            return self._file.read(places)
        key = self._version + f" {first} {last}".encode()
        name = hashlib.sha256(key).hexdigest()[:32]
        kept = self._cache.read(name)
        if kept is not None:
            return _unpacked(kept, len(places))
        records = self._file.read(places)
        self._cache.write(name, _packed(records))
        return records


def _packed(records: list[bytes]) -> bytes:
    return np.fromiter(map(len, records), "<i8").tobytes() + b"".join(records)


def _unpacked(content: bytes, count: int) -> list[bytes]:
    ends = LENGTH_BYTES * count + np.cumsum(np.frombuffer(content, "<i8", count))
    starts = [LENGTH_BYTES * count, *ends[:-1].tolist()]
    return [content[a:b] for a, b in zip(starts, ends.tolist(), strict=True)]
