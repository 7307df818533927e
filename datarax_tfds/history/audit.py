"""Checks that a job delivered each record of each epoch once, over all of its runs."""

import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from datarax_tfds.history.log_reader import LoggedRun, read_runs, require_one_job
from datarax_tfds.order.block_order import BlockOrder
from datarax_tfds.order.cursor import Cursor, Schedule, Span
from datarax_tfds.order.order import Order
from datarax_tfds.order.sampler import BatchAt, RecordOrder
from datarax_tfds.order.strata import StrataOrder
from sharding.checks import refused

_MAX_SHOWN = 12


class Replaced(NamedTuple):
    """A corrupt record in whose place record `by` was delivered."""

    epoch: int
    position: int
    record: int
    by: int


@dataclass(frozen=True)
class Audit:
    """What the runs of a job delivered.

    Args:
        records: The number of records N of an epoch.
        reached: The cursor at the end of the last run.
        runs: The number of runs.
        lost: Positions that no batch took, except those of `left_out`.
        twice: Positions that several batches of the same epoch took.
        left_out: Positions that `remainder="drop"` skipped.
        wrong: A sentence for each batch with a record other than that of the order, for each logged
            cursor at which no batch ends, and for each cursor in which the logs differ.
        replaced: Corrupt records with their positions and replacements (`max_corrupt_records`).
        order: The record number at each position.
    """

    records: int
    reached: Cursor
    runs: int
    lost: tuple[Span, ...]
    twice: tuple[Span, ...]
    left_out: tuple[Span, ...]
    wrong: tuple[str, ...]
    replaced: tuple[Replaced, ...]
    order: RecordOrder = field(repr=False)

    @property
    def sound(self) -> bool:
        """Whether each record of each epoch was delivered exactly once, up to `reached`."""
        return not (self.lost or self.twice or self.wrong or self.replaced)

    def numbers(self, span: Span) -> list[int]:
        """The record numbers at the positions of a span."""
        return self.order.host_numbers(*span).tolist()

    def __str__(self) -> str:
        epoch, index = self.reached.epoch, self.reached.index
        lines = [
            f"{self.runs} runs, {epoch} epochs of {self.records:,} records, {index:,} of the next:",
            "each record was delivered once" if self.sound else "NOT every record came once",
        ]
        for name in ("lost", "twice", "left_out"):
            spans = getattr(self, name)
            total = sum(span.stop - span.start for span in spans)
            title = f"{name.replace('_', ' ')}: {total:,} records"
            lines += _listed(title, spans, self._describe)
        lines += _listed(f"wrong: {len(self.wrong)} batches", self.wrong, str)
        title = f"lost: {len(self.replaced):,} corrupt records, replaced by others"
        lines += _listed(title, self.replaced, _describe_replaced)
        return "\n".join(lines)

    def _describe(self, span: Span) -> str:
        shown = self.numbers(span._replace(stop=min(span.stop, span.start + _MAX_SHOWN)))
        more = ", ..." if span.stop - span.start > _MAX_SHOWN else ""
        numbers = f"{', '.join(map(str, shown))}{more}"
        return f"epoch {span.epoch}, positions {span.start} to {span.stop - 1}: records {numbers}"


def _describe_replaced(lost: Replaced) -> str:
    where = f"epoch {lost.epoch}, position {lost.position}"
    return f"{where}: record {lost.record}, replaced by record {lost.by}"


def _listed(title: str, entries: Sequence[Any], describe: Callable[[Any], str]) -> list[str]:
    """A title and the first entries below it; nothing if there are no entries."""
    shown = [f"  {describe(entry)}" for entry in entries[:_MAX_SHOWN]]
    more = ["  ..."] * (len(entries) > _MAX_SHOWN)
    return [title, *shown, *more] if entries else []


