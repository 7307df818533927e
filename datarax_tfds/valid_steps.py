"""Which steps of a checkpoint are whole: found by looking, not by what was meant to be there."""

import json
import logging
import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from datarax_tfds import state, state_file
from datarax_tfds.errors import StateMismatchError
from sharding import agree

_log = logging.getLogger(__name__)

_METADATA = "_CHECKPOINT_METADATA"
_MANIFEST = "manifest.ocdbt"


def latest_valid_step(manager: ocp.CheckpointManager, *, data: str = "data") -> int | None:
    """The newest step whose files are all there and whose data state is sound.

        step = latest_valid_step(manager)
        if step is not None:
            manager.restore(step, args=...)

    Steps that were half deleted, are stray directories, or hold a damaged data state are passed
    over; the log names each, with the reason. Orbax does not save a step below the newest that it
    sees: remove those with `manager.delete(step)`, or train into another directory.

    The bytes of arrays are not read: that they are there, in full length, is what is looked at.
    The directory is read anew, and nothing is changed in it.

    Args:
        manager: Of a checkpoint in a local (or mounted) directory.
        data: The name of the item that `DataSave` saved.

    Returns:
        The step, the same on every process; None if there is none.

    Raises:
        DisagreementError: Processes see different steps: they do not share the directory.
    """
    found = None
    for step, path in _steps(Path(manager.directory)):
        problem = _problem(path, data)
        if problem is None:
            found = step
            break
        _log.warning("%s: step %d is passed over: %s", manager.directory, step, problem)
    subject = f"latest_valid_step of {manager.directory}"
    agree(subject, {"step": found}, range(jax.process_count()))
    return found


def _steps(directory: Path) -> Iterator[tuple[int, Path]]:
    """All that looks like a step, the newest first."""
    paths = {}
    for entry in os.scandir(directory):
        number = entry.name.rpartition("_")[2]  # with a step_prefix, too
        if number.isdecimal() and entry.name.isascii():
            paths[int(number)] = Path(entry.path)
    yield from sorted(paths.items(), reverse=True)


def _problem(step: Path, data: str) -> str | None:
    """What is wrong with a step; absent if it is whole."""
    if step.is_symlink() or not step.is_dir():
        return "it is no directory"
    if ocp.path.step.is_path_temporary(step):
        return "its save did not end"
    try:
        items = json.loads((step / _METADATA).read_bytes())["item_handlers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{_METADATA} cannot be read ({error})"
    if data not in items:
        return f"it has no item {data!r}, but {', '.join(items) or 'none'}"
    for item in items:
        directory = step / item
        if directory.is_symlink() or not directory.is_dir() or not any(directory.iterdir()):
            return f"item {item!r} is missing"
        try:
            for file, size in _files(directory):
                if not file.is_file() or file.stat().st_size < size:
                    return f"item {item!r} lacks {file.relative_to(step)}, or a part of it"
        except ValueError as error:  # TensorStore's, of what it cannot read
            return f"item {item!r} is damaged ({str(error).splitlines()[0]})"
    try:
        state.sound(state_file.read(step / data), str(step))
    except StateMismatchError as error:
        return str(error).splitlines()[0]
    return None


def _files(item: Path) -> Iterator[tuple[Path, int]]:
    """The files that an item of arrays refers to, and how many bytes of each."""
    if (item / "_METADATA").exists() != (item / _MANIFEST).exists():
        yield item / _MANIFEST, 1
        yield item / "_METADATA", 1
    if not (item / _MANIFEST).exists():
        return
    import tensorstore as ts  # a second; a checkpoint without arrays does without

    store = ts.KvStore.open({"driver": "file", "path": f"{item}/"}).result()
    nodes = [version["root"]["location"] for version in _dump(ts, store)["versions"][-1:]]
    while nodes:
        location = nodes.pop()
        file, size = _place(item, location)
        yield file, size
        for entry in _dump(ts, store, location)["entries"]:
            if "indirect_value" in entry:
                yield _place(item, entry["indirect_value"])
            elif "location" in entry:
                nodes.append(entry["location"])


def _dump(ts: Any, store: Any, *node: str) -> Any:
    return ts.ocdbt.dump(store, *node).result()


def _place(item: Path, location: str) -> tuple[Path, int]:
    """The file of a TensorStore location, `kind:folder:file:offset:length`, and where it ends."""
    _, folder, file, offset, length = map(urllib.parse.unquote, location.split(":"))
    return item / folder / file, int(offset) + int(length)
