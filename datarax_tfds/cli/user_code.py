"""Runs a Python file that a user names on the command line."""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def imported_code(code: Path | None) -> Iterator[Mapping[str, Any]]:
    """Runs a Python file as a module, and yields its names. TFDS then knows its datasets.

    Raises:
        OSError: It cannot be read.
    """
    if code is None:
        yield {}
        return
    code.read_bytes()  # otherwise another module of that name might be imported
    folder = str(code.absolute().parent)
    sys.path.insert(0, folder)
    try:
        yield vars(importlib.import_module(code.stem))
    finally:
        sys.path.remove(folder)
