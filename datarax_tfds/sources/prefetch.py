"""Makes batches before they are asked for; the position counts only those handed out."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import jax

from datarax_tfds.config.fields import Field, integer
from datarax_tfds.order.cursor import Cursor
from datarax_tfds.order.sampler import Sampler
from sharding.checks import refused


class Taken(NamedTuple):
    """A batch that was made, and what changes when it is handed out.

    Args:
        result: The batch, or a single record.
        after: The cursor after it.
        records: How many of the records up to that cursor are handed out; None for all of them.
        keep: Stores the new state of the stages.
        undo: Restores the state that the stages had before the batch.
    """

    result: Any
    after: Cursor
    records: int | None = None
    keep: Callable[[], None] | None = None
    undo: Callable[[], None] | None = None


@runtime_checkable
class Positioned(Protocol):
    """A pipeline or a source, which can be read ahead of its own position."""

    @property
    def cursor(self) -> Cursor: ...

    @property
    def sampler(self) -> Sampler: ...

    def advance(self, read: Callable[[Cursor], Taken]) -> Any: ...

    def upcoming(self, steps: int | None = None) -> Iterator[tuple[Cursor, Taken]]: ...


def prefetch_to_device(iterable: Iterable[Any], size: int = 2) -> Iterator[Any]:
    """Starts the next batches while the current one is in use.

    `get_state()` in the loop is always the position after the current batch, however many batches
    are prefetched. No thread is started: JAX computes in the background, and every process starts
    the same computations in the same order.

        for batch in prefetch_to_device(pipeline, size=2):
            train_step(model, batch)

    Args:
        iterable: A pipeline, its `steps(n)` or `batches()`, a source, or any iterable of arrays,
            which are moved to the device.
        size: How many batches to prefetch beside the current one. Each takes memory of the device.

    Returns:
        An iterator over the rest of the epoch, over those steps, or over the iterable.

    Raises:
        TypeError: `iterable` cannot be iterated over.
        ValueError: `size` is negative.
    """
    integer(0)(Field("prefetch_to_device", "size", size))
    if isinstance(iterable, CursorIterator):
        return iterable.reading_ahead(size)
    if isinstance(iterable, Positioned):
        return CursorIterator(iterable, size)
    if not isinstance(iterable, Iterable):
        raise refused(
            TypeError,
            "prefetch_to_device",
            "iterable cannot be iterated over.",
            iterable=type(iterable).__name__,
            fix="pass a pipeline, a source, or an iterable of batches",
        )
    return _buffered(map(jax.device_put, iterable), size)


class CursorIterator(Iterator[Any]):
    """Iterates from the cursor of a source on, and reads `size` steps ahead of it.

    Several threads may share it. After an error, the next call continues from the cursor.

    Args:
        source: The pipeline or source whose cursor it moves.
        size: How many batches to make ahead of the current one.
        steps: How many batches to hand out, past the ends of epochs; or a function that says how
            many there are from a cursor on. None for the rest of the epoch.
        convert: What is handed out in place of the batch at a cursor.
    """

    def __init__(
        self,
        source: Positioned,
        size: int = 0,
        *,
        steps: int | Callable[[Cursor], int] | None = None,
        convert: Callable[[Cursor, Any], Any] | None = None,
    ):
        self._source = source
        self._size = size
        self._left = None if callable(steps) else steps
        self._left_at = steps if callable(steps) else None
        self._convert = convert
        self._begun: Iterator[tuple[Cursor, Taken]] | None = None
        self._sampler: Sampler | None = None  # the order in which the batches below come
        self._buffer = deque[tuple[Cursor, Taken]]()
        self._ended = False

    def reading_ahead(self, size: int) -> Self:
        """Returns this iterator, which from now on reads at least `size` steps ahead."""
        self._size = max(self._size, size)
        return self

    def __next__(self) -> Any:
        try:
            return self._source.advance(self._read)
        except StopIteration:
            self._ended = True
            raise
        except BaseException:
            self._restart()  # the prefetched batches may be incomplete
            raise

    def _read(self, cursor: Cursor) -> Taken:
        end = StopIteration()
        while not self._ended:
            if self._sampler != self._source.sampler:
                self._restart()
                self._sampler = self._source.sampler
            if self._begun is None:
                left = self._left if self._left_at is None else self._left_at(cursor)
                self._begun = self._source.upcoming(left)
            while len(self._buffer) <= self._size:
                begun = next(self._begun, None)
                if begun is None:
                    break
                before, taken = begun
                if self._size and taken.keep is not None:
                    taken.keep()  # the next batches begin with that state
                    taken = taken._replace(keep=None, undo=None)
                self._buffer.append((before, taken))
            if not self._buffer:
                raise end
            before, taken = self._buffer.popleft()
            if before == cursor:
                if self._convert is not None:
                    taken = taken._replace(result=self._convert(cursor, taken.result))
                return taken if self._left is None else self._counted(taken, self._left)
            # set_state() or another loop has moved the cursor: these batches are not the next ones.
            within_epoch = self._left is None and self._left_at is None
            if within_epoch and cursor.epoch > before.epoch:
                raise end
            self._restart()
        raise end

    def _counted(self, taken: Taken, left: int) -> Taken:
        """A batch with which one step less is left, unless it is taken back."""

        def keep() -> None:
            if taken.keep is not None:
                taken.keep()
            self._left = left - 1

        def undo() -> None:
            if taken.undo is not None:
                taken.undo()
            self._left = left

        return taken._replace(keep=keep, undo=undo)

    def _restart(self) -> None:
        self._begun = None
        self._buffer.clear()


def _buffered(items: Iterator[Any], size: int) -> Iterator[Any]:
    buffer = deque[Any]()
    while True:
        buffer.extend(islice(items, size + 1 - len(buffer)))
        if not buffer:
            return
        yield buffer.popleft()
