"""Functions that workers import, for tests of decoding elsewhere."""

import os


def jittered(record, rng):
    """Draws random numbers, and is slow enough that workers are asked."""
    total = sum(range(20_000))
    noise = rng.integers(0, 9, record["image"].shape)
    return {"image": record["image"] + noise + total - total, "id": record["id"]}


def other_elsewhere(record):
    """Gives other values in a worker of Ray, with the same code."""
    return {"id": record["id"] + ("RAY_RAYLET_PID" in os.environ)}
