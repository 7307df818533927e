"""Refuses datasets whose metadata would run code, or read files that are not part of the data."""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from datarax_tfds.errors import RESTORE, DataLossError, TrustError
from sharding.checks import refused

# TFDS imports the module of any class that features.json names. Those of TFDS are safe.
_OF_TFDS = re.compile(r"tensorflow_datasets\.core\.features(\.\w+)+", re.ASCII)
# Where download tools keep the files to which the directory of a dataset links.
_STORES = ("blobs", ".git/annex", ".dvc/cache")
_NAMES = ("pythonClassName", "python_class_name", "type")  # protobuf has two spellings for JSON


def require_known_features(dataset: Path) -> None:
    """Refuses a dataset whose features would import code that the user has not imported.

    Args:
        dataset: The directory of a prepared version.

    Raises:
        TrustError: `features.json` names a class of a module that is not imported.
        DataLossError: `features.json` cannot be read.
    """
    path = dataset / "features.json"
    try:
        names = sorted(set(_class_names(json.loads(path.read_text("utf-8")))))
    except (OSError, ValueError, RecursionError) as error:
        raise refused(
            DataLossError,
            str(path),
            "the features of the dataset cannot be read.",
            error=f"{type(error).__name__}: {error}",
            fix=RESTORE,
        ) from error
    for name in names:
        module = name.rpartition(".")[0]
        if not _OF_TFDS.fullmatch(name) and module not in sys.modules:
            raise refused(
                TrustError,
                str(path),
                "the dataset asks for code that is not imported here.",
                feature=repr(name[:200]),
                fix=f"if you trust that code, import {module or name} before the source is"
                " built; else do not use this dataset",
            )


def require_own_metadata(dataset: Path, root: Path) -> None:
    """Refuses metadata that link to files outside of the data.

    Such a link in place of a file of labels would reveal the contents of its target. A link may
    lead to any place below `root`, and into the store of a download tool: `blobs` of a Hugging Face
    snapshot, `.git/annex`, `.dvc/cache`. Files of records may be links to anywhere, because their
    contents are only decoded.

    Args:
        dataset: The directory of a prepared version.
        root: The directory that the user named, which is trusted as a whole.

    Raises:
        TrustError: A metadata file is a link to a file elsewhere.
    """
    directory = dataset.resolve()
    stores = [above / store for above in directory.parents[:-1] for store in _STORES]
    allowed = [directory, root.resolve(), *stores]
    for file in sorted(file for kind in ("*.json", "*.txt") for file in dataset.glob(kind)):
        target = Path(os.path.realpath(file))  # resolve() raises at a loop of links
        if not any(target.is_relative_to(place) for place in allowed):
            raise refused(
                TrustError,
                str(dataset),
                f"{file.name} is a link, and its contents are elsewhere, outside of the data.",
                target=target,
                searched=root,
                fix="if you trust that file, put a copy in the place of the link:"
                f" cp --remove-destination {shlex.quote(str(target))}"
                f" {shlex.quote(str(file))}",
            )


def require_inside(dataset: PurePath, files: Iterable[PurePath]) -> None:
    """Raises a `TrustError` if a file is not in the directory of the dataset."""
    for file in files:
        if file.parent != dataset or file.name in ("", ".", ".."):
            raise refused(
                TrustError,
                str(dataset / "dataset_info.json"),
                "the metadata name a file outside of the dataset.",
                file=file,
                fix="do not use this copy of the dataset: prepare the dataset again",
            )


def _class_names(node: Any) -> Iterator[str]:
    """All names of classes in features.json, in the old or the new form of that file."""
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
        # Some features keep their description as JSON in a string.
        try:
            within = json.loads(node)
        except ValueError:
            return  # it is not JSON
        yield from _class_names(within)
