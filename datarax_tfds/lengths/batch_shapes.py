"""Says which shape a batch has, and cuts its columns to it."""

import functools
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from datarax_tfds.decoding.device_dtypes import path_name
from datarax_tfds.lengths.declared_lengths import DeclaredLengths, is_within
from datarax_tfds.order.bucket_order import BucketOrder, Buckets
from datarax_tfds.order.sampler import BatchAt, Selection
from sharding.checks import error_message

_log = logging.getLogger(__name__)


class BatchShapes:
    """The shapes of batches: that of the smallest bucket which holds all records of a batch.

    All processes agree on it without talking, because each knows the buckets of all records.

    Args:
        lengths: The lengths of the buckets.
        spec: A record of the largest bucket, with what stays on the host.
        buckets: The bucket of each record.
        run: How many records of one bucket come together.
        subject: The source, for messages.
    """

    def __init__(
        self,
        lengths: DeclaredLengths,
        spec: Mapping[str, Any],
        buckets: Buckets,
        run: int,
        subject: str,
    ):
        self._buckets = buckets
        self._run = run
        self._subject = subject
        self._sizes = [
            jax.tree_util.tree_map_with_path(partial(_size, lengths, bucket), dict(spec))
            for bucket in range(len(lengths))
        ]

    def cut(self, selection: Selection) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """What cuts columns `[rows, ...]` of a batch to its shape."""
        if isinstance(selection, BatchAt):
            self._warn_of_mixed_batches(selection)
        bucket = int(self._buckets.of(selection.record_numbers()).max())
        return partial(_cut_columns, self._sizes[bucket])

    def _warn_of_mixed_batches(self, batch: BatchAt) -> None:
        """Logs once why many batches have records of two runs, if they do."""
        size, run, order = batch.batch_size, self._run, batch.order
        if run % size:
            _warn_of_two_buckets(
                self._subject,
                "batch_size does not divide run",
                batch_size=size,
                run=run,
                fix=f"use run={-(-run // size) * size}, or a batch_size that divides {run}",
            )
        elif isinstance(order, BucketOrder) and batch.cursor.epoch and order.length % size:
            remainder = batch.schedule.remainder
            if order.continuous != (remainder == "wrap"):
                _warn_of_two_buckets(
                    self._subject,
                    "the source was built for another remainder than that of the pipeline",
                    pipeline=remainder,
                    fix=f"build the source with remainder={remainder!r}",
                )

    def cut_alone(self, number: int, record: dict[str, Any]) -> dict[str, Any]:
        """A single record with the shape of its own bucket."""
        sizes = self._sizes[int(self._buckets.of(np.array([number]))[0])]
        return jax.tree.map(lambda part, size: part[:size] if size else part, record, sizes)

    def specs(self, spec: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The `element_spec` of each bucket, given that of the last one."""

        def cut(leaf: Any, size: int) -> Any:
            return type(leaf)((size, *leaf.shape[1:]) if size else leaf.shape, leaf.dtype)

        return [
            jax.tree.map(cut, dict(spec), {name: sizes[name] for name in spec})
            for sizes in self._sizes
        ]


def _size(lengths: DeclaredLengths, bucket: int, path: Any, leaf: Any) -> int:  # noqa: ARG001
    """The length of a part of a record in a bucket; 0 for a part that has one shape."""
    named = (of[bucket] for name, of in lengths.by_name.items() if is_within(path_name(path), name))
    return next(named, 0)


def _cut_columns(sizes: Any, columns: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(lambda column, size: column[:, :size] if size else column, columns, sizes)


@functools.lru_cache(maxsize=128)  # so that a loop logs this once
def _warn_of_two_buckets(subject: str, cause: str, *, fix: str, **facts: object) -> None:
    problem = (
        "many batches have records of two buckets, and are padded to the larger one, because"
        f" {cause}."
    )
    _log.warning(error_message(subject, problem, fix=fix, **facts))
