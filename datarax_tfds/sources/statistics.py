"""Holds the statistics of a source's records: given, set, or computed from a batch."""

from collections.abc import Callable
from typing import Any

from flax import nnx


class Statistics(nnx.Module):
    """Statistics by name.

    The given ones take precedence over those computed from a batch, until they are replaced. They
    are `nnx.Variable`s, so a clone has its own, and a compiled function may compute them.

    Args:
        given: Statistics that are known beforehand, or None.
    """

    def __init__(self, given: dict[str, Any] | None):
        self._given = nnx.Variable(given)
        self._found = nnx.Variable[dict[str, Any] | None](None)

    @property
    def current(self) -> dict[str, Any] | None:
        """The given statistics, or those set or computed last, or None."""
        given = self._given.get_value()
        return self._found.get_value() if given is None else given

    def compute(self, function: Callable[..., Any] | None, batch: Any) -> dict[str, Any] | None:
        """Computes the statistics of a batch, and keeps them. Returns None without a function."""
        if function is None:
            return None
        found = function(batch)
        self._found.set_value(found)
        return found

    def replace(self, statistics: dict[str, Any] | None) -> None:
        """Replaces all statistics."""
        self._given.set_value(None)
        self._found.set_value(statistics)
