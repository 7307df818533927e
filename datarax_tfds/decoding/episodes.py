"""Turns the steps of an episode, a `tfds.features.Dataset` within a record (RLDS), into arrays."""

from collections.abc import Iterable
from typing import Any

from datarax_tfds.decoding.tfds_features import by_path

# TensorFlow's error for an episode of another length is recognized by these words.
UNEQUAL_STEPS = "has another number of steps"


def steps_as_arrays(tf: Any, dataset: Any, steps: int | None, path: str) -> Any:
    """The steps of an episode as arrays, one for each part of a step.

    Args:
        tf: TensorFlow.
        dataset: The steps: a finite `tf.data.Dataset` whose cardinality is known.
        steps: The number of steps T that every episode must have; None allows any number.
        path: The path of the feature, for the message.

    Returns:
        Tensors `[T, ...]`, nested as a step is; ragged tensors for parts whose length varies.
    """
    count = dataset.cardinality()
    # A ragged batch needs parts of which only the first axis varies. If another axis varies, all
    # steps of an episode must have one shape.
    specs = tf.nest.flatten(dataset.element_spec)
    ragged = all(spec.shape[1:].is_fully_defined() for spec in specs)

    def all_steps() -> Any:
        batch = dataset.ragged_batch if ragged else dataset.batch
        return batch(tf.maximum(count, 1)).get_single_element()

    def no_steps(spec: Any) -> Any:
        shape = [0 if size is None else size for size in spec.shape]
        if ragged and None in spec.shape.as_list():
            splits = tf.zeros(1, tf.int64)
            return tf.RaggedTensor.from_row_splits(tf.zeros(shape, spec.dtype), splits)
        return tf.zeros([0, *shape], spec.dtype)

    if steps is None:
        return tf.cond(
            count > 0, all_steps, lambda: tf.nest.map_structure(no_steps, dataset.element_spec)
        )
    message = f"The episode in feature {path} {UNEQUAL_STEPS} than {steps}."
    tf.debugging.assert_equal(count, tf.constant(steps, count.dtype), message)
    return tf.nest.map_structure(
        lambda column, spec: tf.ensure_shape(column, [steps, *spec.shape]),
        all_steps(),
        dataset.element_spec,
    )


def equal_steps(tf: Any, episodes: Iterable[Any]) -> dict[str, int]:
    """The number of steps, by path, of the features that have equally many in all episodes.

    The episodes are records as TFDS decodes them, whose steps are `tf.data.Dataset`s. Features
    whose steps vary in shape are left out.
    """
    counts: dict[str, set[int]] = {}
    for episode in episodes:
        for path, value in by_path(episode):
            if isinstance(value, tf.data.Dataset) and all(
                spec.shape.is_fully_defined() for spec in tf.nest.flatten(value.element_spec)
            ):
                counts.setdefault(path, set()).add(int(value.cardinality()))
    return {path: found.pop() for path, found in counts.items() if len(found) == 1}
