"""Reads records in whole blocks, for stores where small reads are slow."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.threads import ThreadPool


@not_copied
class BlockFiles:
    """Reads records by number as `RecordFiles` does, but fetches the whole block of each.

    Block k holds the serialized records `[k * block_size, (k + 1) * block_size)`. The blocks used
    last are kept. Several threads may read at once, and fetch each block only once.

    Args:
        read: The method of `RecordFiles`.
        length: The number of records N.
        block_size: The number of records in a block.
        kept: The number of blocks to keep.
        threads: The number of threads that read from the store.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], list[bytes]],
        *,
        length: int,
        block_size: int,
        kept: int,
        threads: int,
    ):
        self._read = read
        self._length = length
        self._block_size = block_size
        self._kept = kept
        self._blocks: OrderedDict[int, Future[list[bytes]]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPool(threads, "datarax_tfds_store")

    def prefetch(self, numbers: np.ndarray) -> None:
        """Begins to fetch the blocks of these records."""
        self._fetched((numbers // self._block_size).tolist())

    def read(self, numbers: np.ndarray) -> list[bytes]:
        """The serialized records of these numbers, in this order. Raises as `RecordFiles.read`."""
        owners = (numbers // self._block_size).tolist()
        blocks = self._fetched(owners)
        return [
            blocks[block].result()[number - block * self._block_size]
            for block, number in zip(owners, numbers.tolist(), strict=True)
        ]

    def _fetched(self, owners: list[int]) -> dict[int, Future[list[bytes]]]:
        with self._lock:
            blocks = {block: self._block(block) for block in dict.fromkeys(owners)}
            while len(self._blocks) > self._kept:
                self._blocks.popitem(last=False)
        return blocks

    def _block(self, block: int) -> Future[list[bytes]]:
        """A block, which is fetched unless it is kept or already being fetched."""
        future = self._blocks.get(block)
        if future is None or (future.done() and future.exception() is not None):
            start = block * self._block_size
            stop = min(start + self._block_size, self._length)
            future = self._pool.submit(self._read, np.arange(start, stop))
            self._blocks[block] = future
        self._blocks.move_to_end(block)
        return future
