"""Decides which record comes next on slow stores: whole blocks are read, in random order."""

import functools
import re
from dataclasses import dataclass
from typing import NoReturn, Self

import jax
import numpy as np

from datarax_tfds.order.keys import record_keys
from datarax_tfds.order.one_split import OneSplit
from datarax_tfds.order.order import Order, check_length
from sharding.checks import refused

_VERSION = 1  # to be changed when the same fields give another order


@dataclass(frozen=True)
class BlockOrder(OneSplit):
    """An order in which records are read by blocks of consecutive numbers.

    Block k holds the records `[k * block_size, (k + 1) * block_size)`; the last block may be short.
    In each epoch the blocks come in random order. The blocks of a window, a power of two of them,
    are dealt out together like packs of cards: one record of each block in turn, and the records of
    a block in random order.

    So if the batch size divides the number of blocks in a window, the same row of consecutive
    batches comes from the same block, and each process reads only its own blocks.

    It is a pure function of its fields, and is used like `Order`.

    Args:
        length: Number of records N, in `[1, 2**61]`.
        seed: In `[0, 2**32)`.
        block_size: The number of records in a block.
        window: The number of records that are shuffled together: `shuffle_buffer_size`.
    """

    length: int
    seed: int
    block_size: int
    window: int

    def __post_init__(self):
        check_length(self.length)

    @property
    def version(self) -> str:
        """The version of the algorithm and its parameters, as saved states hold them."""
        return f"blocks of {self.block_size} in windows of {self._lanes} blocks, {_VERSION}"

    @property
    def strata(self) -> int:
        return 1

    @classmethod
    def of_version(cls, version: str, length: int, seed: int) -> Self | None:
        """The order with this `version`; None if that is not one of blocks."""
        form = rf"blocks of ([1-9]\d*) in windows of ([1-9]\d*) blocks, {_VERSION}"
        found = re.fullmatch(form, version)
        if found is not None:
            block_size, lanes = map(int, found.groups())
            order = cls(length, seed, block_size, block_size * lanes)
            if order.version == version:
                return order
        return None

    @property
    def arguments(self) -> str:
        """The arguments of a config that give this order."""
        return (
            f"access='sequential', block_size={self.block_size},"
            f" shuffle_buffer_size={self.block_size * self._lanes}"
        )

    def host_numbers(self, epoch: int, start: int, stop: int, stride: int = 0) -> np.ndarray:  # noqa: ARG002
        """The numbers of the records at positions `[start, stop)` of an epoch, as in `Order`."""
        parts = [np.empty(0, np.int64)]
        while start < stop:
            window = self._window_at(epoch, start)
            first = self._window_start(epoch, window)
            part = _dealt(self, epoch, window)[start - first : stop - first]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def device_numbers(self, epochs: jax.Array, positions: jax.Array) -> NoReturn:  # noqa: ARG002
        """Raises, because blocks are dealt out on the host."""
        raise refused(
            NotImplementedError,
            "access",
            "the order of blocks cannot be computed within a compiled function.",
            access="sequential",
            fix="take the batch outside and pass it in, or use a TFDSEagerSource",
        )

    @property
    def _lanes(self) -> int:
        """The number of blocks dealt out together: a power of two, because most batch sizes are."""
        return 1 << max(1, self.window // self.block_size).bit_length() - 1

    @property
    def _missing(self) -> int:
        """How many records fewer the last block has than the others."""
        return -self.length % self.block_size

    def _short_place(self, epoch: int) -> int:
        """The place of the short block: it is random, so that its records may come anywhere."""
        full = self.length // self.block_size
        key = int(record_keys(self.seed, epoch, np.array([2**61]))[0, 0])
        return key % (full + 1) if self._missing else full + 1

    def _window_start(self, epoch: int, window: int) -> int:
        place = window * self._lanes
        missing = self._missing if self._short_place(epoch) < place else 0
        return place * self.block_size - missing

    def _window_at(self, epoch: int, position: int) -> int:
        behind = (self._short_place(epoch) + 1) * self.block_size - self._missing
        if position >= behind:
            position += self._missing
        return position // (self.block_size * self._lanes)

    def _blocks(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """The blocks at places `[start, stop)` of an epoch's sequence of blocks."""
        full = self.length // self.block_size
        short = self._short_place(epoch)
        places = np.arange(start, min(stop, full + bool(self._missing)))
        blocks = np.full(len(places), full)
        others = places[places != short] - (places[places != short] > short)
        if len(others):
            order = Order(full, self.seed)
            blocks[places != short] = order.host_numbers(epoch, int(others[0]), int(others[-1]) + 1)
        return blocks


@functools.lru_cache(maxsize=4)  # the window in use, the next, and those of an evaluation set
def _dealt(order: BlockOrder, epoch: int, window: int) -> np.ndarray:
    """The record numbers of one window, in their order."""
    first = window * order._lanes
    blocks = order._blocks(epoch, first, first + order._lanes)
    numbers = blocks[:, None] * order.block_size + np.arange(order.block_size)
    keys = record_keys(order.seed, epoch, numbers).astype(np.int64)
    ranks = keys[..., 0] << 32 ^ keys[..., 1]
    ranks[numbers >= order.length] = np.iinfo(np.int64).max
    dealt = np.take_along_axis(numbers, ranks.argsort(axis=1, kind="stable"), axis=1).T.ravel()
    return dealt[dealt < order.length]
