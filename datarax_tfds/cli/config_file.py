"""Reads what commands need of the config of a training program: the dataset, the mesh, the batch.

Such a file has a section `source` with the fields of `from_tfds`, and may have `mesh` and
`batch_size`; the rest is the program's own. It names functions, and runs none: the user of a
command says in which Python file they are.
"""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

# Fields that say which dataset is read, or how an eager source keeps it.
_NOT_OF_STREAMS = ("name", "data_dir", "eager", "layout")


@dataclass(frozen=True)
class ConfigFile:
    """What a file says.

    Args:
        path: The file.
        source: The fields of `from_tfds`, with names in place of functions.
        mesh: The size of each axis; None if the file does not say it.
        batch_size: Records of a batch; None if the file does not say it.
    """

    path: Path
    source: dict[str, Any]
    mesh: dict[str, int] | None
    batch_size: int | None

    @staticmethod
    def is_named_by(word: str) -> bool:
        return word.endswith((".yaml", ".yml")) and "://" not in word

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file.

        Raises:
            OSError: It cannot be read.
            ValueError: It is not YAML, or does not name a dataset.
        """
        import yaml

        from sharding.checks import refused

        values: Any
        try:
            values = yaml.safe_load(path.expanduser().read_text("utf-8"))
        except (yaml.YAMLError, UnicodeError) as error:
            values = f"{type(error).__name__}: {error}"
        source = values.get("source") if isinstance(values, Mapping) else None
        if not isinstance(source, Mapping) or not isinstance(source.get("name"), str):
            held = ", ".join(map(str, values)) if isinstance(values, Mapping) else values
            raise refused(
                ValueError,
                str(path),
                "a config must have a section source, with the name of a dataset.",
                holds=held,
                fix="add source: {name: mnist, split: train}",
            )
        return cls(path, dict(source), values.get("mesh"), values.get("batch_size"))

    def fields(self, code: Path | None) -> dict[str, Any]:
        """The fields of a `TFDSStreamingConfig` for the same records, except those of the dataset.

        Args:
            code: The Python file with the functions that the file names. It is run.

        Raises:
            ValueError: The file names functions, and there is no `code`, or they are not there.
        """
        from datarax_tfds.config.config_fields import config_fields, named_functions
        from sharding.checks import refused

        wanted = named_functions(self.source)
        if wanted and code is None:
            raise refused(
                ValueError,
                str(self.path),
                "the config names functions, which no file defines.",
                functions=", ".join(wanted),
                fix="name the Python file that defines them, as --code images.py",
            )
        source = {key: value for key, value in self.source.items() if key not in _NOT_OF_STREAMS}
        with defined_in(code) as functions:
            return config_fields(source, functions)


@contextmanager
def defined_in(code: Path | None) -> Iterator[Mapping[str, Any]]:
    """Runs a Python file as a module, and yields its names. TFDS then knows its datasets."""
    if code is None:
        yield {}
        return
    folder = str(code.absolute().parent)
    sys.path.insert(0, folder)
    try:
        yield vars(importlib.import_module(code.stem))
    finally:
        sys.path.remove(folder)
