"""Cuts epochs into batches whose size depends on where in the run they begin."""

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datarax_tfds.order.cursor import Cursor, Remainder, Schedule, Span
from sharding.checks import is_integer, refused

# One size, or pairs of a record of the run and the size that batches have from there on.
BatchSizes = int | list[tuple[int, int]] | tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class GrowingSchedule:
    """Several schedules, each of which applies from a record of the run on.

    The records of a run are counted over its epochs: epoch * N + index. Where a batch begins
    decides its size, also if another size applies to records within it. So the size is a function
    of the cursor, like all else of a batch, and no state needs to name it.

    Args:
        stages: The records, ascending from 0, and the schedules, which differ in their size only.
    """

    stages: tuple[tuple[int, Schedule], ...]

    @property
    def length(self) -> int:
        return self.stages[0][1].length

    @property
    def remainder(self) -> Remainder:
        return self.stages[0][1].remainder

    @property
    def strata(self) -> int:
        return self.stages[0][1].strata

    @property
    def batch_size(self) -> tuple[tuple[int, int], ...]:
        """The stages, as the pipeline takes them."""
        return tuple((record, schedule.batch_size) for record, schedule in self.stages)

    def at(self, cursor: Cursor) -> Schedule:
        """The schedule of the batch at a cursor."""
        return self._stage(self.normalized(cursor))[0]

    def spans(self, cursor: Cursor) -> Iterator[Span]:
        """As for `Schedule`."""
        return self.at(cursor).spans(self.normalized(cursor))

    def after(self, cursor: Cursor) -> Cursor:
        """The cursor after the batch at a cursor."""
        return self.normalized(self.at(cursor).past(self.normalized(cursor)))

    def normalized(self, cursor: Cursor) -> Cursor:
        """The cursor after the records that `drop` skips: those in which the batch that would begin
        there does not fit.
        """
        return self._stage(cursor)[0].normalized(cursor)

    def steps(self, cursor: Cursor) -> int:
        """The number of batches that start from a cursor to the end of its epoch, at least 1."""
        return self.steps_between(cursor, Cursor(self.normalized(cursor).epoch + 1))

    def steps_between(self, start: Cursor, end: Cursor) -> int:
        """The number of batches from a cursor on that begin before another one."""
        runs, total = self.runs(start), 0
        first, schedule, steps = next(runs)
        # If both are equal, a smaller batch may fit where this size is dropped.
        while (wanted := schedule.steps_between(first, end)) >= steps:
            total += int(steps)
            first, schedule, steps = next(runs)
        return total + wanted

    def advanced(self, cursor: Cursor, steps: int) -> Cursor:
        """The cursor that many batches after a cursor."""
        runs = self.runs(cursor)
        first, schedule, here = next(runs)
        while steps >= here:
            steps -= int(here)
            first, schedule, here = next(runs)
        return schedule.advanced(first, steps)

    def runs(self, cursor: Cursor) -> Iterator[tuple[Cursor, Schedule, float]]:
        """Yields the batches from a cursor on by size.

        Yields:
            Where the first batch of this size begins, its schedule, and how many there are, which
            is infinite for the last size.
        """
        cursor = self.normalized(cursor)
        while True:
            schedule, end = self._stage(cursor)
            if end is None:
                yield cursor, schedule, math.inf
                return
            steps = schedule.steps_between(cursor, end)
            yield cursor, schedule, steps
            # Not `advanced(cursor, steps)`: a smaller batch may fit where this size would be
            # dropped.
            cursor = self.normalized(schedule.past(schedule.advanced(cursor, steps - 1)))

    def _stage(self, cursor: Cursor) -> tuple[Schedule, Cursor | None]:
        """The schedule that holds at a position, and the position from which the next one does."""
        record = cursor.epoch * self.length + cursor.index
        after = bisect.bisect_right(self.stages, record, key=lambda stage: stage[0])
        last = after == len(self.stages)
        end = None if last else Cursor(*divmod(self.stages[after][0], self.length))
        return self.stages[after - 1][1], end


AnySchedule = Schedule | GrowingSchedule


def schedule_of(
    length: int, batch_size: BatchSizes, remainder: Remainder, strata: int
) -> AnySchedule:
    """The schedule of one batch size, or of several.

    Raises:
        ValueError: A schedule is impossible, as for `Schedule`; or the stages do not begin at
            record 0, or do not ascend.
    """
    if not isinstance(batch_size, list | tuple):
        return Schedule(length, int(batch_size), remainder, strata)
    records = [record for record, _ in batch_size]
    ascending = all(is_integer(record) for record in records) and records == sorted(set(records))
    if not ascending or records[:1] != [0]:
        raise refused(
            ValueError,
            "batch_size",
            "it must be pairs of a record and a size, and the records must ascend from 0.",
            batch_size=repr(batch_size)[:200],
            fix="use pairs of a record and a size, such as [(0, 256), (1_000_000, 512)]",
        )
    schedules = [Schedule(length, int(size), remainder, strata) for _, size in batch_size]
    return GrowingSchedule(tuple(zip(map(int, records), schedules, strict=True)))


def sizes_of(batch_size: BatchSizes) -> list[Any]:
    """The sizes among `batch_size`; what is not a list of pairs is one size, right or wrong."""
    if isinstance(batch_size, list | tuple) and batch_size:
        pairs: tuple[Any, ...] = tuple(batch_size)
        if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            return [size for _, size in pairs]
    return [batch_size]


def described(batch_size: BatchSizes) -> str:
    """The sizes in words: `256, 512 from record 1,000,000`."""
    if isinstance(batch_size, int):
        return f"{batch_size:,}"
    first, *later = batch_size
    return f"{first[1]:,}" + "".join(f", {size:,} from record {at:,}" for at, size in later)
