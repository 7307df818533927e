"""Decides which arrays are donated to a compiled program, so that they do not exist twice."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Donation:
    """Splits the leaves of a pytree into two arguments, of which the first is donated.

    Args:
        structure: The structure of the pytree.
        donated: For each leaf, whether it is donated.
    """

    structure: Any
    donated: tuple[bool, ...]

    @classmethod
    def of(cls, values: tuple[Any, ...], wanted: tuple[bool, ...], others: Any) -> Self:
        """Donates the wanted arrays, except those whose memory is passed twice.

        XLA refuses to donate memory that it gets twice, as when two variables hold one array.

        Args:
            values: Pytrees of arrays.
            wanted: For each of them, whether to donate it.
            others: Other arrays that are passed to the program.
        """
        leaves, structure = jax.tree.flatten(values)
        flags = [
            flag for flag, part in zip(wanted, values, strict=True) for _ in jax.tree.leaves(part)
        ]
        every = [_memory(leaf) for leaf in (*leaves, *jax.tree.leaves(others))]
        times = Counter(place for places in every for place in places)
        alone = [bool(places) and all(times[p] == 1 for p in places) for places in every]
        donated = [flag and once for flag, once in zip(flags, alone, strict=False)]
        return cls(structure, tuple(donated))

    def split(self, values: Any) -> tuple[list[Any], list[Any]]:
        """The leaves that are donated, and the others."""
        leaves = list(zip(jax.tree.leaves(values), self.donated, strict=True))
        return [leaf for leaf, gone in leaves if gone], [leaf for leaf, gone in leaves if not gone]

    def join(self, donated: list[Any], kept: list[Any]) -> Any:
        """Rebuilds the pytree from both arguments."""
        parts = iter(donated), iter(kept)
        leaves = [next(parts[0] if gone else parts[1]) for gone in self.donated]
        return jax.tree.unflatten(self.structure, leaves)


def _memory(value: Any) -> list[Any]:
    """The device and address of each shard of an array in this process; empty if unknown."""
    if not isinstance(value, jax.Array) or not value.size:
        return []
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return []  # PRNG keys: a few bytes
    return [
        (shard.device, shard.data.unsafe_buffer_pointer()) for shard in value.addressable_shards
    ]
