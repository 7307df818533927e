"""Reads every record of a file, and finds those whose checksum does not match."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from datarax_tfds.errors import DataLossError
from datarax_tfds.files.formats import RecordFile
from datarax_tfds.files.metadata_checks import require_inside
from datarax_tfds.files.object_formats import ArrayRecordObjectOpener
from datarax_tfds.files.preparing import Prepared
from datarax_tfds.files.stored_file import Readable, StoredFile, file_names
from datarax_tfds.files.stored_object import ObjectStream
from datarax_tfds.files.tfrecord import record_faults
from datarax_tfds.stores.object_path import ObjectPath
from datarax_tfds.stores.object_store import generation

_READ_TOGETHER = 256  # records of an ArrayRecord file


@dataclass(frozen=True)
class Damage:
    """What is wrong in a file.

    Args:
        file: The file.
        record: The number of the damaged record in the file; None if the file as a whole is not
            what the metadata say.
        where: The place of the record, as `byte 1024`.
        problem: What is wrong.
    """

    file: str
    record: int | None
    where: str
    problem: str

    def __str__(self) -> str:
        name = PurePath(self.file).name
        place = f": record {self.record} ({self.where}, tfds_id {name}__{self.record})"
        return f"{self.file}{'' if self.record is None else place}: {self.problem}"


def files_of(prepared: Prepared) -> dict[PurePath, int]:
    """All files of a prepared dataset, each with its number of records in the metadata.

    Raises:
        TrustError: The metadata name a file outside of the dataset.
    """
    files: dict[PurePath, int] = {}
    for split in prepared.info.splits.values():
        for name, length in zip(split.filepaths, split.shard_lengths, strict=True):
            files[prepared.stored(name)] = length
    require_inside(prepared.directory, files)
    # TFDS need not write a file without records.
    there = file_names(prepared.directory) if 0 in files.values() else set()
    return {path: length for path, length in files.items() if length or path.name in there}


def version_of_file(path: PurePath) -> str | None:
    """What changes when a file is written or replaced; None if there is no such file.

    Raises:
        OSError: The file system or the store does not let this process read the file.
    """
    try:
        if isinstance(path, ObjectPath):
            return generation(path).hex()
        with closing(StoredFile(Path(path))) as file:
            return ":".join(map(str, file.version()[:2]))
    except (FileNotFoundError, DataLossError):  # the second is that of an object
        return None


def missing(path: PurePath) -> Damage:
    return Damage(str(path), None, "", "the file is missing.")


def damage_in(path: PurePath, length: int, file_format: str) -> list[Damage]:
    """Reads all records of a file, and verifies all checksums.

    Args:
        path: The file, also in a store; it exists.
        length: The number of its records in the metadata.
        file_format: `tfrecord` or `array_record`.

    Raises:
        OSError: The file system or the store fails.
    """
    find = _in_tfrecord if file_format == "tfrecord" else _in_array_record
    try:
        found, records = find(path)
    except DataLossError as error:
        return [Damage(str(path), None, "", error.reason or "the file cannot be read.")]
    # After a damaged length, the rest of the records was not counted.
    if records != length and not found:
        problem = f"the file holds {records} records, dataset_info.json says {length}."
        found = [Damage(str(path), None, "", problem)]
    return found


def _in_tfrecord(path: PurePath) -> tuple[list[Damage], int]:
    found, records = [], 0
    with _opened(path) as file:
        for number, (start, problem) in enumerate(record_faults(file)):
            records += 1
            if problem is not None:
                found.append(Damage(str(path), number, f"byte {start}", problem))
    return found, records


@contextmanager
def _opened(path: PurePath) -> Iterator[Readable]:
    """A file of a file system or of a store, read from front to back."""
    if isinstance(path, ObjectPath):
        yield ObjectStream(path, generation(path))
        return
    with closing(StoredFile(Path(path))) as file:
        yield file


def _in_array_record(path: PurePath) -> tuple[list[Damage], int]:
    from datarax_tfds.files.array_record import ArrayRecordOpener

    opener = ArrayRecordObjectOpener() if isinstance(path, ObjectPath) else ArrayRecordOpener()
    file = opener(path)
    numbers = range(len(file))
    found = [
        Damage(str(path), number, file.where(number), problem)
        for start in numbers[::_READ_TOGETHER]
        for number, problem in _unreadable(file, numbers[start : start + _READ_TOGETHER])
    ]
    return found, len(file)


def _unreadable(file: RecordFile, numbers: Any) -> Iterator[tuple[int, str]]:
    """The records among these that cannot be read, each with the reason."""
    try:
        file.read(numbers)
    except DataLossError:
        for number in numbers:  # one by one, so that each of them is found
            try:
                file.read([number])
            except DataLossError as error:
                yield number, error.reason or "the record cannot be read."
