"""Checks that a job delivered each record of each epoch once, over all of its runs."""

import itertools
import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from datarax_tfds.history.log_reader import Beginning, read_lines, require_one_job
from datarax_tfds.history.logged_orders import logged_order
from datarax_tfds.order.cursor import Cursor, Span
from datarax_tfds.order.growing import schedule_of
from datarax_tfds.order.sampler import BatchAt, RecordOrder
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

        print(audit(*map(CursorLog.lines, glob("runs/cursors-*.jsonl"))))

    A run that begins before the end of the previous run was restored from a checkpoint. The batches
    of the previous run after that checkpoint are not counted, because the restored model was not
    trained on them.

    The logs are read line by line. The memory is 16 bytes for each batch of the job, and what is
    needed to list the faults; the numbers of logs and records do not count.

    Args:
        *logs: The lines of each log that `CursorLog` wrote, that of process 0 first.
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
            fix="pass its lines, as audit(CursorLog.lines(path)), or run: datarax-tfds audit PATH",
        )
    runs: dict[str, _Run] = {}
    job: Mapping[str, Any] | None = None
    for number, log in enumerate(logs, start=1):
        steps: dict[str, int] = {}
        for line in read_lines(log, f"{subject}, log {number}"):
            if line.begins is not None:
                job = job or line.begins.state
                require_one_job(job, line.begins.state, subject)
                runs.setdefault(line.run, _Run(line.begins))
                steps[line.run] = 0
            elif line.at is not None:
                runs[line.run].note(steps[line.run], line.at, line.rows)
                steps[line.run] += 1
            runs[line.run].corrupt |= line.corrupt
    if job is None:
        raise refused(
            ValueError,
            subject,
            "the logs hold no run.",
            logs=len(logs),
            fix="pass the lines of files that a CursorLog wrote",
        )
    history = _History(job, next(iter(runs.values())).order)
    for run in runs.values():
        history.replay(run)
    return history.audited(len(runs))


class _Run:
    """What the logs of one run hold: 16 bytes a batch, however many logs and records there are.

    The cursors are those of the first log. Other logs are compared with it as they are read, and
    the record numbers with those of the order.
    """

    def __init__(self, begins: Beginning):
        fields = begins.state
        self.begin = Cursor(fields["epoch"], fields["index"])
        self.order = logged_order(fields, begins.parts)
        self.schedule = schedule_of(
            fields["records"], begins.batch_size, fields["remainder"], self.order.strata
        )
        self.corrupt: dict[int, int] = {}
        self.wrong: dict[tuple[Cursor, str], None] = {}  # many logs may say the same
        self._epochs, self._indexes = array("q"), array("q")

    def __iter__(self) -> Iterator[Cursor]:
        """The cursor after each batch."""
        return map(Cursor, self._epochs, self._indexes)

    def note(self, step: int, at: Cursor, rows: list[tuple[int, list[int]]]) -> None:
        """Adds what one process logged after a step."""
        before = Cursor(self._epochs[step - 1], self._indexes[step - 1]) if step else self.begin
        if step == len(self._epochs):
            self._epochs.append(at.epoch)
            self._indexes.append(at.index)
        after = Cursor(self._epochs[step], self._indexes[step])
        if at != after:
            self.wrong[before, f"one log has {at} where another has {after}"] = None
        if rows:
            while (following := self.schedule.after(before)) < after:
                before = following
            if following == after:
                self._compare(before, rows)

    def _compare(self, cursor: Cursor, rows: list[tuple[int, list[int]]]) -> None:
        """Compares the logged record numbers of a batch with those of the order."""
        batch = BatchAt(self.order, self.schedule, cursor, seed=0)
        for start, found in rows:
            numbers = batch.record_numbers(slice(start, start + len(found)))
            wanted = np.where(numbers < self.order.records, numbers, -1).tolist()
            if found != wanted:
                row = next(
                    (n for n, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b),
                    min(len(found), len(wanted)),
                )
                first = next(self.schedule.spans(cursor))
                sentence = (
                    f"epoch {first.epoch}, batch from position {first.start}, row"
                    f" {start + row}: record {found[row : row + 1]}, not {wanted[row : row + 1]}"
                )
                self.wrong[Cursor(first.epoch, first.start), sentence] = None


