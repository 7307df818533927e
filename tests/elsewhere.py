"""Functions that workers import, for tests of decoding elsewhere."""

import os


def jittered(record, rng):
    """Draws random numbers, and is slow enough that workers are asked. Its rows are so large that
    they come in memory of the worker, or of Ray."""
    total = sum(range(20_000))
    noise = rng.integers(0, 9, record["image"].shape)
    image = record["image"] + noise + total - total
    return {"image": image, "id": record["id"], "noise": rng.random((128, 128), "float32")}


def other_elsewhere(record):
    """Gives other values in a worker of Ray, with the same code."""
    return {"id": record["id"] + ("RAY_RAYLET_PID" in os.environ)}
