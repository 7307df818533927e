"""The file formats that can be read. How to add one is in `docs/architecture.md`.

`record_files.py` reads the records of any format by number, tries again after network errors, and
checks each file against the metadata.
"""

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Protocol

from datarax_tfds.files.array_record import ArrayRecordOpener
from datarax_tfds.files.tfrecord_index import TFRecordOpener


class RecordFile(Protocol):
    """One open file of a split. Several threads may read it at once."""

    def __len__(self) -> int:
        """The number of records in the file."""
        ...

    def read(self, places: Sequence[int]) -> list[bytes]:
        """The serialized records at these places in the file, in this order, as
        `features.deserialize_example` of TFDS takes them.

        Raises:
            DataLossError: The file is damaged. If the damage is in one record, the error names it
                by `of_record(place, reason)`.
            OSError: The file system failed; the caller then opens the file again.
        """
        ...

    def where(self, place: int) -> str:
        """Describes where in the file a record is, as `byte 1024`, for a message."""
        ...


class FileOpener(Protocol):
    """Opens the files of one split, each when it is first needed.

    Several threads may call it at once for different files.

    Attributes:
        index_bytes: How much memory an open file takes for each of its records.
    """

    index_bytes: int

    def __call__(self, path: PurePath) -> RecordFile:
        """Opens a file.

        Raises:
            DataLossError: The file is not of this format, or it is damaged.
            OSError: The file cannot be opened.
        """
        ...

    def rebuild_index(self, path: PurePath) -> bool:
        """Called after a `DataLossError`; returns whether it has replaced a wrong index.

        If so, the caller opens and reads the file again.
        """
        ...

    def unindexed(self, paths: Sequence[PurePath]) -> Sequence[PurePath]:
        """The files among these that take long to open, because they have no index yet.

        It must not look at the files one by one: there may be ten thousand.
        """
        ...

    def first_record(self, path: PurePath) -> bytes | None:
        """The first record of a file; None if that is not cheaper to read without an index."""
        ...


# By their names in TFDS.
FORMATS: dict[str, Callable[[], FileOpener]] = {
    "tfrecord": TFRecordOpener,
    "array_record": ArrayRecordOpener,
}
