"""The protocol of opened records: how a source turns record numbers into batches."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from datarax_tfds.order.sampler import Selection
from datarax_tfds.records.host_rows import HostRows
from datarax_tfds.runtime.timings import Timings


class BatchInputs(NamedTuple):
    """The inputs of `Records.assemble`, and the features that stay on the host."""

    on_devices: Any
    on_host: HostRows


class Records(Protocol):
    """The records of a split, opened: on the devices, or left on disk."""

    spec: dict[str, Any]
    host_spec: dict[str, Any]
    timings: Timings

    def inputs(self, selection: Selection) -> BatchInputs:
        """Returns the inputs of `assemble` for a selection, without compiling anything."""
        ...

    def assemble(self, on_devices: Any) -> dict[str, Any]:
        """Makes the batch `[batch_size, ...]` of these inputs; traceable."""
        ...

    def batch(self, selection: Selection) -> dict[str, Any]:
        """Returns the records of a selection as a batch; of a `Traced` one, inside the program of
        the caller.

        Raises:
            NotImplementedError: A stream cannot be read for a `Traced` selection.
        """
        ...

    def scan_inputs(self, numbers: np.ndarray) -> tuple[Any, np.ndarray]:
        """Returns the inputs of `assemble` for many batches `[steps, n]`: those that all of them
        share, and those of each one.
        """
        ...

    def each_record(self, selection: Selection) -> Iterator[dict[str, Any]]:
        """Yields the records of a selection one by one, without a batch axis and padding."""
        ...

    def all_records(self, keep: bool) -> dict[str, Any]:
        """Returns all records on the devices, `[N, ...]`. With `keep`, an eager source returns the
        same arrays the next time.
        """
        ...

    def reset_cache(self) -> None:
        """Frees what is kept only to make later calls faster."""
        ...
