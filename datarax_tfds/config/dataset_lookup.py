"""Finds a prepared dataset by its name or its directory, or suggests one that may be meant.

No code of the dataset runs. The network is used only for a directory in a store.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Self

from datarax_tfds.errors import DatasetNotFoundError
from datarax_tfds.stores.metadata_copy import MetadataCopy
from datarax_tfds.stores.object_path import ObjectPath
from sharding.checks import nearest, refused

_VERSION = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", re.ASCII)
_CONFIG = r"[\w.+-]*\w[\w.+-]*"
# A name must not hold a path out of data_dir, or arguments of a builder.
_NAME = re.compile(
    rf"(?P<name>\w[\w.+-]*)(/(?P<config>{_CONFIG}))?(:(?P<version>[0-9*]+([.][0-9*]+){{2}}))?"
)


class Suggestion(NamedTuple):
    """What is wrong with the name or the directory of a dataset, and what to use instead."""

    problem: str
    fix: str


class Found(NamedTuple):
    """A prepared version.

    Args:
        directory: The directory of the version, with features.json and dataset_info.json.
        root: The directory that was searched.
    """

    directory: Path
    root: Path


@dataclass(frozen=True)
class DatasetName:
    """The parts of a name like `coco/2017:1.1.0`. `*` in a version stands for any number."""

    name: str
    config: str | None = None
    version: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Splits a name into its parts.

        Raises:
            ValueError: `text` is not the name of a dataset.
        """
        parts = _NAME.fullmatch(text)
        if parts is None:
            raise refused(
                ValueError,
                "name",
                "this is not the name of a dataset.",
                name=repr(text),
                fix="use 'name', 'name/config' or 'name:1.2.3', and data_dir for the directory"
                " that holds it; for the directory of one dataset, from_directory(...) of the"
                " config",
            )
        return cls(parts["name"], parts["config"], parts["version"])

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"{self.name}{config}" + (f":{self.version}" if self.version else "")

    def matches(self, version: str) -> bool:
        wanted = (self.version or "*.*.*").split(".")
        return all(w in ("*", v) for w, v in zip(wanted, version.split("."), strict=True))

    def fits(self, prepared: Self) -> bool:
        """Whether a prepared version has this config and matches this version."""
        return self.config == prepared.config and self.matches(prepared.version or "")


def find(name: str, data_dir: str | None) -> Found | None:
    """The newest prepared version that matches a name.

    `data_dir` may also be the directory of the dataset itself, of its config or of its version.

    Raises:
        ValueError: `name` is not the name of a dataset, or several directories hold that dataset.
    """
    roots = data_dirs(data_dir)
    if data_dir is not None and str(described(roots[0]) or "") == name:
        return Found(roots[0], roots[0])
    wanted = DatasetName.parse(name)
    found: dict[Path, Found] = {}
    for root in roots:
        directory = _below(root, wanted) or (_within(root, wanted) if data_dir else None)
        if directory is not None:
            found.setdefault(directory.resolve(), Found(directory, root))
    if len(found) > 1:
        first = next(iter(found.values()))
        raise refused(
            ValueError,
            "data_dir",
            f"{name!r} is prepared in several directories.",
            found=", ".join(str(each.directory) for each in found.values()),
            fix=f"choose one: data_dir={str(first.root)!r}",
        )
    return next(iter(found.values()), None)


def find_in_directory(directory: str | os.PathLike[str]) -> tuple[str, PurePath]:
    """The name of the dataset in a directory, and the directory of its newest version.

    Args:
        directory: The directory of a version, of a config, or of a dataset.

    Raises:
        DatasetNotFoundError: The directory does not hold a prepared dataset.
        PermissionError: A store does not let this process read it.
        ConnectionError: A store does not answer.
    """
    if (remote := ObjectPath.parse(os.fspath(directory))) is not None:
        copy = MetadataCopy(remote)
        copy.add(remote)
        with copy.named_as_in_the_store():
            name, version = find_in_directory(copy.local(remote))
            return name, copy.remote(Path(version))
    path = absolute(directory)
    versions = [path] if _is_version(path) else [path / version for version in _versions(path)]
    if not versions and (config := _metadata_config(path)) is not None:
        versions = [path / config / version for version in _versions(path / config)]
    name = described(versions[-1]) if versions else None
    if name is None:
        held = sorted(each.name for each in _subdirectories(path))
        fix = "pass the directory of a version, which holds features.json and dataset_info.json"
        if path.is_file() and _is_version(path.parent):
            fix = f"use {str(path.parent)!r}"
        elif datasets := prepared_names([path]):
            fix = f"pass the directory of one dataset, as {str(path / datasets[0])!r}"
        elif versions := _versions(path.parent):
            fix = f"use {str(path.parent / versions[-1])!r}"
        raise refused(
            DatasetNotFoundError,
            "from_directory",
            "this is not the directory of a prepared dataset.",
            directory=path if path.is_dir() else f"{path}, which is no directory",
            holds=", ".join(held[:20]) or "no directories",
            fix=fix,
        )
    return str(replace(name, version=None)), versions[-1]


