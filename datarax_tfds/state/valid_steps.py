"""Finds the newest complete step of a checkpoint directory by looking at its files."""

import json
import logging
import os
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from datarax_tfds.errors import StateMismatchError
from datarax_tfds.runtime.small_files import temporary_file
from datarax_tfds.state import state, state_file
from datarax_tfds.stores.listed_directory import ListedDirectory, first_too_short
from datarax_tfds.stores.object_path import ObjectPath
from sharding.checks import refused
from sharding.hosts.agreement import agree, extend_deadlines, gathered

_log = logging.getLogger(__name__)

_METADATA = "_CHECKPOINT_METADATA"
_MANIFEST = "manifest.ocdbt"
_COMMITTED = (
    "commit_success.txt"  # Orbax's last file of a step in `gs://`, where nothing is renamed
)

Directory = epath.Path | ListedDirectory


def latest_valid_step(manager: ocp.CheckpointManager, *, data: str = "data") -> int | None:
    """The newest step that has all its files and an undamaged data state.

        step = latest_valid_step(manager)
        if step is not None:
            manager.restore(step, args=...)

    Steps that are half deleted, stray directories, and steps with a damaged data state are skipped;
    the log gives the reason for each. Orbax does not save a step below the newest one that it
    sees: remove skipped steps with `manager.delete(step)`, or train into another directory.

    The files of arrays are checked for their length, but not read. The directory is listed again at
    each call. On several hosts, process 0 looks and tells the others, and writes a temporary file
    into the directory, to find out whether all hosts share it. If each host has its own directory,
    with Orbax's `MultiprocessingOptions(primary_host=None)`, each looks into its own, and the step
    is the newest one that is complete on all.

    Args:
        manager: The manager of checkpoints in a local or mounted directory, or in an object store
            (`gs://`, `s3://`).
        data: The name of the item that `DataSave` saved.

    Returns:
        The step, the same on every process; None if no step is complete.

    Raises:
        TypeError: `manager` is the path of the directory.
        DisagreementError: The processes do not share the directory.
        ConnectionError: The store does not answer. No step is skipped for that.
        PermissionError: The store does not let this process read.
    """
    if isinstance(manager, str | os.PathLike):
        raise refused(
            TypeError,
            "latest_valid_step",
            "manager must be the manager of the checkpoints, got the path of their directory.",
            path=os.fspath(manager),
            fix="pass orbax.checkpoint.CheckpointManager(path)",
        )
    directory, everyone = epath.Path(manager.directory), range(jax.process_count())
    if _has_a_directory_for_each_process(manager):
        found = gathered("latest_valid_step", list(_whole_steps(directory, data)), everyone)
        return max(set.intersection(*map(set, found)), default=None)
    return _found_by_process_0(directory, data)


def _has_a_directory_for_each_process(manager: ocp.CheckpointManager) -> bool:
    # Orbax has no public name for its options. By default, the directory has to be shared.
    roles = getattr(manager, "_multiprocessing_options", None)
    return roles is not None and roles.primary_host is None


def _whole_steps(directory: epath.Path, data: str) -> Iterator[int]:
    """The complete steps, the newest first; the log names the others."""
    for step, path in _steps(directory):
        problem = _problem(path, data)
        if problem is None:
            yield step
        else:
            _log.warning("%s: step %d is skipped: %s", directory, step, problem)


def _found_by_process_0(directory: epath.Path, data: str) -> int | None:
    """The newest complete step. One process looks, because a step may have 500,000 chunks.

    Raises unless all hosts see the same directory, before a long run saves into it.
    """
    first, everyone = jax.process_index() == 0, range(jax.process_count())
    subject = f"directory of checkpoints {directory}"
    with _file_for_all(directory) if first else nullcontext() as mine:
        newest = None
        if first:
            with extend_deadlines(f"looking for the newest complete step in {directory}"):
                newest = next(_whole_steps(directory, data), None)
        name, newest = gathered(subject, [mine, newest], everyone)[0]
        if not state_file.is_remote(directory):
            seen = name is not None and (directory / name).exists()
            there = {"file of process 0": "seen" if seen else "not seen"}
            agree(f"{subject}, which all have to share", there, everyone)
    return newest


@contextmanager
def _file_for_all(directory: epath.Path) -> Iterator[str | None]:
    """The name of a file that all hosts see; None if it is not needed, or cannot be written."""
    alone = jax.process_count() == 1 or state_file.is_remote(directory)
    if alone or not os.access(directory, os.W_OK):
        yield None
        return
    with temporary_file(Path(directory), ".seen-by-all-") as file:
        file.write(b"for a moment")
        file.flush()
        yield Path(file.name).name


