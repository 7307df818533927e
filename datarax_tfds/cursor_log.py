"""A log of where a run stands, from which an audit tells what was delivered."""

import itertools
import json
import os
from typing import Any

import jax
import numpy as np

from datarax_tfds.pipeline import Pipeline
from sharding import run_id

FORMAT = 1

_ordinals = itertools.count()


class CursorLog:
    """Notes every batch that was trained on, for `audit`.

        log = CursorLog(f"{directory}/cursors-{jax.process_index()}.jsonl", pipeline)
        for batch in pipeline:
            train_step(batch)
            log.note()

    Build it once the pipeline has been restored. One process that notes is enough, since all stand
    at the same place; where several do, each writes a file of its own, and the audit also compares
    them. A line is written at once, and survives the process; some 60 bytes a batch.

    Args:
        path: Of a file, which grows from run to run.
        pipeline: Whose batches are noted.
    """

    def __init__(self, path: str | os.PathLike[str], pipeline: Pipeline):
        self._pipeline = pipeline
        self._run = f"{run_id()}-{next(_ordinals)}"  # alike on every process
        self._path = path
        self._append(b"\n")  # ends a line that a kill has cut
        self._write(
            begins={
                "format": FORMAT,
                "batch_size": pipeline.batch_size,
                "processes": jax.process_count(),
                "state": pipeline.get_state(),
            }
        )

    def note(self, numbers: jax.Array | None = None) -> None:
        """Notes the batch in hand.

        Args:
            numbers: `batch["record_number"]` of a pipeline with `record_numbers`, so that the audit
                compares what was delivered, too.
        """
        cursor = self._pipeline.cursor
        rows: dict[str, Any] = {}
        if numbers is not None:
            rows["rows"] = [
                [shard.index[0].indices(len(numbers))[0], np.asarray(shard.data).tolist()]
                for shard in numbers.addressable_shards
                if shard.replica_id == 0
            ]
        self._write(at=[cursor.epoch, cursor.index], **rows)

    def _write(self, **fields: Any) -> None:
        line = json.dumps({"run": self._run, **fields}, separators=(",", ":"))
        self._append(f"{line}\n".encode())

    def _append(self, line: bytes) -> None:
        # Opened for each: 20 us, and nothing is left open by whoever forgets the log.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with open(os.open(self._path, flags, 0o644), "ab", buffering=0) as file:
            file.write(line)
