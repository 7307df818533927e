"""Records read by whole blocks, each once, for stores where small reads are slow."""

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from datarax_tfds.files import RecordFiles

_THREADS = 16  # that wait for the store


class BlockFiles:
    """The records of a split by number, as `RecordFiles`, fetched block by block.

    Block k is the records `[k * block_size, (k + 1) * block_size)`. The blocks used last are kept,
    as they are stored. Safe to use from several threads, which never fetch a block twice.

    Args:
        files: The records.
        block_size: Records in a block.
        kept: How many blocks to keep.
    """

    def __init__(self, files: RecordFiles, block_size: int, kept: int):
        self._files = files
        self._block_size = block_size
        self._kept = kept
        self._blocks: OrderedDict[int, Future[list[bytes]]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="datarax_tfds_store")

    def read(self, numbers: np.ndarray) -> list[bytes]:
        """The serialized records of these numbers, in their order; raises as `RecordFiles.read`."""
        owners = (numbers // self._block_size).tolist()
        with self._lock:
            blocks = {block: self._begun(block) for block in owners}
            while len(self._blocks) > self._kept:
                self._blocks.popitem(last=False)
        return [
            blocks[block].result()[number - block * self._block_size]
            for block, number in zip(owners, numbers.tolist(), strict=True)
        ]

    def _begun(self, block: int) -> Future[list[bytes]]:
        future = self._blocks.get(block)
        if future is None or (future.done() and future.exception() is not None):
            start = block * self._block_size
            stop = min(start + self._block_size, len(self._files))
            future = self._pool.submit(self._files.read, np.arange(start, stop))
            self._blocks[block] = future
        self._blocks.move_to_end(block)
        return future
