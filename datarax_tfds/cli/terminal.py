"""What all commands print: tables, JSON, and on a terminal what they are doing."""

import atexit
import gc
import io
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path, PurePath
from typing import Any

from datarax_tfds.runtime.startup_notes import startup_notes_left_out
from datarax_tfds.stores.object_path import SCHEMES


def doing(what: str) -> None:
    """Says on a terminal what is done next, as "importing TensorFlow"."""
    if sys.stderr.isatty():
        sys.stderr.write(f"datarax-tfds: {what} ...\n")
        sys.stderr.flush()


def wrong_usage(command: str, problem: str) -> int:
    """Says what is wrong with the words of a command, and returns the exit status for that."""
    sys.stderr.write(f"datarax-tfds {command}: {problem}\n")
    return 2


def in_store(path: Path | None) -> bool:
    """Whether the address of a store was given for a path, which drops one of its slashes."""
    return path is not None and path.parts[:1] in {(f"{scheme}:",) for scheme in SCHEMES}


def import_tensorflow() -> None:
    """Imports JAX, TensorFlow and TFDS, which takes seconds, and says so; without their notes."""
    if "tensorflow" in sys.modules:
        return
    doing("importing JAX, TensorFlow and TFDS")
    with startup_notes_left_out(), _environment(TF_CPP_MIN_LOG_LEVEL="2"):
        import jax  # noqa: F401  # first: it says by an exception what TensorFlow aborts for
        import tensorflow  # noqa: F401
        import tensorflow_datasets  # noqa: F401

        import datarax_tfds.public_names  # noqa: F401
    # Without it, Python searches all that was imported for garbage when it ends: 3 s, not 0.1 s.
    atexit.register(gc.freeze)


def print_json(value: Any) -> None:
    sys.stdout.write(f"{json.dumps(value, indent=2)}\n")


def print_dataset(name: str, version: PurePath, records: Mapping[str, int]) -> None:
    """Prints where a dataset has been prepared or written, and the records of each split."""
    (first, count), *others = records.items()
    splits = [f"{count:,} record{'s' if count != 1 else ''} of {first}"]
    splits += [f"{count:,} of {split}" for split, count in others]
    sys.stdout.write(f"{name} in {version}: {', '.join(splits)}\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "") -> None:
    """Prints a table: with lines and colours on a terminal, as plain aligned columns elsewhere.

    Numbers are aligned to the right.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    right = [
        bool(cells) and all(_is_number(row[at]) for row in cells) for at in range(len(columns))
    ]
    if sys.stdout.isatty():
        _print_rich(columns, cells, right, title)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lines = [title] if title else []
    for row in [columns, *cells]:
        aligned = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(aligned).rstrip())
    sys.stdout.write("\n".join([*lines, "\n"]))


def _print_rich(
    columns: Sequence[str], cells: list[list[str]], right: list[bool], title: str
) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    for name, to_right in zip(columns, right, strict=True):
        table.add_column(name, justify="right" if to_right else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(escape, row))
    Console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").isdecimal() or cell == "-"


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Sets variables, unless they are set, while a library that reads them is imported."""
    ours = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ |= ours
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def progress(items: Iterable[Any], total: int, what: str, unit: str = " files") -> Iterator[Any]:
    """Passes items on, with a bar on a terminal if it takes longer than a second."""
    from tqdm import tqdm

    yield from tqdm(items, desc=what, total=total, unit=unit, delay=1.0, disable=None)


@contextmanager
def quiet_tfds() -> Iterator[None]:
    """Drops what TFDS prints and warns of while it writes; on a terminal its progress stays."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    errors = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    try:
        with redirect_stdout(io.StringIO()), errors:
            yield
    finally:
        absl.setLevel(level)
