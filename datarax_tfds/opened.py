"""What sources differ in: how records that were opened become batches."""

from collections.abc import Iterator
from typing import Any, Protocol

import jax
import numpy as np

from datarax_tfds.selection import AtCursor, Chosen, Selection


class Records(Protocol):
    """The records of a split, opened: on the devices, or left on disk."""

    spec: dict[str, Any]

    def fetch(self, selection: Selection) -> Any:
        """What `build` needs for a batch."""
        ...

    def build(self, fetched: Any) -> dict[str, Any]:
        """The batch, `[batch_size, ...]`; traceable."""
        ...

    def take(self, selection: Selection) -> dict[str, Any]:
        """Both in one."""
        ...

    def take_within(self, numbers: jax.Array) -> dict[str, Any]:
        """The records of traced numbers `[n]`, in a program of the caller's."""
        ...

    def fetch_steps(self, numbers: np.ndarray) -> tuple[Any, np.ndarray]:
        """What `build` needs for many batches `[steps, n]`: what they share, and the rest."""
        ...

    def arrays(self, keep: bool) -> dict[str, Any]:
        """All records on the devices, `[N, ...]`; with `keep`, those of an eager source are
        the same arrays the next time.
        """
        ...

    def reset_cache(self) -> None:
        """Frees what is kept only to be faster the next time."""
        ...

    def take_one(self, selection: Chosen) -> dict[str, Any]:
        """One record, without a batch axis."""
        ...

    def each(self, block: AtCursor) -> Iterator[dict[str, Any]]:
        """The records of a block one by one, likewise."""
        ...
