"""Docstrings of installed packages as a TFDS dataset of texts: no download.

Importing this module registers the dataset `docstrings` with TFDS, which prepares it at first use.
"""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

PACKAGES = ("jax", "flax", "optax", "orbax", "sklearn")


class Docstrings(tfds.core.GeneratorBasedBuilder):
    """The docstrings of the modules, classes and functions of some packages."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for package in PACKAGES:
            found = importlib.util.find_spec(package)
            for folder in (found.submodule_search_locations or ()) if found else ():
                for path in sorted(Path(folder).rglob("*.py")):
                    for number, text in enumerate(docstrings_of(path)):
                        yield f"{package}/{path.relative_to(folder)}/{number}", {"text": text}


def docstrings_of(path: Path) -> Iterator[str]:
    """Yields the docstrings of a module, and of its classes and functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and (text := ast.get_docstring(node)):
            yield text
