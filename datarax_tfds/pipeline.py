"""Turns the records of a source, and the stages after it, into batches."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import accumulate, starmap
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax_tfds.config.config import TFDSStreamingConfig
from datarax_tfds.config.fields import Field, flag, integer
from datarax_tfds.decoding.record_spec import require_arrays
from datarax_tfds.order.cursor import Cursor, Remainder, require_cursor, warn_of_repeats
from datarax_tfds.order.growing import AnySchedule, BatchSizes, described, schedule_of, sizes_of
from datarax_tfds.order.sampler import BatchAt, Sampler, Selection, Traced
from datarax_tfds.order.wide_numbers import as_device_numbers
from datarax_tfds.records.records import BatchInputs
from datarax_tfds.report.report import Report
from datarax_tfds.report.reporting import LoggedReports, report_of_all
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.signatures import set_signature
from datarax_tfds.sources.arguments import require, require_step_fn
from datarax_tfds.sources.prefetch import CursorIterator, Taken
from datarax_tfds.sources.source import Source
from datarax_tfds.stages.donation import Donation
from datarax_tfds.stages.graph import chain, graph_of
from datarax_tfds.stages.programs import (
    MASK,
    NUMBER,
    BatchExtras,
    scan_program,
    step_program,
    through_stages,
)
from datarax_tfds.stages.stages import Batch, Stage, StageGraph, are_random, described_stage
from datarax_tfds.state.state import Identity, to_state
from sharding.checks import is_integer, refused
from sharding.jax_context import OwnContext, users_context
from sharding.local_batch import local_batch
from sharding.placement import as_arguments, check_batch_size, mesh_of, on_mesh, processes_of

_DONATED = ("modules", "init_carry")  # what `scan` can donate
_FAULT_FINDERS = ("jax_debug_nans", "jax_debug_infs", "jax_disable_jit")


@not_copied
class Pipeline(nnx.Module):
    """Makes batches from the records of a source, and passes them through stages.

        pipeline = Pipeline(source=source, stages=[normalize], batch_size=128)
        for batch in pipeline:          # the rest of the current epoch
            train_step(model, batch)

    There are three ways to drive it, which give the same batches: this loop, `step` inside a
    function of your own that `nnx.jit` compiles, and `scan`, which runs many steps as one program.
    For loops that ask for batches with `next`, and those of other libraries, there are `batches`
    and `local_batches`.

    Batch k holds the same records, bit for bit, on any mesh and any number of processes. The cursor
    is that of the source. It counts the batches that were handed out, not those prefetched.

    A stage is a function of a batch, or an NNX module that keeps its own state. A stage with a
    parameter `keys` gets a PRNG key for each record, `[batch_size]`. A module that holds `nnx.Rngs`
    sees one record at a time, as a batch of one, with random streams of that record. The random
    numbers depend only on the seed of the source, the epoch, the number of the record, the place of
    the stage and the module's own streams. So a record is augmented identically on any number of
    hosts, in a batch of any size, and after any resume.

    Args:
        source: Where records come from.
        stages: Applied in order to each batch, compiled with the gather into one program.
        batch_size: Rows over all processes, a multiple of the row shards of the source. A list of
            pairs lets it change during the run: `[(0, 256), (1_000_000, 512)]` is 256 until the
            first batch that begins at or after record 1,000,000, counted over all epochs.
        rngs: Stored as `pipeline.rngs`; the pipeline itself does not use it.
        remainder: What happens to the last batch of an epoch if `batch_size` does not divide it:
            `wrap` completes it from the next epoch, `drop` skips those records, and `pad` fills
            the batch with zeros. With `pad`, every batch has a bool `mask`, `[batch_size]`, true
            for records.
        record_numbers: Whether every batch has a `record_number`, `[batch_size]` int32: the stored
            number of each record, -1 for padding. Stages do not get it. If a corrupt record is
            replaced, the number is still that of the corrupt record. With 2**31 records and more,
            the numbers are int64 if `jax_enable_x64` is on, else uint32 `[batch_size, 2]`, which
            `join_words` joins.

    Raises:
        TypeError: `source` is not a source, or a stage cannot be called.
        ValueError: The batch size does not divide over the mesh, the records cannot be rows of an
            array, `drop` would skip all of them, or a feature is itself named `mask` or
            `record_number` and would be overwritten.
    """

    def __init__(
        self,
        *,
        source: Source,
        stages: Sequence[Stage] = (),
        batch_size: BatchSizes,
        rngs: nnx.Rngs | None = None,
        remainder: Remainder = "wrap",
        record_numbers: bool = False,
        _graph: StageGraph | None = None,
    ):
        if not isinstance(source, Source):
            raise refused(
                TypeError,
                "Pipeline",
                f"source must be a datarax_tfds source, got {type(source).__name__}.",
                source=type(source).__name__,
                fix="pass a source, as source=from_tfds('mnist', 'train')",
            )
        require("Pipeline", rngs=rngs)
        graph = chain(stages) if _graph is None else _graph
        sizes = sizes_of(batch_size)
        for size in sizes:
            check_batch_size(size, source.sharding)
        mapped_by = source.config.mapped_by
        require_arrays(source.element_spec(), source.name, mapped_by=mapped_by)
        self.source = source
        self.stages = nnx.List(stages)
        self.rngs = rngs
        self._graph = nnx.static(graph)
        self._random = are_random(self.stages)
        self._staged = nnx.static(step_program(source.records, graph, source.sharding))
        self._scanned = nnx.static(scan_program(source.records, graph, source.sharding))
        strata = source.sampler.order.strata
        self.schedule = schedule_of(len(source), batch_size, remainder, strata)
        self.batch_size = self.schedule.batch_size
        if remainder == "wrap" and max(sizes) > len(source):
            warn_of_repeats(f"Pipeline of {source.name}", max(sizes), len(source))
        self.record_numbers = flag(Field("Pipeline", "record_numbers", record_numbers))
        self._require_free_names()
        # The order of the stages counts, too: it decides their random keys.
        stated = {"stages": list(graph.names), "edges": graph.edges}
        stated |= {"batch_size": self.batch_size, "remainder": remainder}
        source.agree("Pipeline", dataclasses.asdict(source.cursor) | stated)

    @classmethod
    def from_dag(
        cls,
        *,
        source: Source,
        nodes: Mapping[str, Stage],
        edges: Mapping[str, Sequence[str]],
        sink: str,
        batch_size: BatchSizes,
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
            source: Where records come from.
            nodes: Stages by name. Each takes as many batches as it has edges.
            edges: For each name, the nodes whose results it takes, in the order of its parameters.
                An empty list stands for the batch of the source.
            sink: The node whose result is the batch of the pipeline.
            batch_size: As for `Pipeline`, like the arguments below.
            rngs: As for `Pipeline`.
            remainder: As for `Pipeline`.
            record_numbers: As for `Pipeline`.

        Raises:
            TypeError: As for `Pipeline`; also if `nodes` or `edges` is not a dict.
            ValueError: As for `Pipeline`; also if a name has no stage, a stage has no edges, there
                is a cycle, or the sink does not need one of the stages.
        """
        graph, stages = graph_of(nodes, edges, sink)
        return cls(
            source=source,
            stages=stages,
            batch_size=batch_size,
            rngs=rngs,
            remainder=remainder,
            record_numbers=record_numbers,
            _graph=graph,
        )

    def _require_free_names(self) -> None:
        """Raises if the records already have a feature named `mask` or `record_number`."""
        source = self.source
        added = {MASK: self.schedule.remainder == "pad", NUMBER: self.record_numbers}
        taken = {*source.element_spec(), *(source.config.host_keys or ())}
        for name in (name for name, adds in added.items() if adds and name in taken):
            rid = f"let {source.config.mapped_by} name that feature otherwise"
            if source.config.mapped_by is None:
                rid = f"leave that feature out with exclude_keys={{{name!r}}}"
            raise refused(
                ValueError,
                "Pipeline",
                f"{name!r} would be added to a batch, but the records have a feature of that name.",
                source=source.name,
                fix=f"{rid}, or do without remainder='pad' and record_numbers",
            )

    def __iter__(self) -> Iterator[Batch]:
        """Iterates over the batches from the cursor to the end of its epoch."""
        return CursorIterator(self)

    def __repr__(self) -> str:
        stages = ", ".join(map(described_stage, self._graph.names, self.stages)) or "no stages"
        remainder = self.schedule.remainder
        return (
            f"Pipeline: batches of {described(self.batch_size)}, remainder {remainder!r}, {stages};"
            f" {self.source!r}"
        )

    __str__ = __repr__

    def __len__(self) -> int:
        """The number of batches from the cursor to the end of its epoch."""
        return self.schedule.steps(self.cursor)

    def steps(self, n: int) -> Iterator[Batch]:
        """Iterates over exactly n batches from the cursor on, past the ends of epochs.

            for step, batch in enumerate(prefetch_to_device(pipeline.steps(1000 - done)), done):
                train_step(model, batch)

        Only the batches that it returns count: after `set_state` within the loop, it goes on from
        there, and still returns n batches altogether.

        Raises:
            ValueError: `n` is not an integer of at least 0.
        """
        return CursorIterator(self, steps=integer(0)(Field("Pipeline.steps", "n", n)))

    def batches(
        self, num_epochs: int | None = None, *, as_numpy: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Iterates over the batches from the cursor on, past the ends of epochs, for `next`.

            batches = pipeline.batches()
            for step in range(1000):
                train_step(model, next(batches))

        It moves the cursor of the pipeline, as a loop over the pipeline does: several iterators
        take turns, `pipeline.get_state()` is the position after the batch that was handed out last,
        and after `pipeline.set_state` the iterator goes on from there. `prefetch_to_device` takes
        it, too.

        Args:
            num_epochs: After how many epochs of the run to end, counted from its beginning and not
                from the cursor: so a run that is resumed ends where it would have. None for never.
            as_numpy: Whether a batch is made of NumPy arrays, as those of `local_batches`. Needs
                all rows in this process.

        Raises:
            ValueError: `num_epochs` is not an integer of at least 0, or `as_numpy` is set and other
                processes hold rows.
        """
        as_numpy = flag(Field("Pipeline.batches", "as_numpy", as_numpy))
        processes = processes_of(self.source.sharding)
        if as_numpy and len(processes) > 1:
            raise refused(
                ValueError,
                "Pipeline.batches",
                "as_numpy must be left out where several processes hold the rows of a batch.",
                processes=len(processes),
                fix="use local_batches(), which gives each process its own rows",
            )
        if as_numpy:
            return self.local_batches(num_epochs)
        return CursorIterator(self, steps=self._steps_until(num_epochs, "batches"))

    def local_batches(self, num_epochs: int | None = None) -> Iterator[dict[str, Any]]:
        """Iterates as `batches` does, over the rows of this process as NumPy arrays.

        For training loops that place arrays on the devices themselves, such as `fit` of Keras:

            images_and_labels = ((b["image"], b["label"]) for b in pipeline.local_batches())

        The rows are those on the devices of this process, in the order of the global batch, each of
        them once. If several processes hold a row, as along a model axis, each of them gets it.
        Every process must ask for the same batches. Batches are made on the devices, and then
        copied to the host; on a CPU, nothing is copied if the process has one device.

        Args:
            num_epochs: As for `batches`.

        Returns:
            An iterator over arrays `[rows, ...]`, with the `host_keys`. Do not write to them.
        """
        steps = self._steps_until(num_epochs, "local_batches")
        return CursorIterator(self, steps=steps, convert=self._local_batch)

    def step(self) -> Batch:
        """Returns the next batch. After the last one of an epoch, the next epoch begins.

        To call it inside a compiled function, use `nnx.jit` and pass the pipeline as an argument:

            @nnx.jit
            def train_step(model, optimizer, pipeline):
                batch = pipeline.step()

        Such a batch lacks the `host_keys`.

        Raises:
            NotImplementedError: It is called in a compiled function, and the source is a stream.
        """
        return self.advance(self._read)

    def scan(
        self,
        step_fn: Callable[..., Any],
        *,
        length: int,
        modules: Sequence[Any] = (),
        init_carry: Any = None,
        donate_argnames: str | Sequence[str] = ("modules",),
    ) -> Any:
        """Runs `length` steps as one XLA program, also past the end of an epoch.

            losses = pipeline.scan(train_step, length=len(pipeline), modules=(model, optimizer))

        The program is compiled once per `step_fn`, `length` and structure of the modules: pass the
        same function each time.

        Args:
            step_fn: `step_fn(*modules, batch)` returns an output, and may change the modules. With
                `init_carry`, `step_fn(carry, *modules, batch)` returns a new carry and an output.
                The batch lacks the `host_keys`.
            length: The number of steps.
            modules: NNX modules, such as a model and its optimizer. They keep what the steps
                change.
            init_carry: The first carry; None if `step_fn` takes no carry.
            donate_argnames: What is donated to the program, as in `jax.jit`, so that it does not
                exist twice in memory. By default these are the arrays of `modules` and of the
                stages: afterwards the modules hold new arrays, and the old ones are deleted, also
                where something else refers to them (`nnx.state(model)`, or a clone).
                `("modules", "init_carry")` also donates the first carry; `()` donates nothing.
                Nothing is donated under `jax_debug_nans` or `jax_debug_infs`.

        Returns:
            The outputs of the steps, stacked: `[length, ...]`; with a carry, `(carry, outputs)`.

        Raises:
            NotImplementedError: The source is a stream.
            TypeError: `step_fn` is not a function, or `modules` is not a list.
            ValueError: `length` is not a positive integer, the batch size changes within these
                steps, or `donate_argnames` has other names than these two.
            CursorTraceError: It is called in a function that JAX traces, such as `step_fn` itself.
        """
        _require_scannable(step_fn, length, modules)
        donated_names = _donated_names(donate_argnames)
        self.source.require_movable()
        nodes = (self.stages, tuple(modules))
        done: list[Any] = []
        with self.source.turn:
            before = self.cursor
            numbers, rows, end = self._steps(length)
            handed_out = self._handed_out(numbers.size)
            shared, numbers = self.source.records.scan_inputs(numbers)
            graphdef, state = nnx.split(nodes)
            steps = as_arguments((numbers, rows), self.source.sharding)
            start = on_mesh((state, init_carry), self.source.sharding)
            # To find a NaN, JAX runs a program again, so it must not donate the arguments.
            flags = jax.config.values
            runs_once = not (flags["jax_debug_nans"] or flags["jax_debug_infs"])
            wanted = tuple(runs_once and name in donated_names for name in _DONATED)
            donation = Donation.of(start, wanted, shared)
            donated, kept = donation.split(start)
            del state, start
            call = donated, kept, shared, steps, donation, graphdef, step_fn

            def keep() -> None:
                nnx.update(nodes, done[0][0][0])
                self.source.advance_to(end, handed_out)

            try:
                # `extend` is one call into C, so an interrupt comes before or after it. The arrays
                # of the modules were donated, so the modules must get those of the program.
                with users_context(mesh_of(self.source.sharding)):
                    done.extend(starmap(self._scanned, [call]))
                keep()
            except BaseException:
                if done and self.cursor == before:
                    keep()
                raise
        (_, carry), outputs = done[0]
        return outputs if init_carry is None else (carry, outputs)

    @property
    def cursor(self) -> Cursor:
        """The next position to hand out: the source's."""
        return self.source.cursor

    def cursor_at(self, step: int) -> Cursor:
        """Where batch `step` of a run begins, counted from 0; by arithmetic, at any step.

        Raises:
            ValueError: `step` is not an integer of at least 0.
        """
        step = integer(0)(Field("Pipeline.cursor_at", "step", step))
        return self.schedule.advanced(Cursor(), step)

    def step_at(self, cursor: Cursor) -> int:
        """How many batches of a run begin before a cursor: the inverse of `cursor_at`.

        So `step_at(pipeline.cursor)` is the number of steps that were done, and
        `step_at(Cursor(90, 0))` that of 90 epochs, as learning rate schedules need it. Both are
        those of a run that has had this batch size from its beginning.

        Raises:
            TypeError: `cursor` is not a `Cursor`.
            ValueError: It is not a place in an epoch.
        """
        cursor = require_cursor(cursor, self.source.length, "Pipeline.step_at", "cursor")
        return self.schedule.steps_between(Cursor(), cursor)

    @property
    def sampler(self) -> Sampler:
        """Which record stands at which position: the source's."""
        return self.source.sampler

    def advance(self, read: Callable[[Cursor], Taken]) -> Any:
        """Returns what `read` makes, and moves the cursor past it. An error undoes the move."""
        return self.source.advance(read)

    def upcoming(self, steps: int | None = None) -> Iterator[tuple[Cursor, Taken]]:
        """Yields the rest of the epoch, or so many batches, each with its cursor, without moving
        the source.
        """
        before = self.cursor
        for _ in range(len(self) if steps is None else steps):
            taken = self._read(before)
            yield before, taken
            before = taken.after

    def padded_epoch(self) -> Iterator[tuple[Batch, int]]:
        """Yields the batches of epoch 0, each with its number of records, for `evaluate`.

        Whatever `remainder` is, each record comes once, and the last batch is filled with zeros.
        Neither the cursor nor the stages change.
        """
        cursor = Cursor()
        schedule = dataclasses.replace(self.schedule.at(cursor), remainder="pad")
        while cursor.epoch == 0:
            with self.source.turn:
                taken = self._read(cursor, schedule)
            yield taken.result, sum(stop - start for _, start, stop in schedule.spans(cursor))
            cursor = taken.after

    def reset(self, seed: int | None = None) -> None:
        """Goes back to the first record of epoch 0. A seed also changes the order."""
        self.source.reset(seed)

    def report(self, since: Report | None = None) -> Report:
        """Says where the time goes: on each host, in the loop and in the threads that read.

            print(pipeline.report())          # a table, and the verdict
            pipeline.report().verdict         # "input-bound: steps waited 38% of the time; ..."

        It counts the batches that the pipeline, its source and their copies hand out. Every
        process must call it. If there is a `map_fn`, a few records are decoded with and without
        it, which takes half a second at the first call and 20 ms later.

        Args:
            since: An earlier report: what was counted before it is left out.

        Raises:
            TypeError: `since` is not a report.
        """
        if not isinstance(since, Report | None):
            raise refused(
                TypeError,
                "Pipeline.report",
                "since must be an earlier report.",
                got=type(since).__name__,
                fix="pass what report() returned before, or leave it out",
            )
        source = self.source
        report = report_of_all(source.records.timings, source.name, processes_of(source.sharding))
        return report if since is None else report.since(since)

    def log_reports(self, every_s: int = 60) -> None:
        """Logs from time to time what `report` says of the time since the last log.

        It is logged when a batch is handed out: by process 0, for the slowest process that it has
        heard of. No process waits for another. It costs what a call of `report` does.

        Args:
            every_s: How many seconds to wait between two of them; 0 to log no more.

        Raises:
            ValueError: `every_s` is not an integer of at least 0.
        """
        every_s = integer(0)(Field("Pipeline.log_reports", "every_s", every_s))
        source = self.source
        timings = source.records.timings
        logged = LoggedReports(timings, source.name, processes_of(source.sharding))
        timings.call_every(every_s, logged if every_s else None)

    @property
    def identity(self) -> Identity:
        """What a saved cursor is valid for."""
        return dataclasses.replace(self.source.identity, remainder=self.schedule.remainder)

    def get_state(self) -> dict[str, Any]:
        """The cursor and what it is valid for: under 2 KB of JSON types, the same on every process.

        With the default remainder, it equals the state of the source.
        """
        return to_state(self.cursor, self.identity)

    def get_state_at(self, step: int) -> dict[str, Any]:
        """The state that a run has after so many batches, for loops that read ahead of their steps.

        `get_state` counts what was handed out. The `fit` of Keras, for one, takes a few batches
        before it trains on them: save the state of the steps that were trained. As `cursor_at`, it
        is that of a run that has had this batch size from its beginning.

        Raises:
            ValueError: `step` is not an integer of at least 0.
        """
        return to_state(self.cursor_at(step), self.identity)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state, with exactly the batch that would have come next.

        It costs the same anywhere in an epoch, and works inside a loop over the pipeline. The
        number of processes, the mesh, the batch size and the prefetch depth may differ from those
        of the saved run; with another batch size, each record of the epoch still comes once.

        Raises:
            TypeError: `state` is not a dict.
            StateMismatchError: A `ValueError`. The state is damaged, or belongs to another dataset,
                split, order, seed or remainder; the message names every field that differs.
        """
        subject = f"Pipeline of {self.source.name}"
        self.source.restore(state, self.identity, subject, "Pipeline.set_state")

    def _steps_until(self, num_epochs: int | None, call: str) -> Callable[[Cursor], int]:
        """Says how many batches there are from a cursor to the end of so many epochs of the run."""
        if num_epochs is None:
            return lambda _: sys.maxsize
        end = Cursor(integer(0)(Field(f"Pipeline.{call}", "num_epochs", num_epochs)))
        return lambda cursor: self.schedule.steps_between(cursor, end)

    def _local_batch(self, cursor: Cursor, batch: Batch) -> Batch:
        batch_size = self.schedule.at(cursor).batch_size
        return local_batch(batch, batch_size, self.source.sharding)

    def _handed_out(self, rows: int) -> int | None:
        """The number of records in this many rows; None if no record is ever skipped."""
        return rows if self.schedule.remainder == "drop" else None

    def _read(self, cursor: Cursor, schedule: AnySchedule | None = None) -> Taken:
        """Makes the batch at a cursor, without handing it out.

        Args:
            cursor: The position of its first record.
            schedule: Another one than that of the pipeline.
        """
        records, sharding = self.source.records, self.source.sharding
        schedule = schedule or self.schedule
        selection = self.source.select(schedule, cursor)
        after = schedule.after(cursor)
        handed_out = self._handed_out(selection.batch_size)
        pads = self.schedule.remainder == "pad"
        if not self.stages and not pads and not self.record_numbers:
            return Taken(records.batch(selection), after, handed_out)
        rows = BatchExtras(
            real=selection.records if pads else None,
            keys=selection.keys() if self._random else None,
            numbers=self._numbers_column(selection) if self.record_numbers else None,
        )
        if isinstance(selection, Traced):
            batch = records.batch(selection)
            batch = through_stages(self._graph, self.stages, batch, rows, sharding)
            return Taken(batch, after, handed_out)
        graphdef, state = nnx.split(self.stages)
        taken = any(getattr(jax.config, name) for name in _FAULT_FINDERS)
        checks: AbstractContextManager[Any] = nullcontext()
        if taken:
            inputs, checks = self._checked(selection)
        else:
            inputs = records.inputs(selection)
        arguments = as_arguments((inputs.on_devices, rows, state), sharding)
        with users_context(mesh_of(sharding)), checks:
            batch, changes = self._staged(*arguments, graphdef, taken)
        if twice := batch.keys() & inputs.on_host.keys():
            raise refused(
                ValueError,
                "Pipeline",
                f"a stage must not return {min(twice)!r}, which host_keys keep on the host.",
                host_keys=", ".join(sorted(inputs.on_host)),
                fix=f"give the result of the stage another name, or leave {min(twice)!r} out of"
                " host_keys",
            )
        result = Taken(batch | inputs.on_host, after, handed_out)
        if not changes:
            return result
        unchanged = jax.tree.map(lambda leaf: leaf, state)  # a copy: `state` holds the variables
        return result._replace(
            keep=lambda: nnx.update(self.stages, changes),
            undo=lambda: nnx.update(self.stages, unchanged),
        )

    def _numbers_column(self, selection: Selection) -> Any:
        records = self.source.sampler.order.records
        return as_device_numbers(selection.record_numbers(), records)

    def _checked(self, selection: BatchAt) -> tuple[BatchInputs, AbstractContextManager[Any]]:
        """Returns the batch of the source, and a context in which to run the stages.

        `jax_debug_nans` and `jax_debug_infs` should find faults of stages. So the context switches
        them off if the stored records themselves hold NaNs or infinities.
        """
        batch = self.source.records.batch(selection)
        on_host = {name: batch.pop(name) for name in batch.keys() - self.source.records.spec.keys()}
        numbers = [x for x in jax.tree.leaves(batch) if jnp.issubdtype(x.dtype, jnp.inexact)]
        stored = ExitStack()
        with OwnContext(None):
            nans, infs = (
                any(jax.device_get(found(leaf).any()) for leaf in numbers)
                for found in (jnp.isnan, jnp.isinf)
            )
        if nans:
            stored.enter_context(jax.debug_nans(False))
        if infs:
            stored.enter_context(jax.debug_infs(False))
        return BatchInputs(batch, on_host), stored

    def _steps(self, length: int) -> tuple[np.ndarray, BatchExtras, Cursor]:
        """The record numbers of the next batches, their `BatchExtras`, and the cursor after."""
        _, schedule, steps = next(self.schedule.runs(self.cursor))
        if length > steps:
            raise refused(
                ValueError,
                "Pipeline.scan",
                f"length must be at most {int(steps)}: then the batch size changes, and a program"
                " has one.",
                length=length,
                batch_size=self.batch_size,
                fix=f"use length={int(steps)}, and call scan again for the steps after these",
            )
        batch = self.source.select(self.schedule, self.cursor)
        assert isinstance(batch, BatchAt)
        if schedule.remainder == "wrap":
            # One long batch has the same records, and is computed in one call.
            whole = dataclasses.replace(schedule, batch_size=length * schedule.batch_size)
            batches = [self.source.sampler.at(whole, self.cursor)]
        else:
            batches = list(accumulate(range(length - 1), lambda b, _: b.following, initial=batch))
        shape = (length, schedule.batch_size)
        pads = self.schedule.remainder == "pad"
        numbers = np.concatenate([batch.record_numbers() for batch in batches]).reshape(shape)
        keys = [batch.keys() for batch in batches] if self._random else None
        rows = BatchExtras(
            real=np.array([batch.records for batch in batches], np.int32) if pads else None,
            keys=None if keys is None else np.concatenate(keys).reshape(*shape, 2),
            numbers=numbers.astype(np.int32) if self.record_numbers else None,
        )
        return numbers, rows, batches[-1].following.cursor


set_signature(Pipeline, [field.name for field in dataclasses.fields(TFDSStreamingConfig)])


def _require_scannable(step_fn: Any, length: Any, modules: Any) -> None:
    call = "scan(step_fn, length=len(pipeline), modules=(model, optimizer))"
    require_step_fn("Pipeline.scan", step_fn, modules, call=call)
    if not is_integer(length, 1):
        problem = "length must be a number of steps: an integer of at least 1."
        fix = "use length=len(pipeline) for the rest of the epoch"
        raise Field("Pipeline.scan", "length", length).refusal(problem, fix=fix)


def _donated_names(donate_argnames: str | Sequence[str]) -> tuple[str, ...]:
    names = (donate_argnames,) if isinstance(donate_argnames, str) else tuple(donate_argnames)
    if set(names) - set(_DONATED):
        raise refused(
            ValueError,
            "Pipeline.scan",
            "donate_argnames may name modules and init_carry only.",
            donate_argnames=names,
            fix=f"use {_DONATED[:1]}, {_DONATED}, or () to donate nothing",
        )
    return names
