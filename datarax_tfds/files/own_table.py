"""Reads CSV files, and finds what TFDS has to know of their columns to store rows as records.

Nothing is rounded: a number that begins with a zero, such as a postal code, stays a text; so does a
column with integers that do not fit the dtype of its numbers, which is int64, or float64 if it has
fractions or empty cells.
"""

import csv
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datarax_tfds.files.own_images import Shape
from sharding.checks import nearest, refused

_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)  # all of these are int64
_FLOAT = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?inf|nan", re.I | re.A)
_LONG = re.compile(r"[+-]?\d{16,}", re.ASCII)  # float64 does not hold all of these
_INTEGERS, _FLOATS, _TEXTS = range(3)


@dataclass(frozen=True)
class Table:
    """Rows of CSV files with equal columns.

    Args:
        files: The file of each split.
        kinds: What each column holds, by its name.
        names: The classes of each column that is a label.
        image: The column with the paths of images, relative to their file.
    """

    files: dict[str, Path]
    kinds: dict[str, int]
    names: dict[str, list[str]]
    image: str | None

    @classmethod
    def read(cls, files: dict[str, Path], labels: tuple[str, ...], image: str | None) -> "Table":
        """Reads all rows once.

        Raises:
            ValueError: A file has other columns than the first one, or no rows; a row has too many
                cells or too few, or no label; or a column that is asked for is not there.
        """
        columns = _header(next(iter(files.values())))
        for wanted in [*labels, *([image] if image else [])]:
            if wanted not in columns:
                raise refused(
                    ValueError,
                    str(next(iter(files.values()))),
                    f"it has no column {wanted!r}.",
                    columns=", ".join(columns),
                    fix=f"use the name of a column, as {nearest(wanted, columns) or columns[0]!r}",
                )
        kinds = dict.fromkeys(columns, _INTEGERS)
        filled: set[str] = set()
        long: set[str] = set()
        classes: dict[str, set[str]] = {label: set() for label in labels}
        for file in files.values():
            for row in _rows(file, columns):
                kinds |= {name: max(kinds[name], _kind(cell)) for name, cell in row.items()}
                filled |= {name for name, cell in row.items() if cell}
                long |= {name for name, cell in row.items() if _LONG.fullmatch(cell)}
                for label, seen in classes.items():
                    seen.add(row[label])
        for name, kind in kinds.items():
            if name not in filled or (kind == _FLOATS and name in long):
                kinds[name] = _TEXTS
        for label, seen in classes.items():
            if "" in seen:
                raise refused(
                    ValueError,
                    ", ".join(map(str, files.values())),
                    f"a row has no label: its {label!r} is empty.",
                    labels=", ".join(sorted(seen)[1:20]),
                    fix="write a label into each row, or remove the row",
                )
        names = {label: sorted(seen) for label, seen in classes.items()}
        return cls(files, kinds, names, image)

    @property
    def images(self) -> list[Path]:
        """The paths of all images, row by row."""
        if self.image is None:
            return []
        return [
            file.parent / row[self.image]
            for file in self.files.values()
            for row in _rows(file, list(self.kinds))
        ]

    def features(self, shape: Shape | None) -> Any:
        """The `tfds.features.FeaturesDict` of the records, with images of that shape."""
        import tensorflow_datasets as tfds

        features: dict[str, Any] = {}
        for name, kind in self.kinds.items():
            if name == self.image:
                features[name] = tfds.features.Image(shape=shape)
            elif name in self.names:
                features[name] = tfds.features.ClassLabel(names=self.names[name])
            else:
                number = np.int64 if kind == _INTEGERS else np.float64
                features[name] = (
                    tfds.features.Text() if kind == _TEXTS else tfds.features.Scalar(number)
                )
        return tfds.features.FeaturesDict(features)

    def records(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        file = self.files[split]
        for number, row in enumerate(_rows(file, list(self.kinds))):
            yield number, {name: self._value(name, cell, file) for name, cell in row.items()}

    def _value(self, name: str, cell: str, file: Path) -> Any:
        if name == self.image:
            return str(file.parent / cell)
        kind = self.kinds[name]
        if name in self.names or kind == _TEXTS:
            return cell
        if kind == _INTEGERS:
            return int(cell)
        return float(cell) if cell else math.nan


def _kind(cell: str) -> int:
    if _INTEGER.fullmatch(cell):
        return _INTEGERS
    return _FLOATS if not cell or _FLOAT.fullmatch(cell) else _TEXTS


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A reader of the lines of a file, each as a list of cells."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            yield csv.reader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
    except UnicodeDecodeError as error:
        raise refused(
            ValueError,
            str(file),
            "the file must be in UTF-8.",
            error=error,
            fix="save it as UTF-8",
        ) from error


def _header(file: Path) -> list[str]:
    with _opened(file) as reader:
        columns = next(reader, [])
    if not columns or "" in columns or len(set(columns)) < len(columns):
        raise refused(
            ValueError,
            str(file),
            "its first line must name each column, and no two alike.",
            columns=", ".join(map(repr, columns)) or "none",
            fix="write a line with a different name for each column at the top of the file",
        )
    return columns


def _rows(file: Path, columns: list[str]) -> Iterator[dict[str, str]]:
    if (found := _header(file)) != columns:
        raise refused(
            ValueError,
            str(file),
            "the files of all splits must have the same columns in the same order.",
            columns=", ".join(found),
            others=", ".join(columns),
            fix="write the same columns into all files, or convert the files one by one",
        )
    rows = 0
    with _opened(file) as reader:
        next(reader)
        for cells in filter(None, reader):  # empty lines do not count
            if len(cells) != len(columns):
                raise refused(
                    ValueError,
                    f"{file}, line {reader.line_num}",
                    "this row has another number of cells than there are columns.",
                    cells=len(cells),
                    columns=len(columns),
                    fix='add or remove cells; a cell that holds a comma stands between two "',
                )
            rows += 1
            yield dict(zip(columns, cells, strict=True))
    if not rows:
        raise refused(
            ValueError,
            str(file),
            "it has no row below the names of its columns.",
            columns=", ".join(columns),
            fix="write a row for each record, or remove the file",
        )
