"""Batches made before they are asked for, with a position that counts only those handed out."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import jax

from datarax_tfds.cursor import Cursor
from sharding.integers import is_integer
from sharding.messages import explain


@runtime_checkable
class Positioned(Protocol):
    """What can be read ahead of its own position: a `Pipeline`, a source."""

    @property
    def cursor(self) -> Cursor: ...

    def move_to(self, cursor: Cursor) -> None: ...

    def ahead(self) -> Iterator[tuple[Cursor, Any, Cursor]]: ...


def prefetch_to_device(iterable: Iterable[Any], size: int = 2) -> Iterator[Any]:
    """Starts the next batches while the current one is in use.

    The state of a pipeline stays exact: `get_state()` in the loop is that of the batch in hand,
    however many are under way. No thread: JAX computes in the background, and every process
    starts the same computations in the same order.

        for batch in prefetch_to_device(pipeline, size=2):
            train_step(model, batch)

    Args:
        iterable: A pipeline or a source; or any iterable of arrays, which are moved to the device.
        size: How many batches to have under way, beside the one in hand. Each takes its memory.

    Returns:
        An iterator over the rest of the epoch, or over the iterable.

    Raises:
        TypeError: `iterable` is none.
        ValueError: `size` is negative.
    """
    if not is_integer(size, 0):
        raise ValueError(
            explain(
                "prefetch_to_device", "size is a number of batches.", size=repr(size), fix="0, 1, 2"
            )
        )
    if isinstance(iterable, Positioned):
        return handed_out(iterable, size)
    if not isinstance(iterable, Iterable):
        raise TypeError(
            explain(
                "prefetch_to_device",
                "there is nothing to iterate over.",
                iterable=type(iterable).__name__,
                fix="pass a pipeline, a source, or an iterable of arrays",
            )
        )
    return _buffered(map(jax.device_put, iterable), size)


def handed_out(source: Positioned, size: int) -> Iterator[Any]:
    """The rest of the epoch, `size` steps ahead; the source moves as each is handed out."""
    steps, buffer = source.ahead(), deque[tuple[Cursor, Any, Cursor]]()
    while True:
        buffer.extend(islice(steps, size + 1 - len(buffer)))
        if not buffer:
            return
        before, batch, after = buffer.popleft()
        if source.cursor != before:
            # Moved meanwhile, by set_state() or by another loop: what is under way belongs
            # elsewhere.
            if source.cursor.epoch > before.epoch:
                return
            steps, buffer = source.ahead(), deque()
            continue
        source.move_to(after)
        yield batch


def _buffered(items: Iterator[Any], size: int) -> Iterator[Any]:
    buffer = deque[Any]()
    while True:
        buffer.extend(islice(items, size + 1 - len(buffer)))
        if not buffer:
            return
        yield buffer.popleft()
