"""Whether each record of each epoch was delivered once, over any history of a job."""

import itertools
import json
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datarax_tfds import state
from datarax_tfds.block_order import BlockOrder
from datarax_tfds.cursor import Cursor, Schedule, Span
from datarax_tfds.cursor_log import FORMAT
from datarax_tfds.order import Order
from sharding.messages import explain

_MOST_SHOWN = 12


@dataclass(frozen=True)
class Audit:
    """What a history delivered.

    Args:
        records: Number of records N of an epoch.
        reached: Where the history ends.
        runs: How many runs it had.
        lost: Positions that no batch took, but for those left out.
        twice: Positions that a batch took again in the same epoch.
        left_out: Positions that `remainder="drop"` passed over.
        wrong: Rows that held another record than the order says, and places where no batch ends: as
            sentences.
        order: Which record stands where.
    """

    records: int
    reached: Cursor
    runs: int
    lost: tuple[Span, ...]
    twice: tuple[Span, ...]
    left_out: tuple[Span, ...]
    wrong: tuple[str, ...]
    order: Order | BlockOrder = field(repr=False)

    @property
    def sound(self) -> bool:
        """Whether each record of each epoch was delivered once, up to where the history ends."""
        return not (self.lost or self.twice or self.wrong)

    def numbers(self, span: Span) -> list[int]:
        """The records at the positions of a span."""
        return self.order.span(*span).tolist()

    def __str__(self) -> str:
        epoch, index = self.reached.epoch, self.reached.index
        lines = [
            f"{self.runs} runs, {epoch} epochs of {self.records:,} records, {index:,} of the next:",
            "each record was delivered once" if self.sound else "NOT each record once",
        ]
        for name in ("lost", "twice", "left_out"):
            spans = getattr(self, name)
            if spans:
                total = sum(span.stop - span.start for span in spans)
                lines.append(f"{name.replace('_', ' ')}: {total:,} records")
                lines += [f"  {self._worded(span)}" for span in spans[:_MOST_SHOWN]]
                lines += ["  ..."] * (len(spans) > _MOST_SHOWN)
        if self.wrong:
            lines.append(f"wrong: {len(self.wrong)} batches")
            lines += [f"  {sentence}" for sentence in self.wrong[:_MOST_SHOWN]]
        return "\n".join(lines)

    def _worded(self, span: Span) -> str:
        shown = self.numbers(span._replace(stop=min(span.stop, span.start + _MOST_SHOWN)))
        more = ", ..." if span.stop - span.start > _MOST_SHOWN else ""
        numbers = f"{', '.join(map(str, shown))}{more}"
        return f"epoch {span.epoch}, positions {span.start} to {span.stop - 1}: records {numbers}"


@dataclass
class _Run:
    """What the log of one process says of one run."""

    batch_size: int
    state: Mapping[str, Any]
    notes: list[tuple[Cursor, list[Any] | None]]


def audit(*logs: Iterable[str], subject: str = "audit") -> Audit:
    """Replays a history from its logged cursors.

        print(audit(*(open(path) for path in glob("runs/cursors-*.jsonl"))))

    A run that begins at an earlier place than the one before it had reached takes back what came
    after that place: the model forgot it, too.

    Args:
        *logs: The lines of the files that `CursorLog` wrote, that of process 0 first.
        subject: Whose logs, for messages.

    Raises:
        ValueError: A line that is none of such a log, or logs that do not belong together.
    """
    runs: dict[str, list[_Run]] = {}
    for number, log in enumerate(logs, start=1):
        for name, run in _parsed(log, f"{subject}, log {number}").items():
            runs.setdefault(name, []).append(run)
    if not runs:
        raise ValueError(
            explain(subject, "the logs hold no run.", logs=len(logs), fix="name logs of CursorLog")
        )
    fields = [run.state for some in runs.values() for run in some]
    _require_alike(fields, subject)
    history = _History(fields[0])
    for some in runs.values():
        history.replay(some)
    return history.audited(len(runs))


