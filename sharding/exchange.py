"""Moves rows between devices: each from the device that holds it to the device that serves it.

The functions run within a `shard_map`. Every device knows which rows each device wants.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

RAGGED_PLATFORMS = ("gpu", "tpu")  # where XLA has `ragged_all_to_all`

_RADIX = 4

# The most rows that a device may receive for each row that it needs, in a batch of random records.
_MAX_PADDING = 16

# The chances that a batch of random records needs more rounds than `_MAX_PADDING` allows, or more
# than one round.
_MAX_CHANCE, _MAX_CHANCE_OF_SECOND = 1e-3, 0.1


class Hop(NamedTuple):
    """Moves rows whose way has the digit `digit` at the place of value `stride`."""

    stride: int
    digit: int
    room: int  # how many of a device's rows it moves


@dataclass(frozen=True)
class Plan:
    """How much room an exchange of fixed shapes reserves.

    Args:
        hops: The hops of a pass; none if rows go to their devices directly.
        queue: How many rows a device can hold at once.
        capacity: How many rows a direct round moves from one device to another.
    """

    hops: tuple[Hop, ...]
    queue: int
    capacity: int


@functools.lru_cache(maxsize=64)
def plan(devices: int, share: int) -> Plan:
    """Chooses the sizes of an exchange in which each device wants `share` random rows.

    The number of rows that one device wants of another is binomial, or less spread if no row comes
    twice (Hoeffding, "Probability Inequalities for Sums of Bounded Random Variables", 1963). The
    maximum over all pairs exceeds a capacity at most with the sum of their chances (Bonferroni).

    With many devices, most pairs have no row, so that direct rounds would carry mostly padding.
    Rows then travel in hops, as in the index algorithm of radix 4 (Bruck et al., "Efficient
    Algorithms for All-to-All Communications in Multiport Message-Passing Systems", 1997), which
    needs about log2(devices) of them.
    """
    from scipy.special import bdtrc  # here, because it takes half a second

    pairs = devices**2

    def chance(capacity: int) -> float:
        """The chance that any pair has more rows."""
        if capacity >= share:
            return 0.0
        return pairs * float(bdtrc(capacity, share, 1 / devices))

    # A second round costs more than some padding in the first one.
    capacity = next(rows for rows in itertools.count(1) if chance(rows) <= _MAX_CHANCE_OF_SECOND)
    rounds = next(n for n in itertools.count(1) if chance(n * capacity) <= _MAX_CHANCE)
    hops = tuple(_hops(devices, share))
    if devices * capacity * rounds <= _MAX_PADDING * share:
        return Plan((), _highest(share, devices), capacity)
    return Plan(hops, _highest(share, 16 * devices * len(hops)), 1)


def _highest(mean: int, events: int) -> int:
    """What none of so many Poisson variables exceeds, in all but one of 10**6 cases."""
    from scipy.special import pdtrc

    return next(n for n in itertools.count(mean) if events * pdtrc(n, mean) <= 1e-6)


def _hops(devices: int, share: int) -> list[Hop]:
    strides = itertools.takewhile(lambda stride: stride < devices, map(_RADIX.__pow__, range(32)))
    hops = []
    for stride, digit in itertools.product(strides, range(1, _RADIX)):
        cycles, rest = divmod(devices, stride * _RADIX)
        distances = cycles * stride + min(max(rest - digit * stride, 0), stride)
        load = share * distances / devices  # the mean number of rows that need this hop
        if distances:
            # Most rows arrive in three passes; the others need only some of the hops.
            hops.append(Hop(stride, digit, max(1, round(load / 3))))
    return hops


def take(rows: Any, places: jax.Array) -> Any:
    """Takes rows of this device; a place outside of `[0, n)` gives a row of zeros."""
    # Unsigned, because negative numbers would count from the end. Without the barrier, XLA computes
    # the place anew for every byte of a row.
    places = places.astype(jnp.uint32)
    return jax.tree.map(lambda part: part.at[places].get(mode="fill", fill_value=0), rows)


def take_if_at_home(
    rows: Any, wanted: jax.Array, axes: tuple[str, ...], otherwise: Callable[[], Any]
) -> Any:
    """Takes the rows without a message if each is on the device that wants it.

    Args:
        rows: As for `Exchange`, like the arguments below.
        wanted: As for `Exchange`.
        axes: As for `Exchange`.
        otherwise: Takes the rows of a batch in which some are not.
    """
    owned = jax.tree.leaves(rows)[0].shape[0]
    places = wanted - owned * jnp.arange(len(wanted), dtype=jnp.int32)[:, None]
    outside = (wanted < 0) | (wanted >= owned * len(wanted))
    at_home = jnp.all(outside | ((places >= 0) & (places < owned)))
    mine = jnp.where(outside, -1, places)[lax.axis_index(axes)]
    return lax.cond(at_home, lambda: take(rows, mine), otherwise)


class Exchange:
    """One exchange: the device's part of the rows, and what every device wants of them.

    Args:
        rows: Arrays `[owned, ...]` in any pytree. Device d holds the rows `[d * owned, (d + 1) *
            owned)` of all.
        wanted: `[devices, share]` int32, the rows that each device wants, equal on every device. A
            number outside of `[0, devices * owned)` stands for a row of zeros.
        axes: The mesh axes over which the rows are split.
    """

    def __init__(self, rows: Any, wanted: jax.Array, axes: tuple[str, ...]):
        self._rows = rows
        self._wanted = wanted
        self._axes = axes
        self._devices, self._share = wanted.shape
        self._device = lax.axis_index(axes)
        self._owned = jax.tree.leaves(rows)[0].shape[0]
        # Unsigned, so that negative numbers have no owner either.
        owners = wanted.astype(jnp.uint32) // np.uint32(self._owned)
        self._owners = jnp.minimum(owners, np.uint32(self._devices)).astype(jnp.int32)
        # Here, because XLA on a CPU computes it faster outside of the branches that use it.
        self._ranks = self._ranked()

    def take(self, *, ragged: bool) -> Any:
        """Returns the rows that this device wants, `[share, ...]`.

        Args:
            ragged: Whether to move exactly the wanted rows, which needs one of `RAGGED_PLATFORMS`.
                Otherwise the shapes are fixed by `plan`.
        """
        sizes = plan(self._devices, self._share)
        if ragged:
            return self.take_ragged(sizes)
        if sizes.hops:
            return self.take_by_hops(sizes)
        once, several = (
            functools.partial(self.take_directly, sizes, once=it) for it in (True, False)
        )
        if sizes.capacity == self._share:
            return once()
        # Few devices have few pairs, so that each can count them without a message.
        every = jnp.arange(self._devices, dtype=jnp.int32)[None, :, None]
        loads = jnp.sum(self._owners[:, None, :] == every, axis=2, dtype=jnp.int32)
        return lax.cond(jnp.any(loads > sizes.capacity), several, once)

    def take_directly(self, sizes: Plan, *, once: bool = False) -> Any:
        """Sends rows from their owners in rounds of one `all_to_all`, until all are there.

        Args:
            sizes: Its `capacity` is that of a round, for each pair of devices.
            once: Whether all rows are known to fit one round.
        """
        capacity = sizes.capacity
        sent, ranks, owner, rank, _ = self._ranks

        def moved(start: Any) -> Any:
            """The rows whose rank among those of one owner is in the round from `start` on."""
            slots = jnp.where(sent & (ranks >= start), ranks - start, capacity)
            places = jnp.full((self._devices, capacity), self._owned, jnp.int32)
            rows_of = jnp.arange(self._devices, dtype=jnp.int32)[:, None]
            mine = self._wanted - self._device * self._owned
            places = places.at[rows_of, slots].set(mine, mode="drop")

            def swapped(outgoing: jax.Array) -> jax.Array:
                incoming = lax.all_to_all(outgoing, self._axes, split_axis=0, concat_axis=0)
                return incoming.reshape(self._devices * capacity, *incoming.shape[2:])

            incoming = jax.tree.map(swapped, take(self._rows, places))
            return take(incoming, jnp.where(inside(start), owner * capacity + rank - start, -1))

        def inside(start: Any) -> jax.Array:
            return (rank >= start) & (rank < start + capacity)

        def next_round(state: tuple[Any, Any]) -> tuple[Any, Any]:
            start, taken = state
            return start + capacity, _where(inside(start), moved(start), taken)

        if once:
            return moved(0)
        longest = lax.pmax(jnp.max(ranks) + 1, self._axes)
        state = jnp.int32(capacity), moved(0)
        return lax.while_loop(lambda state: state[0] < longest, next_round, state)[1]

    def take_by_hops(self, sizes: Plan) -> Any:
        """Sends rows in passes of hops, each of a fixed distance, until none is on its way.

        A hop moves a few rows from each device. The others make their remaining hops first, which
        spreads them over other devices, and this one in the next pass. Rows for which a device has
        no room, as only in batches that are far from random, go directly afterwards.
        """
        none, queue = self._wanted.size, sizes.queue  # `none` marks a free slot
        owned = (self._owners == self._device).ravel()
        goals = jnp.nonzero(owned, size=queue, fill_value=none)[0].astype(jnp.int32)
        held = self._owned_rows(self._wanted.ravel().at[goals].get(mode="fill", fill_value=-1))

        def needs(goals: jax.Array, hop: Hop) -> jax.Array:
            """Which of the rows that are held have this hop on their way."""
            way = (goals // self._share - self._device) % self._devices
            return (goals < none) & (way // hop.stride % _RADIX == hop.digit)

        def used(goals: jax.Array) -> jax.Array:
            """Which hops any row on any device still needs."""
            here = jnp.stack([jnp.any(needs(goals, hop)) for hop in sizes.hops])
            return lax.pmax(here.astype(jnp.int32), self._axes) > 0

        def one_pass(state: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, jax.Array, Any]:
            needed, goals, held = state
            for number, hop in enumerate(sizes.hops):
                move = functools.partial(hopped, hop)
                goals, held = lax.cond(needed[number], move, lambda *kept: kept, goals, held)
            return used(goals), goals, held

        def hopped(hop: Hop, goals: jax.Array, held: Any) -> tuple[jax.Array, Any]:
            picked = jnp.nonzero(needs(goals, hop), size=hop.room, fill_value=queue)[0]
            outgoing = goals.at[picked].get(mode="fill", fill_value=none), take(held, picked)
            ring = [(d, (d + hop.stride * hop.digit) % self._devices) for d in range(self._devices)]
            arriving = jax.tree.map(lambda part: lax.ppermute(part, self._axes, ring), outgoing)
            goals = goals.at[picked].set(none, mode="drop")
            free = jnp.nonzero(goals == none, size=hop.room, fill_value=queue)[0]
            put = lambda old, new: old.at[free].set(new, mode="drop")  # noqa: E731
            return jax.tree.map(put, (goals, held), arriving)

        state = used(goals), goals, held
        _, goals, held = lax.while_loop(lambda state: jnp.any(state[0]), one_pass, state)
        slots = jnp.where(goals // self._share == self._device, goals % self._share, self._share)
        arrived = jnp.zeros(self._share, bool).at[slots].set(True, mode="drop")
        places = jnp.full(self._share, queue).at[slots].set(jnp.arange(queue), mode="drop")
        taken = take(held, places)
        missing = ~arrived & (self._owners[self._device] < self._devices)

        def completed() -> Any:
            everywhere = lax.all_gather(missing, self._axes)
            rest = Exchange(self._rows, jnp.where(everywhere, self._wanted, -1), self._axes)
            return _where(missing, rest.take_directly(sizes), taken)

        lost = lax.pmax(jnp.any(missing).astype(jnp.int32), self._axes)
        return lax.cond(lost > 0, completed, lambda: taken)

    def take_ragged(self, sizes: Plan) -> Any:
        """Sends exactly the rows that are wanted, with `ragged_all_to_all`.

        A device sends up to `sizes.queue` rows in a round, which suffice if the rows are random.
        """
        room = sizes.queue
        sent, _, owner, rank, mine = self._ranks
        every = jnp.arange(self._devices + 1, dtype=jnp.int32)
        flat = sent.ravel()
        ranks = jnp.cumsum(flat, dtype=jnp.int32) - 1  # of a row among all that this device sends
        counts = jnp.sum(sent, axis=1, dtype=jnp.int32)
        starts = jnp.cumsum(counts) - counts
        offsets = jnp.sum(self._owners < self._device, axis=1, dtype=jnp.int32)
        # The rows come sorted by their owners. Those of an owner begin at this rank of its own.
        mine_at = jnp.cumsum(mine) - mine
        before = jnp.repeat(every[:-1] < self._device, self._share)
        owners = self._owners.ravel()
        their_starts = jnp.zeros_like(every).at[owners].add(before.astype(jnp.int32))[:-1]
        longest = jnp.max(jnp.zeros_like(every).at[owners].add(1)[:-1])

        def part(start: Any, firsts: jax.Array, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Which of `sizes` rows, the first of rank `firsts`, are in the round from `start`."""
            low = jnp.clip(start - firsts, 0, sizes)
            return low, jnp.clip(start + room - firsts, 0, sizes) - low

        def next_round(state: tuple[Any, Any]) -> tuple[Any, Any]:
            start, taken = state
            slots = jnp.where(flat & (ranks >= start), ranks - start, room)
            places = jnp.full(room, -1, jnp.int32).at[slots].set(self._wanted.ravel(), mode="drop")
            low, sizes = part(start, starts, counts)
            begins = jnp.clip(starts + low - start, 0, room)
            received = part(start, their_starts, mine)[1]

            def moved(outgoing: jax.Array, taken: jax.Array) -> jax.Array:
                layout = begins, sizes, offsets + low, received
                return lax.ragged_all_to_all(outgoing, taken, *layout, axis_name=self._axes)

            return start + room, jax.tree.map(moved, self._owned_rows(places), taken)

        zeros = lambda part: jnp.zeros((self._share, *part.shape[1:]), part.dtype)  # noqa: E731
        state = jnp.int32(0), jax.tree.map(zeros, self._rows)
        taken = lax.while_loop(lambda state: state[0] < longest, next_round, state)[1]
        slots = mine_at.at[owner].get(mode="fill", fill_value=0) + rank
        return take(taken, jnp.where(owner < self._devices, slots, -1))

    def _owned_rows(self, numbers: jax.Array) -> Any:
        """The rows of this device with these numbers; -1 gives a row of zeros."""
        places = numbers - self._device * self._owned
        return take(self._rows, jnp.where(numbers < 0, -1, places))

    def _ranked(self) -> tuple[jax.Array, ...]:
        """Ranks rows among those that one owner sends to one device.

        Returns:
            Which rows this device sends, `[devices, share]`, and their ranks there; the owners of
            the rows that it wants, `[share]`, and their ranks; how many it wants of each owner.
        """
        sent = self._owners == self._device
        ranks = jnp.cumsum(sent, axis=1, dtype=jnp.int32) - 1
        owner = self._owners[self._device]
        from_owner = owner[:, None] == jnp.arange(self._devices, dtype=jnp.int32)[None, :]
        among = jnp.cumsum(from_owner, axis=0, dtype=jnp.int32) - 1
        rank = jnp.sum(jnp.where(from_owner, among, 0), axis=1, dtype=jnp.int32)
        return sent, ranks, owner, rank, among[-1] + 1


def _where(choice: jax.Array, rows: Any, others: Any) -> Any:
    """Rows where `choice` is set, and otherwise those of `others`."""

    def chosen(row: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.where(choice.reshape(-1, *[1] * (row.ndim - 1)), row, other)

    return jax.tree.map(chosen, rows, others)
