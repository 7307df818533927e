"""Which record comes next where small reads are slow: blocks in random order, records near them."""

import functools
import re
from dataclasses import dataclass
from typing import NoReturn, Self

import jax
import numpy as np

from datarax_tfds.hashing import record_keys
from datarax_tfds.order import Order
from sharding.messages import explain

_VERSION = 1  # changes whenever the same fields would give another order


@dataclass(frozen=True)
class BlockOrder:
    """An order in which records are read by blocks of consecutive numbers.

    The records `[k * block_size, (k + 1) * block_size)` are block k; the last may be short. In each
    epoch the blocks come in random order, and as many of them at a time as a window holds (a
    power of two) are dealt out like packs of cards: one record of each in turn, each block in
    random order.

    So the records at equal places of consecutive rounds come from the same blocks: where the
    batch size divides the number of blocks in a window, each process reads blocks of its own
    and no others.

    A pure function of its fields, as `Order` is, and with the same use.

    Args:
        length: Number of records N.
        seed: In `[0, 2**32)`.
        block_size: Records that are read in one go.
        window: Records among which the order is random: `shuffle_buffer_size`.
    """

    length: int
    seed: int
    block_size: int
    window: int

    @property
    def version(self) -> str:
        """Of the algorithm, with what else fixes the order, as it is saved."""
        return f"blocks of {self.block_size} in windows of {self._lanes} blocks, {_VERSION}"

    @classmethod
    def of_version(cls, version: str, length: int, seed: int) -> Self:
        """The order whose `version` that is."""
        form = rf"blocks of ([1-9]\d*) in windows of ([1-9]\d*) blocks, {_VERSION}"
        found = re.fullmatch(form, version)
        if found is not None:
            block_size, lanes = map(int, found.groups())
            order = cls(length, seed, block_size, block_size * lanes)
            if order.version == version:
                return order
        raise ValueError(
            explain(
                "BlockOrder",
                "this is no order that is known here.",
                order=repr(version),
                fix="use the version of datarax_tfds that saved it",
            )
        )

    def span(self, epoch: int, start: int, stop: int, stride: int = 0) -> np.ndarray:  # noqa: ARG002
        """The numbers of the records at positions `[start, stop)` of an epoch: as `Order.span`."""
        parts = [np.empty(0, np.int64)]
        while start < stop:
            window = self._window_at(epoch, start)
            first = self._window_start(epoch, window)
            part = _dealt(self, epoch, window)[start - first : stop - first]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def numbers(self, epochs: jax.Array, positions: jax.Array) -> NoReturn:
        """Not to be had on the device, as `Order.numbers` is."""
        raise NotImplementedError(
            explain(
                "access",
                "blocks are not dealt out within a compiled function.",
                access="sequential",
                fix="take the batch outside and pass it in, or use a TFDSEagerSource",
            )
        )

    @property
    def _lanes(self) -> int:
        """How many blocks are dealt out at a time: a power of two, as batch sizes mostly are."""
        return 1 << max(1, self.window // self.block_size).bit_length() - 1

    @property
    def _missing(self) -> int:
        """Records that the last block has fewer than the others."""
        return -self.length % self.block_size

    def _short_place(self, epoch: int) -> int:
        """Where the last block comes, if it is short: anywhere, so that its records do."""
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
            blocks[places != short] = order.span(epoch, int(others[0]), int(others[-1]) + 1)
        return blocks


@functools.lru_cache(maxsize=4)  # the window in use, the next, and those of an evaluation set
def _dealt(order: BlockOrder, epoch: int, window: int) -> np.ndarray:
    """The numbers of one window, in their order."""
    first = window * order._lanes
    blocks = order._blocks(epoch, first, first + order._lanes)
    numbers = blocks[:, None] * order.block_size + np.arange(order.block_size)
    keys = record_keys(order.seed, epoch, numbers).astype(np.int64)
    ranks = keys[..., 0] << 32 ^ keys[..., 1]
    ranks[numbers >= order.length] = np.iinfo(np.int64).max
    dealt = np.take_along_axis(numbers, ranks.argsort(axis=1, kind="stable"), axis=1).T.ravel()
    return dealt[dealt < order.length]
