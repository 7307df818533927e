"""Where the records of a split are: in which files, and which of theirs; or why it is refused."""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datarax_tfds.array_record import ArrayRecordFile
from datarax_tfds.config import AnyConfig
from datarax_tfds.errors import DataLossError
from datarax_tfds.files import Piece, RecordFile, RecordFiles
from datarax_tfds.offset_index import record_starts
from datarax_tfds.preparing import prepared_builder
from datarax_tfds.tfrecord import TFRecordFile
from sharding.messages import explain


@dataclass(frozen=True, eq=False)
class Split:
    """A prepared split.

    Args:
        dataset: Name, config and version, as `mnist/3.0.1`.
        ranges: The resolved ranges, as `train[0:60000]`.
        fingerprint: Digest of the names, lengths and sizes of the files.
        files: The serialized records by number.
        info: The `tfds.core.DatasetInfo`.
    """

    dataset: str
    ranges: str
    fingerprint: str
    files: RecordFiles
    info: Any

    def __len__(self) -> int:
        return len(self.files)


def open_split(config: AnyConfig) -> Split:
    """Finds a split on disk, prepares its dataset where that is allowed, or refuses.

    Reads metadata only; TensorFlow is not imported unless the dataset has to be prepared.

    Raises:
        DatasetNotFoundError: The dataset is not prepared, and `local_files_only` is set or TFDS
            does not know it.
        DataLossError: Files of the split are missing.
        ValueError: The name, the split or the file format is none that we read.
    """
    subject = f"{config.name}:{config.split}"
    info = _info(config, subject)
    ranges = _ranges(info, str(config.split), subject)
    file_format = info.file_format.value
    formats = {"tfrecord": _tfrecord_opener(), "array_record": ArrayRecordFile}
    if file_format not in formats:
        raise ValueError(
            explain(
                subject,
                f"the dataset is prepared as {file_format}, which is not read here.",
                formats=", ".join(formats),
                fix="prepare it again with"
                " download_and_prepare_kwargs={'file_format': 'array_record'}",
            )
        )
    pieces = [
        Piece(Path(instruction.filename), instruction.skip, instruction.take, length)
        for instruction in info.splits[config.split].file_instructions
        if (length := instruction.examples_in_shard)
    ]
    _check_empty_files(info, {name for name, _, _ in ranges}, formats[file_format])
    return Split(
        dataset=info.full_name,
        ranges="+".join(f"{name}[{start}:{stop}]" for name, start, stop in ranges),
        fingerprint=_fingerprint(pieces, subject),
        files=RecordFiles(pieces, formats[file_format]),
        info=info,
    )


def _info(config: AnyConfig, subject: str) -> Any:
    """What TFDS knows of a prepared dataset; refuses metadata that are none."""
    from google.protobuf import json_format
    from tensorflow_datasets.core import dataset_info

    unreadable = (json_format.ParseError, json.JSONDecodeError, dataset_info.DatasetInfoFileError)
    try:
        return prepared_builder(config).info
    except unreadable as error:
        raise DataLossError(
            explain(
                subject,
                "the metadata of the dataset cannot be read: dataset_info.json, features.json.",
                searched=config.data_dir or "the default data_dir of TFDS",
                error=error,
                fix="restore these files, or remove the dataset and prepare it again",
            )
        ) from error


def _check_empty_files(info: Any, names: set[str], open_file: Callable[[Path], RecordFile]) -> None:
    """Refuses files that hold records where the metadata promise none: they would be left out."""
    for name in sorted(names):
        lengths = info.splits[name].shard_lengths
        for path, length in zip(map(Path, info.splits[name].filepaths), lengths, strict=True):
            if length == 0 and path.is_file() and path.stat().st_size:
                records = len(open_file(path))
                if records:
                    raise DataLossError(
                        explain(
                            str(path),
                            f"the file holds {records} records, dataset_info.json says 0.",
                            bytes=path.stat().st_size,
                            fix="remove the dataset and prepare it again",
                        )
                    )


def _tfrecord_opener() -> Callable[[Path], RecordFile]:
    starts = functools.cache(record_starts)  # a file that is closed and opened again keeps them
    return lambda path: TFRecordFile(path, starts(path))


def _ranges(info: Any, split: str, subject: str) -> list[tuple[str, int, int]]:
    """The absolute ranges of a split expression; refuses empty and overlapping ones."""
    import tensorflow_datasets as tfds

    sizes = {name: part.num_examples for name, part in info.splits.items()}
    try:
        absolute = tfds.core.ReadInstruction.from_spec(split).to_absolute(info.splits)
        records = info.splits[split].num_examples
    except (ValueError, AssertionError, KeyError) as error:
        raise ValueError(
            explain(
                subject,
                "the dataset has no such split.",
                split=repr(split),
                splits=sizes,
                error=error,
                fix="name one of its splits, or a slice of one",
            )
        ) from error
    ranges = [
        (part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
        for part in absolute
    ]
    if records < 1:
        raise ValueError(
            explain(
                subject,
                "the split has no records.",
                split=repr(split),
                splits=sizes,
                fix="widen the slice",
            )
        )
    for (name, _, stop), (next_name, start, _) in zip(
        sorted(ranges), sorted(ranges)[1:], strict=False
    ):
        if name == next_name and start < stop:
            raise ValueError(
                explain(
                    subject,
                    "the slices overlap, so that an epoch would hold records twice.",
                    split=repr(split),
                    fix="make the slices disjoint",
                )
            )
    return ranges


def _fingerprint(pieces: Sequence[Piece], subject: str) -> str:
    """A digest of the files of a split; refuses a split some of whose files are missing."""
    missing = [str(piece.path) for piece in pieces if not piece.path.is_file()]
    if missing:
        raise DataLossError(
            explain(
                subject,
                f"{len(missing)} of {len(pieces)} files of the split are missing.",
                first=missing[0],
                fix="restore the files, or remove the dataset and prepare it again",
            )
        )
    lines = sorted(
        f"{piece.path.name} {piece.length} {piece.path.stat().st_size}" for piece in pieces
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