def data_dirs(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """The directories to search: `data_dir`, or those of TFDS and those registered with it."""
    if data_dir is not None:
        return [absolute(data_dir)]
    from tensorflow_datasets.core.utils import file_utils

    return [absolute(each) for each in file_utils.list_data_dirs() if "://" not in os.fspath(each)]


def absolute(path: str | os.PathLike[str]) -> Path:
    """A path that does not depend on the working directory; `~` is the home directory."""
    expanded = Path(os.path.expanduser(path))
    return expanded.resolve() if ".." in expanded.parts else expanded.absolute()


def described(version: Path) -> DatasetName | None:
    """The dataset that the metadata of a version name; None if this is not a version."""
    if not _is_version(version):
        return None
    info = _json(version / "dataset_info.json")
    name, config = info.get("name"), info.get("configName") or info.get("config_name")
    if not isinstance(name, str) or not name:
        return DatasetName(version.parent.name)
    return DatasetName(name, config if isinstance(config, str) else None)


def prepared_names(roots: Iterable[Path]) -> list[str]:
    """The names of all datasets that are prepared in these directories."""
    found = {each.name for root in roots for each in _subdirectories(root) if _prepared_in(each)}
    return sorted(found)


def suggestion(wanted: DatasetName, roots: Iterable[Path]) -> Suggestion | None:
    """Says what is wrong with the name of a prepared dataset; None if it is not prepared."""
    for root in roots:
        for folder in (root / wanted.name, root, root.parent):
            found = _prepared_in(folder) if folder.name == wanted.name else []
            if found and not any(map(wanted.fits, found)):
                names = dict.fromkeys(str(replace(each, version=None)) for each in found)
                versions = list(map(str, found))
                near = nearest(str(wanted), [*names, *versions]) or next(iter(names))
                there = ", ".join(versions[:20])
                problem = (
                    f"the dataset is prepared, but not as {str(wanted)!r}; there are: {there}."
                )
                return Suggestion(problem, fix=f"use name={near!r}")
        if (held := held_by(root)) is not None:
            problem = f"data_dir is itself the dataset {str(held)!r}."
            return Suggestion(problem, fix=f"use name={str(held)!r}")
        if not root.is_dir() and (versions := _versions(root.parent)):
            there = str(root.parent / versions[-1])
            problem = f"there is no directory {str(root)!r}."
            return Suggestion(problem, fix=f"use data_dir={there!r}")
    return None


def held_by(root: Path) -> DatasetName | None:
    """The dataset that this is the directory of; None for a directory of several datasets."""
    return described(root) or (DatasetName(root.name) if _versions(root) else None)


def _prepared_in(folder: Path) -> list[DatasetName]:
    """All versions of the dataset in its directory, by config, and then from the oldest one on."""
    configs = [("", None), *sorted((each.name, each.name) for each in _subdirectories(folder))]
    return [
        DatasetName(folder.name, config, version)
        for place, config in configs
        for version in _versions(folder / place)
    ]


def _below(root: Path, wanted: DatasetName) -> Path | None:
    folder = root / wanted.name
    if wanted.config is not None:
        return _newest(folder / wanted.config, wanted)
    found = _newest(folder, wanted)
    if found is None and folder.is_dir() and (config := _default_config(folder, wanted.name)):
        found = _newest(folder / config, wanted)
    return found


def _within(root: Path, wanted: DatasetName) -> Path | None:
    """The version, if the root is itself the directory of the dataset, its config or version."""
    itself = described(root)
    if itself is not None:
        names = {itself.name, root.parent.name, root.parent.parent.name}
        configs = {None, itself.config}
        fits = wanted.name in names and wanted.config in configs and wanted.matches(root.name)
        return root if fits else None
    if root.name == wanted.name:
        return _below(root.parent, wanted)
    if root.parent.name == wanted.name and wanted.config in (None, root.name):
        return _newest(root, wanted)
    return None


def _newest(folder: Path, wanted: DatasetName) -> Path | None:
    matching = [version for version in _versions(folder) if wanted.matches(version)]
    return folder / matching[-1] if matching else None


def _default_config(folder: Path, name: str) -> str | None:
    """The default config as in TFDS: from the dataset's code if it is imported, else its files."""
    from tensorflow_datasets.core import registered

    try:
        builder: Any = registered.imported_builder_cls(name)
    except (registered.DatasetNotFoundError, PermissionError):
        builder = None
    if builder is not None and builder.BUILDER_CONFIGS:
        return builder.default_builder_config.name
    return _metadata_config(folder)


def _metadata_config(folder: Path) -> str | None:
    name = _json(folder / ".config" / "metadata.json").get("default_config_name")
    return name if isinstance(name, str) and re.fullmatch(_CONFIG, name) else None


def _versions(folder: Path) -> list[str]:
    """The versions prepared in a directory, oldest first."""
    names = [
        path.name
        for path in _subdirectories(folder)
        if _VERSION.fullmatch(path.name) and _is_version(path)
    ]
    return sorted(names, key=lambda name: [int(part) for part in name.split(".")])


def _is_version(folder: Path) -> bool:
    return os.path.exists(folder / "features.json")


def _subdirectories(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    except OSError:  # it does not exist, or may not be listed
        return []


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
