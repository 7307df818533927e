"""The base class of all sources: it owns the cursor, and moves it when records are handed out."""

import dataclasses
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from typing import Any, Generic, Self, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax_tfds.config.fields import source_name
from datarax_tfds.order.cursor import Cursor, Schedule, warn_of_repeats
from datarax_tfds.order.growing import AnySchedule
from datarax_tfds.order.order import check_seed
from datarax_tfds.order.sampler import BatchAt, Sampler, Selection, Traced
from datarax_tfds.order.wide_numbers import are_words, as_device_numbers, is_wide, join_words
from datarax_tfds.records.records import Records
from datarax_tfds.records.streaming import refuse_compiled
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.forks import refuse_in_forked_child
from datarax_tfds.sources.arguments import numbers_of, require, require_records
from datarax_tfds.sources.cursor_variables import (
    Epoch,
    Index,
    as_cursor_variable,
    cursor_of,
    joined,
    mark_made_by_jax,
    require_movable,
)
from datarax_tfds.sources.operation_counts import OperationCounts
from datarax_tfds.sources.prefetch import CursorIterator, Taken
from datarax_tfds.sources.statistics import Statistics
from datarax_tfds.state.state import Identity, to_state
from sharding.checks import refused
from sharding.hosts.agreement import agree
from sharding.hosts.job import job
from sharding.jax_context import OwnContext, without_mesh
from sharding.placement import (
    Placement,
    as_arguments,
    check_batch_size,
    context_within,
    device_of,
    on_mesh,
    processes_of,
)

_RECORDS_PER_READ = 32  # of a loop over single records

Opened = TypeVar("Opened", bound=Records)


