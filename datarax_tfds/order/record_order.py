"""The protocol of orders: what sources, batches and the audit ask of them."""

from typing import Any, Protocol

import jax
import numpy as np


class RecordOrder(Protocol):
    """Which record stands at which position, in every epoch: see `Order`, and `MixtureOrder`.

    Positions and numbers are two things: an epoch has `length` positions, and the records that may
    stand there have the numbers `[0, records)`. An order need not have each number once an epoch.
    """

    @property
    def length(self) -> int: ...  # the positions of an epoch

    @property
    def records(self) -> int: ...  # this number stands for padding

    @property
    def seed(self) -> int | None: ...  # None for the stored order

    @property
    def version(self) -> int | str: ...

    @property
    def strata(self) -> int: ...  # 1, or position p holds a record of part `p % strata`

    def host_numbers(self, epoch: int, start: int, stop: int, stride: int = 0) -> np.ndarray: ...

    def device_numbers(self, epochs: jax.Array, positions: jax.Array) -> jax.Array: ...

    # The epoch, of its part, in which the record at each position comes, for its random keys.
    def host_epochs(self, epoch: int, start: int, stop: int) -> Any: ...

    def device_epochs(self, epochs: jax.Array, positions: jax.Array) -> jax.Array: ...

    # For each record, a salt and a number, of which its random keys are made.
    def salted(self, numbers: Any) -> tuple[Any, Any]: ...

    def keyed_numbers(self, places: Any, key: Any) -> Any: ...
