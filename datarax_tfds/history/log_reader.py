"""Reads the runs of a job from the lines of its cursor logs."""

import json
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datarax_tfds.order.cursor import Cursor
from datarax_tfds.state import state
from sharding.checks import refused


@dataclass
class LoggedRun:
    """What one process logged of one run.

    Args:
        batch_size: The rows of a batch.
        state: The saved state at the beginning.
        notes: The cursor after each batch, with the record numbers of its rows if they were logged.
        corrupt: The corrupt records, with their replacements.
    """

    batch_size: int
    state: Mapping[str, Any]
    notes: list[tuple[Cursor, list[Any] | None]] = field(default_factory=list)
    corrupt: dict[int, int] = field(default_factory=dict)


def read_runs(lines: Iterable[str], subject: str) -> dict[str, LoggedRun]:
    """The runs in a log, by name, in their order. The last line of a run may be cut short.

    Raises:
        ValueError: A line was not written by a `CursorLog`.
    """
    runs: dict[str, LoggedRun] = {}
    cut: Exception | None = None  # the error of a line cut short, which only a new run may follow
    for number, line in enumerate(filter(str.strip, lines), start=1):
        try:
            fields = json.loads(line)
            begins = fields.get("begins")
            if cut is not None and begins is None:
                raise cut
            cut = None
            name = fields["run"]
            if begins is None:
                epoch, index = map(operator.index, fields["at"])
                runs[name].notes.append((Cursor(epoch, index), fields.get("rows")))
            else:
                read = _FORMATS[begins["format"]]
                runs[name] = read(begins, f"{subject}, line {number}")
            for corrupt, by in fields.get("corrupt", ()):
                runs[name].corrupt[operator.index(corrupt)] = operator.index(by)
        except json.JSONDecodeError as error:
            if cut is not None:
                raise cut from error
            cut = _refused(subject, number, error)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if error is cut:
                raise
            raise _refused(subject, number, error) from error
    return runs


def require_one_job(states: Iterable[Mapping[str, Any]], subject: str) -> None:
    """Raises a `ValueError` if states are of different data or orders."""
    first, *others = states
    for other in others:
        apart = [name for name in state.IDENTITY if other[name] != first[name]]
        if apart:
            raise refused(
                ValueError,
                subject,
                f"the logs differ in {', '.join(apart)}.",
                **{name: f"{first[name]!r} and {other[name]!r}" for name in apart},
                fix="audit the logs of one job at a time",
            )


def _read_format_1(begins: Mapping[str, Any], where: str) -> LoggedRun:
    return LoggedRun(begins["batch_size"], state.validated(begins["state"], where))


# Each new format of logs gets a function here, and the old functions stay.
_FORMATS = {1: _read_format_1}


def _refused(subject: str, line: int, error: Exception) -> ValueError:
    return refused(
        ValueError,
        subject,
        "the line is not of a log of cursors.",
        line=line,
        error=f"{type(error).__name__}: {error}",
        fix="pass the lines of files that a CursorLog wrote, unchanged; leave out a file that"
        " was changed",
    )
