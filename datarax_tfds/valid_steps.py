"""Which steps of a checkpoint are whole: found by looking, not by what was meant to be there."""

import json
import logging
import os
import urllib.parse
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from datarax_tfds import state, state_file
from datarax_tfds.errors import StateMismatchError
from sharding import agree, run_id

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
    The directory is read anew. On several hosts process 0 leaves an empty file there for a moment,
    by which the others see that they share it.

    Args:
        manager: Of checkpoints in a local or mounted directory, or an object store that TensorStore
            and etils reach (`gs://`, `s3://`).
        data: The name of the item that `DataSave` saved.

    Returns:
        The step, the same on every process; None if there is none.

    Raises:
        DisagreementError: Processes do not share the directory, or see different steps in it.
    """
    directory = epath.Path(manager.directory)
    _require_shared(directory)
    found = None
    for step, path in _steps(directory):
        problem = _problem(path, data)
        if problem is None:
            found = step
            break
        _log.warning("%s: step %d is passed over: %s", directory, step, problem)
    agree(f"latest_valid_step of {directory}", {"step": found}, range(jax.process_count()))
    return found


def _require_shared(directory: epath.Path) -> None:
    """Refuses a directory that is another one on every host, before hours of training go there."""
    if jax.process_count() == 1 or state_file.is_remote(directory):
        return
    seen_by, everyone = directory / f".seen-by-all-{run_id()}", range(jax.process_count())
    writer = jax.process_index() == 0 and os.access(directory, os.W_OK)
    if writer:
        seen_by.touch()
    try:
        agree(f"directory of checkpoints {directory}", {}, everyone)  # it is written by now
        there = {"file of process 0": "seen" if seen_by.exists() else "not seen"}
        agree(f"directory of checkpoints {directory}, which all have to share", there, everyone)
    finally:
        if writer:
            seen_by.unlink()


def _steps(directory: epath.Path) -> Iterator[tuple[int, epath.Path]]:
    """All that looks like a step, the newest first."""
    paths = {}
    for path in directory.iterdir():
        number = path.name.rpartition("_")[2]  # with a step_prefix, too
        if number.isdecimal() and path.name.isascii():
            paths[int(number)] = path
    yield from sorted(paths.items(), reverse=True)


def _problem(step: epath.Path, data: str) -> str | None:
    """What is wrong with a step; absent if it is whole."""
    if os.path.islink(step) or not step.is_dir():
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
        if os.path.islink(directory) or not directory.is_dir() or not any(directory.iterdir()):
            return f"item {item!r} is missing"
        try:
            for text in _descriptions(directory):
                json.loads(text.read_bytes())
            for file, size in _files(directory):
                if not file.is_file() or file.stat().length < size:
                    return f"item {item!r} lacks {file.relative_to(step)}, or a part of it"
        except ValueError as error:  # of JSON, or TensorStore's
            return f"item {item!r} is damaged ({str(error).splitlines()[0]})"
    try:
        state.sound(state_file.read(step / data), str(step))
    except StateMismatchError as error:
        return str(error).splitlines()[0]
    return None


def _descriptions(item: epath.Path) -> Iterator[epath.Path]:
    """The JSON files beside arrays, without which Orbax does, but not with a half of one."""
    for path in (item / "_METADATA", item / "_sharding", *item.glob("array_metadatas/*")):
        if path.is_file():
            yield path


def _files(item: epath.Path) -> Iterator[tuple[epath.Path, int]]:
    """The files that an item of arrays refers to, and how many bytes of each."""
    if (item / "_METADATA").exists() != (item / _MANIFEST).exists():
        yield item / _MANIFEST, 1
        yield item / "_METADATA", 1
    if not (item / _MANIFEST).exists():
        return
    import tensorstore as ts  # a second; a checkpoint without arrays does without

    remote = state_file.is_remote(item)
    store = ts.KvStore.open(f"{item}/" if remote else {"driver": "file", "path": f"{item}/"})
    store = store.result()
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


def _place(item: epath.Path, location: str) -> tuple[epath.Path, int]:
    """The file of a TensorStore location, `kind:folder:file:offset:length`, and where it ends."""
    _, folder, file, offset, length = map(urllib.parse.unquote, location.split(":"))
    return item / folder / file, int(offset) + int(length)
