"""Where a pipeline stands, as an item of an Orbax checkpoint.

manager.save(step, args=ocp.args.Composite(
    model=ocp.args.StandardSave(state), data=DataSave(pipeline)))
...
manager.restore(step, args=ocp.args.Composite(
    model=ocp.args.StandardRestore(state), data=DataRestore(pipeline)))
# and the pipeline goes on from there
"""

import asyncio
import os
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import future

from datarax_tfds import state_file
from datarax_tfds.valid_steps import latest_valid_step
from sharding import agree

__all__ = [
    "DataCheckpointable",
    "DataHandler",
    "DataRestore",
    "DataSave",
    "Stateful",
    "latest_valid_step",
]


class Stateful(Protocol):
    """What has a place to save: a `Pipeline`, a source."""

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: Mapping[str, Any]) -> None: ...


class PathAwaitingCreation(Protocol):
    """Orbax's promise of a directory."""

    async def await_creation(self) -> epath.Path: ...


class DataHandler(ocp.AsyncCheckpointHandler):
    """One small file, written by process 0 and read by all.

    Orbax stores the name of this class in every checkpoint, so it does not move.
    """

    async def async_save(self, directory: Path, args: "DataSave") -> list[Any]:
        return [future.CommitFutureAwaitingContractedSignals(_write(directory, args.state))]

    def save(self, directory: Path, args: "DataSave") -> None:
        asyncio.run(_write(directory, args.state))

    def restore(self, directory: Path, args: "DataRestore") -> dict[str, Any]:
        state = state_file.read(directory)
        args.pipeline.set_state(state)
        return state


@ocp.args.register_with_handler(DataHandler, for_save=True)
@dataclass
class DataSave(ocp.args.CheckpointArgs):
    """Saves the place of a pipeline (or a source) as it is now, when this is built.

    Args:
        pipeline: Whose place. It may go on at once, also while a save is under way.
    """

    pipeline: Stateful
    state: dict[str, Any] = field(init=False)

    def __post_init__(self):
        self.state = _agreed(self.pipeline)


@ocp.args.register_with_handler(DataHandler, for_restore=True)
@dataclass
class DataRestore(ocp.args.CheckpointArgs):
    """Moves a pipeline (or a source) to a saved place, on every process.

    The restored item is the state itself. Raises `StateMismatchError` where the state is damaged,
    or of another dataset, split, order, seed or remainder; the pipeline then stays where it was.

    Args:
        pipeline: What goes on from there.
    """

    pipeline: Stateful


class DataCheckpointable:
    """A pipeline (or a source) for `orbax.checkpoint.v1`: its place, beside a model.

    v1.save_checkpointables(path, {"model": state, "data": DataCheckpointable(pipeline)})
    v1.load_checkpointables(path, {"model": state, "data": DataCheckpointable(pipeline)})

    The same file as that of `DataSave`, with the same errors.

    Args:
        pipeline: Whose place. What is saved is where it stands when the save begins.
    """

    def __init__(self, pipeline: Stateful):
        self._pipeline = pipeline

    async def save(self, directory: PathAwaitingCreation) -> Awaitable[None]:
        state = _agreed(self._pipeline)

        async def write() -> None:
            await _write(await directory.await_creation(), state)

        return write()

    async def load(self, directory: epath.Path) -> Awaitable[None]:
        # Not in what is awaited later: Orbax reports errors of that as a wrong handler.
        self._pipeline.set_state(state_file.read(directory))
        return asyncio.sleep(0)


def _agreed(pipeline: Stateful) -> dict[str, Any]:
    """The state, which must be the same on every process: one of them writes it."""
    state = pipeline.get_state()
    agree("save", state, range(jax.process_count()))
    return state


async def _write(directory: os.PathLike[str], state: dict[str, Any]) -> None:
    if jax.process_index() == 0:
        state_file.write(directory, state)
