"""Counts what a program asks of the file system."""

import builtins
import io
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

_OF_OS = ("access", "fstat", "listdir", "lstat", "mkdir", "open", "pread", "readlink", "replace",
          "scandir", "stat")  # fmt: skip


@contextmanager
def file_operations() -> Iterator[Counter[str]]:
    """Counts the calls by name, in all threads of Python, within a context.

    A file that Python's `open` opens counts once, however often it is read.
    """
    counts: Counter[str] = Counter()

    def counting(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*args, **options)

        return call

    changed = [patch.object(os, name, counting(name, getattr(os, name))) for name in _OF_OS]
    opened = counting("open", io.open)
    changed += [patch.object(io, "open", opened), patch.object(builtins, "open", opened)]
    for each in changed:
        each.start()
    try:
        yield counts
    finally:
        for each in changed:
            each.stop()
