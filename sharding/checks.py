"""Checks of arguments, and the form of every error message."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard, TypeVar

import numpy as np

Refusal = TypeVar("Refusal", bound=Exception)


def error_message(subject: str, problem: str, *, fix: str, **facts: object) -> str:
    """Returns the text of an error message.

        error_message("batch_sharding", "the mesh has no axis 'dta'.", axes="data", fix="...")

        batch_sharding: the mesh has no axis 'dta'.
          axes: data
          fix:  ...

    Args:
        subject: The function, source or file that the error is about.
        problem: One sentence.
        fix: What to do about it.
        **facts: The values that show the problem, in the order to print them.
    """
    rows = facts | {"fix": fix}
    width = max(map(len, rows)) + 1
    # Further lines of a value are indented to its column.
    column = "\n" + " " * (width + 3)
    lines = [
        f"  {name + ':':<{width}} {column.join(str(value).splitlines())}"
        for name, value in rows.items()
    ]
    return "\n".join([f"{subject}: {problem}", *lines])


def refused(
    kind: type[Refusal], subject: str, problem: str, *, fix: str, **facts: object
) -> Refusal:
    """Returns an error with the text of `error_message`, for the caller to raise."""
    return kind(error_message(subject, problem, fix=fix, **facts))


def fix_of(error: Exception) -> str | None:
    """The fix in the text of an error; None if that is not of `error_message`."""
    _, found, fix = str(error).rpartition("\n  fix:")
    return fix.strip() if found else None


def is_integer(value: Any, minimum: int | None = None) -> TypeGuard[int]:
    """Whether a value is an integer, and at least `minimum`."""
    integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return integer and (minimum is None or bool(value >= minimum))


def whole_number(value: Any) -> int | None:
    """The integer that a value such as `"32"` or `32.0` stands for; None for other values."""
    try:
        number = float(value)
        return int(number) if number.is_integer() and not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        return None


def nearest(wanted: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, ignoring case; None if no name is similar."""
    by_case = {name.lower(): name for name in names}
    near = difflib.get_close_matches(wanted.lower(), by_case, n=1)
    return by_case[near[0]] if near else None


def require_arguments(
    subject: str, given: Iterable[str], known: Iterable[str], elsewhere: Mapping[str, str]
) -> None:
    """Raises a `TypeError` for a keyword that is no argument, with what was probably meant.

    Args:
        subject: The function or class that has the arguments.
        given: The keywords.
        known: The names of the arguments.
        elsewhere: For a keyword that is an argument of something else, what it belongs to.
    """
    for name in sorted(set(given) - set(known)):
        near = nearest(name, known)
        fix = f"use {near}" if near else f"leave {name} out"
        if name in elsewhere:
            fix = f"pass {name} to {elsewhere[name]}"
        raise refused(
            TypeError,
            subject,
            f"it does not have an argument {name!r}.",
            arguments=", ".join(sorted(known)),
            fix=fix,
        )
