"""Where a run stands in its data, and what the next batch takes from there: arithmetic only."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from sharding.messages import explain

Remainder = Literal["wrap", "drop", "pad"]


@dataclass(frozen=True, order=True)
class Cursor:
    """The next position to hand out: `index` in `[0, N)` of the order of `epoch`, from 0.

    Global: the same on every process, counted in records handed to the trainer.
    """

    epoch: int = 0
    index: int = 0


class Span(NamedTuple):
    """Positions `[start, stop)` of one epoch."""

    epoch: int
    start: int
    stop: int


@dataclass(frozen=True)
class Schedule:
    """How epochs are cut into batches.

    Steps follow from these three numbers by arithmetic, so that no process can run one step
    more than another. The last batch of an epoch, where `batch_size` does not divide what is left:

    - `wrap` completes it with the first records of the next epoch, whose own first batch then
      starts behind them: every record once an epoch, every batch full.
    - `drop` leaves the records out: with `r` left over, the last `r` positions of the epoch.
    - `pad` fills it with rows of zeros, which a mask tells apart.

    Args:
        length: Number of records N.
        batch_size: Rows of a batch over all processes, at least 1.
        remainder: As above.
    """

    length: int
    batch_size: int
    remainder: Remainder = "wrap"

    def __post_init__(self):
        if self.remainder not in get_args(Remainder):
            raise ValueError(
                explain(
                    "remainder",
                    "no such policy.",
                    got=repr(self.remainder),
                    fix=f"use one of {', '.join(get_args(Remainder))}",
                )
            )
        if self.remainder == "drop" and self.batch_size > self.length:
            raise ValueError(
                explain(
                    "remainder",
                    "'drop' would leave out every record.",
                    batch_size=self.batch_size,
                    records=self.length,
                    fix=f"use remainder='wrap' or 'pad', or a batch_size up to {self.length}",
                )
            )

    def spans(self, cursor: Cursor) -> Iterator[Span]:
        """What the batch at a cursor takes, in order; `pad` may take less than a batch."""
        cursor = self.settled(cursor)
        epoch, index = cursor.epoch, cursor.index
        wanted = self.batch_size
        while wanted:
            stop = min(index + wanted, self.length)
            yield Span(epoch, index, stop)
            wanted -= stop - index
            epoch, index = epoch + 1, 0
            if self.remainder == "pad":
                return

    def after(self, cursor: Cursor) -> Cursor:
        """Where the run stands when the batch at a cursor has been handed out.

        Arithmetic without a branch, so that a traced cursor will do; so is `settled`.
        """
        cursor = self.settled(cursor)
        if self.remainder == "pad":
            stop = cursor.index + min(self.batch_size, self.length)
            full = stop // self.length
            return Cursor(cursor.epoch + full, stop * (1 - full))
        epochs, index = divmod(cursor.index + self.batch_size, self.length)
        return self.settled(Cursor(cursor.epoch + epochs, index))

    def settled(self, cursor: Cursor) -> Cursor:
        """The same place, past records that `drop` will never hand out from there."""
        if self.remainder == "drop":
            over = (cursor.index + self.batch_size - 1) // self.length
            return Cursor(cursor.epoch + over, cursor.index * (1 - over))
        return cursor

    def steps(self, cursor: Cursor = Cursor()) -> int:
        """How many batches start between a cursor and the end of its epoch; at least one."""
        left = self.length - self.settled(cursor).index
        return left // self.batch_size if self.remainder == "drop" else -(-left // self.batch_size)
