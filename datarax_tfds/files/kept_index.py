"""Keeps on disk which records a filter keeps, so that it is evaluated only once.

The index is kept in `.record_index` beside the data, on a disk or in a store, and in the user's
cache directory if that cannot be written; from a store, there in any case. An index that is damaged
is made again, and so is one of a dataset whose files have changed.

The content of an index: a SHA-256 of the rest; the SHA-256 of the key; the number of records, int64
little-endian; and a bit for each record, as `KeptRecords` takes them.
"""

import hashlib
import logging
import struct
from contextlib import closing
from pathlib import Path, PurePath

import numpy as np

from datarax_tfds.files.kept_records import KeptRecords
from datarax_tfds.files.prefetched_files import THREADS
from datarax_tfds.files.record_files import RecordFiles
from datarax_tfds.files.split import Split
from datarax_tfds.files.stored_file import StoredFile
from datarax_tfds.runtime.small_files import cache_directory, draft_of, read_plain_file
from datarax_tfds.runtime.threads import ThreadPool
from datarax_tfds.stores.object_path import ObjectPath
from datarax_tfds.stores.object_store import generation, read_object, write_object

_log = logging.getLogger(__name__)

FORMAT = 1
_HEAD = struct.Struct("<32s32sq")
_DIGEST_BYTES = 32


class KeptIndex:
    """Where the index of a filter over a split is kept.

    Args:
        split: The split without the filter. The version of each of its files is looked at.
        code: Identifies what the filter computes of each record.
    """

    def __init__(self, split: Split, code: str):
        assert isinstance(split.files, RecordFiles)
        self._records = len(split)
        lines = [f"format {FORMAT}", split.dataset, split.ranges, split.fingerprint, code]
        self._key = hashlib.sha256("\n".join(lines + versions_of(split.files.paths)).encode())
        self._directory = split.files.paths[0].parent

    def read(self) -> KeptRecords | None:
        """Which records are kept; None if there is no sound index."""
        for place in self._places():
            try:
                content = _content(place, _HEAD.size + -(-self._records // 8))
            except OSError as error:
                _log.debug("no index of a filter can be read from %s: %s", place, error)
                continue
            if (kept := self._parsed(content)) is not None:
                return kept
        return None

    def write(self, kept: KeptRecords) -> None:
        """Writes the index to the first place that can be written; for a store, to all places."""
        rest = self._key.digest() + struct.pack("<q", self._records) + kept.bits.tobytes()
        content = hashlib.sha256(rest).digest() + rest
        for place in self._places():
            try:
                _write(place, content)
            except OSError as error:
                _log.info("no index of a filter can be written to %s: %s", place.parent, error)
                continue
            if not isinstance(self._directory, ObjectPath):
                return

    def _places(self) -> list[PurePath]:
        name = f"kept-{self._key.hexdigest()[:32]}"
        cache = cache_directory("record_index")
        cached: list[PurePath] = [] if cache is None else [cache / name]
        beside = self._directory / ".record_index"
        if isinstance(beside, ObjectPath):
            return [*cached, beside / name]  # reading the cache takes no request
        # Anybody may have chosen the target of a link.
        return cached if Path(beside).is_symlink() else [beside / name, *cached]

    def _parsed(self, content: bytes | None) -> KeptRecords | None:
        if content is None or len(content) != _HEAD.size + -(-self._records // 8):
            return None
        digest, key, records = _HEAD.unpack_from(content)
        if (key, records) != (self._key.digest(), self._records):
            return None
        if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != digest:
            return None
        return KeptRecords(np.frombuffer(content, np.uint8, offset=_HEAD.size), records)


def _content(place: PurePath, max_bytes: int) -> bytes | None:
    if isinstance(place, ObjectPath):
        found = read_object(place)
        return None if found is None else found.content
    return read_plain_file(Path(place), max_bytes)


def _write(place: PurePath, content: bytes) -> None:
    if isinstance(place, ObjectPath):
        write_object(place, content)
        return
    with draft_of(Path(place)) as draft:
        draft.write(content)


def versions_of(paths: list[PurePath]) -> list[str]:
    """The version of each file: what was made of its records may differ once it is written anew.

    Every file is looked at, by a request each in a store.
    """
    with closing(ThreadPool(THREADS, "datarax_tfds_versions")) as pool:
        versions = [pool.submit(_version, path) for path in paths]
        return [version.result() for version in versions]


def _version(path: PurePath) -> str:
    if isinstance(path, ObjectPath):
        return f"{path.name} {generation(path).hex()}"
    found = StoredFile(Path(path)).version()
    return f"{path.name} {found.size} {found.modified_ns}"
