"""Computes random keys by hashing seed, epoch and number, the same on every host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_WORD = 0xFFFFFFFF


def epoch_key(seed: int, epoch: int) -> int:
    """The 32-bit key of one epoch: the first word of `jax.random.fold_in`.

    It is a hash because with `seed + epoch`, epoch 0 of seed 1 would repeat epoch 1 of seed 0.
    """
    return threefry_2x32((0, seed), (0, epoch))[0]


def record_keys(seed: int, epochs: Any, numbers: Any, salts: Any = 0) -> Any:
    """Two random 32-bit words for each record in an epoch, which do not depend on its position.

    Args:
        seed: In `[0, 2**32)`.
        epochs: One epoch, or an array `[n]` of them, from 0.
        numbers: `[n]`, in `[0, 2**61]`, a NumPy array; or a JAX array, which may be traced, of
            numbers below 2**32.
        salts: Give records with equal numbers, of different parts, different keys: 0, or `[n]`
            multiples of 256 below 2**29, with numbers below 2**40.

    Returns:
        `[n, 2]` int32, an array like `numbers`.
    """
    # The highest bit keeps these keys apart from those of epochs.
    if isinstance(numbers, jax.Array):
        word = lambda value: jnp.asarray(value).astype(jnp.uint32)  # noqa: E731
        counters = word(np.uint32(1 << 31)) | word(salts), word(numbers)
        words = threefry_2x32((word(np.uint32(seed)), word(epochs)), counters)
        return lax.bitcast_convert_type(jnp.stack(words, axis=-1), jnp.int32)
    numbers = numbers.astype(np.int64)
    counters = numbers >> 32 | 1 << 31 | salts, numbers & _WORD
    words = threefry_2x32((seed, epochs), counters)
    return np.stack(words, axis=-1).astype(np.uint32).view(np.int32)


def threefry_2x32(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """Threefry-2x32 of 20 rounds (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
    2011): what `jax.random` computes on a device, here on the host.

    Args:
        key: Two words below 2**32: integers, int64 arrays of NumPy, or uint32 arrays of JAX.
        counter: Two more such words.

    Returns:
        Two such words.
    """
    # JAX would convert a Python integer of this size to int32.
    mask = np.uint32(_WORD) if isinstance(counter[1], jax.Array) else _WORD
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (counter[0] + keys[0]) & mask, (counter[1] + keys[1]) & mask
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = (x + y) & mask
            y = ((y << rotation | y >> (32 - rotation)) & mask) ^ x
        x = (x + keys[(group + 1) % 3]) & mask
        y = (y + keys[(group + 2) % 3] + group + 1) & mask
    return x, y
