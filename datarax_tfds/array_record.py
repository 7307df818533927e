"""The ArrayRecord format, read through its own random access."""

from collections.abc import Sequence
from pathlib import Path

from datarax_tfds.errors import DataLossError
from sharding.messages import explain


class ArrayRecordFile:
    """An ArrayRecord file, open for reading records by their places; it verifies its own checksums.

    Raises:
        DataLossError: It is no ArrayRecord file, or a damaged one.
    """

    def __init__(self, path: Path):
        # A compiled module without stubs.
        from array_record.python import array_record_module  # pyright: ignore

        self._path = path
        try:
            # Read-ahead is for one sequential reader; we come with many places at once.
            self._reader = array_record_module.ArrayRecordReader(
                str(path), "readahead_buffer_size:0,max_parallelism:0"
            )
            self._length = self._reader.num_records()
        except (RuntimeError, ValueError) as error:
            raise self._loss(error) from error

    def __len__(self) -> int:
        return self._length

    def where(self, place: int) -> str:
        return f"number {place} of {self._length}"  # the format does not tell offsets

    def read(self, places: Sequence[int]) -> list[bytes]:
        try:
            return self._reader.read(list(places))
        except (RuntimeError, ValueError, IndexError) as error:
            if len(places) > 1:
                for place in places:  # one by one, so that the error names the record
                    self.read([place])
            raise self._loss(error, record=places[0]) from error

    def _loss(self, error: Exception, **facts: object) -> DataLossError:
        return DataLossError(
            explain(
                str(self._path),
                "the file cannot be read.",
                **facts,
                error=error,
                fix="restore the file, or remove the dataset and prepare it again",
            )
        )
