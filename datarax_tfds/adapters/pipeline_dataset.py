"""Defines the Grain dataset of a pipeline. Only `grain_dataset` imports this, because of Grain."""

from typing import Any, final

import grain

from datarax_tfds.pipeline import Pipeline


@final
class PipelineDataset(grain.IterDataset[dict[str, Any]]):
    """The batches of a pipeline.

    Args:
        pipeline: Where batches come from.
        num_epochs: After how many epochs of the run to end; None for never.
    """

    def __init__(self, pipeline: Pipeline, num_epochs: int | None):
        super().__init__()
        self._pipeline = pipeline
        self._num_epochs = num_epochs

    def __iter__(self) -> "PipelineIterator":
        return PipelineIterator(self._pipeline, self._num_epochs)

    def __str__(self) -> str:
        return f"PipelineDataset({self._pipeline.source.name})"


@final
class PipelineIterator(grain.DatasetIterator[dict[str, Any]]):
    """Iterates from the cursor of a pipeline on, and moves it."""

    def __init__(self, pipeline: Pipeline, num_epochs: int | None):
        super().__init__()
        self.source = pipeline.source  # `DataSave` asks it for the processes
        self._pipeline = pipeline
        self._num_epochs = num_epochs
        self._batches = pipeline.batches(num_epochs)

    def __next__(self) -> dict[str, Any]:
        self._assert_not_closed()
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """The state of the pipeline."""
        return self._pipeline.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a saved state of the pipeline, or of such an iterator."""
        self._pipeline.set_state(state)
        self._batches = self._pipeline.batches(self._num_epochs)  # the former may have ended
