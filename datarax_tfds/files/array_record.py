"""The ArrayRecord format, whose library finds a record by its number."""

from collections.abc import Sequence
from pathlib import Path, PurePath

from datarax_tfds.errors import RESTORE, RESTORE_OR_SKIP, DataLossError
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.threads import native_call
from sharding.checks import refused

# The library's error for damaged bytes of a record, but not for a damaged header or a failed read.
_CHECKSUM = "chunk data hash mismatch"


@not_copied
class ArrayRecordFile:
    """An open ArrayRecord file; the library verifies all checksums.

    Args:
        path: The file.
        named: What messages name, if the file is a copy.
    """

    def __init__(self, path: Path, named: PurePath | None = None):
        from array_record.python import array_record_module  # pyright: ignore  # has no stubs

        self._path = named or path
        with native_call():
            try:
                # No read-ahead, because we do not read sequentially.
                self._reader = array_record_module.ArrayRecordReader(
                    str(path), "readahead_buffer_size:0,max_parallelism:0"
                )
                self._length = self._reader.num_records()
            except (RuntimeError, ValueError) as error:
                raise self._loss(error, fix=RESTORE) from error

    def __len__(self) -> int:
        return self._length

    def where(self, place: int) -> str:
        return f"number {place} of {self._length}"  # the library does not give offsets

    def read(self, places: Sequence[int]) -> list[bytes]:
        with native_call():
            try:
                return self._reader.read(list(places))
            except (RuntimeError, ValueError, IndexError) as error:
                failure = error
        if len(places) > 1:
            for place in places:  # one at a time, so that the error names the record
                self.read([place])
        if _CHECKSUM not in str(failure):
            raise self._loss(failure, record=places[0], fix=RESTORE) from failure
        error = self._loss(failure, record=places[0], fix=RESTORE_OR_SKIP)
        error.of_record(places[0], str(failure))
        raise error from failure

    def _loss(self, error: Exception, *, fix: str, **facts: object) -> DataLossError:
        problem = "the file cannot be read."
        loss = refused(DataLossError, str(self._path), problem, **facts, error=error, fix=fix)
        return loss.of_file(str(error))


class ArrayRecordOpener:
    index_bytes = 8  # the library keeps the offset of each record in memory

    def __call__(self, path: PurePath) -> ArrayRecordFile:
        return ArrayRecordFile(Path(path))

    def rebuild_index(self, path: PurePath) -> bool:  # noqa: ARG002
        return False  # the index is part of the file, and has a checksum

    def first_record(self, path: PurePath) -> None:  # noqa: ARG002
        return None  # the index is part of the file

    def unindexed(self, paths: Sequence[PurePath]) -> Sequence[PurePath]:  # noqa: ARG002
        return ()