@not_copied
class Source(nnx.Module, Generic[Opened]):
    """Delivers records in an order, from a cursor on.

    A compiled function that closes over a source keeps the epoch, the seed and the `shuffle`
    setting of the moment when it was traced. To use the current ones, pass the source as an
    argument of `nnx.jit`.

    Subclasses decide what the records are, and how they are opened and ordered.

    Attributes:
        sampler: Which record stands at which position.
        records: Reads the records. It is not part of the state, of `nnx.split` or of a checkpoint.
        length: The number of positions of an epoch.
        turn: The lock that a thread holds while it moves the cursor. Nothing else waits for it.
        config: Has `cacheable`, `batch_stats_fn`, `precomputed_stats` and `host_keys`, as configs
            have, and `mapped_by`: what makes the records; None if they are as TFDS decodes them.
    """

    name: str
    sharding: Placement
    config: Any
    length: int
    sampler: Sampler
    stream_name: str | None
    _identity: Identity  # the order is added when it is saved
    draws: bool  # whether records are decoded with random keys

    def _start(self, records: Opened) -> None:
        """Begins at the first record, when name, sharding, config, order and identity are set."""
        self.choice: str | None = None
        self._statistics = Statistics(self.config.precomputed_stats)
        self._records: Opened = nnx.static(records)
        self.index = Index(as_device_numbers(0, self.length))
        self.epoch = Epoch(0)
        # Reentrant: a stage, or a signal handler, may ask for a batch while one is being made.
        self.turn = nnx.static(threading.RLock())
        self._counts = OperationCounts(self.length)
        self._settle()
        records.timings.reset()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("epoch", "index"):
            value = as_cursor_variable(name, value)
        super().__setattr__(name, value)

    @classmethod
    def _pytree__unflatten(cls, static: Any, node_attrs: Any) -> Any:
        # JAX calls this; NNX does not, because it builds modules from their graph.
        source = super()._pytree__unflatten(static, node_attrs)
        mark_made_by_jax(source.epoch, source.index)
        return source

    @abstractmethod
    def _sampler_of(self, shuffle: bool, seed: int) -> Sampler:
        """The sampler of a seed, in random or in stored order."""

    @property
    def records(self) -> Opened:
        """Reads the records.

        Raises:
            RuntimeError: In a forked child, which does not have the threads that read.
        """
        refuse_in_forked_child(self.name)
        return self._records

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterates over single records, from the cursor to the end of its epoch."""
        return CursorIterator(self)

    def upcoming(self, steps: int | None = None) -> Iterator[tuple[Cursor, Taken]]:
        """Yields the rest of the epoch, or so many records, each with its cursor, without moving
        the source.
        """
        reads, one = Schedule(self.length, _RECORDS_PER_READ, "pad"), Schedule(self.length, 1)
        before = self.cursor
        left = self.length - before.index if steps is None else steps
        while left:
            for record in islice(self.records.each_record(self.select(reads, before)), left):
                after = one.after(before)
                yield before, Taken(record, after)
                before = after
                left -= 1

    def __getitem__(self, number: Any) -> dict[str, Any]:
        """Returns a record by its stored number; negative numbers count from the end."""
        require(self.name, number=number)
        numbers, records = np.array([int(number)]), self.sampler.order.records
        require_records(numbers, range(-records, records), self.name)
        selection = self.sampler.by_number(numbers % records, self.cursor.epoch)
        return next(self.records.each_record(selection))

    def get_batch(self, batch_size: int, key: jax.Array | None = None) -> dict[str, Any]:
        """Returns the next records. At the end of an epoch, the batch continues in the next one.

        Args:
            batch_size: Rows over all processes, a multiple of the row shards.
            key: With a key, returns the first records of an order that depends only on the key
                (without `shuffle`, of the stored order), and does not move the cursor.

        Returns:
            Arrays `[batch_size, ...]`.
        """
        if key is not None:
            return self.get_batch_at(0, batch_size, key)
        check_batch_size(batch_size, self.sharding)
        schedule = Schedule(self.length, batch_size, strata=self.sampler.order.strata)
        if batch_size > self.length:
            warn_of_repeats(self.name, batch_size, self.length)

        def read(cursor: Cursor) -> Taken:
            batch = self.records.batch(self.select(schedule, cursor))
            return Taken(batch, schedule.after(cursor))

        return self.advance(read)

    def select(self, schedule: AnySchedule, cursor: Cursor) -> BatchAt | Traced:
        """The records of the batch at a cursor, which may be traced if the source is eager."""
        if isinstance(cursor.index, jax.core.Tracer) and not self.supports_indexed_access():
            refuse_compiled(self.name, batch_size=schedule.batch_size)
        return self.sampler.select(schedule, cursor)

    def get_batch_at(
        self, start: int | jax.Array, size: int, key: jax.Array | None = None
    ) -> dict[str, Any]:
        """Returns the records at given positions, without moving the cursor.

        It is traceable if the source is eager. The cost does not depend on the number of records.

        Args:
            start: The first position, counted in the current epoch; the batch may continue in the
                next one. An integer or, under a transformation, a traced one.
            size: Rows over all processes, a multiple of the row shards.
            key: With `shuffle`, takes an order that depends only on the key, in which positions
                wrap around. By default, the order is that of the source.

        Returns:
            Arrays `[size, ...]`; under a transformation, without the `host_keys`.
        """
        check_batch_size(size, self.sharding)
        return self.records.batch(self._selection(start, size, key))

    def record_indices_at(
        self, start: int | jax.Array, size: int, key: jax.Array | None = None
    ) -> jax.Array:
        """The numbers of the records that `get_batch_at` takes: `[size]` int32; traceable.

        In a split of 2**31 records and more, they are `[size]` int64 if `jax_enable_x64` is on,
        else `[size, 2]` uint32, for `join_words`; and `start` may be such words `[2]`, too.
        """
        require(self.name, size=size)
        numbers = self._selection(start, size, key).record_numbers()
        if isinstance(numbers, jax.Array):
            return numbers
        with OwnContext(device_of(self.sharding)):
            return jax.device_put(as_device_numbers(numbers, self.sampler.order.records))

    def _selection(self, start: int | jax.Array, size: int, key: jax.Array | None) -> Selection:
        words = is_wide(self.length) and are_words(start)
        require(self.name, key=key, **({} if words else {"start": start}))
        epoch = self.cursor.epoch
        if _traced(start, key):
            return self.sampler.traced_positions(epoch, start, size, key)
        first = int(join_words(start)) if words else int(start)
        return self.sampler.positions(epoch, first, size, key)

    def get_records(self, indices: Any) -> dict[str, Any]:
        """Returns records by their stored numbers; traceable if the source is eager.

        Args:
            indices: `[n]` integers in `[0, N)`, or words `[n, 2]` as `join_words` takes them; `n`
                a multiple of the row shards. Traced ones are not checked.

        Returns:
            Arrays `[n, ...]`; under a transformation, without the `host_keys`.

        Raises:
            TypeError: `indices` is not a list of at least one integer.
            IndexError: A number is not in `[0, N)`.
        """
        numbers = numbers_of(indices, self.name)
        check_batch_size(len(numbers), self.sharding)
        if not _traced(numbers):
            numbers = np.asarray(jax.device_get(numbers))
            require_records(numbers, range(self.sampler.order.records), self.name)
        elif not isinstance(numbers, jax.Array):
            numbers = jnp.asarray(numbers)
        return self.records.batch(self.sampler.by_number(numbers, self.cursor.epoch))

    def process(self, input: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: A002
        """Returns `source[input]` for an integer, and `get_records(input)` for an array."""
        if args or kwargs:
            raise refused(
                TypeError,
                self.name,
                "process takes record numbers, and nothing else.",
                got=", ".join([*map(repr, args), *kwargs]),
                fix="pass an integer or an array of integers",
            )
        if isinstance(input, list | tuple) or np.ndim(input) > 0:
            return self.get_records(input)
        return self[input]

    def element_spec(self) -> dict[str, Any]:
        """One record as `jax.ShapeDtypeStruct`s, without a batch axis.

        It describes what decoding returns, without the `host_keys`; no record is read for it. A
        feature that cannot be batched is a `datarax_tfds.Unbatched` with the same fields: the dtype
        of text is `object`, and a length that varies is None.
        """
        return self.records.spec

    @abstractmethod
    def get_dataset_info(self) -> Any:
        """What TFDS says of the dataset, or of each of several."""

    @property
    def cursor(self) -> Cursor:
        """The next position to hand out; traced if the source is an argument of `nnx.jit`.

        Other threads and signal handlers may read it: that takes no lock, and returns the cursor
        before or after a batch, never a mixture of both.
        """
        return cursor_of(self.epoch, self.index)

    def advance(self, read: Callable[[Cursor], Taken]) -> Any:
        """Returns what `read` makes, and moves the cursor past it. An error undoes the move.

        Threads take turns: the next one reads where this one ended.

        Args:
            read: Makes the batch at a cursor, and changes nothing.

        Raises:
            CursorTraceError: JAX traces the calling function, and the move would be lost.
        """
        self.require_movable()
        place = joined(self.epoch, self.index)
        before, mark = place.pair, self._counts.mark
        taken = moved = None
        asked_at = self._records.timings.clock()
        try:
            with self.turn:
                cursor = self.cursor
                before, mark = place.pair, self._counts.mark
                # Inside a compiled function of the caller, this part uses the mesh of the batches.
                traced = isinstance(cursor.index, jax.core.Tracer)
                with context_within(self.sharding) if traced else nullcontext():
                    taken = read(cursor)
                    if taken.keep is not None:
                        taken.keep()
                    if taken.records is not None:
                        self._counts.count_skipped(cursor, taken.after, taken.records)
                moved = self._pair(taken.after)
                place.pair = moved
                job.progress.steps += 1
            if not traced and taken.result is not None:
                self._records.timings.count_step(asked_at)
            return taken.result
        except BaseException:
            # An interrupt may come after the move. Then the caller gets no batch: undo the move.
            with self.turn:
                others_moved = place.pair is not before and place.pair is not moved
                if taken is not None and not others_moved:
                    if taken.undo is not None:
                        taken.undo()
                    self._counts.restore(mark)
                    place.pair = before
            raise

    def advance_to(self, cursor: Cursor, records: int | None = None) -> None:
        """Moves the cursor forward, past records that were handed out.

        Args:
            cursor: The next position to hand out.
            records: How many of the records in between were handed out; None for all of them.
        """
        self.advance(lambda _: Taken(None, cursor, records))

    def seek(self, cursor: Cursor, sampler: Sampler | None = None) -> None:
        """Moves the cursor anywhere, and may change the order. An error undoes both."""
        self.require_movable()
        with self.turn:
            order = self.sampler

            def keep() -> None:
                self.sampler = sampler or order
                self._counts.count_seek(self.cursor, cursor)

            def undo() -> None:
                self.sampler = order

            self.advance(lambda _: Taken(None, cursor, keep=keep, undo=undo))
            self._settle()

    def require_movable(self) -> None:
        """Raises if JAX traces the calling function and would lose a move of the cursor.

        Raises:
            CursorTraceError: The traced function closes over the source, or got it as an argument
                through `jax.jit` instead of `nnx.jit`.
        """
        refuse_in_forked_child(self.name)  # first: nothing in a child may ever release the lock
        require_movable(self.index, self.name, self.supports_indexed_access())

    def _pair(self, cursor: Cursor) -> tuple[Any, Any]:
        """The cursor as the variables hold it: integers, or arrays if a transfer guard is set."""
        index = as_device_numbers(cursor.index, self.length)
        return tuple(as_arguments((cursor.epoch, index), self.sharding))

    def _settle(self) -> None:
        """Puts the variables where a compiled step leaves them. Otherwise the second step would
        compile again.
        """
        if self.supports_indexed_access() and not _traced():
            changing = (self.index, self.epoch, self._counts)
            nnx.update(changing, on_mesh(nnx.state(changing), self.sharding))

    def copy(self, *, name: str | None = None) -> Self:
        """Returns a source with the same records, order and position; `name` replaces the name."""
        other = self.clone()
        other.name = source_name(name, self.name)
        return other

    def reset(self, seed: int | None = None) -> None:
        """Goes back to the first record of epoch 0. A seed also changes the order."""
        sampler = None
        if seed is not None:
            sampler = self._sampler_of(self.is_random_order, check_seed(seed))
        self.seek(Cursor(), sampler)

    @property
    def is_random_order(self) -> bool:
        """Whether the records come in random order."""
        return self.sampler.shuffled

    def set_random_order(self, enabled: bool) -> None:
        """Switches to random or to stored order, at the same cursor."""
        require(self.name, enabled=enabled)
        self.sampler = self._sampler_of(enabled, self.sampler.seed)

    @property
    @abstractmethod
    def corrupt_records(self) -> dict[int, int]:
        """The number of each corrupt record that this process has found so far, and the number of
        the record that replaces it.
        """

    @property
    def identity(self) -> Identity:
        """What a saved cursor is valid for."""
        return dataclasses.replace(
            self._identity,
            shuffle=self.is_random_order,
            seed=self.sampler.seed if self.is_random_order or self.draws else None,
            order=self.sampler.order.version,
        )

    def get_state(self) -> dict[str, Any]:
        """The cursor and what it is valid for: under 2 KB of JSON, the same on every process."""
        return to_state(self.cursor, self.identity)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state, with exactly the record that would have come next.

        It costs the same anywhere in an epoch. The number of processes, the mesh and the batch size
        may differ from those of the saved run.

        Raises:
            TypeError: `state` is not a dict.
            StateMismatchError: A `ValueError`. The state is damaged, or belongs to another dataset,
                split, order or seed; the message names every field that differs.
        """
        self.restore(state, self.identity, self.name, "set_state")

    def restore(
        self, state: Mapping[str, Any], identity: Identity, subject: str, doing: str
    ) -> None:
        """Continues from a saved state, which must have this identity, as `set_state` says.

        Args:
            state: The saved state.
            identity: That of the source, or of a pipeline of it.
            subject: Who restores, for messages.
            doing: What the processes are doing, for messages.
        """
        cursor, sampler = self._saved_place(state, identity, subject)
        order = {} if sampler is None else {"order": sampler.order.version}
        self.agree(doing, dataclasses.asdict(cursor) | order)
        self.seek(cursor, sampler)

    @abstractmethod
    def _saved_place(
        self, state: Mapping[str, Any], identity: Identity, subject: str
    ) -> tuple[Cursor, Sampler | None]:
        """The saved cursor, and the order in which it is a place if it is not the present one."""

    def agree(self, doing: str, fields: Mapping[str, Any]) -> None:
        """Raises on every process unless all processes of the mesh pass equal `fields`."""
        refuse_in_forked_child(self.name)
        agree(
            f"{doing} of {self.name}",
            fields,
            processes_of(self.sharding),
            fixes={
                "split": "pass the whole split on every process, as split='train': the source"
                " itself gives each process its rows, so leave out split_for_jax_process and slices"
                " by process",
                "user_code": "let map_fn and decoders use the same values on every process: draw"
                " random ones from a fixed seed, and sort what comes from a set",
            },
        )

    def get_operation_stats(self) -> dict[str, int]:
        """Counts the records since construction or `reset_operation_stats()`.

        `applied_count` is the number of records that were handed out, `skipped_count` the number
        that a pipeline skipped for `remainder="drop"`. Records taken inside a compiled function
        count, too, but call this outside of it.
        """
        return self._counts.at(self.cursor)

    def reset_operation_stats(self) -> None:
        """Counts from zero again."""
        with self.turn:
            self._counts.reset(self.cursor)
            self._settle()

    def compute_statistics(self, data: Any) -> dict[str, Any] | None:
        """Applies `config.batch_stats_fn` to a batch, and keeps the result. None without it."""
        return self._statistics.compute(self.config.batch_stats_fn, data)

    def get_statistics(self) -> dict[str, Any] | None:
        """Returns `config.precomputed_stats`, if there are any and they were not replaced or reset.
        Otherwise returns the statistics that were set or computed last, or None.
        """
        return self._statistics.current

    def set_statistics(self, stats: dict[str, Any]) -> None:
        """Replaces all statistics."""
        self._statistics.replace(stats)

    def reset_statistics(self) -> None:
        """Forgets all statistics, including `config.precomputed_stats`."""
        self._statistics.replace(None)

    def reset_cache(self) -> None:
        """Frees what `cacheable` keeps; does nothing if the config is not `cacheable`."""
        if self.config.cacheable:
            self.records.reset_cache()

    def collect_to_array(self) -> dict[str, Any]:
        """Returns all records in stored order, for training loops that make their own batches.

        Returns:
            Arrays `[N, ...]` on the devices: a copy, without the `host_keys`. If they are sharded,
            rows of zeros may follow the `len(source)` records.

        Raises:
            ValueError: The records cannot be rows of an array, change from epoch to epoch by a
                random `map_fn`, or do not fit the devices.
        """
        return self.records.all_records(keep=self.config.cacheable)

    def clone(self) -> Self:
        """Returns a source with the same records and state, whose cursor moves independently."""
        clone = nnx.clone(self)
        clone.turn = nnx.static(threading.RLock())
        return clone

    def requires_rng_streams(self) -> list[str] | None:
        """The name of the stream of `rngs` for the seed, in a list; None without `stream_name`."""
        return [self.stream_name] if self.stream_name is not None else None

    def ensure_rng_streams(self, stream_names: list[str]) -> None:
        """Raises if `stream_names` lacks a required stream.

        Raises:
            TypeError: `stream_names` is not a list of names.
            ValueError: A stream is missing; the message names it.
        """
        require(self.name, streams=stream_names)
        missing = set(self.requires_rng_streams() or ()) - set(stream_names)
        if missing:
            made = [*stream_names, *sorted(missing)]
            raise refused(
                ValueError,
                self.name,
                f"the RNG stream {', '.join(map(repr, sorted(missing)))} is missing.",
                streams=", ".join(stream_names) or "none",
                fix=f"use rngs=nnx.Rngs({', '.join(f'{each}=0' for each in made)}), and pass"
                " the names of its streams, list(rngs)",
            )

    @abstractmethod
    def supports_indexed_access(self) -> bool:
        """Whether batches can be taken inside a compiled function; datarax's Pipeline asks this."""

    def supports_streaming(self) -> bool:
        """Whether batches can be taken one after the other: always True."""
        return True

    def __repr__(self) -> str:
        order = f"shuffled with seed {self.sampler.seed}" if self.is_random_order else "as stored"
        choice = f"; {self.choice}" if self.choice else ""
        return f"{self.name}: {self.length:,} records, {order}, at {self.cursor}{choice}"

    __str__ = __repr__


def _traced(*values: Any) -> bool:
    """Whether one of the values or the calling function is traced."""
    refuse_in_forked_child("a source")  # first: the next lines could hang in a child
    # Under jit, a new array is a tracer. Not `zeros`, which a transfer guard would refuse.
    with without_mesh():
        return any(isinstance(value, jax.core.Tracer) for value in (jnp.arange(1), *values))
