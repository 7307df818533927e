"""Where a pipeline stands, as an item of an Orbax checkpoint.

manager.save(step, args=ocp.args.Composite(
    model=ocp.args.StandardSave(state), data=DataSave(pipeline)))
...
manager.restore(step, args=ocp.args.Composite(
    model=ocp.args.StandardRestore(state), data=DataRestore(pipeline)))
# and the pipeline goes on from there
"""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import future

from datarax_tfds.errors import StateMismatchError
from sharding.messages import explain

_FILE = "data_state.json"


class Stateful(Protocol):
    """What has a place to save: a `Pipeline`, a source."""

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: Mapping[str, Any]) -> None: ...


class DataHandler(ocp.AsyncCheckpointHandler):
    """One small file, written by process 0 and read by all.

    Orbax stores the name of this class in every checkpoint, so it does not move.
    """

    async def async_save(self, directory: Path, args: "DataSave") -> list[Any]:
        return [future.CommitFutureAwaitingContractedSignals(_write(directory, args.state))]

    def save(self, directory: Path, args: "DataSave") -> None:
        asyncio.run(_write(directory, args.state))

    def restore(self, directory: Path, args: "DataRestore") -> dict[str, Any]:
        path = Path(directory) / _FILE
        try:
            state = json.loads(path.read_bytes())
        except ValueError as error:
            raise StateMismatchError(
                explain(
                    str(path),
                    "the saved state is damaged: it is not JSON.",
                    error=error,
                    fix="restore an earlier checkpoint",
                )
            ) from error
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
        self.state = self.pipeline.get_state()


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


async def _write(directory: Path, state: dict[str, Any]) -> None:
    if jax.process_index() == 0:
        with open(Path(directory) / _FILE, "x", encoding="ascii") as file:
            json.dump(state, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
