"""Saves and restores the state of a pipeline as an item of an Orbax checkpoint.

    manager.save(step, args=ocp.args.Composite(
        model=ocp.args.StandardSave(state), data=DataSave(pipeline)))
    ...
    manager.restore(step, args=ocp.args.Composite(
        model=ocp.args.StandardRestore(state), data=DataRestore(pipeline)))

The pipeline then continues from there. With `orbax.checkpoint.v1`, use `DataCheckpointable`.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import orbax.checkpoint as ocp
from etils import epath

from datarax_tfds.state import state_file
from datarax_tfds.state.before_saving import flush_all
from datarax_tfds.state.valid_steps import latest_valid_step
from sharding.checks import refused
from sharding.hosts.agreement import agree
from sharding.placement import processes_of

__all__ = [
    "DataCheckpointable",
    "DataHandler",
    "DataRestore",
    "DataSave",
    "Stateful",
    "latest_valid_step",
]


@runtime_checkable
class Stateful(Protocol):
    """Something with a state to save: a `Pipeline` or a source."""

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: Mapping[str, Any]) -> None: ...


class PathAwaitingCreation(Protocol):
    """Orbax's promise of a directory."""

    async def await_creation(self) -> epath.Path: ...


class DataHandler(ocp.AsyncCheckpointHandler):
    """Writes one small file into each directory of a checkpoint.

    Orbax calls `finalize` in the primary process of every directory, when the directory exists and
    all other items are written. The file is written there, and not in a future that `async_save`
    returns: Orbax starts those when any process has created its directory. With a directory for
    each process (`MultiprocessingOptions(primary_host=None)`), this may be another process.

    Orbax stores the name of this class in every checkpoint, so the class must not move.
    """

    def __init__(self):
        self._states: dict[Path, dict[str, Any]] = {}  # one per item of the current save

    async def async_save(self, directory: Path, args: "DataSave") -> list[Any]:
        self.save(directory, args)
        return []

    def save(self, directory: Path, args: "DataSave") -> None:
        # The items of one save have the same parent directory. Only a primary process removes
        # its entries, in `finalize`, so those of earlier saves are removed here.
        here = Path(directory)
        self._states = {d: s for d, s in self._states.items() if d.parent == here.parent}
        self._states[here] = args.state

    def finalize(self, directory: epath.Path) -> None:
        state = self._states.pop(Path(directory), None)
        if state is not None:
            state_file.write(directory, state)

    def restore(self, directory: Path, args: "DataRestore | None" = None) -> dict[str, Any]:
        state = state_file.read(directory)
        if args is not None and args.pipeline is not None:
            args.pipeline.set_state(state)
        return state

    def metadata(self, directory: epath.Path) -> dict[str, Any]:
        """The state itself, as `CheckpointManager.item_metadata` shows it."""
        return state_file.read(directory)


@ocp.args.register_with_handler(DataHandler, for_save=True)
@dataclass
class DataSave(ocp.args.CheckpointArgs):
    """Saves the state that a pipeline (or a source) has when this object is built.

    All processes of the pipeline's mesh have to build it, because they compare their states. If
    only process 0 builds it, it waits for the others until the time limit, and raises.

    Args:
        pipeline: The pipeline to save. It may continue at once, even during the save.
    """

    pipeline: Stateful
    state: dict[str, Any] = field(init=False)

    def __post_init__(self):
        _require_stateful(self.pipeline, "DataSave")
        self.state = _agreed(self.pipeline)


@ocp.args.register_with_handler(DataHandler, for_restore=True)
@dataclass
class DataRestore(ocp.args.CheckpointArgs):
    """Restores a pipeline (or a source) to a saved state, on every process.

    The restored item is the state, a dict. Without a pipeline, as when tools call
    `manager.restore(step)`, it is only returned. Raises `StateMismatchError` if the state is
    damaged, or of another dataset, split, order, seed or remainder, and then does not change the
    pipeline.

    Args:
        pipeline: The pipeline to restore.
    """

    pipeline: Stateful | None = None

    def __post_init__(self):
        if self.pipeline is not None:
            _require_stateful(self.pipeline, "DataRestore")


class DataCheckpointable:
    """Saves and restores a pipeline (or a source) with `orbax.checkpoint.v1`.

        v1.save_checkpointables(path, {"model": state, "data": DataCheckpointable(pipeline)})
        v1.load_checkpointables(path, {"model": state, "data": DataCheckpointable(pipeline)})

    It writes the same file as `DataSave`, and raises the same errors.

    Args:
        pipeline: The pipeline, whose state at the beginning of the save is saved.
    """

    def __init__(self, pipeline: Stateful):
        _require_stateful(pipeline, "DataCheckpointable")
        self._pipeline = pipeline

    async def save(self, directory: PathAwaitingCreation) -> Awaitable[None]:
        # Orbax has no public name for the options that apply here.
        from orbax.checkpoint.experimental.v1._src.context import context

        primary = context.get_context().multiprocessing_options.primary_host
        state = _agreed(self._pipeline)

        async def write() -> None:
            there = await directory.await_creation()
            if primary in (None, jax.process_index()):
                state_file.write(there, state)

        return write()

    async def load(self, directory: epath.Path) -> Awaitable[None]:
        # Not in the awaitable, because Orbax reports errors in it as those of a wrong handler.
        self._pipeline.set_state(state_file.read(directory))
        return asyncio.sleep(0)


def _require_stateful(pipeline: Any, subject: str) -> None:
    if not isinstance(pipeline, Stateful):
        raise refused(
            TypeError,
            subject,
            "pipeline must be a Pipeline or a source.",
            pipeline=type(pipeline).__name__,
            fix="pass the pipeline or the source itself, not an iterator over it",
        )


def _agreed(pipeline: Stateful) -> dict[str, Any]:
    """The state, which must be the same on every process, because one process writes it.

    The logs of the batches before it are written first.
    """
    flush_all()
    state = pipeline.get_state()
    sharding = getattr(getattr(pipeline, "source", pipeline), "sharding", None)
    processes = range(jax.process_count()) if sharding is None else processes_of(sharding)
    agree("save", state, processes)
    return state
