"""Computes where each batch of a run begins and ends in its data."""

import dataclasses
import functools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from sharding.checks import error_message, is_integer, nearest, refused

_log = logging.getLogger(__name__)

Remainder = Literal["wrap", "drop", "pad"]


@dataclass(frozen=True, order=True)
class Cursor:
    """The next position to hand out: `index` in `[0, N)` of the order of `epoch`, from 0.

    It is global: the same on every process, and counted in records handed to the trainer.
    """

    epoch: int = 0
    index: int = 0


def require_cursor(value: Any, length: int, subject: str, name: str) -> Cursor:
    """Returns an argument that must be a cursor in an epoch of `length` positions.

    Raises:
        TypeError: It is not a `Cursor`.
        ValueError: Its epoch or its index is outside.
    """
    a_cursor = isinstance(value, Cursor)
    in_place = a_cursor and is_integer(value.epoch, 0) and is_integer(value.index, 0)
    if not in_place or value.index >= length or value.epoch >= 2**31:
        raise refused(
            ValueError if a_cursor else TypeError,
            subject,
            f"{name} must be a Cursor in an epoch.",
            **{name: repr(value)},
            records=length,
            fix=f"use {name}=Cursor(epoch=0, index=0), with an index below the records of an epoch",
        )
    return value


class Span(NamedTuple):
    """Positions `[start, stop)` of one epoch."""

    epoch: int
    start: int
    stop: int


