"""Gives Grain the batches of a pipeline."""

from importlib.util import find_spec
from typing import Any

from datarax_tfds.config.fields import Field, integer
from datarax_tfds.pipeline import Pipeline
from sharding.checks import refused


def grain_dataset(pipeline: Pipeline, num_epochs: int | None = None) -> Any:
    """Gives the batches of a pipeline as a Grain `IterDataset`.

        dataset = grain_dataset(pipeline).map(augment)
        for batch in dataset:
            train_step(model, batch)

    The elements are the global batches of `pipeline.batches(num_epochs)`, so that they are the same
    on any number of hosts. An iterator over the dataset moves the cursor of the pipeline, and its
    state is that of the pipeline: a few hundred bytes of JSON types, which `grain.checkpoint`
    saves, as well as `DataSave(pipeline)` and `DataSave(iterator)` of `datarax_tfds.checkpoint`.
    These two can also be restored on another number of hosts: Grain's handler writes a file for
    each process, and asks for as many when it restores. Iterators of one pipeline take turns.

    A transformation of Grain that reads ahead moves the pipeline further than its own iterator has
    handed out: then save the iterator, and not the pipeline. Over several processes, none may read
    ahead in a thread, because all of them must start the same computations in the same order; and
    `mp_prefetch` cannot be used, because a pipeline holds devices. For Grain's own workers, take
    `random_access`.

    Args:
        pipeline: Where batches come from.
        num_epochs: After how many epochs of the run to end, as in `Pipeline.batches`.

    Returns:
        A `grain.IterDataset`. Its iterators have `get_state` and `set_state`.

    Raises:
        ModuleNotFoundError: Grain is not installed.
        TypeError: `pipeline` is not a Pipeline.
        ValueError: `num_epochs` is not an integer of at least 0.
    """
    if not isinstance(pipeline, Pipeline):
        raise refused(
            TypeError,
            "grain_dataset",
            f"pipeline must be a Pipeline, got {type(pipeline).__name__}.",
            pipeline=type(pipeline).__name__,
            fix="pass a pipeline, as Pipeline(source=source, batch_size=128); for single records,"
            " use grain.MapDataset.source(random_access(config))",
        )
    if num_epochs is not None:
        integer(0)(Field("grain_dataset", "num_epochs", num_epochs))
    if find_spec("grain") is None:
        raise refused(
            ModuleNotFoundError,
            "grain_dataset",
            "Grain is not installed.",
            module="grain",
            fix="pip install 'datarax-tfds[grain]', or iterate over pipeline.batches()",
        )
    # Here, because Grain is not among the dependencies.
    from datarax_tfds.adapters.pipeline_dataset import PipelineDataset

    return PipelineDataset(pipeline, num_epochs)
