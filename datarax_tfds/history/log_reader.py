"""Reads the lines of cursor logs."""

import json
import operator
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from datarax_tfds.history.logged_orders import are_sound
from datarax_tfds.order.cursor import Cursor
from datarax_tfds.order.growing import BatchSizes
from datarax_tfds.state import state
from sharding.checks import refused


class Beginning(NamedTuple):
    """What a run begins with: batch size, state, and what this does not say of the order."""

    batch_size: BatchSizes
    state: Mapping[str, Any]
    parts: list[list[Any]] | None


class Line(NamedTuple):
    """A line of a log.

    Args:
        run: The name of the run.
        begins: The beginning of the run, in its first line only.
        at: The cursor after a batch; None in the first line.
        rows: The record numbers of some rows of that batch: the first row, and the numbers.
        corrupt: The corrupt records that were found, with their replacements.
    """

    run: str
    begins: Beginning | None
    at: Cursor | None
    rows: list[tuple[int, list[int]]]
    corrupt: dict[int, int]


def read_lines(lines: Iterable[str], subject: str) -> Iterator[Line]:
    """Yields the lines of a log one by one. The last line of a run may be cut short.

    Raises:
        ValueError: A line was not written by a `CursorLog`.
    """
    begun: dict[str, Beginning] = {}
    cut: Exception | None = None  # the error of a line cut short, which only a new run may follow
    for number, line in enumerate(filter(str.strip, lines), start=1):
        try:
            fields = json.loads(line)
            begins = fields.get("begins")
            if cut is not None and begins is None:
                raise cut
            cut = None
            read = _read(fields, begun, f"{subject}, line {number}")
        except json.JSONDecodeError as error:
            if cut is not None:
                raise cut from error
            cut = _refused(subject, number, error)
            continue
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            if error is cut:
                raise
            raise _refused(subject, number, error) from error
        begins = read.begins
        if begins is not None and not are_sound(begins.state["order"], begins.parts):
            raise _refused(subject, number, ValueError("the buckets are not those of the order"))
        yield read


def _read(fields: Mapping[str, Any], begun: dict[str, Beginning], where: str) -> Line:
    name, begins, at = fields["run"], fields.get("begins"), None
    if begins is None:
        epoch, index = array("q", map(operator.index, fields["at"]))  # or an OverflowError
        at = Cursor(epoch, index)
        begun[name]  # or a KeyError
    else:
        begun[name] = begins = _FORMATS[begins["format"]](begins, where)
    corrupt = {operator.index(one): operator.index(by) for one, by in fields.get("corrupt", ())}
    return Line(name, begins, at, fields.get("rows") or [], corrupt)


def require_one_job(first: Mapping[str, Any], other: Mapping[str, Any], subject: str) -> None:
    """Raises a `ValueError` if two states are of different data or orders."""
    mixtures = all(str(each["order"]).startswith("mixture") for each in (first, other))
    # Weights may change, and parts may come and go, within a job.
    ignored = ("dataset", "split", "fingerprint", "order") if mixtures else ()
    names = (name for name in state.IDENTITY if name not in ignored)
    apart = [name for name in names if other[name] != first[name]]
    if apart:
        raise refused(
            ValueError,
            subject,
            f"the logs differ in {', '.join(apart)}.",
            **{name: f"{first[name]!r} and {other[name]!r}" for name in apart},
            fix="audit the logs of one job at a time",
        )


def _read_format_1(begins: Mapping[str, Any], where: str) -> Beginning:
    parts = begins.get("parts")
    return Beginning(begins["batch_size"], state.validated(begins["state"], where), parts)


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
