"""What all sources share: records of a TFDS split, in an order, from a cursor."""

import dataclasses
import functools
import hashlib
import operator
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from datarax_tfds.block_order import BlockOrder
from datarax_tfds.config import AnyConfig
from datarax_tfds.cursor import Cursor, Schedule
from datarax_tfds.order import Order, check_seed, index_shuffle
from datarax_tfds.prefetch import handed_out
from datarax_tfds.records import RecordReader
from datarax_tfds.selection import AtCursor, Chosen, Selection
from datarax_tfds.split import open_split
from datarax_tfds.state import Identity, restored, saved
from sharding import (
    batch_sharding,
    check_batch_size,
    make_mesh,
    require_all_processes,
    row_axes,
)
from sharding.messages import explain

_BLOCK = 32  # records that single ones are read ahead by


class Records(Protocol):
    """How records are opened: all that sources differ in."""

    spec: dict[str, Any]

    def fetch(self, selection: Selection) -> Any:
        """What `build` needs for a batch."""
        ...

    def build(self, fetched: Any) -> dict[str, Any]:
        """The batch, `[batch_size, ...]`; traceable."""
        ...

    def take(self, selection: Selection) -> dict[str, Any]:
        """Both in one."""
        ...

    def take_one(self, selection: Chosen) -> dict[str, Any]:
        """One record, without a batch axis."""
        ...

    def each(self, block: AtCursor) -> Iterator[dict[str, Any]]:
        """The records of a block one by one, likewise."""
        ...


Config = TypeVar("Config", bound=AnyConfig)
Opened = TypeVar("Opened", bound=Records)


class Source(nnx.Module, Generic[Config, Opened]):
    """The records of a TFDS split, in an order, from a cursor: what all sources share.

    Its subclasses are final, and say how records are opened.

    Attributes:
        index: The next position to hand out, in `[0, N)`, as an `nnx.Variable`.
        epoch: The epoch of that position, from 0, as an `nnx.Variable`.
        length: Number of records N.
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
        self.config: Config = nnx.static(config)
        self.rngs = rngs
        self.name = name or f"{type(self).__name__}({config.name}:{config.split})"
        self.sharding = nnx.static(resolved_sharding(sharding, self.name))
        split = open_split(config)
        self._info = nnx.static(split.info)
        self.length = len(split)
        self._seed = config.seed
        self._order = self._ordered(config.shuffle)
        reader = RecordReader(split, config, self.name)
        self._stochastic = reader.stochastic
        self._identity = Identity(
            dataset=split.dataset,
            split=split.ranges,
            records=self.length,
            fingerprint=split.fingerprint,
            features=_digest(reader.spec),
            shuffle=config.shuffle,
            seed=None,
        )
        self.records: Opened = nnx.static(self._opened(reader))
        self.index = nnx.Variable(0)
        self.epoch = nnx.Variable(0)

    @abstractmethod
    def _opened(self, reader: RecordReader) -> Opened:
        """The records, ready to be taken."""

    @abstractmethod
    def _taken_within(self, positions: jax.Array, key: jax.Array | None) -> dict[str, Any]:
        """The records at traced positions, in a program of the caller's."""

    @abstractmethod
    def _ordered(self, shuffle: bool) -> Order | BlockOrder:
        """The order of the current seed, or that of the files."""

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
            for record in self.records.each(self.at(blocks, before)):
                after = singly.after(before)
                yield before, record, after
                before = after

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The record of a number, in stored order; negative ones count from the end."""
        place = operator.index(number)
        if not -self.length <= place < self.length:
            raise IndexError(
                explain(
                    self.name,
                    "there is no such record.",
                    number=number,
                    records=self.length,
                    fix=f"use a number below {self.length}",
                )
            )
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
            batch = self.records.take(self.at(schedule, cursor))
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
        offsets = jnp.arange(size, dtype=jnp.int32)
        if any(isinstance(value, jax.core.Tracer) for value in (offsets, start, key)):
            positions = jnp.asarray(start, jnp.int32) + offsets
            return self._taken_within(positions, key)
        start = int(start)
        if key is None:
            epoch, index = divmod(start, self.length)
            cursor = Cursor(self.cursor.epoch + epoch, index)
            return self.records.take(self.at(Schedule(self.length, size), cursor))
        positions = np.arange(start, start + size) % self.length
        if self.is_random_order:
            positions = index_shuffle(positions, self.length, int(key_word(key)))
        return self.records.take(self._chosen(positions))

    def at(self, schedule: Schedule, cursor: Cursor) -> AtCursor:
        """The batch at a cursor, as which records it takes."""
        return AtCursor(self._order, schedule, cursor, self._seed)

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
        """The next position to hand out; traced where the source is an argument of `nnx.jit`."""
        return Cursor(_count(self.epoch), _count(self.index))

    def move_to(self, cursor: Cursor) -> None:
        """Goes on from another position."""
        # Raw: refused in a jit that only closes over the source, where it would not last; and
        # 2 us where set_value takes 9.
        self.epoch.set_raw_value(cursor.epoch)
        self.index.set_raw_value(cursor.index)

    def reset(self, seed: int | None = None) -> None:
        """Goes back to the first record of epoch 0; with a seed, of another order."""
        if seed is not None:
            self._seed = check_seed(seed)
            self.set_random_order(self.is_random_order)
        self.move_to(Cursor())

    @property
    def is_random_order(self) -> bool:
        """Whether records come in random order."""
        return self._order.seed is not None

    def set_random_order(self, enabled: bool) -> None:
        """Goes on from the same cursor, in random or in stored order."""
        self._order = self._ordered(enabled)

    @property
    def identity(self) -> Identity:
        """What a saved cursor is valid for."""
        return dataclasses.replace(
            self._identity,
            shuffle=self.is_random_order,
            seed=self._seed if self.is_random_order or self._stochastic else None,
            order=self._order.version,
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
        self.move_to(restored(state, self.identity, self.name))

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
        order = f"shuffled with seed {self._order.seed}" if self.is_random_order else "as stored"
        return f"{self.name}: {self.length:,} records, {order}, at {self.cursor}"

    __str__ = __repr__

    def _chosen(self, numbers: np.ndarray) -> Chosen:
        return Chosen(numbers, self.cursor.epoch, self._seed)


def resolved_sharding(sharding: NamedSharding | None, subject: str) -> NamedSharding:
    """The sharding of the batches, checked; a mesh of one device where there is none."""
    require_all_processes()
    if sharding is None:
        if jax.process_count() > 1:
            raise ValueError(
                explain(
                    subject,
                    "there are several processes, and no sharding says which rows are whose.",
                    processes=jax.process_count(),
                    fix="pass sharding=batch_sharding(make_mesh({'data': -1}))",
                )
            )
        return batch_sharding(make_mesh({"data": 1}, devices=jax.local_devices()[:1]))
    row_axes(sharding)
    return sharding


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


def key_word(key: jax.Array) -> jax.Array:
    """A PRNG key, typed or raw, as one 32-bit word."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    words = jax.random.key_data(key) if typed else key
    return functools.reduce(operator.xor, [words[i] for i in range(words.shape[-1])])
