"""Holds what the orders of one split have in common: an epoch has each record once."""

from typing import Any

import jax

from datarax_tfds.order.cipher import index_shuffle


class OneSplit:
    """The base class of orders in which each number stands at one position of each epoch."""

    length: int

    @property
    def records(self) -> int:
        """The number of records; their numbers are in `[0, records)`."""
        return self.length

    def host_epochs(self, epoch: int, start: int, stop: int) -> int:  # noqa: ARG002
        """The epoch in which the record at each position comes, for its random keys."""
        return epoch

    def device_epochs(self, epochs: jax.Array, positions: jax.Array) -> jax.Array:  # noqa: ARG002
        """The same, in a compiled function."""
        return epochs

    def salted(self, numbers: Any) -> tuple[Any, Any]:
        """For each record, a salt and a number, of which its random keys are made."""
        return 0, numbers

    def keyed_numbers(self, places: Any, key: int | Any | None) -> Any:
        """The numbers at places of an order that depends only on a key, of 32 bits; None for the
        stored order. Traceable.
        """
        return places if key is None else index_shuffle(places, self.length, key)
