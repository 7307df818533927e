"""Compares what workers may have under way with the object stores of Ray."""

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from datarax_tfds.runtime.copying import not_copied


class Store(NamedTuple):
    """The object store of a machine of the cluster.

    Args:
        node: Names the machine.
        size: Its bytes.
        cores: How many workers may run there.
        here: Whether it is that of the process that trains.
    """

    node: str
    size: int
    cores: int
    here: bool


class Shortage(NamedTuple):
    """A store has less room than what may be in it."""

    store: Store
    needed: int


@not_copied
class ObjectStores:
    """Knows the largest call of each reader, and how many may be in each store.

    Rows that come through Ray are in the store of their worker, and then in that of the process
    that trains, too, until this process has them. Any thread may use it.

    Args:
        calls: How many calls of a reader each worker may have under way.
    """

    def __init__(self, calls: int):
        self._calls = calls
        self._lock = threading.Lock()
        self._stores: list[Store] = []
        self._largest: dict[str, int] = {}
        self._workers = 0

    def connected(self, stores: Sequence[Any]) -> None:
        """Sets the stores of the cluster, as sequences with the fields of a `Store`."""
        with self._lock:
            self._stores = [Store(*each) for each in stores]

    def forget(self, key: str) -> None:
        """A reader makes no more calls."""
        with self._lock:
            self._largest.pop(key, None)

    def shortage(self, key: str, size: int, workers: int) -> Shortage | None:
        """Returns the store that lacks the most room; None if all have enough. An answer is given
        once: None, too, if neither `size` nor `workers` is larger than in an earlier call.

        Args:
            key: Names the reader.
            size: The bytes of its call.
            workers: From how many workers the processes of this machine get rows through Ray.
        """
        with self._lock:
            if size <= self._largest.get(key, 0) and workers <= self._workers:
                return None
            self._largest[key] = max(size, self._largest.get(key, 0))
            self._workers = max(workers, self._workers)
            of_a_worker = self._calls * sum(self._largest.values())
            needs = [
                Shortage(store, of_a_worker * (workers if store.here else store.cores))
                for store in self._stores
            ]
        short = [each for each in needs if each.needed > each.store.size]
        return max(short, key=lambda each: each.needed - each.store.size, default=None)
