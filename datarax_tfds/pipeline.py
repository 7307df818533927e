"""A source and the stages behind it, as batches: one compiled program a step."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, NoReturn, Self

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding

from datarax_tfds.arguments import require_rngs
from datarax_tfds.cursor import Cursor, Remainder, Schedule
from datarax_tfds.opened import Records
from datarax_tfds.prefetch import handed_out
from datarax_tfds.source import Source, constructor_signature, refuse_pickling
from datarax_tfds.spec import require_arrays
from datarax_tfds.stages import Batch, Stage, StageGraph, are_random, chain, graph_of, values_of
from datarax_tfds.state import Identity, restored, saved
from sharding import check_batch_size, on_mesh, take_rows
from sharding.integers import is_integer
from sharding.messages import explain

MASK, NUMBER = "mask", "record_number"


class Pipeline(nnx.Module):
    """Batches of a source, through stages, from the source's cursor.

        pipeline = Pipeline(source=source, stages=[normalize], batch_size=128)
        for batch in pipeline:          # the rest of the current epoch
            train_step(model, batch)

    Three ways to drive it give the same batches: this loop, `step` inside a function of your own
    that `nnx.jit` compiles, and `scan`, many steps as one program.

    Batch k is the same, bit for bit, wherever it is made. The cursor is the source's own; it
    counts the batches that were handed out, whatever is prefetched.

    A stage is a function of a batch, or an NNX module, whose state stays with it. If it takes
    `keys`, it is given a PRNG key for each record, `[batch_size]`. A module that holds `nnx.Rngs`
    is applied to each record alone, as a batch of one, with streams of that record's own. Both
    depend on nothing but the seed of the source, the epoch and the number of the record (and the
    module's own streams): a record is augmented alike on any number of hosts, in a batch of any
    size, and after any resume.

    Args:
        source: Where records come from.
        stages: Applied in order to each batch, compiled with the gather into one program.
        batch_size: Rows over all processes, a multiple of the row shards of the source.
        rngs: Kept as `rngs`, for callers that hand streams around.
        remainder: What the last batch of an epoch holds if `batch_size` does not divide the epoch.
            `wrap` completes it from the next epoch, `drop` leaves the records out, and `pad`
            fills it with zeros; then every batch has a bool `mask`, `[batch_size]`, true for
            records.
        record_numbers: Whether every batch has a `record_number`, `[batch_size]` int32: the place
            of each record as stored, -1 for padding. It passes by the stages.

    Raises:
        TypeError: A source, or a stage, that is none.
        ValueError: A batch size that does not divide over the mesh, records that cannot be rows of
            an array, `drop` with fewer records than one batch, or a feature that is itself named
            `mask` or `record_number` where that is added.
    """

    def __init__(
        self,
        *,
        source: Source,
        stages: Sequence[Stage] = (),
        batch_size: int,
        rngs: nnx.Rngs | None = None,
        remainder: Remainder = "wrap",
        record_numbers: bool = False,
    ):
        if not isinstance(source, Source):
            raise TypeError(
                explain(
                    "Pipeline",
                    "batches come from a source.",
                    source=type(source).__name__,
                    fix="pass a TFDSEagerSource or a TFDSStreamingSource, or use from_tfds",
                )
            )
        require_rngs(rngs, "Pipeline")
        graph = chain(stages)
        check_batch_size(batch_size, source.sharding)
        require_arrays(source.element_spec(), source.name)
        self.source = source
        self.stages = nnx.List(stages)
        self.batch_size = int(batch_size)
        self.rngs = rngs
        self._link(graph)
        self.schedule = Schedule(len(source), self.batch_size, remainder)
        self.record_numbers = record_numbers
        added = {MASK: remainder == "pad", NUMBER: record_numbers}
        for name in (name for name, adds in added.items() if adds):
            if name in source.element_spec():
                raise ValueError(
                    explain(
                        "Pipeline",
                        f"{name!r} is added to a batch, and the records have one already.",
                        source=source.name,
                        fix=f"leave that feature out with exclude_keys={{{name!r}}}, or do without"
                        " remainder='pad' and record_numbers",
                    )
                )
        fields = {"batch_size": self.batch_size, "remainder": remainder, "stages": len(stages)}
        source.agree("Pipeline", dataclasses.asdict(source.cursor) | fields)

    @classmethod
    def from_dag(
        cls,
        *,
        source: Source,
        nodes: Mapping[str, Stage],
        edges: Mapping[str, Sequence[str]],
        sink: str,
        batch_size: int,
        rngs: nnx.Rngs | None = None,
        remainder: Remainder = "wrap",
        record_numbers: bool = False,
    ) -> Self:
        """A pipeline whose stages branch and merge.

            Pipeline.from_dag(
                source=source,
                nodes={"plain": normalize, "noisy": augment, "both": lambda one, other: ...},
                edges={"plain": [], "noisy": ["plain"], "both": ["plain", "noisy"]},
                sink="both",
                batch_size=128,
            )

        Args:
            source: As for `Pipeline`.
            nodes: Stages by name. Each takes as many batches as it has edges.
            edges: For each name, those whose results it takes, in the order of its parameters; none
                for the batch of the source.
            sink: Whose result is handed out.
            batch_size: As for `Pipeline`.
            rngs: Likewise.
            remainder: Likewise.
            record_numbers: Likewise.

        Raises:
            TypeError: As for `Pipeline`; and nodes or edges that are no dict.
            ValueError: As for `Pipeline`; and a name without a stage, a stage without edges, a
                cycle, or a stage that the sink does not depend on.
        """
        graph, stages = graph_of(nodes, edges, sink)
        pipeline = cls(
            source=source,
            batch_size=batch_size,
            rngs=rngs,
            remainder=remainder,
            record_numbers=record_numbers,
        )
        pipeline.stages = nnx.List(stages)
        pipeline._link(graph)
        return pipeline

    def _link(self, graph: StageGraph) -> None:
        self._graph = nnx.static(graph)
        self._random = are_random(self.stages)
        self._staged = nnx.static(_staged(self.source.records, graph, self.source.sharding))
        self._scanned = nnx.static(_scanned(self.source.records, graph, self.source.sharding))

    def __iter__(self) -> Iterator[Batch]:
        """The batches from the cursor to the end of its epoch."""
        return handed_out(self, size=0)

    def __len__(self) -> int:
        """How many batches the next `for` hands out."""
        return self.schedule.steps(self.cursor)

    def step(self) -> Batch:
        """The next batch, running on into the next epoch.

        Inside a compiled function, pass the pipeline as an argument, and use `nnx.jit`:

            @nnx.jit
            def train_step(model, optimizer, pipeline):
                batch = pipeline.step()

        Raises:
            NotImplementedError: In a compiled function, of a stream.
        """
        before = self.cursor
        traced = isinstance(before.index, jax.core.Tracer)
        batch = self._batch_within(before) if traced else self._batch(before)
        self.move_to(self.schedule.after(before))
        return batch

    def scan(
        self,
        step_fn: Callable[..., Any],
        *,
        length: int,
        modules: Sequence[Any] = (),
        init_carry: Any = None,
    ) -> Any:
        """`length` steps as one XLA program, over the ends of epochs.

            losses = pipeline.scan(train_step, length=len(pipeline), modules=(model, optimizer))

        Compiled once for a `step_fn`, a length and a structure of the modules: pass the same
        function each time.

        Args:
            step_fn: `step_fn(*modules, batch)`, which may change the modules and returns what is to
                be collected, or `step_fn(carry, *modules, batch)`, which returns a new carry, too.
            length: How many steps.
            modules: NNX modules, as a model and its optimizer; they keep what the steps change.
            init_carry: The first carry; absent for the first form.

        Returns:
            What the steps returned, stacked, `[length, ...]`; with a carry, `(carry, stacked)`.

        Raises:
            NotImplementedError: Of a stream.
            TypeError: `step_fn` is no function, or `modules` no list.
            ValueError: `length` is not a positive integer.
        """
        if not callable(step_fn) or not isinstance(modules, list | tuple | nnx.List):
            raise TypeError(
                explain(
                    "Pipeline.scan",
                    "step_fn is a function, and modules are what it takes beside the batch.",
                    step_fn=type(step_fn).__name__,
                    modules=type(modules).__name__,
                    fix="pass scan(step_fn, length=..., modules=(model, optimizer))",
                )
            )
        if not is_integer(length, 1):
            raise ValueError(
                explain(
                    "Pipeline.scan",
                    "length is a number of steps.",
                    length=repr(length),
                    fix="use length=len(pipeline) for the rest of the epoch",
                )
            )
        numbers, rows, end = self._steps(length)
        shared, numbers = self.source.records.fetch_steps(numbers)
        graphdef, state = nnx.split((self.stages, tuple(modules)))
        (state, carry), outputs = self._scanned(
            shared,
            (numbers, rows),
            on_mesh((state, init_carry), self.source.sharding.mesh),
            graphdef,
            step_fn,
        )
        nnx.update((self.stages, tuple(modules)), state)
        self.move_to(end, batches=length)
        return outputs if init_carry is None else (carry, outputs)

    @property
    def cursor(self) -> Cursor:
        """The next position to hand out: the source's."""
        return self.source.cursor

    def move_to(self, cursor: Cursor, batches: int = 1) -> None:
        """Goes on from another position, as many batches ahead."""
        if self.schedule.remainder == "drop":
            before = self.cursor
            passed = (cursor.epoch - before.epoch) * len(self.source) + cursor.index - before.index
            self.source.left_out(passed - batches * self.batch_size)
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
        cursor = restored(state, self.identity, f"Pipeline of {self.source.name}")
        self.source.agree("Pipeline.set_state", dataclasses.asdict(cursor))
        self.source.jump_to(cursor)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_pickling(f"Pipeline of {self.source.name}")

    def _batch(self, cursor: Cursor) -> Batch:
        records = self.source.records
        selection = self.source.positions.at(self.schedule, cursor)
        pads = self.schedule.remainder == "pad"
        if not self.stages and not pads and not self.record_numbers:
            return records.take(selection)
        graphdef, state = nnx.split(self.stages)
        rows = _Rows(
            real=np.int32(selection.records) if pads else None,
            keys=selection.keys() if self._random else None,
            numbers=selection.numbers().astype(np.int32) if self.record_numbers else None,
        )
        batch, changes = self._staged(records.fetch(selection), rows, state, graphdef)
        nnx.update(self.stages, changes)
        return batch

    def _batch_within(self, cursor: Cursor) -> Batch:
        """`_batch` in a program of the caller's."""
        schedule, positions = self.schedule, self.source.positions
        start = schedule.settled(cursor)
        epochs, numbers = positions.numbers_within(start.epoch, start.index, self.batch_size)
        real = None
        if schedule.remainder == "pad":
            real = schedule.length - start.index
            is_record = jnp.arange(self.batch_size) < real
            numbers = jnp.where(is_record, numbers, schedule.length)
            epochs = jnp.where(is_record, epochs, 0)
        rows = _Rows(
            real=real,
            keys=positions.keys_within(epochs, numbers) if self._random else None,
            numbers=numbers if self.record_numbers else None,
        )
        batch = self.source.records.take_within(numbers)
        return _through(self._graph, self.stages, batch, rows, self.source.sharding)

    def _steps(self, length: int) -> tuple[np.ndarray, "_Rows", Cursor]:
        """The next batches, as the numbers that each takes and all else that is told of its rows;
        and where the run stands after them.
        """
        batch = self.source.positions.at(self.schedule, self.cursor)
        if self.schedule.remainder == "wrap":
            # One long batch takes the same records, at once.
            whole = dataclasses.replace(self.schedule, batch_size=length * self.batch_size)
            batches = [self.source.positions.at(whole, self.cursor)]
        else:
            batches = list(accumulate(range(length - 1), lambda b, _: b.following, initial=batch))
        shape = (length, self.batch_size)
        pads = self.schedule.remainder == "pad"
        numbers = np.concatenate([batch.numbers() for batch in batches]).reshape(shape)
        keys = [batch.keys() for batch in batches] if self._random else None
        rows = _Rows(
            real=np.array([batch.records for batch in batches], np.int32) if pads else None,
            keys=None if keys is None else np.concatenate(keys).reshape(*shape, 2),
            numbers=numbers.astype(np.int32) if self.record_numbers else None,
        )
        return numbers, rows, batches[-1].following.cursor


Pipeline.__signature__ = constructor_signature(Pipeline)


class _Rows(NamedTuple):
    """What is told of the rows of a batch, beside the records: or of those of many, `[steps, ...]`.

    Each is absent where nobody needs it.
    """

    real: Any  # [], how many rows are records
    keys: Any  # [batch_size, 2], of random stages
    numbers: Any  # [batch_size], of the records; N stands for padding


def _through(
    graph: StageGraph, stages: Sequence[Stage], batch: Batch, rows: _Rows, places: NamedSharding
) -> Batch:
    """A batch through its stages, with all that is added to it; traceable."""
    size = jax.tree.leaves(batch)[0].shape[0]
    every = jnp.arange(size, dtype=jnp.int32)

    def placed(values: Any) -> jax.Array:
        return take_rows(jnp.asarray(values), every, places, "replicated")

    if rows.real is not None:
        batch |= {MASK: placed(every < rows.real)}
    batch = graph.apply(stages, batch, None if rows.keys is None else placed(rows.keys))
    if rows.numbers is None:
        return batch
    numbers = rows.numbers if rows.real is None else jnp.where(every < rows.real, rows.numbers, -1)
    return batch | {NUMBER: placed(numbers)}


def _staged(
    records: Records, graph: StageGraph, places: NamedSharding
) -> Callable[..., tuple[Batch, nnx.State]]:
    """A batch through the stages, and what they changed of their state: as one program.

    Compiled for one pipeline, so that records go when it does.
    """

    @partial(jax.jit, static_argnames="graphdef")
    def staged(
        fetched: Any, rows: _Rows, state: nnx.State, graphdef: Any
    ) -> tuple[Batch, nnx.State]:
        before = values_of(state)
        stages = nnx.merge(graphdef, state)
        batch = _through(graph, stages, records.build(fetched), rows, places)
        state_after = nnx.state(stages)
        after = nnx.to_flat_state(state_after)
        # Only what changed leaves the program: returning the parameters would copy them.
        changes = [
            (path, leaf)
            for (path, leaf), new, old in zip(after, values_of(state_after), before, strict=True)
            if new is not old
        ]
        return batch, nnx.from_flat_state(changes)

    return staged


def _scanned(records: Records, graph: StageGraph, places: NamedSharding) -> Callable[..., Any]:
    """Many steps as one program, compiled for one pipeline, as `_staged`."""

    @partial(jax.jit, static_argnames=("graphdef", "step_fn"))
    def scanned(shared: Any, steps: Any, start: Any, graphdef: Any, step_fn: Any) -> Any:
        def body(state_and_carry: Any, step: tuple[Any, _Rows]) -> Any:
            numbers, rows = step
            state, carry = state_and_carry
            stages, modules = nnx.merge(graphdef, state)
            batch = records.build((shared, numbers))
            batch = _through(graph, stages, batch, rows, places)
            if carry is None:
                output = step_fn(*modules, batch)
            else:
                carry, output = step_fn(carry, *modules, batch)
            return (nnx.state((stages, modules)), carry), output

        return lax.scan(body, start, steps)

    return scanned