def audit(*logs: Iterable[str], subject: str = "audit") -> Audit:
    """Checks from the cursor logs of a job that each record of each epoch was delivered once.

        print(audit(*(open(path) for path in glob("runs/cursors-*.jsonl"))))

    A run that begins before the end of the previous run was restored from a checkpoint. The batches
    of the previous run after that checkpoint are not counted, because the restored model was not
    trained on them.

    Args:
        *logs: The lines of each file that `CursorLog` wrote, that of process 0 first.
        subject: The beginning of error messages.

    Raises:
        TypeError: A log is the path of a file.
        ValueError: A line was not written by a `CursorLog`, or the logs are of different jobs.
    """
    if paths := [log for log in logs if isinstance(log, str | os.PathLike)]:
        raise refused(
            TypeError,
            subject,
            "a log must be the lines of a file, got the path of one.",
            path=os.fspath(paths[0]),
            fix="pass the open file, as audit(open(path)), or run: datarax-tfds audit PATH",
        )
    runs: dict[str, list[LoggedRun]] = {}
    for number, log in enumerate(logs, start=1):
        for name, run in read_runs(log, f"{subject}, log {number}").items():
            runs.setdefault(name, []).append(run)
    if not runs:
        raise refused(
            ValueError,
            subject,
            "the logs hold no run.",
            logs=len(logs),
            fix="pass the lines of files that a CursorLog wrote",
        )
    fields = [run.state for some in runs.values() for run in some]
    require_one_job(fields, subject)
    history = _History(fields[0])
    for some in runs.values():
        history.replay(some)
    return history.audited(len(runs))


