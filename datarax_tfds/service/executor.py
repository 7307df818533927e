"""The protocol of what decodes records elsewhere, which users may implement."""

from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np

Rows = dict[str, Any]


class Executor(Protocol):
    """Decodes records by number in other threads or processes, or on other machines.

    A source uses it beside its own threads, and needs nothing of it: an answer that is late is
    decoded here, too, and the first answer is used; after an error, the records are decoded here.
    Before it is used, its answers for 16 records are compared with those of the source, and it is
    refused if they differ.

        from concurrent.futures import ThreadPoolExecutor

        class Threads:
            capacity = 5    # one call waits while four run

            def __init__(self, source):    # a source of the same config, for example
                self._pool = ThreadPoolExecutor(4)
                self._read = source.records.reader.read

            def submit(self, numbers, keys):
                return self._pool.submit(self._read, numbers, keys)

        source = TFDSStreamingSource(config, executor=Threads(TFDSStreamingSource(config)))

    Attributes:
        capacity: How many calls to keep under way: one more than run at once, so that the next one
            is there when one ends.
    """

    capacity: int

    def submit(self, numbers: np.ndarray, keys: np.ndarray | None, /) -> Future[Rows]:
        """Begins to decode records; must not wait for them.

        Args:
            numbers: int64 `[n]`, in `[0, N)`; n is 1 unless all records have one shape.
            keys: int32 `[n, 2]` for a function that takes random numbers, else None.

        Returns:
            The future of NumPy arrays `[n, ...]`, as a dict nested like a record, with the shapes
            and dtypes of `source.element_spec()` and, for `host_keys`, of the features. They must
            not be changed afterwards.
        """
        ...
