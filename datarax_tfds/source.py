"""What all sources share: records of a TFDS split, in an order, from a cursor."""

import dataclasses
import hashlib
import inspect
import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Generic, NoReturn, Self, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from datarax_tfds.arguments import (
    numbers_of,
    require_choice,
    require_config,
    require_names,
    require_number,
    require_positions,
    require_record,
    require_rngs,
)
from datarax_tfds.block_order import BlockOrder
from datarax_tfds.config import AnyConfig
from datarax_tfds.cursor import Cursor, Schedule
from datarax_tfds.opened import Records
from datarax_tfds.operation_counts import OperationCounts
from datarax_tfds.order import Order, check_seed
from datarax_tfds.positions import Positions, key_word
from datarax_tfds.prefetch import handed_out
from datarax_tfds.records import RecordReader
from datarax_tfds.selection import Chosen
from datarax_tfds.split import open_split
from datarax_tfds.state import Identity, restored, saved
from datarax_tfds.statistics import Statistics
from sharding import agree, check_batch_size, on_mesh, processes_of, resolved_sharding
from sharding.messages import explain
from sharding.waits import activity

_BLOCK = 32  # records that single ones are read ahead by
_moving = threading.Lock()  # of all sources: held for a microsecond

Config = TypeVar("Config", bound=AnyConfig)
Opened = TypeVar("Opened", bound=Records)


