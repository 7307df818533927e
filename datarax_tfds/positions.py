"""Which records stand at which positions, on the host and within compiled functions."""

import functools
import operator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from datarax_tfds.block_order import BlockOrder
from datarax_tfds.cursor import Cursor, Schedule
from datarax_tfds.hashing import record_keys
from datarax_tfds.order import Order, index_shuffle
from datarax_tfds.selection import AtCursor, Chosen


@dataclass(frozen=True)
class Positions:
    """An order, and the seed of all that is random in a source.

    Args:
        order: Which record stands at which position of an epoch.
        seed: Of the keys of records, also where the order is that of the files.
    """

    order: Order | BlockOrder
    seed: int

    @property
    def shuffled(self) -> bool:
        return self.order.seed is not None

    def at(self, schedule: Schedule, cursor: Cursor) -> AtCursor:
        """The batch at a cursor, as which records it takes."""
        return AtCursor(self.order, schedule, cursor, self.seed)

    def chosen(self, numbers: np.ndarray, epoch: int) -> Chosen:
        """Records by number, as of an epoch."""
        return Chosen(numbers, epoch, self.seed)

    def numbers(self, epoch: int, start: int, size: int, key: jax.Array | None) -> np.ndarray:
        """The numbers at consecutive positions, on the host.

        Args:
            epoch: Of position 0.
            start: The first position; those beyond the length are of epochs that follow or, with a
                key, wrap around.
            size: How many.
            key: Of an order of its own, if this one is shuffled.

        Returns:
            `[size]` integers.
        """
        length = self.order.length
        if key is None:
            epochs, index = divmod(start, length)
            return self.at(Schedule(length, size), Cursor(epoch + epochs, index)).numbers()
        places = np.arange(start, start + size) % length
        return index_shuffle(places, length, int(key_word(key))) if self.shuffled else places

    def numbers_within(
        self,
        epoch: int | jax.Array,
        start: int | jax.Array,
        size: int,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """The same, traceable; with the epoch of each.

        Returns:
            Epochs and numbers, `[size]` int32.
        """
        length = self.order.length
        positions = jnp.asarray(start, jnp.int32) + jnp.arange(size, dtype=jnp.int32)
        epochs, places = jnp.asarray(epoch, jnp.int32) + positions // length, positions % length
        if key is None:
            return epochs, self.order.numbers(epochs, places)
        return epochs, index_shuffle(places, length, key_word(key)) if self.shuffled else places

    def keys_within(self, epochs: jax.Array, numbers: jax.Array) -> jax.Array:
        """Two words for each record, as `AtCursor.keys`, traceable: `[size, 2]` int32."""
        return record_keys(self.seed, epochs, numbers)


def key_word(key: jax.Array) -> jax.Array:
    """A PRNG key, typed or raw, as one 32-bit word."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    words = jax.random.key_data(key) if typed else key
    return functools.reduce(operator.xor, [words[i] for i in range(words.shape[-1])])
