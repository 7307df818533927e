"""Writes what has to be in a store before a state is saved: the logs of the batches up to it."""

import weakref
from typing import Protocol


class Flushable(Protocol):
    """Something that writes in the background."""

    def flush(self) -> None: ...


_pending: "weakref.WeakSet[Flushable]" = weakref.WeakSet()


def flush_before_saving(writer: Flushable) -> None:
    """Lets `flush_all` wait for a writer, for as long as it exists."""
    _pending.add(writer)


def flush_all() -> None:
    """Waits until everything is written that was written to before; raises if it cannot be."""
    for writer in list(_pending):
        writer.flush()
