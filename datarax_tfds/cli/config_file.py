"""Reads what commands need of the config of a training program: the dataset, the mesh, the batch.

Such a file has a section `source` with the fields of `from_tfds`. It may have `mesh`, `batch_size`,
and `rows` with the arguments of `PackedSource`; the rest is the program's own. It names functions,
and runs none: the user of a command says in which Python file they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from datarax_tfds.cli.user_code import imported_code

# They say which dataset is read, which a command may replace, or how an eager source keeps it.
_NOT_PASSED_ON = ("name", "data_dir", "eager", "layout")


@dataclass(frozen=True)
class ConfigFile:
    """What a file says.

    Args:
        path: The file.
        source: The fields of `from_tfds`, with names in place of functions.
        rows: The arguments of `PackedSource`, likewise; None if it does not pack text.
        mesh: The size of each axis; None if the file does not say it.
        batch_size: Records of a batch; None if the file does not say it.
    """

    path: Path
    source: dict[str, Any]
    rows: dict[str, Any] | None
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
        rows = values.get("rows")
        packed = dict(rows) if isinstance(rows, Mapping) else None
        return cls(path, dict(source), packed, values.get("mesh"), values.get("batch_size"))

    def fields(self, code: Path | None) -> dict[str, Any]:
        """The fields of a `TFDSStreamingConfig` for the same records, except those of the dataset.

        Args:
            code: The Python file with the functions that the file names. It is run.

        Raises:
            ValueError: The file names functions, and there is no `code`, or they are not there.
        """
        source = {key: value for key, value in self.source.items() if key not in _NOT_PASSED_ON}
        return self._with_functions(source, code)

    def packing(self, code: Path | None) -> dict[str, Any] | None:
        """The arguments of the `PackedSource` of the config; None if it does not pack text.

        Args:
            code: As for `fields`.

        Raises:
            ValueError: As for `fields`, or `rows` does not say how texts are encoded.
        """
        from sharding.checks import refused

        if self.rows is None:
            return None
        if "encode" not in self.rows:
            raise refused(
                ValueError,
                str(self.path),
                "the section rows must name the function that encodes a text.",
                rows=", ".join(self.rows),
                fix="add encode: NAME to rows, and give the Python file that defines it as --code",
            )
        return self._with_functions(self.rows, code)

    def _with_functions(self, values: Mapping[str, Any], code: Path | None) -> dict[str, Any]:
        from datarax_tfds.config.config_fields import config_fields, named_functions
        from sharding.checks import refused

        wanted = named_functions(values)
        if wanted and code is None:
            raise refused(
                ValueError,
                str(self.path),
                "the config names functions, which no file defines.",
                functions=", ".join(wanted),
                fix="name the Python file that defines them, as --code images.py",
            )
        with imported_code(code) as functions:
            if absent := [name for name in wanted if not callable(functions.get(name))]:
                raise refused(
                    ValueError,
                    str(self.path),
                    f"{code} does not define the functions that the config names.",
                    functions=", ".join(absent),
                    fix="correct the names, or name the file that defines them as --code",
                )
            return config_fields(values, functions)
