"""The protocols of what reads records on the host, for `ReadAhead`."""

from typing import Any, Protocol

import numpy as np

from datarax_tfds.runtime.timings import Timings


class DecodedRecords(Protocol):
    """Reads and decodes records by number: a `RecordReader`, or its `RecordCache`."""

    def read(self, numbers: np.ndarray, keys: np.ndarray | None = None, /) -> dict[str, Any]:
        """Returns the records `[n, ...]` of these numbers `[n]`; random ones need keys `[n, 2]`."""
        ...

    def prefetch(self, numbers: np.ndarray, /) -> None:
        """Begins to read records from a store, without decoding them."""
        ...


class Reader(Protocol):
    """What is known of the records before they are read: see `RecordReader`."""

    length: int
    reach: int
    subject: str
    spec: dict[str, Any]
    host_spec: dict[str, Any]
    record_bytes: int
    max_calls: int  # under way at once, at most
    fan_out: int  # in how many calls, of other readers, `read` decodes what it is given
    holds_arrays: bool
    mapped_by: str | None
    random_by: str | None
    stochastic: bool
    timings: Timings

    @property
    def parallel(self) -> int: ...  # how many calls to have under way at once

    def holds(self, numbers: np.ndarray) -> np.ndarray: ...

    def slowest(self) -> str: ...

    def records_ahead(self, *, shuffled: bool) -> int: ...

    def prefetch(self, numbers: np.ndarray, /) -> None: ...

    def read(self, numbers: np.ndarray, keys: np.ndarray | None = None, /) -> dict[str, Any]: ...
