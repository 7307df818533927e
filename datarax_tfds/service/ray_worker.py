"""The actor of Ray that decodes records: it opens what is described to it, and reads by number."""

import collections
import os
import pickle
import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from datarax_tfds.service.executor import Rows
from datarax_tfds.service.lent_files import LentFiles, Loan, views
from datarax_tfds.service.rows_format import written

# What a worker runs at once: two calls, so that one is there when the other is sent; and a
# question about its status.
CALLS, THREADS = 2, 3
_MIN_LENT = 100 << 10  # bytes of rows; Ray sends fewer with its answer, without its store
# How many bytes of rows are decoded at once. After each call, memory of more than 32 MiB goes back
# to the system, and the next call has to ask for it again: an eighth of the time that 256 images of
# 224x224 take.
_PART_BYTES = 8 << 20
_RATE_S = 10.0  # over which records are counted for the rate


class RayWorker:
    """Decodes records for the process that started it. Ray runs its methods in `THREADS` threads.

    Args:
        started_by: Names that process, for users who ask what workers do.
    """

    def __init__(self, started_by: str):
        import jax

        jax.config.update("jax_platforms", "cpu")  # accelerators are for those who train
        self._started_by = started_by
        self._readers: dict[str, Any] = {}
        self._opened: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self._recent: collections.deque[tuple[float, int]] = collections.deque()
        self._records = 0
        self._lent = LentFiles()

    def place(self) -> dict[str, Any]:
        """The machine and the process."""
        import ray

        ray_node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        return {"node": platform.node(), "pid": os.getpid(), "ray_node": ray_node}

    def open(self, key: str, description: bytes) -> dict[str, str]:
        """Builds a reader, and returns what it has to have in common with that of the trainer.

        Args:
            key: Names the reader in further calls.
            description: A pickled `Description`.
        """
        from datarax_tfds.service.served_reader import facts_of

        reader = pickle.loads(description).opened()  # noqa: S301  # of the process that started it
        self._readers[key] = reader
        self._opened[key] = f"{reader.split.dataset} {reader.split.ranges}"
        return facts_of(reader)

    def forget(self, key: str, refusal: str | None = None) -> None:
        """Closes a reader that is not used any more, or that was refused for this reason."""
        self._readers.pop(key, None)
        if refusal is None:
            self._opened.pop(key, None)
        else:
            self._refused[key] = refusal

    def read(self, key: str, numbers: np.ndarray, keys: np.ndarray | None) -> list[Rows]:
        """Decodes records; returns their rows in parts, of which one follows the other."""
        reader = self._readers[key]
        size = max(1, _PART_BYTES // max(1, reader.record_bytes))
        rows = []
        for start in range(0, max(1, len(numbers)), size):  # no records are a part, too
            part = slice(start, start + size)
            rows.append(reader.read(numbers[part], None if keys is None else keys[part]))
        now = time.monotonic()
        self._records += len(numbers)
        self._recent.append((now, len(numbers)))
        while self._recent[0][0] < now - _RATE_S:
            self._recent.popleft()
        return rows

    def lend(
        self, key: str, numbers: np.ndarray, keys: np.ndarray | None, returned: Sequence[int]
    ) -> tuple[Loan, int] | list[Rows]:
        """Decodes records for a process on the same machine.

        Args:
            key: Names the reader.
            numbers: See `Executor`.
            keys: See `Executor`.
            returned: Earlier files that were read: see `LentFiles.take_back`.

        Returns:
            The file with the rows, in the format of `rows_format`, and its descriptor in this
            process; the rows themselves, as of `read`, if they are small.
        """
        self._lent.take_back(returned)
        rows = self.read(key, numbers, keys)
        buffers = views(written(*rows))
        if sum(map(len, buffers)) < _MIN_LENT:
            return rows
        file = self._lent.lend(buffers)
        return file.loan, file.descriptor

    def status(self) -> dict[str, Any]:
        """What the worker does, in JSON types."""
        since = time.monotonic() - _RATE_S
        recent = sum(count for at, count in list(self._recent) if at > since)
        return self.place() | {
            "started_by": self._started_by,
            "reads": [says for key, says in self._opened.items() if key not in self._refused],
            "refused": [f"{self._opened.get(k)}: {why}" for k, why in self._refused.items()],
            "records": self._records,
            "records_per_s": recent / _RATE_S,
        }
