"""Where the records of a split are: found among prepared datasets, prepared, or refused."""

import dataclasses
import fcntl
import functools
import hashlib
import json
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datarax_tfds.array_record import ArrayRecordFile
from datarax_tfds.config import AnyConfig
from datarax_tfds.errors import DataLossError, DatasetNotFoundError
from datarax_tfds.files import Piece, RecordFile, RecordFiles
from datarax_tfds.offset_index import record_starts
from datarax_tfds.tfrecord import TFRecordFile
from datarax_tfds.trust import require_inside, require_known_features
from sharding import WaitTimeoutError, busy, done_by_others
from sharding.messages import explain

_log = logging.getLogger(__name__)

# What may name a dataset: no path leads out of data_dir, no builder argument comes in.
_NAME = re.compile(r"\w+(/[\w.+-]*\w[\w.+-]*)?(:[\d*]+[.][\d*]+[.][\d*]+)?", re.ASCII)


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
    if not _NAME.fullmatch(str(config.name)):
        raise ValueError(
            explain(
                "name",
                "this is not the name of a dataset.",
                name=repr(config.name),
                fix="use 'name', 'name/config' or 'name:1.2.3', and data_dir for a directory",
            )
        )
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
        return _builder(config).info
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


def _builder(config: AnyConfig) -> Any:
    """The TFDS builder of a prepared dataset, from its files where they are there."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.utils import error_utils

    data_dir = None if config.data_dir is None else os.path.expanduser(config.data_dir)
    subject = f"{config.name}:{config.split}"

    # Not `builder_from_files`, which opens what it finds before anybody can look at it.
    with error_utils.record_error_context():
        prepared = read_only_builder._find_builder_dir(str(config.name), data_dir=data_dir)
    if prepared is not None:
        return _opened(Path(prepared))
    known = tfds.list_builders(with_community_datasets=False)
    name = re.split("[/:]", str(config.name))[0]
    if config.local_files_only or name not in known:
        reason = "local_files_only is set" if name in known else "TFDS knows none of that name"
        raise DatasetNotFoundError(
            explain(
                subject,
                f"the dataset is not prepared, and {reason}.",
                searched=data_dir or "the default data_dir of TFDS",
                fix="check name and data_dir, or prepare it where it can be downloaded:"
                f" tfds build {name}",
            )
        )
    builder = tfds.builder(str(config.name), data_dir=data_dir)
    with busy(f"{subject} to be prepared"), _only_preparer(Path(builder.data_dir), subject):
        waited_for = Path(builder.data_dir).exists()
        builder.download_and_prepare(**_prepare_options(config))
    others = [] if waited_for else done_by_others(f"preparing {config.name}")
    if others:
        _log.warning(
            "%s: %s prepared it, too: the processes share no file system, or were given several"
            " data_dirs. Each host then needs room for it, and the network for all.",
            subject,
            ", ".join(others),
        )
    # Opened anew: a builder that found the work done by another knows nothing of its splits.
    return _opened(Path(builder.data_dir))


def _opened(prepared: Path) -> Any:
    """The builder of a prepared version, once it is known to name no code and no other files."""
    import tensorflow_datasets as tfds

    require_inside(prepared, ())
    require_known_features(prepared)
    builder = tfds.builder_from_directory(prepared)
    for split in builder.info.splits.values():
        require_inside(prepared, map(Path, split.filepaths))
    return builder


def _prepare_options(config: AnyConfig) -> dict[str, Any]:
    """The arguments of `download_and_prepare`, the bucket and Beam's workers among them."""
    import tensorflow_datasets as tfds

    options = dict(config.download_and_prepare_kwargs or {})
    download = options.get("download_config")
    if download is None or config.try_gcs:
        download = dataclasses.replace(
            download or tfds.download.DownloadConfig(), try_download_gcs=config.try_gcs
        )
    if config.beam_num_workers is not None:
        beam = _beam_options(config.beam_num_workers, f"{config.name}:{config.split}")
        download = dataclasses.replace(download, beam_options=beam)
    return options | {"download_config": download}


def _beam_options(workers: int, subject: str) -> Any:
    try:
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore
    except ImportError as error:
        raise ImportError(
            explain(
                subject,
                "beam_num_workers is set, and Apache Beam is not installed.",
                beam_num_workers=workers,
                fix="pip install 'datarax-tfds[beam]', or leave beam_num_workers out",
            )
        ) from error
    return PipelineOptions(direct_num_workers=workers, direct_running_mode="multi_processing")


@contextmanager
def _only_preparer(prepared: Path, subject: str, timeout_s: float = 24 * 3600) -> Iterator[None]:
    """Lets one process at a time prepare a dataset; the others find it prepared afterwards.

    A lock on a file, so that it holds between jobs too and ends with the process that holds it.
    """
    lock = prepared.parent / f".{prepared.name}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o664)
    except OSError as error:
        raise DatasetNotFoundError(
            explain(
                subject,
                "the dataset is not prepared, and cannot be: nothing can be written there.",
                directory=lock.parent,
                error=error,
                fix="set data_dir to a directory that can be written, or prepare the dataset where"
                " it can be: tfds build",
            )
        ) from error
    deadline = time.monotonic() + timeout_s
    with open(descriptor, "r+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise WaitTimeoutError(
                        explain(
                            subject,
                            "another process is still preparing the dataset.",
                            waited_s=timeout_s,
                            lock=lock,
                            holder=file.read(200).strip() or "unknown",
                            fix="look after that process, then start again",
                        )
                    ) from None
                time.sleep(0.2)
        # Only who holds the lock prepares: what others left is of processes that have died.
        for left in sorted(prepared.parent.glob(f"incomplete.*_{prepared.name}")):
            _log.warning("%s: %s was left half prepared; it can be removed", subject, left)
        file.truncate()
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
        file.truncate(0)


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
