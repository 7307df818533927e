"""A source and the stages behind it, as batches: one compiled program a step."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from datarax_tfds.cursor import Cursor, Remainder, Schedule
from datarax_tfds.prefetch import handed_out
from datarax_tfds.source import Records, Source
from datarax_tfds.spec import require_arrays
from datarax_tfds.state import Identity, restored, saved
from sharding import check_batch_size, global_batch
from sharding.messages import explain

Batch = dict[str, Any]
Stage = Callable[[Batch], Batch]

MASK = "mask"


class Pipeline(nnx.Module):
    """Batches of a source, through stages, from the source's cursor.

        pipeline = Pipeline(source=source, stages=[normalize], batch_size=128)
        for batch in pipeline:          # the rest of the current epoch
            train_step(model, batch)

    Batch k is the same, bit for bit, wherever it is made. The cursor is the source's own; it
    counts the batches that were handed out, whatever is prefetched.

    Args:
        source: Where records come from.
        stages: Applied in order to each batch, compiled with the gather into one program: functions
            of a batch, or NNX modules, whose state stays with them. A stage that is random
            draws from its own streams.
        batch_size: Rows over all processes, a multiple of the row shards of the source.
        rngs: Kept as `rngs`, for callers that hand streams around.
        remainder: What the last batch of an epoch holds if `batch_size` does not divide the epoch.
            `wrap` completes it from the next epoch, `drop` leaves the records out, and `pad`
            fills it with zeros; then every batch has a bool `mask`, `[batch_size]`, true for
            records.

    Raises:
        ValueError: A batch size that does not divide over the mesh, records that cannot be rows of
            an array, `drop` with fewer records than one batch, or `pad` with a feature that is
            itself named `mask`.
    """

    def __init__(
        self,
        *,
        source: Source,
        stages: Sequence[Stage] = (),
        batch_size: int,
        rngs: nnx.Rngs | None = None,
        remainder: Remainder = "wrap",
    ):
        check_batch_size(batch_size, source.sharding)
        require_arrays(source.element_spec(), source.name)
        self.source = source
        self.stages = nnx.List(stages)
        self.batch_size = int(batch_size)
        self.rngs = rngs
        self._staged = nnx.static(_staged(source.records))
        self.schedule = Schedule(len(source), self.batch_size, remainder)
        if remainder == "pad" and MASK in source.element_spec():
            raise ValueError(
                explain(
                    "Pipeline",
                    f"remainder='pad' adds {MASK!r} to a batch, and the records have one already.",
                    source=source.name,
                    fix=f"leave that feature out with exclude_keys={{{MASK!r}}}, or use another"
                    " remainder",
                )
            )

    def __iter__(self) -> Iterator[Batch]:
        """The batches from the cursor to the end of its epoch."""
        return handed_out(self, size=0)

    def __len__(self) -> int:
        """How many batches the next `for` hands out."""
        return self.schedule.steps(self.cursor)

    @property
    def cursor(self) -> Cursor:
        """The next position to hand out: the source's."""
        return self.source.cursor

    def move_to(self, cursor: Cursor) -> None:
        """Goes on from another position."""
        self.source.move_to(cursor)

    def ahead(self) -> Iterator[tuple[Cursor, Batch, Cursor]]:
        """The rest of the epoch, without moving the cursor: where each batch begins, the batch,
        and where the next one does.
        """
        before = self.cursor
        for _ in range(len(self)):
            after = self.schedule.after(before)
            yield before, self._batch(before), after
            before = after

    def reset(self, seed: int | None = None) -> None:
        """Goes back to the first record of epoch 0; with a seed, of another order."""
        self.source.reset(seed)

    @property
    def identity(self) -> Identity:
        """What a saved cursor is valid for."""
        return dataclasses.replace(self.source.identity, remainder=self.schedule.remainder)

    def get_state(self) -> dict[str, Any]:
        """The cursor and what it is valid for: under 2 KB of JSON types, alike on every process.

        With the default remainder, the state of the source itself.
        """
        return saved(self.cursor, self.identity)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state: with exactly the batch that would have come next.

        Costs the same anywhere in an epoch, also within a `for`. The number of processes, the
        mesh, the batch size and the prefetch depth may be others than when it was saved; with
        another batch size, every record of the epoch is still handed out once.

        Raises:
            TypeError: `state` is not a dict.
            StateMismatchError: A `ValueError`: it is damaged, or of another dataset, split, order,
                seed or remainder; every field that differs is named.
        """
        self.move_to(restored(state, self.identity, f"Pipeline of {self.source.name}"))

    def _batch(self, cursor: Cursor) -> Batch:
        records = self.source.records
        selection = self.source.at(self.schedule, cursor)
        mask = None
        if self.schedule.remainder == "pad":
            real = selection.records
            mask = global_batch(
                lambda rows: np.arange(rows.start, rows.stop) < real,
                self.batch_size,
                self.source.sharding,
            )
        if not self.stages:
            batch = records.take(selection)
            return batch if mask is None else batch | {MASK: mask}
        graphdef, state = nnx.split(self.stages)
        batch, changes = self._staged(records.fetch(selection), mask, state, graphdef)
        nnx.update(self.stages, changes)
        return batch


def _staged(records: Records) -> Callable[..., tuple[Batch, nnx.State]]:
    """A batch through the stages, and what they changed of their state: as one program.

    Compiled for one pipeline, so that records go when it does.
    """

    @partial(jax.jit, static_argnames="graphdef")
    def staged(
        fetched: Any, mask: jax.Array | None, state: nnx.State, graphdef: Any
    ) -> tuple[Batch, nnx.State]:
        batch = records.build(fetched)
        if mask is not None:
            batch |= {MASK: mask}
        before = [variable.get_raw_value() for _, variable in nnx.to_flat_state(state)]
        stages = nnx.merge(graphdef, state)
        for stage in stages:
            batch = stage(batch)
        after = nnx.to_flat_state(nnx.state(stages))
        # Only what changed leaves the program: returning the parameters would copy them.
        changes = [
            (path, variable)
            for (path, variable), old in zip(after, before, strict=True)
            if variable.get_raw_value() is not old
        ]
        return batch, nnx.from_flat_state(changes)

    return staged