class _History:
    """The positions that the runs so far have delivered."""

    def __init__(self, fields: Mapping[str, Any]):
        self._length: int = fields["records"]
        self._remainder = fields["remainder"]
        self._order = _order_of(fields)
        self._delivered: list[Span] = []
        self._left_out: list[Span] = []
        self._wrong: list[tuple[Cursor, str]] = []
        self._replaced: list[Replaced] = []
        self._reached = Cursor()

    def replay(self, logs: list[LoggedRun]) -> None:
        """Adds a run, from the logs that one or several processes wrote of it."""
        longest = max(logs, key=lambda run: len(run.notes))
        size, strata = longest.batch_size, self._order.strata
        schedule = Schedule(self._length, size, self._remainder, strata)
        corrupt = {number: by for run in logs for number, by in run.corrupt.items()}
        cursor = Cursor(longest.state["epoch"], longest.state["index"])
        self._take_back(cursor)
        for step, (after, _) in enumerate(longest.notes):
            noted = [run.notes[step] for run in logs if step < len(run.notes)]
            told = sorted({other for other, _ in noted} - {after})
            self._wrong += [
                (cursor, f"one log has {other} where another has {after}") for other in told
            ]
            cursor = self._deliver(schedule, cursor, after, [rows for _, rows in noted], corrupt)
        self._reached = cursor

    def audited(self, runs: int) -> Audit:
        lost, twice = [], []
        end = self._reached
        delivered, left_out = _by_epoch(self._delivered), _by_epoch(self._left_out)
        for epoch in range(end.epoch + (end.index > 0)):
            stop = self._length if epoch < end.epoch else end.index
            counts = self._counts(delivered[epoch])[:stop]
            meant = self._counts(left_out[epoch])[:stop]
            lost += _spans(epoch, (counts + meant) < 1)
            twice += _spans(epoch, counts > 1)
        return Audit(
            records=self._length,
            reached=end,
            runs=runs,
            lost=tuple(lost),
            twice=tuple(twice),
            left_out=tuple(self._left_out),
            wrong=tuple(sentence for _, sentence in self._wrong),
            replaced=tuple(self._replaced),
            order=self._order,
        )

    def _take_back(self, cursor: Cursor) -> None:
        """Removes all that was delivered from this cursor on."""

        def before(span: Span) -> Span | None:
            if span.epoch != cursor.epoch:
                return span if span.epoch < cursor.epoch else None
            stop = min(span.stop, cursor.index)
            return span._replace(stop=stop) if span.start < stop else None

        self._delivered = [kept for span in self._delivered if (kept := before(span))]
        self._left_out = [kept for span in self._left_out if (kept := before(span))]
        self._wrong = [entry for entry in self._wrong if entry[0] < cursor]
        self._replaced = [
            lost for lost in self._replaced if Cursor(lost.epoch, lost.position) < cursor
        ]

    def _deliver(
        self,
        schedule: Schedule,
        cursor: Cursor,
        after: Cursor,
        rows: list[list[Any] | None],
        corrupt: Mapping[int, int],
    ) -> Cursor:
        """Adds the batches between two cursors, and returns the second one."""
        while cursor < after:
            spans = list(schedule.spans(cursor))
            following = schedule.after(cursor)
            self._delivered += spans
            if corrupt:
                self._replace(spans, corrupt)
            settled = schedule.normalized(cursor)
            if settled != cursor:
                self._left_out.append(Span(cursor.epoch, cursor.index, self._length))
            last = spans[-1]
            if following.epoch > last.epoch and last.stop < self._length:
                self._left_out.append(Span(last.epoch, last.stop, self._length))
            if following == after:
                self._compare(BatchAt(self._order, schedule, cursor, seed=0), rows)
            cursor = following
        if cursor != after:
            # The log goes backwards, or has batches of another size.
            problem = f"no batch ends at {after}: the batch before it ends at {cursor}"
            self._take_back(after)
            self._wrong.append((after, problem))
        return after

    def _replace(self, spans: list[Span], corrupt: Mapping[int, int]) -> None:
        """Adds the corrupt records at the positions of a batch."""
        for span in spans:
            for position, number in enumerate(self._order.host_numbers(*span).tolist(), span.start):
                if number in corrupt:
                    self._replaced.append(Replaced(span.epoch, position, number, corrupt[number]))

    def _compare(self, batch: BatchAt, rows: list[list[Any] | None]) -> None:
        """Compares the logged record numbers of a batch with those of the order."""
        numbers = batch.record_numbers()
        expected = np.where(numbers < self._length, numbers, -1)
        first = next(batch.schedule.spans(batch.cursor))
        for start, found in itertools.chain.from_iterable(filter(None, rows)):
            wanted = expected[start : start + len(found)].tolist()
            if found != wanted:
                row = next(
                    (n for n, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b),
                    min(len(found), len(wanted)),
                )
                sentence = (
                    f"epoch {first.epoch}, batch from position {first.start}, row"
                    f" {start + row}: record {found[row : row + 1]}, not {wanted[row : row + 1]}"
                )
                self._wrong.append((Cursor(first.epoch, first.start), sentence))

    def _counts(self, spans: list[Span]) -> np.ndarray:
        """The number of spans that hold each position: `[N]`."""
        edges = np.zeros(self._length + 1, np.int64)
        for span in spans:
            edges[span.start] += 1
            edges[span.stop] -= 1
        return np.cumsum(edges)[:-1]


def _order_of(fields: Mapping[str, Any]) -> RecordOrder:
    version, length, seed = fields["order"], fields["records"], fields["seed"]
    shuffled = seed if fields["shuffle"] else None
    if isinstance(version, str):
        strata = StrataOrder.of_version(version, length, shuffled)
        return strata or BlockOrder.of_version(version, length, seed)
    return Order(length, shuffled)


def _by_epoch(spans: Iterable[Span]) -> defaultdict[int, list[Span]]:
    found = defaultdict(list)
    for span in spans:
        found[span.epoch].append(span)
    return found


def _spans(epoch: int, marks: np.ndarray) -> Iterator[Span]:
    """The ranges of marked positions."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marks.astype(np.int8), [0]])))
    for start, stop in edges.reshape(-1, 2).tolist():
        yield Span(epoch, start, stop)
