"""What the files of a dataset may do here: be read. The code that they name is not run."""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datarax_tfds.errors import DataLossError, TrustError
from sharding.messages import explain

# TFDS imports the module of any class that features.json names. Its own are safe to import.
_OF_TFDS = re.compile(r"tensorflow_datasets\.core\.features(\.\w+)+", re.ASCII)
_NAMES = ("pythonClassName", "python_class_name", "type")  # protobuf has two spellings for JSON


def require_known_features(dataset: Path) -> None:
    """Refuses a dataset whose features would import code that nobody has asked for.

    A feature of one's own is known once its module is imported.

    Args:
        dataset: The directory of a prepared version.

    Raises:
        TrustError: `features.json` names a class of a module that is not imported.
        DataLossError: It cannot be read.
    """
    path = dataset / "features.json"
    try:
        names = sorted(set(_class_names(json.loads(path.read_text("utf-8")))))
    except (OSError, ValueError, RecursionError) as error:
        raise DataLossError(
            explain(
                str(path),
                "the features of the dataset cannot be read.",
                error=f"{type(error).__name__}: {error}",
                fix="restore the file, or remove the dataset and prepare it again",
            )
        ) from error
    for name in names:
        module = name.rpartition(".")[0]
        if not _OF_TFDS.fullmatch(name) and module not in sys.modules:
            raise TrustError(
                explain(
                    str(path),
                    "the dataset asks for code that is not imported here.",
                    feature=repr(name[:200]),
                    fix="if you trust that module, import it before; else do not read this dataset",
                )
            )


def require_inside(dataset: Path, files: Iterable[Path]) -> None:
    """Refuses metadata that name files elsewhere, or are elsewhere.

    Files of records may be links: what is in them is only decoded.

    Raises:
        TrustError: A file that is not in the directory of the dataset.
    """
    metadata = [file for kind in ("*.json", "*.txt") for file in dataset.glob(kind)]
    links = [file for file in metadata if file.resolve().parent != dataset.resolve()]
    if links or ".." in dataset.parts:
        raise TrustError(
            explain(
                str(dataset),
                "metadata of the dataset are elsewhere.",
                file=links[0] if links else dataset,
                fix="copy the files in place of links (cp -L), and name the directory itself",
            )
        )
    for file in files:
        if file.parent != dataset or file.name in ("", ".", ".."):
            raise TrustError(
                explain(
                    str(dataset / "dataset_info.json"),
                    "the metadata name a file outside of the dataset.",
                    file=file,
                    fix="do not read this dataset, or prepare it again",
                )
            )


def _class_names(node: Any) -> Iterator[str]:
    """All names of classes in features.json, old and new."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _NAMES and isinstance(value, str) and "." in value:
                yield value
            else:
                yield from _class_names(value)
    elif isinstance(node, list):
        for value in node:
            yield from _class_names(value)
    elif isinstance(node, str) and node.lstrip()[:1] in ("{", "["):
        # JSON within JSON is how some features keep theirs.
        try:
            within = json.loads(node)
        except ValueError:
            return  # a text that only begins so
        yield from _class_names(within)
