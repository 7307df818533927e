"""Reads records from a store before they are needed, so that decoding does not wait for it."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future

import numpy as np

from datarax_tfds.errors import DataLossError
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.threads import ThreadPool

THREADS = 32  # as many as TensorStore has requests under way by default

# As much as 32 requests for blocks of 2 MiB. With 30 ms a request, that keeps up with 2 GB/s.
BUDGET_BYTES = 64 << 20
_MAX_REQUESTS = 1024  # of single records: more would be in vain when a job stops
_MAX_RECORDS = 1 << 15  # finding the numbers of more takes longer than it gains
# In one call: smaller calls for single records take more CPU time.
_CALL_BYTES = 2 << 20  # of consecutive records, which take one request
_CALL_RECORDS = 512


def records_ahead(record_bytes: float, *, alone: bool) -> int:
    """How many records to read ahead, so that the budget is used, but not exceeded.

    Args:
        record_bytes: The mean size of a record.
        alone: Whether each takes a request of its own.
    """
    return min(int(BUDGET_BYTES / record_bytes), _MAX_REQUESTS if alone else _MAX_RECORDS)


@not_copied
class PrefetchedFiles:
    """Reads records by number as `RecordFiles` does; those that were prefetched are there already.

    A record is held from `prefetch` until it is read. If many never are, as after a seek, those
    that were prefetched first are dropped. Several threads may read at once.

    Args:
        read: The method of `RecordFiles`.
        record_bytes: The mean size of a record.
    """

    def __init__(self, read: Callable[[np.ndarray], list[bytes]], record_bytes: float):
        self._read = read
        self._in_a_row = max(1, min(int(_CALL_BYTES / record_bytes), _CALL_RECORDS))
        self._kept = 2 * records_ahead(record_bytes, alone=False)  # of two streams of batches
        # By number: the call that reads the record, and its place there.
        self._coming: OrderedDict[int, tuple[Future[list[bytes]], int]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPool(THREADS, "datarax_tfds_prefetch")

    def prefetch(self, numbers: np.ndarray) -> None:
        """Begins to read records. Of 512 of them, or 2 MiB in a row, near ones share a request."""
        shuffled = 2 * np.count_nonzero(np.diff(numbers) == 1) < len(numbers) - 1
        size = _CALL_RECORDS if shuffled else self._in_a_row
        with self._lock:
            new = [number for number in numbers.tolist() if number not in self._coming]
            for start in range(0, len(new), size):
                some = new[start : start + size]
                future = self._pool.submit(self._read, np.array(some))
                for place, number in enumerate(some):
                    self._coming[number] = future, place
            while len(self._coming) > max(self._kept, 2 * len(numbers)):
                _, (unwanted, _) = self._coming.popitem(last=False)
                unwanted.cancel()

    def read(self, numbers: np.ndarray) -> list[bytes]:
        """The serialized records of these numbers, in this order. Raises as `RecordFiles.read`."""
        records: list[bytes] = [b""] * len(numbers)
        with self._lock:
            coming = [self._coming.pop(number, None) for number in numbers.tolist()]
        missing = []
        for row, each in enumerate(coming):
            record = None if each is None else _taken(*each)
            if record is None:
                missing.append(row)
            else:
                records[row] = record
        if missing:
            for row, record in zip(missing, self._read(numbers[missing]), strict=True):
                records[row] = record
        return records


def _taken(call: Future[list[bytes]], place: int) -> bytes | None:
    """Takes a record out of a call; None if that did not read it."""
    try:
        records = call.result()
    except (CancelledError, DataLossError):
        return None  # another record may be damaged: then this one is read alone
    record, records[place] = records[place], b""  # so that the bytes are not held any longer
    return record
