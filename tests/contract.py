"""What every source promises, as functions: used on each kind of source there is."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tfds_datasets

from datarax_tfds import (
    Pipeline,
    TFDSEagerSource,
    TFDSStreamingSource,
    prefetch_to_device,
)

N = tfds_datasets.TINY_TRAIN

# The parts of the mixture that processes train on, by name.
MIXED = {"web": ("train[:60]", TFDSStreamingSource), "code": ("train[60:]", TFDSEagerSource)}


# What the filters of tests keep.
KEPT = [number for number in range(N) if number % 7 in (1, 3, 4)]


def some_labels(record: Any) -> Any:
    """A `filter_fn` of tensors, by which the numbers in `KEPT` are kept."""
    return (record["label"] == 1) | (record["label"] == 3) | (record["label"] == 4)


def ids(batch: dict[str, Any]) -> list[int]:
    return np.asarray(batch["id"]).tolist()


def check_records(batch: dict[str, Any]) -> None:
    """Each row is, in every feature, the record that its id names."""
    for row, number in enumerate(ids(batch)):
        record = tfds_datasets.tiny_record(number)
        for name, value in record.items():
            assert np.array_equal(np.asarray(batch[name])[row], value), (name, number)


def equal(one: Any, other: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b), one, other)))


def uninterrupted(make: Callable[[], Pipeline], epochs: int) -> list[dict[str, Any]]:
    """All batches of the first epochs, on the host."""
    pipeline = make()
    batches = []
    while pipeline.cursor.epoch < epochs:
        batches += [jax.tree.map(np.asarray, batch) for batch in pipeline]
    return batches


def check_resume_after_every_batch(make: Callable[[], Pipeline], prefetch: int | None) -> None:
    """A pipeline restored after batch k hands out batch k + 1, for every k of two epochs.

    Args:
        make: A new pipeline, at its beginning.
        prefetch: How many batches are under way when the state is taken; absent without
            `prefetch_to_device`.
    """
    expected = uninterrupted(make, epochs=2)
    saving, restored = make(), make()

    def batches(pipeline: Pipeline) -> Any:
        return pipeline if prefetch is None else prefetch_to_device(pipeline, prefetch)

    step = 0
    while step < len(expected) - 1:
        for batch in batches(saving):
            assert equal(batch, expected[step])
            step += 1
            if step == len(expected):
                return
            state = saving.get_state()
            restored.set_state(state)
            assert restored.get_state() == state
            assert equal(next(iter(batches(restored))), expected[step])