class Source(nnx.Module, Generic[Config, Opened]):
    """The records of a TFDS split, in an order, from a cursor: what all sources share.

    A compiled function that only closes over a source keeps the epoch, the seed and `shuffle` that
    it had when it was traced; one that takes it as an argument of `nnx.jit` follows it.

    Its subclasses are final, and say how records are opened.

    Attributes:
        index: The next position to hand out, in `[0, N)`, as an `nnx.Variable`.
        epoch: The epoch of that position, from 0, as an `nnx.Variable`.
        length: Number of records N.
        positions: Which records stand where.
        records: How they are read; no part of the state, of `nnx.split` or of a checkpoint.
    """

    def __init__(
        self,
        config: Config,
        *,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
        sharding: NamedSharding | None = None,
    ):
        require_config(config, self._config_type, type(self).__name__)
        name = name or self._named(config)
        self.sharding = nnx.static(resolved_sharding(sharding, name))
        split = open_split(config)
        self._info = nnx.static(split.info)
        self.length = len(split)
        self._configure(config, rngs, name)
        self.positions = self._configured_positions()
        self._statistics = Statistics(config.precomputed_stats)
        reader = RecordReader(split, config, name)
        self._map_fn_draws = reader.stochastic
        self._identity = Identity(
            dataset=split.dataset,
            split=split.ranges,
            records=self.length,
            fingerprint=split.fingerprint,
            features=_digest(reader.spec),
            shuffle=config.shuffle,
            seed=None,
        )
        self.agree("construction", dataclasses.asdict(self.identity) | reader.versions)
        self.records: Opened = nnx.static(self._opened(reader))
        self.index = nnx.Variable(0)
        self.epoch = nnx.Variable(0)
        self._counts = OperationCounts(self.length)
        self._settle()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__signature__ = constructor_signature(cls)

    @classmethod
    def _named(cls, config: AnyConfig) -> str:
        return f"{cls.__name__}({config.name}:{config.split})"

    def _configure(self, config: Config, rngs: nnx.Rngs | None, name: str) -> None:
        """Takes over all of a config that does not decide what is read, and how."""
        require_rngs(rngs, name)
        self.config: Config = nnx.static(config)
        self.rngs = nnx.data(rngs)
        self.name = name
        self.stochastic = config.stochastic
        self.stream_name = config.stream_name

    def _configured_positions(self) -> Positions:
        seed = self._drawn_seed() if self.config.stochastic else self.config.seed
        return self._positions(self.config.shuffle, seed)

    def _drawn_seed(self) -> int:
        streams = list(self.rngs or ())
        assert self.stream_name is not None
        if self.rngs is None or not {self.stream_name, "default"} & set(streams):
            raise ValueError(
                explain(
                    self.name,
                    f"the seed is to be drawn from a stream {self.stream_name!r} of rngs, and there"
                    " is none.",
                    streams=", ".join(streams) or "no rngs",
                    fix=f"pass rngs=nnx.Rngs({self.stream_name}=0), or use stochastic=False",
                )
            )
        return int(key_word(self.rngs[self.stream_name]()))

    _config_type: ClassVar[type]

    @abstractmethod
    def _opened(self, reader: RecordReader) -> Opened:
        """The records, ready to be taken."""

    # Fields that a copy may have otherwise without opening the records anew.
    _of_order: ClassVar[frozenset[str]] = frozenset(
        {"stochastic", "stream_name", "shuffle", "seed"}
    )
    _not_of_reading: ClassVar[frozenset[str]] = _of_order | {
        "batch_stats_fn",
        "precomputed_stats",
    }

    @abstractmethod
    def _ordered(self, seed: int | None) -> Order | BlockOrder:
        """The order of a seed; that of the files, where there is none."""

    def _positions(self, shuffle: bool, seed: int) -> Positions:
        return Positions(self._ordered(seed if shuffle else None), seed)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Single records, from the cursor to the end of its epoch."""
        return handed_out(self, size=0)

    def ahead(self) -> Iterator[tuple[Cursor, dict[str, Any], Cursor]]:
        """The rest of the epoch, without moving the cursor: where each record stands, the record,
        and where the next one does.
        """
        blocks, singly = Schedule(self.length, _BLOCK, "pad"), Schedule(self.length, 1)
        before = self.cursor
        epoch = before.epoch
        while before.epoch == epoch:
            for record in self.records.each(self.positions.at(blocks, before)):
                after = singly.after(before)
                yield before, record, after
                before = after

    def __getitem__(self, number: Any) -> dict[str, Any]:
        """The record of a number, in stored order; negative ones count from the end."""
        require_number(number, self.name)
        place = int(number)
        require_record(place, self.length, -self.length, self.name)
        return self.records.take_one(self._chosen(np.array([place % self.length])))

    def get_batch(self, batch_size: int, key: jax.Array | None = None) -> dict[str, Any]:
        """The next records, running on into the next epoch; or, with a key, any records.

        Args:
            batch_size: Rows over all processes, a multiple of the row shards.
            key: Leaves the cursor alone, and takes the first records of an order of this key's
                own (of the stored order, without `shuffle`).

        Returns:
            Arrays `[batch_size, ...]`.
        """
        if key is not None:
            return self.get_batch_at(0, batch_size, key)
        check_batch_size(batch_size, self.sharding)
        schedule, cursor = Schedule(self.length, batch_size), self.cursor
        if isinstance(cursor.index, jax.core.Tracer):
            batch = self.get_batch_at(cursor.index, batch_size)
        else:
            batch = self.records.take(self.positions.at(schedule, cursor))
        self.move_to(schedule.after(cursor))
        return batch

    def get_batch_at(
        self, start: int | jax.Array, size: int, key: jax.Array | None = None
    ) -> dict[str, Any]:
        """Records by position; changes nothing, and is traceable.

        Args:
            start: The first position of the current epoch, running on into the next; an integer
                or, under a transformation, a traced int32.
            size: Rows over all processes, a multiple of the row shards.
            key: Of an order of its own, in which positions wrap around; for `shuffle` only. The
                order of the source where absent.

        Returns:
            Arrays `[size, ...]`. O(size), whatever the length.
        """
        check_batch_size(size, self.sharding)
        require_positions(start, size, key, self.name)
        if _traced(start, key):
            return self.records.take_within(self.record_indices_at(start, size, key))
        if key is None:
            epoch, index = divmod(int(start), self.length)
            cursor = Cursor(self.cursor.epoch + epoch, index)
            return self.records.take(self.positions.at(Schedule(self.length, size), cursor))
        epoch = self.cursor.epoch
        numbers = self.positions.numbers(epoch, int(start), size, key)
        return self.records.take(self.positions.chosen(numbers, epoch))

    def record_indices_at(
        self, start: int | jax.Array, size: int, key: jax.Array | None = None
    ) -> jax.Array:
        """The numbers of the records that `get_batch_at` takes: `[size]` int32; traceable."""
        require_positions(start, size, key, self.name)
        if _traced(start, key):
            _, numbers = self.positions.numbers_within(self.epoch.get_value(), start, size, key)
            return numbers
        numbers = self.positions.numbers(self.cursor.epoch, int(start), size, key)
        return jnp.asarray(numbers, jnp.int32)

    def get_records(self, indices: Any) -> dict[str, Any]:
        """Records by number, as they are stored; traceable where `get_batch_at` is.

        Args:
            indices: `[n]` integers in `[0, N)`, `n` a multiple of the row shards. Traced ones are
                not checked.

        Returns:
            Arrays `[n, ...]`.

        Raises:
            TypeError: No list of integers.
            IndexError: A number that no record has.
        """
        numbers = numbers_of(indices, self.name)
        check_batch_size(len(numbers), self.sharding)
        if _traced(numbers):
            return self.records.take_within(numbers)
        numbers = np.asarray(numbers)
        for number in (numbers.min(), numbers.max()):
            require_record(int(number), self.length, 0, self.name)
        return self.records.take(self._chosen(numbers))

    def process(self, input: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: A002
        """Records by number: one, for an integer, as `source[number]`; a batch, for an array of
        them, as `get_records`. Takes nothing else.
        """
        if args or kwargs:
            raise TypeError(
                explain(
                    self.name,
                    "process takes record numbers, and nothing else.",
                    got=", ".join([*map(repr, args), *kwargs]),
                    fix="pass an integer or an array of integers",
                )
            )
        if isinstance(input, list | tuple) or np.ndim(input) > 0:
            return self.get_records(input)
        return self[input]

    def element_spec(self) -> dict[str, Any]:
        """One record as `jax.ShapeDtypeStruct`s, without a batch axis.

        From the metadata: nothing is read. What no batch can hold is a `datarax_tfds.Unbatched`
        with the same fields: of dtype `object` (text), or with None for a length that varies.
        """
        return self.records.spec

    def get_dataset_info(self) -> Any:
        """The `tfds.core.DatasetInfo`: description, features, splits, citation."""
        return self._info

    @property
    def cursor(self) -> Cursor:
        """The next position to hand out; traced where the source is an argument of `nnx.jit`.

        From another thread, too: before or after a batch, never in between.
        """
        with _moving:
            return Cursor(_count(self.epoch), _count(self.index))

    def move_to(self, cursor: Cursor) -> None:
        """Goes on from another position, as far ahead as records were handed out."""
        # Raw: refused in a jit that only closes over the source, where it would not last; and
        # 2 us where set_value takes 9.
        activity.step()
        with _moving:
            self.epoch.set_raw_value(cursor.epoch)
            self.index.set_raw_value(cursor.index)

    def jump_to(self, cursor: Cursor) -> None:
        """Goes on from any position."""
        self._counts.jumped(self.cursor, cursor)
        self.move_to(cursor)
        self._settle()

    def _settle(self) -> None:
        """Puts what changes where a compiled step leaves it, so that the next step finds the
        program of the last.
        """
        if self.supports_indexed_access() and not _traced():
            changing = (self.index, self.epoch, self._counts)
            nnx.update(changing, on_mesh(nnx.state(changing), self.sharding.mesh))

    def left_out(self, records: Any) -> None:
        """Notes that as many records were passed over by a remainder policy; traceable."""
        self._counts.left_out(records)

    def reset(self, seed: int | None = None) -> None:
        """Goes back to the first record of epoch 0; with a seed, of another order."""
        if seed is not None:
            self.positions = self._positions(self.is_random_order, check_seed(seed))
        self.jump_to(Cursor())

    @property
    def is_random_order(self) -> bool:
        """Whether records come in random order."""
        return self.positions.shuffled

    def set_random_order(self, enabled: bool) -> None:
        """Goes on from the same cursor, in random or in stored order."""
        require_choice(enabled, self.name)
        self.positions = self._positions(enabled, self.positions.seed)

    @property
    def identity(self) -> Identity:
        """What a saved cursor is valid for."""
        return dataclasses.replace(
            self._identity,
            shuffle=self.is_random_order,
            seed=self.positions.seed if self.is_random_order or self._map_fn_draws else None,
            order=self.positions.order.version,
        )

    def get_state(self) -> dict[str, Any]:
        """The cursor and what it is valid for: under 2 KB of JSON types, alike on every process."""
        return saved(self.cursor, self.identity)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state: with exactly the record that would have come next.

        Costs the same anywhere in an epoch. The number of processes, the mesh and the batch size
        may be others than when it was saved.

        Raises:
            TypeError: `state` is not a dict.
            StateMismatchError: A `ValueError`: it is damaged, or of another dataset, split, order
                or seed; every field that differs is named.
        """
        cursor = restored(state, self.identity, self.name)
        self.agree("set_state", dataclasses.asdict(cursor))
        self.jump_to(cursor)

    def agree(self, doing: str, fields: Mapping[str, Any]) -> None:
        """Goes on only where every process of the mesh says the same of all fields, and no
        differently on any.
        """
        agree(f"{doing} of {self.name}", fields, processes_of(self.sharding))

    def get_operation_stats(self) -> dict[str, int]:
        """How many records were handed out, as `applied_count`, and how many a pipeline's
        `remainder="drop"` left out, as `skipped_count`: since construction or the last reset.

        Not inside a compiled function; those handed out there count.
        """
        return self._counts.at(self.cursor)

    def reset_operation_stats(self) -> None:
        """Counts from here."""
        self._counts.reset(self.cursor)
        self._settle()

    def compute_statistics(self, data: Any) -> dict[str, Any] | None:
        """What `config.batch_stats_fn` makes of a batch, kept; None without that function."""
        return self._statistics.compute(self.config.batch_stats_fn, data)

    def get_statistics(self) -> dict[str, Any] | None:
        """`config.precomputed_stats`, until others are set or all are reset; else the statistics
        that were set or computed last; None if there are none.
        """
        return self._statistics.current

    def set_statistics(self, stats: dict[str, Any]) -> None:
        """Sets statistics, in place of all that there were."""
        self._statistics.replace(stats)

    def reset_statistics(self) -> None:
        """Forgets all statistics, those of the config too."""
        self._statistics.replace(None)

    def reset_cache(self) -> None:
        """Frees what `cacheable` keeps; without effect if the config is not `cacheable`."""
        if self.config.cacheable:
            self.records.reset_cache()

    def collect_to_array(self) -> dict[str, Any]:
        """All records in stored order on the devices, for training loops of one's own.

        Returns:
            Arrays `[N, ...]`: a copy. Where they are cut over devices, rows of zeros fill up the
            last ones; `len(source)` says which are records.

        Raises:
            ValueError: Records that cannot be rows of an array, that `map_fn` changes from epoch to
                epoch, or that do not fit the devices.
        """
        return self.records.arrays(keep=self.config.cacheable)

    def clone(self) -> Self:
        """Another source with the same state, independent from now on. The records are shared."""
        return nnx.clone(self)

    def copy(
        self,
        *,
        config: Config | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ) -> Self:
        """Another source that differs in what is given: else with the order, the position, the
        counts and the statistics that this one has by now.

        The records are shared where the config reads the same ones in the same way; else they are
        opened anew. If those are others, the copy begins at the first.

        Args:
            config: In place of this one.
            rngs: Likewise; a `stochastic` copy draws its seed from them.
            name: Likewise.

        Raises:
            TypeError: `config` is that of another kind of source.
        """
        wanted = self.config if config is None else config
        require_config(wanted, self._config_type, self.name)
        anew = rngs is not None and wanted.stochastic
        anew |= any(
            getattr(wanted, field) != getattr(self.config, field) for field in self._of_order
        )
        streams = nnx.clone(self.rngs) if rngs is None and self.rngs is not None else rngs
        if name is None and self.name != self._named(self.config):
            name = self.name
        alike = {field: getattr(self.config, field) for field in self._not_of_reading}
        if dataclasses.replace(wanted, **alike) == self.config:
            other = self.clone()
            other._configure(wanted, streams, name or self._named(wanted))
            if anew:
                other.positions = other._configured_positions()
        else:
            other = type(self)(wanted, rngs=streams, name=name, sharding=self.sharding)
            if other._identity != self._identity:
                return other
            other.jump_to(self.cursor)
            other._counts = nnx.clone(self._counts)
            other._statistics = nnx.clone(self._statistics)
            if not anew:
                other.positions = other._positions(self.is_random_order, self.positions.seed)
        if wanted.precomputed_stats is not self.config.precomputed_stats:
            other._statistics = Statistics(wanted.precomputed_stats)
        return other

    def requires_rng_streams(self) -> list[str] | None:
        """The streams of `rngs` that the seed is drawn from; None for a source that draws none."""
        return [self.stream_name] if self.stream_name is not None else None

    def ensure_rng_streams(self, stream_names: list[str]) -> None:
        """Refuses a list of streams without those that are required.

        Raises:
            TypeError: No list of names.
            ValueError: One is missing; the message names it.
        """
        require_names(stream_names, self.name)
        missing = set(self.requires_rng_streams() or ()) - set(stream_names)
        if missing:
            raise ValueError(
                explain(
                    self.name,
                    f"the RNG stream {', '.join(map(repr, sorted(missing)))} is missing.",
                    streams=", ".join(stream_names) or "none",
                    fix="make rngs with that stream",
                )
            )

    @abstractmethod
    def supports_indexed_access(self) -> bool:
        """Whether batches can be taken inside a compiled function, as datarax's Pipeline asks."""

    def supports_streaming(self) -> bool:
        """Whether batches can be taken one after the other: always."""
        return True

    @property
    def dataset_name(self) -> str | None:
        return self.config.name

    @property
    def split_name(self) -> str | None:
        return self.config.split

    @property
    def as_supervised(self) -> bool:
        return self.config.as_supervised

    @property
    def include_keys(self) -> Any:
        return self.config.include_keys

    @property
    def exclude_keys(self) -> Any:
        return self.config.exclude_keys

    def __repr__(self) -> str:
        order = f"shuffled with seed {self.positions.seed}" if self.is_random_order else "as stored"
        return f"{self.name}: {self.length:,} records, {order}, at {self.cursor}"

    __str__ = __repr__

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_pickling(self.name)

    def _chosen(self, numbers: np.ndarray) -> Chosen:
        return self.positions.chosen(numbers, self.cursor.epoch)


def refuse_pickling(subject: str) -> NoReturn:
    """Refuses to be moved to another process as a whole."""
    raise TypeError(
        explain(
            subject,
            "it cannot be pickled.",
            holds="devices, threads and files of this process",
            fix="build it there from its config, and pass get_state() to set_state()",
        )
    )


def constructor_signature(cls: type) -> inspect.Signature:
    """What help() and editors show; NNX hides it behind (*args, **kwargs)."""
    _, *parameters = inspect.signature(cls.__init__).parameters.values()
    return inspect.Signature(parameters)


def _traced(*values: Any) -> bool:
    """Whether this runs under a transformation: with such a value, or in the midst of one."""
    # Under jit, a new array is a tracer.
    return any(isinstance(value, jax.core.Tracer) for value in (jnp.zeros(()), *values))


def _count(variable: nnx.Variable) -> Any:
    """An integer of the host, even if a compiled function has left it on a device."""
    value = variable.get_raw_value()
    return value if isinstance(value, int | jax.core.Tracer) else int(value)


def _digest(spec: Any) -> str:
    lines = [
        f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(spec)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