@dataclass(frozen=True)
class Schedule:
    """How epochs are cut into batches.

    The number of steps follows from these three fields, so no process can run one step more than
    another. If fewer records than a batch are left at the end of an epoch:

    - `wrap` completes the batch with the first records of the next epoch, whose own first batch
      starts after them. Every record is delivered once an epoch, and every batch is full.
    - `drop` skips these last records of the epoch.
    - `pad` fills the batch with rows of zeros, and a mask tells records from padding.

    Args:
        length: Number of records N.
        batch_size: Rows of a batch over all processes, at least 1.
        remainder: One of the above.
        strata: The number of parts V of the data, if position p holds a record of part `p % V`. The
            rows of a batch are then sorted by parts, unless it reaches beyond the end of an epoch.
    """

    length: int
    batch_size: int
    remainder: Remainder = "wrap"
    strata: int = 1

    def __post_init__(self):
        if self.batch_size % self.strata:
            above = -(-self.batch_size // self.strata) * self.strata
            raise refused(
                ValueError,
                "batch_size",
                f"it must be a multiple of {self.strata}, because each batch takes as many records"
                " of each of the strata.",
                batch_size=self.batch_size,
                strata=self.strata,
                fix=f"use {' or '.join(str(n) for n in (above - self.strata, above) if n)}",
            )
        if self.remainder not in get_args(Remainder):
            near = nearest(str(self.remainder), get_args(Remainder)) or "wrap"
            raise refused(
                ValueError,
                "remainder",
                f"it must be 'wrap', 'drop' or 'pad', got {self.remainder!r}.",
                remainder=repr(self.remainder),
                fix=f"use remainder={near!r}",
            )
        if self.remainder == "drop" and self.batch_size > self.length:
            raise refused(
                ValueError,
                "remainder",
                "'drop' would leave out every record, because a batch is larger than an epoch.",
                batch_size=self.batch_size,
                records=self.length,
                fix="use remainder='pad' or remainder='wrap', or a batch_size of at most"
                f" {self.length}",
            )

    def at(self, cursor: Cursor) -> "Schedule":  # noqa: ARG002
        """The schedule of the batch at a cursor: this one, since all batches have one size."""
        return self

    def runs(self, cursor: Cursor) -> Iterator[tuple[Cursor, "Schedule", float]]:
        """Yields the batches from a cursor on by size: here, all of them."""
        yield self.normalized(cursor), self, math.inf

    def spans(self, cursor: Cursor) -> Iterator[Span]:
        """The positions of the batch at a cursor, in order; with `pad` they may be fewer."""
        cursor = self.normalized(cursor)
        epoch, index = cursor.epoch, cursor.index
        wanted = self.batch_size
        while wanted:
            stop = min(index + wanted, self.length)
            yield Span(epoch, index, stop)
            wanted -= stop - index
            epoch, index = epoch + 1, 0
            if self.remainder == "pad":
                return

    def steps_to_rows(self, index: Any, rows: Any) -> Any:
        """How far the positions of rows are behind that of a batch's first record; traceable.

        Args:
            index: The position at which the batch begins.
            rows: An array of the numbers of rows.
        """
        if self.strata == 1:
            return rows
        share = self.batch_size // self.strata
        by_part = (rows // share - index) % self.strata + rows % share * self.strata
        whole = index <= self.length - self.batch_size
        return (
            jnp.where(whole, by_part, rows)
            if isinstance(whole, jax.Array)
            else (by_part if whole else rows)
        )

    def after(self, cursor: Cursor) -> Cursor:
        """The cursor after the batch at a cursor; traceable."""
        return self.normalized(self.past(self.normalized(cursor)))

    def past(self, cursor: Cursor) -> Cursor:
        """The position after the last one of the batch that begins at a cursor; traceable."""
        if self.remainder == "pad":
            beyond, full = self._moved(cursor.index, min(self.batch_size, self.length))
            return Cursor(cursor.epoch + full, beyond * (1 - full))
        epochs, rest = divmod(self.batch_size, self.length)
        index, over = self._moved(cursor.index, rest)
        return Cursor(cursor.epoch + epochs + over, index)

    def normalized(self, cursor: Cursor) -> Cursor:
        """The cursor after the records that `drop` skips; traceable."""
        if self.remainder == "drop":
            _, over = self._moved(cursor.index, self.batch_size - 1)
            return Cursor(cursor.epoch + over, cursor.index * (1 - over))
        return cursor

    def _moved(self, index: int, by: int) -> tuple[int, int]:
        """The index `by` positions on, at most an epoch, and how many epochs this enters: 0 or 1.

        It is traceable: the sum of both may need more than 32 bits, and is never computed.
        """
        beyond = index - (self.length - by)
        over = beyond // self.length + 1
        return beyond + self.length * (1 - over), over

    def steps(self, cursor: Cursor = Cursor()) -> int:
        """The number of batches that start from a cursor to the end of its epoch, at least 1."""
        left = self.length - self.normalized(cursor).index
        return left // self.batch_size if self.remainder == "drop" else -(-left // self.batch_size)

    def steps_between(self, start: Cursor, end: Cursor) -> int:
        """The number of batches from a cursor on that begin before another one."""
        start = self.normalized(start)
        if end <= start:
            return 0
        epochs = end.epoch - start.epoch
        if self.remainder == "wrap":
            return -(-(epochs * self.length + end.index - start.index) // self.batch_size)
        first = 0 if epochs else start.index  # of the epoch of `end`
        begun = min(-(-(end.index - first) // self.batch_size), self.steps(Cursor(0, first)))
        return begun + (self.steps(start) + (epochs - 1) * self.steps() if epochs else 0)

    def advanced(self, cursor: Cursor, steps: int) -> Cursor:
        """The cursor that many batches after a cursor."""
        epoch, index = dataclasses.astuple(self.normalized(cursor))
        if self.remainder == "wrap":
            epochs, index = divmod(index + steps * self.batch_size, self.length)
            return Cursor(epoch + epochs, index)
        here = self.steps(Cursor(epoch, index))
        if steps < here:
            return Cursor(epoch, index + steps * self.batch_size)
        epochs, rest = divmod(steps - here, self.steps())
        return Cursor(epoch + 1 + epochs, rest * self.batch_size)


@functools.lru_cache(maxsize=64)  # so that a loop logs this once
def warn_of_repeats(subject: str, batch_size: int, length: int) -> None:
    """Logs that a batch larger than an epoch holds records more than once."""
    _log.warning(
        error_message(
            subject,
            "a batch is larger than the split, so records repeat within it.",
            batch_size=batch_size,
            records=length,
            fix=f"use a batch_size of at most {length}, or a Pipeline with remainder='pad', which"
            " fills the batch up with zeros and adds a mask",
        )
    )
