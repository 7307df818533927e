"""The one place that decides which record comes next: a permutation of the records per epoch."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from datarax_tfds.hashing import epoch_key
from sharding.integers import is_integer
from sharding.messages import explain

# Changes whenever the same (length, seed, epoch) would give another permutation. It is saved
# with every state, and a state of another version is refused.
VERSION = 1

# Grain's default of 4 rounds is measurably biased: at 60,000 records the numbers of records two
# positions apart correlate by -0.31. At 16 rounds nothing is left.
ROUNDS = 16

_BLOCK_BITS = 16  # the smallest block of the cipher
_CHUNK = 1 << _BLOCK_BITS  # positions computed at once on the host, 12 ms ahead of their use

# From this stride on, in lengths of a span, its positions are computed alone (0.3 ms for 128)
# rather than with all of its chunk.
_SPARSE = 16

# A word: an unsigned 32-bit array of NumPy or JAX. The cipher is written in the operators that
# both share, and so once.
_Word = Any


@dataclass(frozen=True)
class Order:
    """Which record stands at which position, in every epoch.

    A pure function of its fields: hosts, devices and batch sizes do not enter. O(1) memory
    at any length; the permutation of an epoch is computed where it is asked for.

        Order(length=60_000, seed=42).span(epoch=3, start=0, stop=128)

    Args:
        length: Number of records N.
        seed: In `[0, 2**32)`; absent, every epoch is read in stored order.
    """

    length: int
    seed: int | None = None

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(
                explain("Order", "no records to order.", length=self.length, fix="length >= 1")
            )
        if self.seed is not None:
            check_seed(self.seed)

    @property
    def version(self) -> int:
        """Of the algorithm, as it is saved."""
        return VERSION

    def span(self, epoch: int, start: int, stop: int, stride: int = 0) -> np.ndarray:
        """The numbers of the records at positions `[start, stop)` of an epoch, on the host.

        Args:
            epoch: From 0.
            start: In `[0, length]`.
            stop: In `[start, length]`.
            stride: How far behind `start` the next span begins that will be asked for: one process
                of many leaves out the rows of the others. The result does not depend on it.

        Returns:
            `[stop - start]`, int32 if the length allows, else int64.
        """
        dtype = _number_dtype(self.length)
        if self.seed is None:
            return np.arange(start, stop, dtype=dtype)
        if stride >= _SPARSE * (stop - start) and self.length > _CHUNK:
            positions = np.arange(start, stop)
            key = epoch_key(self.seed, epoch)
            return index_shuffle(positions, self.length, key).astype(dtype)
        first, last = start // _CHUNK, max(start, stop - 1) // _CHUNK
        parts = [
            _chunk(self.length, self.seed, epoch, chunk)[
                max(start - chunk * _CHUNK, 0) : stop - chunk * _CHUNK
            ]
            for chunk in range(first, last + 1)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def numbers(self, epochs: jax.Array, positions: jax.Array) -> jax.Array:
        """The same function on the device, traceable: O(1) a position, whatever the length.

        Args:
            epochs: `[n]` int32, the epoch of each position.
            positions: `[n]` int32, in `[0, length)`; `length < 2**31`.

        Returns:
            `[n]` int32.
        """
        if self.seed is None:
            return positions
        keys = jax.vmap(functools.partial(jax.random.fold_in, _threefry_key(self.seed)))(epochs)
        return index_shuffle(positions, self.length, jax.random.key_data(keys)[:, 0])


def check_seed(seed: int) -> int:
    """A seed as a plain integer; refuses one that is not an integer in `[0, 2**32)`."""
    if not is_integer(seed, 0) or seed >= 2**32:
        raise ValueError(
            explain(
                "seed",
                "a seed is an integer in [0, 2**32).",
                got=repr(seed),
                fix="use seed=42, say",
            )
        )
    return int(seed)


def index_shuffle(positions: _Word, length: int, key: _Word, rounds: int = ROUNDS) -> _Word:
    """Where a keyed permutation of `[0, length)` takes each position.

    A Simon-like Feistel cipher over the smallest even number of bits that holds the length,
    at least 16, walked along its cycle until it lands below `length` (Black and Rogaway,
    "Ciphers with Arbitrary Finite Domains", 2002; Beaulieu et al., "The Simon and Speck Families
    of Lightweight Block Ciphers", 2013; round keys from C++'s `std::seed_seq`).

    Bit for bit `grain.experimental.index_shuffle(position, length - 1, key, rounds)`, but for
    lengths 4**k + 1 with k >= 8 (beyond 2**48, also those a little longer), where that function
    takes a block one bit too small and is no permutation: at 65,537 it sends the positions 0 and
    65,536 to the same record.

    Args:
        positions: Integers in `[0, length)`: a NumPy array, or a JAX one (traced or not).
        length: At most 2**63 with NumPy, 2**31 - 1 with JAX.
        key: In `[0, 2**32)`: an integer or, with JAX, also an array like `positions`.
        rounds: Even, at least 4.

    Returns:
        An array like `positions`: int64 with NumPy, int32 with JAX.
    """
    if length == 1:
        return positions * 0
    bits = max((length - 1).bit_length(), _BLOCK_BITS)
    half = (bits + 1) // 2
    if isinstance(positions, jax.Array):
        keys = _round_keys(jnp.asarray(key, jnp.uint32), rounds)

        def step(walk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            values, under_way = walk
            values = jnp.where(under_way, _encrypt(values, keys, half, np.uint32), values)
            return values, values >= length

        start = positions.astype(jnp.uint32), jnp.ones_like(positions, bool)
        landed, _ = lax.while_loop(lambda walk: jnp.any(walk[1]), step, start)
        return landed.astype(jnp.int32)
    keys = _round_keys(np.full(1, key, np.uint32), rounds)
    if half * 2 == _BLOCK_BITS:
        return _small_permutation(length, keys)[positions]
    word = np.uint16 if half <= 16 else np.uint32
    landed = _encrypt(positions.astype(np.uint64), keys, half, word)
    while (outside := np.flatnonzero(landed >= length)).size:
        landed[outside] = _encrypt(landed[outside], keys, half, word)
    return landed.astype(np.int64)


@functools.lru_cache(maxsize=4)  # the chunk in use, the next, and those of an evaluation set
def _chunk(length: int, seed: int, epoch: int, chunk: int) -> np.ndarray:
    """The numbers at positions `[chunk * _CHUNK, (chunk + 1) * _CHUNK)`, as far as they go."""
    positions = np.arange(chunk * _CHUNK, min((chunk + 1) * _CHUNK, length))
    numbers = index_shuffle(positions, length, epoch_key(seed, epoch))
    numbers = numbers.astype(_number_dtype(length))
    numbers.flags.writeable = False
    return numbers


def _number_dtype(length: int) -> type[np.signedinteger]:
    return np.int32 if length < 2**31 else np.int64


def _small_permutation(length: int, keys: list[np.ndarray]) -> np.ndarray:
    """All of a permutation shorter than a block of 16 bits, in at most 16 look-ups.

    A walk visits 2**16 / length values on average, 32,768 where two records are left. Squaring
    "step on unless arrived" k times takes 2**k steps for every start at once.
    """
    values = np.arange(1 << _BLOCK_BITS)
    step = _encrypt(values.astype(np.uint32), keys, _BLOCK_BITS // 2, np.uint16).astype(np.int64)
    walk = np.where(values < length, values, step)
    while (landed := walk[step[:length]]).max() >= length:
        walk = walk[walk]
    return landed


def _encrypt(values: _Word, keys: list[_Word], half: int, word: type[np.unsignedinteger]) -> _Word:
    """Simon's rounds over blocks of `2 * half` bits, computed in words that hold `half` bits."""
    mask = (1 << half) - 1
    wide = values.dtype
    left = (values >> half).astype(word)
    right = (values & mask).astype(word)

    def rotated(half_block: _Word, by: int) -> _Word:
        return (half_block << by) | (half_block >> (half - by))

    def mixed(half_block: _Word) -> _Word:
        turned = (rotated(half_block, 1) & rotated(half_block, 8)) ^ rotated(half_block, 2)
        return turned & mask

    round_keys = [(key & mask).astype(word) for key in keys]
    for first, second in zip(round_keys[::2], round_keys[1::2], strict=True):
        left = left ^ mixed(right) ^ first
        right = right ^ mixed(left) ^ second
    return (left.astype(wide) << half) | right.astype(wide)


def _round_keys(seed: _Word, rounds: int) -> list[_Word]:
    """`std::seed_seq{seed}.generate` of `rounds` words, as the C++ standard defines it."""
    n = rounds
    t = 3 if n >= 7 else (n - 1) // 2
    p = (n - t) // 2
    q = p + t
    words = [seed * 0 + np.uint32(0x8B8B8B8B)] * n

    def scrambled(word: _Word) -> _Word:
        return word ^ (word >> 27)

    for k in range(n):
        mixed = 1664525 * scrambled(words[k] ^ words[(k + p) % n] ^ words[(k - 1) % n])
        words[(k + p) % n] = words[(k + p) % n] + mixed
        mixed = mixed + (1 if k == 0 else k % n + seed if k == 1 else k % n)
        words[(k + q) % n] = words[(k + q) % n] + mixed
        words[k % n] = mixed
    for k in range(n, 2 * n):
        mixed = 1566083941 * scrambled(words[k % n] + words[(k + p) % n] + words[(k - 1) % n])
        words[(k + p) % n] = words[(k + p) % n] ^ mixed
        mixed = mixed - k % n
        words[(k + q) % n] = words[(k + q) % n] ^ mixed
        words[k % n] = mixed
    return words


def _threefry_key(seed: int) -> jax.Array:
    # The implementation is named, since the user may have made another one the default.
    return jax.random.wrap_key_data(jnp.array([0, seed], jnp.uint32), impl="threefry2x32")
