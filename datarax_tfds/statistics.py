"""What a source knows of its records' distribution: given beforehand, set, or made of a batch."""

from collections.abc import Callable
from typing import Any

from flax import nnx


class Statistics(nnx.Module):
    """Statistics by name, from one of three places.

    Those given beforehand go before those made of a batch, until others are set or all are reset.
    They are `nnx.Variable`s: a clone has its own, and a compiled function may make them.

    Args:
        precomputed: Given beforehand; absent where there are none.
    """

    def __init__(self, precomputed: dict[str, Any] | None):
        self._given = nnx.Variable(precomputed)
        self._found = nnx.Variable[dict[str, Any] | None](None)

    @property
    def current(self) -> dict[str, Any] | None:
        """Those given, else those set or made last; absent where there are none."""
        given = self._given.get_value()
        return self._found.get_value() if given is None else given

    def compute(self, function: Callable[..., Any] | None, batch: Any) -> dict[str, Any] | None:
        """Makes statistics of a batch, and keeps them; absent without a function."""
        if function is None:
            return None
        found = function(batch)
        self._found.set_value(found)
        return found

    def replace(self, statistics: dict[str, Any] | None) -> None:
        """Sets others, in place of all that there were."""
        self._given.set_value(None)
        self._found.set_value(statistics)
