"""Functions that workers import, for tests of decoding elsewhere."""

import os

import numpy as np

LARGE = (1500, 1000)  # int32: 6 MB


def hold_the_interpreter(rounds=20_000):
    """Takes so long that workers are asked."""
    return sum(range(rounds))


def jittered(record, rng):
    """Draws random numbers, and is slow enough that workers are asked. Its rows are so large that
    they come in memory of the worker, or of Ray."""
    total = hold_the_interpreter()
    noise = rng.integers(0, 9, record["image"].shape)
    image = record["image"] + noise + total - total
    return {"image": image, "id": record["id"], "noise": rng.random((128, 128), "float32")}


def noisy(record, rng):
    """Adds random numbers."""
    return record | {"noise": rng.random((128, 128), "float32")}


def slow(record, rng):
    """Does the same, and takes about 2 ms of a core for each record."""
    hold_the_interpreter(200_000)
    return noisy(record, rng)


def other_elsewhere(record):
    """Gives other values in a worker of Ray, with the same code."""
    return {"id": record["id"] + ("RAY_RAYLET_PID" in os.environ)}


def large(record):
    """Makes records of which a few fill an object store."""
    hold_the_interpreter(500_000)
    return {"id": record["id"], "large": np.full(LARGE, record["id"], np.int32)}


def tokens(record):
    """Returns tokens, whose number varies from record to record."""
    hold_the_interpreter(200_000)
    return {"id": record["id"], "tokens": record["tokens"]}


def encode(text):
    """Byte n is token n + 4."""
    hold_the_interpreter(200_000)
    return [byte + 4 for byte in text.encode()]
