"""Takes the steps of a job, notes their batches, and saves every second one.

It may be killed after the last one.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from datarax_tfds import Pipeline, prefetch_to_device


def take_steps(
    source, mesh, place: Path, arguments: list[str], after_step: Callable[[], None] = lambda: None
) -> None:
    """Goes on from the state that is saved in `place`.

    Args:
        source: Is at its beginning.
        mesh: Spans all processes.
        place: Where the notes and the state are.
        arguments: The batch size, the number of steps, and `killed` or `ends`.
        after_step: Called after each step.
    """
    batch_size, steps, ending = arguments
    leader = jax.process_index() == 0
    pipeline = Pipeline(source=source, batch_size=int(batch_size))
    saved = place / "state.json"
    if saved.exists():
        pipeline.set_state(json.loads(saved.read_text()))
    everywhere = jax.jit(lambda batch: batch, out_shardings=NamedSharding(mesh, PartitionSpec()))
    before, step = pipeline.cursor, 0
    for batch in prefetch_to_device(pipeline.steps(int(steps)), 2):
        rows = {name: np.asarray(column) for name, column in everywhere(batch).items()}
        position = before.epoch * len(source) + before.index
        note = {"position": position, **{name: column.tolist() for name, column in rows.items()}}
        with open(place / f"rows-{jax.process_index()}", "a") as notes:
            notes.write(json.dumps(note) + "\n")
        before, step = pipeline.cursor, step + 1
        after_step()
        if step % 2 == 0 and leader:
            saved.write_text(json.dumps(pipeline.get_state()))
    if ending == "killed" and leader:
        os.kill(os.getpid(), signal.SIGKILL)