class _History:
    """The positions that were delivered, as a job went on from run to run."""

    def __init__(self, fields: Mapping[str, Any]):
        self._length: int = fields["records"]
        self._remainder = fields["remainder"]
        self._order = _order_of(fields)
        self._delivered: list[Span] = []
        self._left_out: list[Span] = []
        self._wrong: list[tuple[Span, str]] = []
        self._reached = Cursor()

    def replay(self, logs: list[_Run]) -> None:
        """One run, as some of its processes noted it."""
        longest = max(logs, key=lambda run: len(run.notes))
        schedule = Schedule(self._length, longest.batch_size, self._remainder)
        cursor = Cursor(longest.state["epoch"], longest.state["index"])
        self._take_back(cursor)
        for step, (after, _) in enumerate(longest.notes):
            noted = [run.notes[step] for run in logs if step < len(run.notes)]
            told = sorted({other for other, _ in noted} - {after})
            for other in told:
                self._wrong.append((Span(*_pair(cursor), cursor.index), f"{other} beside {after}"))
            cursor = self._deliver(schedule, cursor, after, [rows for _, rows in noted])
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
            order=self._order,
        )

    def _take_back(self, cursor: Cursor) -> None:
        """Forgets what was delivered from a cursor on."""

        def before(span: Span) -> Span | None:
            if span.epoch != cursor.epoch:
                return span if span.epoch < cursor.epoch else None
            stop = min(span.stop, cursor.index)
            return span._replace(stop=stop) if span.start < stop else None

        self._delivered = [kept for span in self._delivered if (kept := before(span))]
        self._left_out = [kept for span in self._left_out if (kept := before(span))]
        at = _pair(cursor)
        self._wrong = [entry for entry in self._wrong if (entry[0].epoch, entry[0].start) < at]

    def _deliver(
        self, schedule: Schedule, cursor: Cursor, after: Cursor, rows: list[list[Any] | None]
    ) -> Cursor:
        """The batches from a cursor to one that was noted behind them."""
        while cursor < after:
            spans = list(schedule.spans(cursor))
            following = schedule.after(cursor)
            self._delivered += spans
            settled = schedule.settled(cursor)
            if settled != cursor:
                self._left_out.append(Span(cursor.epoch, cursor.index, self._length))
            last = spans[-1]
            if following.epoch > last.epoch and last.stop < self._length:
                self._left_out.append(Span(last.epoch, last.stop, self._length))
            if following == after:
                self._compare(spans, schedule.batch_size, rows)
            cursor = following
        if cursor != after:
            # No batch ends there: what was noted went backwards, or by other steps.
            problem = f"no batch ends at {after}; the one from before it ends at {cursor}"
            self._take_back(after)
            self._wrong.append((Span(*_pair(after), after.index), problem))
        return after

    def _compare(self, spans: list[Span], size: int, rows: list[list[Any] | None]) -> None:
        expected = np.full(size, -1)
        numbers = np.concatenate([self._order.span(*span) for span in spans])
        expected[: len(numbers)] = numbers
        for start, found in itertools.chain.from_iterable(filter(None, rows)):
            wanted = expected[start : start + len(found)].tolist()
            if found != wanted:
                row = next(
                    (n for n, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b),
                    min(len(found), len(wanted)),
                )
                sentence = (
                    f"epoch {spans[0].epoch}, batch from position {spans[0].start}, row"
                    f" {start + row}: record {found[row : row + 1]}, not {wanted[row : row + 1]}"
                )
                self._wrong.append((spans[0], sentence))

    def _counts(self, spans: list[Span]) -> np.ndarray:
        """How often each position of their epoch is in the spans: `[N]`."""
        edges = np.zeros(self._length + 1, np.int64)
        for span in spans:
            edges[span.start] += 1
            edges[span.stop] -= 1
        return np.cumsum(edges)[:-1]


def _parsed(lines: Iterable[str], subject: str) -> dict[str, _Run]:
    """The runs in a log, in their order; a line that a kill has cut ends one."""
    runs: dict[str, _Run] = {}
    cut: Exception | None = None
    for number, line in enumerate(filter(str.strip, lines), start=1):
        try:
            fields = json.loads(line)
            begins = fields.get("begins")
            if cut is not None and begins is None:
                raise cut
            cut = None
            if begins is None:
                epoch, index = map(operator.index, fields["at"])
                runs[fields["run"]].notes.append((Cursor(epoch, index), fields.get("rows")))
                continue
            read = _FORMATS[begins["format"]]
            runs[fields["run"]] = read(begins, f"{subject}, line {number}")
        except json.JSONDecodeError as error:
            if cut is not None:
                raise cut from error
            cut = _refused(subject, number, error)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if error is cut:
                raise
            raise _refused(subject, number, error) from error
    return runs


def _run_of(begins: Mapping[str, Any], where: str) -> _Run:
    return _Run(begins["batch_size"], state.sound(begins["state"], where), [])


_FORMATS = {FORMAT: _run_of}


def _refused(subject: str, line: int, error: Exception) -> ValueError:
    return ValueError(
        explain(
            subject,
            "a line is none of a log of cursors.",
            line=line,
            error=f"{type(error).__name__}: {error}",
            fix="name files that CursorLog wrote, and leave them as they are",
        )
    )


def _require_alike(states: Iterable[Mapping[str, Any]], subject: str) -> None:
    """Refuses states of different data or orders."""
    first, *others = states
    for other in others:
        apart = [name for name in state.IDENTITY if other[name] != first[name]]
        if apart:
            raise ValueError(
                explain(
                    subject,
                    f"the logs are of another {', '.join(apart)}.",
                    **{name: f"{first[name]!r} and {other[name]!r}" for name in apart},
                    fix="audit the logs of one job at a time",
                )
            )


def _order_of(fields: Mapping[str, Any]) -> Order | BlockOrder:
    version, length, seed = fields["order"], fields["records"], fields["seed"]
    if isinstance(version, str):
        return BlockOrder.of_version(version, length, seed)
    return Order(length, seed if fields["shuffle"] else None)


def _by_epoch(spans: Iterable[Span]) -> defaultdict[int, list[Span]]:
    found = defaultdict(list)
    for span in spans:
        found[span.epoch].append(span)
    return found


def _spans(epoch: int, marks: np.ndarray) -> Iterator[Span]:
    """The runs of marked positions."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marks.astype(np.int8), [0]])))
    for start, stop in edges.reshape(-1, 2).tolist():
        yield Span(epoch, start, stop)


def _pair(cursor: Cursor) -> tuple[int, int]:
    return cursor.epoch, cursor.index
