"""Finds the files of a split, and which of their records belong to it; or refuses the split."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from datarax_tfds.config.config import AnyConfig, TFDSEagerConfig
from datarax_tfds.errors import DataLossError
from datarax_tfds.files.formats import FORMATS, FileOpener
from datarax_tfds.files.kept_blocks import LENGTH_BYTES
from datarax_tfds.files.kept_records import KeptFiles, KeptRecords
from datarax_tfds.files.metadata_checks import require_inside
from datarax_tfds.files.object_formats import OBJECT_FORMATS
from datarax_tfds.files.prefetched_files import THREADS
from datarax_tfds.files.preparing import Prepared, prepared_dataset
from datarax_tfds.files.record_files import Piece, RecordFiles
from datarax_tfds.files.stored_file import file_names, file_size, size_in_words
from datarax_tfds.runtime.disk_cache import DiskCache
from datarax_tfds.runtime.forks import refuse_in_forked_child
from datarax_tfds.runtime.threads import ThreadPool, bounded
from datarax_tfds.state.state import FILTERED
from datarax_tfds.stores.metadata_copy import MetadataCopy
from datarax_tfds.stores.object_path import ObjectPath
from datarax_tfds.stores.object_store import object_bytes
from sharding.checks import nearest, refused

_BLOCK_RECORDS = 8
# In a store, a request takes 30 ms whatever its size: 0.2 MB blocks of 25 kB records are read at
# half of the speed of 1.6 MB blocks.
_BLOCK_BYTES = 2 << 20
_SPLIT_NAME = re.compile(r"\W.*", re.DOTALL)  # what follows the name of a split

NamesIn = Callable[[PurePath], set[str]]  # the names of the files in a directory


@dataclass(frozen=True, eq=False)
class Split:
    """A prepared split.

    Args:
        dataset: Name, config and version, as `mnist/3.0.1`.
        ranges: The resolved ranges, as `train[0:60000]`.
        fingerprint: Digest of the names and lengths of the files, and of the bytes of the splits
            that they belong to, according to the metadata. No file is looked at.
        earlier_fingerprints: Returns the fingerprints of the same files in states of earlier
            versions. It looks at the size of each file.
        files: The serialized records by number.
        info: The `tfds.core.DatasetInfo`.
        record_bytes: The mean size of a record.
        block_size: How many consecutive records to read at once; None to read each alone.
        copy: The copy of the metadata that `info` was read from, if they are in a store.
        kept: Which records a filter keeps; None without a filter. The others are not part of the
            split, and have no numbers in it.
    """

    dataset: str
    ranges: str
    fingerprint: str
    earlier_fingerprints: Callable[[], tuple[str, ...]]
    files: RecordFiles | KeptFiles
    info: Any
    record_bytes: float
    block_size: int | None
    copy: MetadataCopy | None = None
    kept: KeptRecords | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def in_store(self) -> bool:
        """Whether the files are objects of a store."""
        return self.copy is not None

    @property
    def fingerprint_of_all(self) -> str:
        """The fingerprint of the split without a filter."""
        return self.fingerprint.partition(FILTERED)[0]

    def filtered(self, kept: KeptRecords) -> "Split":
        """The split of the kept records alone, in which they have the numbers `[0, K)`.

        Which they are is part of its fingerprint.
        """
        assert isinstance(self.files, RecordFiles)
        earlier = self.earlier_fingerprints
        return dataclasses.replace(
            self,
            files=KeptFiles(self.files, kept),
            kept=kept,
            fingerprint=_of_kept(self.fingerprint, kept),
            earlier_fingerprints=lambda: tuple(_of_kept(each, kept) for each in earlier()),
            block_size=None if self.block_size is None else min(self.block_size, len(kept)),
        )

    def without(self, number: int) -> str:
        """A split expression for all records of this split but one."""
        if self.kept is not None:
            number = self.kept.stored_number(number)
        kept: list[str] = []
        for part in self.ranges.split("+"):
            name, _, limits = part[:-1].partition("[")
            start, stop = map(int, limits.split(":"))
            place, after = (min(max(start + at, start), stop) for at in (number, number + 1))
            kept += [f"{name}[{a}:{b}]" for a, b in ((start, place), (after, stop)) if a < b]
            number -= stop - start
        return "+".join(kept)


def open_split(config: AnyConfig) -> Split:
    """Finds a split on disk, and prepares its dataset first if that is needed and allowed.

    Reads metadata, and the names of the files. TensorFlow is imported only to prepare a dataset.

    Raises:
        WaitTimeoutError: Looking at the files takes longer than `stall_timeout_s`.
        DatasetNotFoundError: As `prepared_dataset`.
        DataLossError: Files of the split are missing.
        ValueError: The dataset has no such split, its file format cannot be read, or blocks cannot
            be kept in `cache_dir`.
        RuntimeError: This is a child that was forked after JAX or TensorFlow was used.
    """
    subject = f"{config.name}:{config.split}"
    refuse_in_forked_child(subject)
    prepared = _prepared(config, subject)
    doing = f"looking at the names of the files in {prepared.directory}"
    copy = prepared.copy
    with nullcontext() if copy is None else copy.named_as_in_the_store():
        return bounded(lambda: _split_of(prepared, config, subject), subject, lambda: doing)


def _split_of(prepared: Prepared, config: AnyConfig, subject: str) -> Split:
    info, directory, copy = prepared
    remote = copy is not None
    ranges = _ranges(info, config.split, subject)
    file_format = info.file_format.value
    if file_format not in FORMATS:
        raise refused(
            ValueError,
            subject,
            f"the dataset is prepared as {file_format}, which is not read here.",
            formats=", ".join(FORMATS),
            fix="set data_dir to another directory, and download_and_prepare_kwargs="
            "{'file_format': 'tfrecord'}, so that TFDS prepares the dataset anew; if TFDS has"
            " no code for it, write it again with file_format='tfrecord'",
        )
    pieces = [
        Piece(prepared.stored(instruction.filename), instruction.skip, instruction.take, length)
        for instruction in info.splits[config.split].file_instructions
        if (length := instruction.examples_in_shard)
    ]
    names = {name for name, _, _ in ranges}
    records = sum(info.splits[name].num_examples for name in names)
    split_bytes = {name: info.splits[name].num_bytes for name in names}
    record_bytes = max(1.0, sum(split_bytes.values()) / records)
    empty = _empty_files(prepared, names)
    require_inside(directory, [*(piece.path for piece in pieces), *empty])
    # One listing, in place of a look at each of the files.
    names_in = functools.cache(file_names) if copy is None else copy.names_in
    _require_files(pieces, names_in, subject)
    block_size = _block_size(config, records, record_bytes, remote)
    if copy is None:
        opener = FORMATS[file_format]()
    else:
        cache = (
            _cache(config, block_size, records, record_bytes) if file_format == "tfrecord" else None
        )
        opener = OBJECT_FORMATS[file_format](names_in, cache)
    _check_empty_files(empty, names_in, opener)
    return Split(
        dataset=info.full_name,
        ranges="+".join(f"{name}[{start}:{stop}]" for name, start, stop in ranges),
        fingerprint=_fingerprint(pieces, split_bytes),
        earlier_fingerprints=lambda: bounded(
            lambda: _earlier_fingerprints(pieces),
            subject,
            lambda: f"looking at the sizes of the files in {directory}",
        ),
        files=RecordFiles(
            pieces,
            opener,
            opening_threads=THREADS if remote else 8,
            reading_threads=THREADS if remote else 0,
        ),
        info=info,
        record_bytes=record_bytes,
        block_size=block_size,
        copy=copy,
    )


def _block_size(config: AnyConfig, records: int, record_bytes: float, remote: bool) -> int | None:
    if isinstance(config, TFDSEagerConfig) or config.access == "random":
        return None
    if config.access == "auto" and (not remote or config.strata is not None):
        return None
    if config.block_size is not None or config.access == "sequential":
        return config.block_size or _BLOCK_RECORDS  # the same config gives the same order anywhere
    return min(max(1, round(_BLOCK_BYTES / record_bytes)), records)


def _cache(
    config: AnyConfig, block_size: int | None, records: int, record_bytes: float
) -> DiskCache | None:
    """Where to keep blocks on the local disk, if the config asks for it."""
    if isinstance(config, TFDSEagerConfig) or config.cache_dir is None:
        return None
    if block_size is None:
        raise refused(
            ValueError,
            "cache_dir",
            "only blocks of records are kept, and single records are read.",
            cache_dir=config.cache_dir,
            access=repr(config.access),
            strata=config.strata,
            fix="use access='auto' without strata, or leave out cache_dir",
        )
    cache = DiskCache(Path(config.cache_dir, "datarax_tfds_blocks"), config.cache_bytes)
    windows = min(2 * max(config.shuffle_buffer_size, block_size), records)
    needed = math.ceil(windows * (record_bytes + LENGTH_BYTES))
    if cache.max_bytes < needed:
        raise refused(
            ValueError,
            "cache_dir",
            "there is no room for the blocks of two windows.",
            cache_dir=config.cache_dir,
            cache_bytes=cache.max_bytes,
            needed=needed,
            fix=f"use cache_bytes={needed} or more, a smaller shuffle_buffer_size, or leave out"
            " cache_dir",
        )
    return cache


def _prepared(config: AnyConfig, subject: str) -> Prepared:
    from google.protobuf import json_format
    from tensorflow_datasets.core import dataset_info

    unreadable = (json_format.ParseError, json.JSONDecodeError, dataset_info.DatasetInfoFileError)
    try:
        return prepared_dataset(config)
    except unreadable as error:
        raise refused(
            DataLossError,
            subject,
            "the metadata of the dataset cannot be read: dataset_info.json, features.json.",
            searched=config.data_dir or "the default data_dir of TFDS",
            error=error,
            fix="put back intact copies of these files, or delete their directory and prepare"
            " the dataset again",
        ) from error


def _empty_files(prepared: Prepared, names: set[str]) -> list[PurePath]:
    """The files of these splits that hold no records according to the metadata."""
    empty: list[PurePath] = []
    for name in sorted(names):
        split = prepared.info.splits[name]
        if 0 in split.shard_lengths:
            lengths = zip(split.filepaths, split.shard_lengths, strict=True)
            empty += [prepared.stored(path) for path, length in lengths if length == 0]
    return empty


def _check_empty_files(empty: Iterable[PurePath], names_in: NamesIn, open_file: FileOpener) -> None:
    """Refuses files that hold records but are empty according to the metadata.

    Otherwise these records would be left out.
    """
    for path in empty:
        if path.name in names_in(path.parent) and (records := _records(path, open_file)):
            raise refused(
                DataLossError,
                str(path),
                f"the file holds {records} records, dataset_info.json says 0.",
                bytes=size_in_words(path),
                fix="put back the dataset_info.json that was written with the file, or"
                " delete its directory and prepare the dataset again",
            )


def _records(path: PurePath, open_file: FileOpener) -> int:
    if isinstance(path, Path) and file_size(path) == 0:
        return 0
    return len(open_file(path))


def _ranges(info: Any, split: Any, subject: str) -> list[tuple[str, int, int]]:
    """The absolute ranges of a split expression, which must not be empty or overlap."""
    import tensorflow_datasets as tfds

    sizes = {name: part.num_examples for name, part in info.splits.items()}
    whole = max(sizes, key=lambda name: sizes[name], default="train")
    try:
        absolute = tfds.core.ReadInstruction.from_spec(split).to_absolute(info.splits)
        records = info.splits[split].num_examples
    except (ValueError, AssertionError, KeyError) as error:
        raise refused(
            ValueError,
            subject,
            "the dataset has no such split.",
            split=repr(split),
            splits=sizes,
            error=error,
            fix=f"use split={nearest(_SPLIT_NAME.sub('', str(split)), sizes) or whole!r}",
        ) from error
    ranges = [
        (part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
        for part in absolute
    ]
    if records < 1:
        raise refused(
            ValueError,
            subject,
            "the split has no records.",
            split=repr(split),
            splits=sizes,
            fix=f"use split={whole!r}, or another slice of it",
        )
    for (name, _, stop), (next_name, start, _) in itertools.pairwise(sorted(ranges)):
        if name == next_name and start < stop:
            raise refused(
                ValueError,
                subject,
                "the slices overlap, so that an epoch would hold records twice.",
                split=repr(split),
                fix=f"use split={_union(ranges)!r}, which holds each record once",
            )
    return ranges


def _union(ranges: list[tuple[str, int, int]]) -> str:
    """A split expression for the same records, each of them once."""
    merged: list[tuple[str, int, int]] = []
    for name, start, stop in sorted(ranges):
        if merged and merged[-1][0] == name and start <= merged[-1][2]:
            stop = max(stop, merged[-1][2])
            start = merged.pop()[1]
        merged.append((name, start, stop))
    return "+".join(f"{name}[{start}:{stop}]" for name, start, stop in merged if start < stop)


def _require_files(pieces: Sequence[Piece], names_in: NamesIn, subject: str) -> None:
    """Raises a `DataLossError` if files of the split are missing."""
    missing = [
        str(piece.path) for piece in pieces if piece.path.name not in names_in(piece.path.parent)
    ]
    if missing:
        raise refused(
            DataLossError,
            subject,
            f"{len(missing)} of {len(pieces)} files of the split are missing.",
            first=missing[0],
            fix="put back the missing files, or delete their directory and prepare the dataset"
            " again",
        )


def _fingerprint(pieces: Iterable[Piece], split_bytes: Mapping[str, int]) -> str:
    """A digest of what the metadata say of the files: their names and lengths, and all bytes."""
    # A file counts once even if two slices take records of it, as in train[:50%]+train[50%:].
    files = {f"{piece.path.name} {piece.length}" for piece in pieces}
    return _digest([*files, *(f"{name}: {size} bytes" for name, size in split_bytes.items())])


def _earlier_fingerprints(pieces: Sequence[Piece]) -> tuple[str, ...]:
    """Digests with the sizes of the files; the second, which is older, counts a file for each slice
    that takes records of it. Earlier versions read no store, but perhaps a copy on a disk.
    """
    files = [f"{piece.path.name} {piece.length} {size}" for piece, size in _with_sizes(pieces)]
    return _digest(set(files)), _digest(files)


def _with_sizes(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, int]]:
    if not isinstance(pieces[0].path, ObjectPath):
        yield from ((piece, file_size(piece.path)) for piece in pieces)
        return
    with closing(ThreadPool(THREADS, "datarax_tfds_sizes")) as pool:
        sizes = [pool.submit(object_bytes, piece.path) for piece in pieces]
        yield from ((piece, size.result()) for piece, size in zip(pieces, sizes, strict=True))


def _of_kept(fingerprint: str, kept: KeptRecords) -> str:
    return f"{fingerprint}{FILTERED}{kept.digest}"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
