"""Decides which record comes next if each batch takes as many records of every part of a split."""

import functools
import re
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from datarax_tfds.order.keys import threefry_2x32
from datarax_tfds.order.one_split import OneSplit
from sharding.checks import refused

_VERSION = 1  # to be changed when the same fields give another order

ROUNDS = 32  # of the shuffle: two records then keep their distance with a chance of 2**-32

# The highest bits keep these keys apart from those of epochs and records.
_KEY_OF_STRATUM = 0xC0000000

_GOLDEN = 0x9E3779B9  # makes words of consecutive rounds differ in many bits

_CHUNK_SIZE = 1 << 16  # positions that the host computes at once, in 20 ms


@dataclass(frozen=True)
class Strata:
    """The contiguous parts of a split, which differ by at most one record in length.

    Devices that hold a multiple of parts hold equally many rows: every part has as many places as
    the longest one.

    Args:
        length: Number of records N.
        parts: Number of parts V, at most N.
    """

    length: int
    parts: int

    @property
    def places(self) -> int:
        """The places of all parts."""
        return self.parts * -(-self.length // self.parts)

    def places_of(self, numbers: Any) -> Any:
        """The places of records; that of the number N is outside. An array of NumPy or JAX."""
        short, longer = divmod(self.length, self.parts)
        if not longer:
            return numbers
        behind = numbers - longer * (short + 1)  # among the shorter parts, which lack one place
        xp = jnp if isinstance(numbers, jax.Array) else np
        return numbers + xp.maximum(behind, 0) // short

    def numbers_at(self, places: np.ndarray) -> np.ndarray:
        """The records at places; N at places that are empty."""
        short, longer = divmod(self.length, self.parts)
        part, offset = np.divmod(places, short + bool(longer))
        starts = part * short + np.minimum(part, longer)
        filled = (offset < short + (part < longer)) & (places < self.places)
        return np.where(filled, starts + offset, self.length)


@dataclass(frozen=True)
class StrataOrder(OneSplit):
    """An order in which each batch takes as many records of each part of the split.

    Position p of an epoch is in part `p % strata`. Each part is permuted for itself, so that a
    record comes at any time of the epoch, but always with one of each other part. The last
    `length % strata` positions belong to the parts with one record more.

    It is a pure function of its fields, which does not depend on devices or batch sizes, takes O(1)
    memory at any length, and is used like `Order`.

    Args:
        length: Number of records N.
        seed: In `[0, 2**32)`; None for the stored order within each part.
        strata: The number of parts V, at most N; a part has fewer than 2**31 records.
    """

    length: int
    seed: int | None
    strata: int

    def __post_init__(self):
        if not self.strata <= self.length < 2**31 * self.strata:
            raise refused(
                ValueError,
                "strata",
                f"it must be at most the number of records, {self.length}, and a part must have"
                " fewer than 2**31 records.",
                strata=self.strata,
                fix=f"use strata={min(self.length, max(self.strata, (self.length >> 31) + 1))}",
            )

    @property
    def version(self) -> str:
        """The version of the algorithm and its parameter, as saved states hold them."""
        return f"{self.strata} strata, {_VERSION}"

    @classmethod
    def of_version(cls, version: str, length: int, seed: int | None) -> Self | None:
        """The order with this `version`; None if it is one of another kind."""
        found = re.fullmatch(rf"([1-9]\d*) strata, {_VERSION}", version)
        return cls(length, seed, int(found[1])) if found else None

    def host_numbers(self, epoch: int, start: int, stop: int, stride: int = 0) -> np.ndarray:  # noqa: ARG002
        """The numbers of the records at positions `[start, stop)` of an epoch, as in `Order`."""
        size = max(_CHUNK_SIZE // self.strata, 1) * self.strata
        first, last = start // size, max(start, stop - 1) // size
        parts = [
            _chunk(self, epoch, chunk * size, size)[
                max(start - chunk * size, 0) : stop - chunk * size
            ]
            for chunk in range(first, last + 1)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def device_numbers(self, epochs: jax.Array, positions: jax.Array) -> jax.Array:
        """The same on the device, as in `Order`."""
        return self.numbers(epochs, positions // self.strata, positions % self.strata)

    def numbers(self, epochs: Any, times: Any, parts: Any) -> Any:
        """The numbers of the records that come from parts, the first one of an epoch at time 0.

        Each part is permuted by the swap-or-not shuffle (Hoang, Morris and Rogaway, "An Enciphering
        Scheme Based on a Card Shuffle", 2012), which fits a part of any length, with keys of its
        own. Its random bits are those of MurmurHash3's finalizer.

        Args:
            epochs: One epoch, or an array.
            times: Arrays of NumPy or JAX that can be broadcast, like the `parts`.
            parts: The numbers of the parts.
        """
        short, longer = divmod(self.length, self.strata)
        on_device = isinstance(parts, jax.Array)
        xp: Any = jnp if on_device else np
        starts = parts * short + xp.minimum(parts, longer)
        if self.seed is None:
            return starts + times
        word = lambda value: xp.asarray(value).astype(np.uint32)  # noqa: E731
        lengths = word(xp.where(parts < longer, short + 1, short))
        key: tuple[Any, Any] = (self.seed, epochs)
        counter: tuple[Any, Any] = (_KEY_OF_STRATUM, parts)
        if on_device:
            key, counter = (tuple(map(word, map(_unsigned, pair))) for pair in (key, counter))
        first, second = map(word, threefry_2x32(key, counter))

        def shuffled(number: Any, offsets: Any) -> Any:
            salt = word(number) * word(_unsigned(_GOLDEN))
            pivot = _mixed(first + salt) % lengths
            behind = offsets > pivot
            partner = xp.where(behind, pivot + lengths - offsets, pivot - offsets)
            mixed = _mixed(xp.maximum(offsets, partner) ^ _mixed(second + salt))
            return xp.where(mixed >> 31 == 1, partner, offsets)

        offsets = word(times)
        if on_device:
            offsets = lax.fori_loop(0, ROUNDS, shuffled, offsets)
            return starts + offsets.astype(starts.dtype)
        for number in range(ROUNDS):
            offsets = shuffled(np.full(1, number), offsets)
        return starts + offsets


@functools.lru_cache(maxsize=4)  # the chunk in use, the next, and those of an evaluation set
def _chunk(order: StrataOrder, epoch: int, start: int, size: int) -> np.ndarray:
    """The numbers at `size` positions from `start` on; both are multiples of the strata."""
    times = np.arange(start // order.strata, (start + size) // order.strata)
    parts = np.arange(order.strata)
    numbers = order.numbers(epoch, times[:, None], parts[None, :]).ravel()[: order.length - start]
    numbers = numbers.astype(np.int32 if order.length < 2**31 else np.int64)
    numbers.flags.writeable = False
    return numbers


def _unsigned(value: Any) -> Any:
    return np.uint32(value) if isinstance(value, int) else value


def _mixed(words: Any) -> Any:
    """The finalizer of MurmurHash3 (Appleby, 2011), of 32 bits."""
    words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
    return words ^ (words >> 16)