def _steps(directory: epath.Path) -> Iterator[tuple[int, Directory]]:
    """Everything that looks like a step, the newest first."""
    store = ObjectPath.parse(os.fspath(directory))
    if store is None and not directory.exists():
        return
    paths: dict[int, Directory] = {}
    for path in (directory if store is None else ListedDirectory.of(store)).iterdir():
        number = path.name.rpartition("_")[2]  # without the step_prefix, if there is one
        if number.isdecimal() and path.name.isascii():
            paths[int(number)] = path
    yield from sorted(paths.items(), reverse=True)


def _problem(step: Directory, data: str) -> str | None:
    """What is wrong with a step; None if it is complete."""
    if os.path.islink(step) or not step.is_dir():
        return "it is not a directory"
    if _is_unfinished(step):
        return "its save did not finish"
    try:
        items = json.loads((step / _METADATA).read_bytes())["item_handlers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(step, ListedDirectory) and isinstance(
            error, ConnectionError | PermissionError
        ):
            raise  # the store fails, and not the step
        return f"{_METADATA} cannot be read ({str(error).splitlines()[0]})"
    if data not in items:
        return f"it has no item {data!r}, but {', '.join(items) or 'none'}"
    for item in items:
        directory = step / item
        if os.path.islink(directory) or not directory.is_dir() or not any(directory.iterdir()):
            return f"item {item!r} is missing"
        try:
            for text in _descriptions(directory):
                json.loads(text.read_bytes())
            lacking = _lacking(directory)
        except ValueError as error:  # of JSON, or TensorStore's
            return f"item {item!r} is damaged ({str(error).splitlines()[0]})"
        if lacking is not None:
            return f"item {item!r} lacks {os.path.relpath(lacking, step)}, or a part of it"
    try:
        state.validated(state_file.read(step / data), str(step))
    except StateMismatchError as error:
        return str(error).splitlines()[0]
    return None


def _is_unfinished(step: Directory) -> bool:
    if isinstance(step, ListedDirectory):
        return step.path.scheme == "gs" and not (step / _COMMITTED).is_file()
    return ocp.path.step.is_path_temporary(step)


def _descriptions(item: Directory) -> Iterator[Directory]:
    """The JSON files beside arrays. Orbax can do without them, but fails on a truncated one."""
    arrays = item / "array_metadatas"
    for path in (
        item / "_METADATA",
        item / "_sharding",
        *(arrays.iterdir() if arrays.is_dir() else ()),
    ):
        if path.is_file():
            yield path


def _lacking(item: Directory) -> Directory | None:
    """A file that an item of arrays refers to, and that is missing or too short; else None."""
    sizes: dict[Any, int] = {}
    for file, size in _files(item):  # many chunks may be in one file
        sizes[file] = max(size, sizes.get(file, 0))
    if isinstance(item, ListedDirectory):
        return first_too_short(sizes)
    return next((file for file, size in sizes.items() if _length(file) < size), None)


def _length(file: epath.Path) -> int:
    """The length of a file in bytes; -1 if there is none."""
    return file.stat().length if file.is_file() else -1


def _files(item: Directory) -> Iterator[tuple[Directory, int]]:
    """The files that an item of arrays refers to, with the minimum length of each."""
    if (item / "_METADATA").exists() != (item / _MANIFEST).exists():
        yield item / _MANIFEST, 1
        yield item / "_METADATA", 1
    if not (item / _MANIFEST).exists():
        return
    nodes = [version["root"]["location"] for version in _dump(item)["versions"][-1:]]
    while nodes:
        location = nodes.pop()
        file, size = _place(item, location)
        yield file, size
        for entry in _dump(item, location)["entries"]:
            if "indirect_value" in entry:
                yield _place(item, entry["indirect_value"])
            elif "location" in entry:
                nodes.append(entry["location"])


def _dump(item: Directory, *node: str) -> Any:
    if isinstance(item, ListedDirectory):
        return item.describe_ocdbt(*node)
    import tensorstore as ts  # here, because it takes a second and only arrays need it

    remote = state_file.is_remote(item)
    store = ts.KvStore.open(f"{item}/" if remote else {"driver": "file", "path": f"{item}/"})
    return ts.ocdbt.dump(store.result(), *node).result()


def _place(item: Directory, location: str) -> tuple[Directory, int]:
    """The file of a TensorStore location, `kind:folder:file:offset:length`, and where it ends."""
    _, folder, file, offset, length = map(urllib.parse.unquote, location.split(":"))
    return item / folder / file, int(offset) + int(length)
