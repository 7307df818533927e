"""Logs the cursor after each batch, so that `audit` can check what was delivered."""

import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

import jax

from datarax_tfds.history.log_files import log_at, log_lines
from datarax_tfds.history.logged_orders import logged_parts
from datarax_tfds.order.cursor import Cursor
from datarax_tfds.order.mixture import MixtureOrder
from datarax_tfds.order.wide_numbers import join_words
from datarax_tfds.pipeline import Pipeline
from datarax_tfds.state.state import to_state
from sharding.checks import refused
from sharding.hosts.agreement import run_id

FORMAT = 1

_ordinals = itertools.count()


class CursorLog:
    """Logs every batch that was trained on, for `audit`.

        log = CursorLog(f"{directory}/cursors-{jax.process_index()}.jsonl", pipeline)
        for batch in pipeline:
            train_step(batch)
            log.note()

    Build it after the pipeline has been restored. The log of one process is enough, because all
    processes have the same cursor. If several processes write logs, each needs its own file, and
    the audit also compares the logs. With `max_corrupt_records` every process should write a log,
    because only the process that reads a corrupt record notes it. A line has about 60 bytes; it is
    written at once, and is not lost if the process is killed.

    In a store (`gs://`, `s3://`), nothing can be appended to an object. There the log is a
    directory of objects, which are written in the background, every second. `DataSave` waits until
    all lines are written, so that the log is never behind a checkpoint; if you save the state in
    another way, call `flush()` first.

    Args:
        path: The file to append to, or the directory in a store. Runs that continue a job may use
            the same one.
        pipeline: The pipeline whose batches are noted.

    Raises:
        TypeError: `pipeline` is not a `Pipeline`.
        OSError: The log cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], pipeline: Pipeline):
        if not isinstance(pipeline, Pipeline):
            raise refused(
                TypeError,
                "CursorLog",
                "pipeline must be a Pipeline, which says how many records a batch has.",
                pipeline=type(pipeline).__name__,
                fix="pass the pipeline; for a source, Pipeline(source=source, batch_size=...)",
            )
        self._pipeline = pipeline
        self._log = log_at(path)
        self._begin(pipeline.cursor)

    def _begin(self, cursor: Cursor) -> None:
        pipeline = self._pipeline
        self._run = f"{run_id()}-{next(_ordinals)}"  # the same on every process
        self._order, self._noted, self._corrupt = pipeline.sampler.order, cursor, 0
        parts = logged_parts(self._order)
        self._write(
            begins={
                "format": FORMAT,
                "batch_size": pipeline.batch_size,
                "processes": jax.process_count(),
                "state": to_state(cursor, pipeline.identity),
                **({} if parts is None else {"parts": parts}),
            },
            **self._new_corrupt(),
        )

    @staticmethod
    def lines(path: str | os.PathLike[str]) -> Iterator[str]:
        """Yields the lines of a log, for `audit`.

        Args:
            path: What the `CursorLog` was given.

        Raises:
            FileNotFoundError: There is no log.
            OSError: The log cannot be read.
        """
        return log_lines(path)

    def flush(self) -> None:
        """Waits until all lines are written. Only in a store are they not written at once.

        Raises:
            OSError: The lines cannot be written. They are kept, and tried again.
        """
        self._log.flush()

    def note(self, numbers: jax.Array | None = None) -> None:
        """Notes the batch that the pipeline returned last.

        Args:
            numbers: `batch["record_number"]` of a pipeline with `record_numbers`. The audit then
                compares the records themselves, too.

        Raises:
            OSError: The log cannot be written; in a store, also for lines before.
        """
        if isinstance(self._order, MixtureOrder) and self._order != self._pipeline.sampler.order:
            self._begin(self._noted)  # other weights since the last batch: a run of its own
        cursor = self._noted = self._pipeline.cursor
        rows: dict[str, Any] = {}
        if numbers is not None:
            rows["rows"] = [
                [shard.index[0].indices(len(numbers))[0], join_words(shard.data).tolist()]
                for shard in numbers.addressable_shards
                if shard.replica_id == 0
            ]
        self._write(at=[cursor.epoch, cursor.index], **rows, **self._new_corrupt())

    def _new_corrupt(self) -> dict[str, Any]:
        """All corrupt records so far, if the log does not have them all yet."""
        corrupt = self._pipeline.source.corrupt_records
        if len(corrupt) == self._corrupt:
            return {}
        self._corrupt = len(corrupt)
        return {"corrupt": sorted(corrupt.items())}

    def _write(self, **fields: Any) -> None:
        line = json.dumps({"run": self._run, **fields}, separators=(",", ":"))
        self._log.append(f"{line}\n".encode())
