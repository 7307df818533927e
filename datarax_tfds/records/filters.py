"""Asks a user's `filter_fn` which records of a split to keep: in TensorFlow, or in Python."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, final

import jax
import numpy as np

from datarax_tfds.config.config import AnyConfig
from datarax_tfds.decoding.functions.filter_fn import KEPT, FilterFn
from datarax_tfds.decoding.plan import DecodingPlan
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.files.split import Split
from sharding.checks import refused


class Filter(Protocol):
    """A filter of the records of a split, by their numbers.

    Attributes:
        reader: Reads the records that the filter is asked about.
        code: Identifies what the filter computes, in any run; None if nothing does.
    """

    reader: RecordReader
    code: str | None

    def answers(self, numbers: np.ndarray) -> np.ndarray:
        """Which of these records `[n]` the filter keeps, bool `[n]`.

        Raises:
            DataLossError: A record is corrupt.
            RuntimeError: The function fails on a record.
            ValueError: A function in Python does not return a bool.
        """
        ...


def filter_of(split: Split, config: AnyConfig, subject: str) -> Filter:
    """The filter of a config, which has one.

    Raises:
        ValueError: TensorFlow cannot trace the function, it does not return one bool, or it may
            give another answer in another run.
    """
    kind = PythonFilter if config.filter_with == "numpy" else TensorFlowFilter
    return kind(split, config, subject)


@final
class TensorFlowFilter:
    """A filter that is a function of tensors, and is compiled with the decoding.

    The arguments are those of `filter_of`.
    """

    def __init__(self, split: Split, config: AnyConfig, subject: str):
        function = FilterFn(_function_of(config))
        self.reader = RecordReader(split, _config_for(config, function, map_fn=function), subject)
        self.code = None
        if config.filter_name is not None:
            self.code = f"named {config.filter_name}"
        elif config.decoders is None or not config.allow_stateful_map_fn:
            # The digest of the code has the places of features in a record, not their names.
            names = DecodingPlan.of(split.info, config, subject).names
            self.code = f"{self.reader.user_code} of {names}"

    def answers(self, numbers: np.ndarray) -> np.ndarray:
        return self.reader.values(numbers)[KEPT]


@final
class PythonFilter:
    """A filter that is a Python function of a record of NumPy arrays.

    The arguments are those of `filter_of`.
    """

    def __init__(self, split: Split, config: AnyConfig, subject: str):
        self._split = split
        self._function = _function_of(config)
        own = _config_for(config, FilterFn(self._function), map_fn=None)
        self.reader = RecordReader(split, own, subject)
        self.code = None if config.filter_name is None else f"named {config.filter_name}"

    def answers(self, numbers: np.ndarray) -> np.ndarray:
        at_once = len(numbers) if self.reader.takes_many else 1
        answers: list[bool] = []
        for start in range(0, len(numbers), at_once):
            some = numbers[start : start + at_once]
            columns = self.reader.values(some)
            for row, number in enumerate(some.tolist()):
                record = jax.tree.map(lambda column, row=row: column[row], columns)
                answers.append(self._answer(number, record))
        return np.array(answers, bool)

    def _answer(self, number: int, record: Any) -> bool:
        subject = self.reader.subject
        try:
            answer = self._function(record)
        except Exception as error:  # the user's code may raise anything
            fix = "let filter_fn cope with this record"
            if len(self._split) > 1:
                fix = f"{fix}, or leave it out with split={self._split.without(number)!r}"
            raise refused(
                RuntimeError,
                subject,
                "filter_fn fails on a record.",
                where=self._split.files.where(number),
                error=f"{type(error).__name__}: {error}",
                fix=fix,
            ) from error
        if np.ndim(answer) == 0 and np.asarray(answer).dtype == bool:
            return bool(answer)
        raise refused(
            ValueError,
            subject,
            "filter_fn must return one bool.",
            returned=type(answer).__name__,
            where=self._split.files.where(number),
            fix="return True or False, as bool(record['label'] == 3)",
        )


def _function_of(config: AnyConfig) -> Callable[..., Any]:
    assert config.filter_fn is not None
    return config.filter_fn


def _config_for(config: AnyConfig, function: FilterFn, *, map_fn: FilterFn | None) -> AnyConfig:
    """How records are decoded for a filter: as for `map_fn`. The marked `filter_fn` says so."""
    other = {"transform": None, "pad_to": None, "truncate": None, "max_corrupt_records": 0}
    return dataclasses.replace(config, map_fn=map_fn, filter_fn=function, **other)
