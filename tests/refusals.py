"""How the library refuses: the class of an error, and the one shape of its message."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# Who refuses and what is wrong; the values that show it, indented; how to fix it.
SHAPE = re.compile(
    r"(?P<subject>\S.*?): (?P<problem>\S.*\.)\n"
    r"(?P<facts>(  \w+: +\S.*\n(   +\S.*\n)*)+)"
    r"  fix: +(?P<fix>\S.*(\n   +\S.*)*)"
)


def check_message(message: str) -> None:
    """Says what, where and how to fix it, in words: no bytes of a record."""
    assert SHAPE.fullmatch(message), message
    assert message.replace("\n", "").isprintable(), message
    assert not re.search(r"(\\x[0-9a-f]{2}){2}", message), message
    assert len(message) < 2_000, message


@contextmanager
def refused(kind: type[Exception], match: str) -> Iterator[Any]:
    """Requires an error of exactly this class, in the one shape, whose message matches.

    Args:
        kind: Not one of its subclasses: callers tell errors apart by their class.
        match: A regular expression, of which `.` is any character.
    """
    with pytest.raises(Exception, match=f"(?s){match}") as caught:
        yield caught
    assert caught.type is kind, caught.value
    check_message(str(caught.value))