class _History:
    """The positions that the runs so far have delivered."""

    def __init__(self, fields: Mapping[str, Any], order: RecordOrder):
        self._length: int = fields["records"]
        self._order = order
        self._delivered: list[Span] = []  # adjacent ones are joined
        self._left_out: list[Span] = []
        self._wrong: list[tuple[Cursor, str]] = []
        self._replaced: list[Replaced] = []
        self._reached = Cursor()

    def replay(self, run: _Run) -> None:
        """Adds a run."""
        self._order = run.order  # that of a mixture has all changes of weights up to this run
        cursor = run.begin
        self._take_back(cursor)
        for after in run:
            self._deliver(run, cursor, after)
            cursor = after
        self._wrong += run.wrong
        self._reached = cursor

    def audited(self, runs: int) -> Audit:
        lost, twice = [], []
        end = self._reached
        delivered, left_out = _by_epoch(self._delivered), _by_epoch(self._left_out)
        for epoch in range(end.epoch + (end.index > 0)):
            stop = self._length if epoch < end.epoch else end.index
            meant = delivered[epoch] + left_out[epoch]
            lost += _held(meant, epoch, stop, lambda times: times < 1)
            twice += _held(delivered[epoch], epoch, stop, lambda times: times > 1)
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

    def _deliver(self, run: _Run, cursor: Cursor, after: Cursor) -> None:
        """Adds the batches between two cursors."""
        schedule = run.schedule
        while cursor < after:
            spans = list(schedule.spans(cursor))
            following = schedule.after(cursor)
            self._add(spans)
            if run.corrupt:
                self._replace(spans, run.corrupt)
            if schedule.normalized(cursor) != cursor:
                self._left_out.append(Span(cursor.epoch, cursor.index, self._length))
            last = spans[-1]
            if following.epoch > last.epoch and last.stop < self._length:
                self._left_out.append(Span(last.epoch, last.stop, self._length))
            cursor = following
        if cursor != after:
            # The log goes backwards, or has batches of another size.
            problem = f"no batch ends at {after}: the batch before it ends at {cursor}"
            self._take_back(after)
            self._wrong.append((after, problem))

    def _add(self, spans: list[Span]) -> None:
        for span in spans:
            last = self._delivered[-1] if self._delivered else None
            if last is not None and last.epoch == span.epoch and last.stop == span.start:
                self._delivered[-1] = last._replace(stop=span.stop)
            else:
                self._delivered.append(span)

    def _replace(self, spans: list[Span], corrupt: Mapping[int, int]) -> None:
        """Adds the corrupt records at the positions of a batch."""
        for span in spans:
            for position, number in enumerate(self._order.host_numbers(*span).tolist(), span.start):
                if number in corrupt:
                    self._replaced.append(Replaced(span.epoch, position, number, corrupt[number]))


def _by_epoch(spans: Iterable[Span]) -> defaultdict[int, list[Span]]:
    found = defaultdict(list)
    for span in spans:
        found[span.epoch].append(span)
    return found


def _held(
    spans: Iterable[Span], epoch: int, stop: int, wanted: Callable[[int], bool]
) -> Iterator[Span]:
    """The ranges of `[0, stop)` that a wanted number of the spans holds.

    The memory is that of the spans, not of the positions.
    """
    changes = Counter({0: 0, stop: 0})
    for span in spans:
        changes[span.start] += 1
        changes[span.stop] -= 1
    places = sorted(place for place in changes if place <= stop)
    times = itertools.accumulate(changes[place] for place in places)
    ranges = zip(itertools.pairwise(places), times, strict=False)
    for marked, group in itertools.groupby(ranges, lambda each: wanted(each[1])):
        if marked:
            limits = [each for each, _ in group]
            yield Span(epoch, limits[0][0], limits[-1][1])
