"""Decides which record comes next in a mixture: a part by its weight, then the next one of it."""

import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from datarax_tfds.order.cipher import index_shuffle
from datarax_tfds.order.order import check_length
from datarax_tfds.order.record_order import RecordOrder
from datarax_tfds.order.shares import Shares
from datarax_tfds.order.wide_numbers import is_wide, number_dtype

_VERSION = 1  # to be changed when the same fields give another order

_BLOCK_SIZE = 1 << 13  # numbers of a part, or of the mixture, that are computed at once, in 2 ms

# A span is computed alone if its stride is at least this many times as long, as in `Order`.
_MIN_SPARSE_STRIDE = 16


class Stage(NamedTuple):
    """Weights that hold from a position on, counted from the beginning of the first epoch."""

    start: int
    weights: tuple[int, ...]


@dataclass(frozen=True)
class MixtureOrder:
    """An order in which each record comes from one of several parts.

    `Shares` deals the positions out to the parts. The i-th position of a part, counted over the
    whole run, has the record at position `i % length` of epoch `i // length` of that part's own
    order. So each record of a part comes once in each epoch of the part, however long an epoch of
    the mixture is. The parts' numbers are concatenated.

    It is a pure function of its fields, takes O(1) memory at any length, and is used like `Order`.

    Args:
        names: The names of the parts.
        parts: Their orders; None for a part that was removed, which has no records.
        length: The number of positions of an epoch.
        stages: The weights of the parts; the first stage starts at 0.
    """

    names: tuple[str, ...]
    parts: tuple[RecordOrder | None, ...]
    length: int
    stages: tuple[Stage, ...]

    def __post_init__(self):
        check_length(self.length)
        check_length(self.records)

    @property
    def strata(self) -> int:
        return 1

    @property
    def seed(self) -> int | None:
        """The seed of the first part in random order; None if all are in stored order."""
        seeds = (part.seed for part in self.parts if part is not None)
        return next((seed for seed in seeds if seed is not None), None)

    @property
    def version(self) -> str:
        """The version of the algorithm and the stages, as saved states hold them; the weights are
        sorted by the names of the parts.
        """
        stages = (
            f"{start}: {' '.join(str(weights[part]) for part in self.by_name)}"
            for start, weights in self.stages
        )
        return f"mixture {_VERSION}; {'; '.join(stages)}"

    @property
    def by_name(self) -> list[int]:
        """The parts, sorted by their names."""
        return sorted(range(len(self.names)), key=self.names.__getitem__)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The number of the first record of each part, and at the end the number of records."""
        starts = [0]
        for part in self.parts:
            starts.append(starts[-1] + (0 if part is None else part.records))
        return tuple(starts)

    @property
    def records(self) -> int:
        """The number of records of all parts."""
        return self.starts[-1]

    @cached_property
    def _shares(self) -> tuple[Shares, ...]:
        return tuple(Shares(stage.weights, self.names) for stage in self.stages)

    @cached_property
    def _earlier(self) -> tuple[tuple[int, ...], ...]:
        """For each stage, how many records of each part come before it."""
        counts = [0] * len(self.parts)
        earlier = [tuple(counts)]
        for before, after, shares in zip(self.stages, self.stages[1:], self._shares, strict=False):
            of_stage = shares.counts(after.start - before.start)
            counts = [count + more for count, more in zip(counts, of_stage, strict=True)]
            earlier.append(tuple(counts))
        return tuple(earlier)

    def at_stage(self, position: int) -> int:
        """The number of the stage of a position, counted from the beginning of the first epoch."""
        return sum(stage.start <= position for stage in self.stages) - 1

    def with_weights(self, weights: tuple[int, ...], start: int) -> Self:
        """The order that has other weights from a position on, in place of all later stages."""
        kept = tuple(stage for stage in self.stages if stage.start < start)
        if not kept or kept[-1].weights != weights:
            kept = (*kept, Stage(start, weights))
        return replace(self, stages=kept)

    def host_numbers(self, epoch: int, start: int, stop: int, stride: int = 0) -> np.ndarray:
        """The numbers of the records at positions `[start, stop)` of an epoch, as in `Order`.

        A part that was removed has none: its positions have the number of padding.
        """
        size = stop - start
        if size >= _BLOCK_SIZE or stride >= _MIN_SPARSE_STRIDE * size:
            return self._numbers(epoch, start, stop)
        first, last = start // _BLOCK_SIZE, max(start, stop - 1) // _BLOCK_SIZE
        parts = [
            _chunk(self, epoch, chunk)[
                max(start - chunk * _BLOCK_SIZE, 0) : stop - chunk * _BLOCK_SIZE
            ]
            for chunk in range(first, last + 1)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _numbers(self, epoch: int, start: int, stop: int) -> np.ndarray:
        numbers = np.empty(stop - start, number_dtype(self.records))
        for part, places, first in self._dealt(epoch, start, stop):
            order = self.parts[part]
            numbers[places] = self.records
            if order is not None:
                numbers[places] = self.starts[part] + _numbers_of_part(order, first, len(places))
        return numbers

    def host_epochs(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """The epoch of its own part in which each record comes: `[stop - start]` int64."""
        epochs = np.empty(stop - start, np.int64)
        for part, places, first in self._dealt(epoch, start, stop):
            order = self.parts[part]
            length = 1 if order is None else order.length
            behind = (first % length + np.arange(len(places))) // length
            epochs[places] = first // length + behind
        return epochs

    def _dealt(self, epoch: int, start: int, stop: int) -> Iterator[tuple[int, np.ndarray, int]]:
        """Yields parts, the places in `[start, stop)` of their records, and the ordinal of the
        first one of these records in the part.
        """
        begin, end = epoch * self.length + start, epoch * self.length + stop
        limits = [stage.start for stage in self.stages[1:]] + [end]
        for number, (stage, limit) in enumerate(zip(self.stages, limits, strict=True)):
            lower, upper = max(begin, stage.start), min(end, limit)
            if lower >= upper:
                continue
            shares = self._shares[number]
            parts = shares.parts(lower - stage.start, upper - stage.start)
            counts = shares.counts(lower - stage.start)
            for part, weight in enumerate(stage.weights):
                places = np.flatnonzero(parts == part)
                if weight and len(places):
                    first = self._earlier[number][part] + counts[part]
                    yield part, places + (lower - begin), first

    def device_numbers(self, epochs: jax.Array, positions: jax.Array) -> jax.Array:
        """The same as `host_numbers` on the device, as in `Order`."""
        parts, of_part, places = self._drawn(epochs, positions)
        dtype = number_dtype(self.records)
        numbers = jnp.full(parts.shape, self.records, dtype)
        for part, order in enumerate(self.parts):
            if order is not None and any(stage.weights[part] for stage in self.stages):
                here = parts == part
                at = jnp.where(here, places, 0).astype(number_dtype(order.length))
                found = order.device_numbers(of_part, at).astype(dtype) + self.starts[part]
                numbers = jnp.where(here, found, numbers)
        return numbers

    def device_epochs(self, epochs: jax.Array, positions: jax.Array) -> jax.Array:
        """The same as `host_epochs`, on the device: int32."""
        return self._drawn(epochs, positions)[1]

    def _drawn(
        self, epochs: jax.Array, positions: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The part at each position, the epoch of the part, and the position in that epoch."""
        wide = any(order is not None and is_wide(order.length) for order in self.parts)
        tables = self._tables
        # Positions counted from the beginning of the first epoch need 64 bits in every mixture.
        with jax.enable_x64(True):
            at = epochs.astype(jnp.int64) * self.length + positions.astype(jnp.int64)
            starts = jnp.asarray(tables.starts)
            stage = (at[:, None] >= starts[None, :]).sum(axis=1) - 1
            at = at - starts[stage]
            node = jnp.asarray(tables.roots)[stage]
            whole, weight, halves = map(jnp.asarray, (tables.wholes, tables.weights, tables.halves))
            for _ in range(tables.depth):
                sum_, share = whole[node], weight[node]
                scaled = 2 * share * (at % sum_) + sum_
                in_second = at // sum_ * share + scaled // (2 * sum_)
                is_second = scaled % (2 * sum_) + 2 * share >= 2 * sum_
                at = jnp.where(is_second, in_second, at - in_second)
                node = halves[node, is_second.astype(jnp.int32)]
            part = jnp.asarray(tables.parts)[node]
            ordinal = jnp.asarray(tables.earlier)[stage, part] + at
            length = jnp.asarray(tables.lengths)[part]
            places = (ordinal % length).astype(jnp.int64 if wide else jnp.int32)
            return part, (ordinal // length).astype(jnp.int32), places

    @cached_property
    def _tables(self) -> "_Tables":
        nodes, roots = [], []
        for shares in self._shares:
            roots.append(len(nodes))
            nodes += [
                node._replace(first=node.first + roots[-1], second=node.second + roots[-1])
                for node in shares.nodes
            ]
        lengths = [1 if order is None else order.length for order in self.parts]
        return _Tables(
            starts=np.array([stage.start for stage in self.stages], np.int64),
            roots=np.array(roots, np.int32),
            wholes=np.array([node.whole for node in nodes], np.int64),
            weights=np.array([node.weight for node in nodes], np.int64),
            halves=np.array([(node.first, node.second) for node in nodes], np.int32),
            parts=np.array([node.part for node in nodes], np.int32),
            earlier=np.array(self._earlier, np.int64),
            lengths=np.array(lengths, np.int64),
            depth=max(shares.depth for shares in self._shares),
        )

    def salted(self, numbers: Any) -> tuple[Any, Any]:
        """For each record, a salt made of the name of its part, and its number in that part."""
        part, within = located(self.starts, numbers)
        xp = jnp if isinstance(numbers, jax.Array) else np
        words = [int(hashlib.sha256(name.encode()).hexdigest()[:5], 16) for name in self.names]
        # Above the bits of numbers below 2**40, and below those of other keys.
        return xp.asarray(np.array(words, np.uint32) << 8)[part], within

    def keyed_numbers(self, places: Any, key: int | Any | None) -> Any:
        """The numbers at places of an order that depends only on a key: a permutation of the first
        epoch. Traceable.
        """
        places = places if key is None else index_shuffle(places, self.length, key)
        if isinstance(places, jax.Array):
            return self.device_numbers(jnp.zeros(places.shape, jnp.int32), places)
        alone = [self.host_numbers(0, place, place + 1) for place in places.tolist()]
        return np.concatenate(alone)


class _Tables(NamedTuple):
    """The stages, their nodes and the parts, for a compiled program."""

    starts: np.ndarray
    roots: np.ndarray
    wholes: np.ndarray
    weights: np.ndarray
    halves: np.ndarray
    parts: np.ndarray
    earlier: np.ndarray
    lengths: np.ndarray
    depth: int


def located(starts: tuple[int, ...], numbers: Any) -> tuple[Any, Any]:
    """The part of each record, and its number in that part; traceable.

    Args:
        starts: The number of the first record of each part, and at the end the number of records,
            which stands for padding: it is outside of the last part.
        numbers: An array of NumPy or JAX.
    """
    first = _firsts(starts)
    if isinstance(numbers, jax.Array):
        first = jnp.asarray(first)
        part = jnp.searchsorted(first, numbers, side="right", method="compare_all") - 1
    else:
        part = np.searchsorted(first, numbers, side="right") - 1
    return part, numbers - first[part]


@functools.lru_cache(maxsize=64)
def _firsts(starts: tuple[int, ...]) -> np.ndarray:
    return np.array(starts[:-1], number_dtype(starts[-1]))


def stages_of_version(version: str, parts: int) -> tuple[Stage, ...] | None:
    """The stages of a saved order of this number of parts, with the weights in the order of the
    names; None if it is no mixture of so many parts.
    """
    found = re.fullmatch(rf"mixture {_VERSION}; (.+)", version)
    stages = []
    for text in found[1].split("; ") if found else ():
        stage = re.fullmatch(r"(\d+): (\d+(?: \d+)*)", text)
        if stage is None:
            return None
        stages.append(Stage(int(stage[1]), tuple(map(int, stage[2].split()))))
    starts = [stage.start for stage in stages]
    sound = starts[:1] == [0] and starts == sorted(set(starts))
    sound &= all(len(weights) == parts and any(weights) for _, weights in stages)
    return tuple(stages) if sound else None


def _numbers_of_part(order: RecordOrder, first: int, count: int) -> np.ndarray:
    """The numbers of `count` records of a part, from an ordinal on."""
    found: list[np.ndarray] = []
    while count:
        epoch, start = divmod(first, order.length)
        stop = min(start + count, order.length)
        if stop - start < _BLOCK_SIZE:
            stop = min(stop, (start // _BLOCK_SIZE + 1) * _BLOCK_SIZE)
            block = _block(order, epoch, start // _BLOCK_SIZE)
            found.append(block[start % _BLOCK_SIZE :][: stop - start])
        else:
            found.append(order.host_numbers(epoch, start, stop))
        first, count = first + stop - start, count - (stop - start)
    return found[0] if len(found) == 1 else np.concatenate(found)


@functools.lru_cache(maxsize=4)  # the chunk in use, the next, and those of an evaluation set
def _chunk(order: MixtureOrder, epoch: int, chunk: int) -> np.ndarray:
    """The numbers at the positions of one chunk; the last chunk of an epoch may be short."""
    start = chunk * _BLOCK_SIZE
    numbers = order._numbers(epoch, start, min(start + _BLOCK_SIZE, order.length))
    numbers.flags.writeable = False
    return numbers


@functools.lru_cache(maxsize=512)  # 16 MiB: the blocks in use, and the next, of 256 parts
def _block(order: RecordOrder, epoch: int, block: int) -> np.ndarray:
    start = block * _BLOCK_SIZE
    stop = min(start + _BLOCK_SIZE, order.length)
    # Sparse, because the rest of the order's own chunk would be gone when it is asked for.
    return order.host_numbers(epoch, start, stop, stride=_MIN_SPARSE_STRIDE * _BLOCK_SIZE)


def names_of(weights: Sequence[int], names: Sequence[str]) -> list[str]:
    """The names of the parts that have a weight."""
    return [name for name, weight in zip(names, weights, strict=True) if weight]
