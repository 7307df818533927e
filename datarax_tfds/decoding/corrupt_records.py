"""Replaces corrupt records of a split by sound ones."""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from datarax_tfds.errors import RESTORE, DataLossError
from datarax_tfds.runtime.copying import not_copied
from sharding.checks import error_message, refused

_log = logging.getLogger(__name__)

_MAX_SHOWN = 4  # records, each with its file

Result = TypeVar("Result")


@not_copied
class CorruptRecords:
    """Replaces each corrupt record by the next sound one, up to a limit. It is thread-safe.

    The next sound record is the one with the next higher number that can be read and decoded; 0
    comes after N - 1. It depends on the files alone, so all processes and all runs make the same
    batches, and states need not save it. Each process counts its own corrupt records, from 0.

    A record that fails only with some seeds of a random `map_fn` is replaced only where it fails:
    otherwise a batch would depend on the seeds that a process has tried before.

    Args:
        length: Number of records N.
        limit: How many different records this process may find to be corrupt; with 0, the first one
            is an error.
        where: Names the place of a record on disk.
        subject: The source that reads, for messages.
    """

    def __init__(self, length: int, limit: int, where: Callable[[int], str], subject: str):
        self._length = length
        self._limit = limit
        self._where = where
        self.subject = subject
        self._lock = threading.Lock()
        # Never changed in place, so that a reader needs no lock.
        self._replacements: dict[int, int] = {}
        self._by_seed: dict[int, int] = {}  # those that fail only with some seeds

    @property
    def replacements(self) -> dict[int, int]:
        """The numbers of the corrupt records found so far, with those of their replacements."""
        return self._by_seed | self._replacements

    def replaced(self, numbers: np.ndarray) -> np.ndarray:
        """These numbers, with those known to be corrupt replaced by sound ones."""
        found = self._replacements
        if not found:
            return numbers
        return np.array([found.get(number, number) for number in numbers.tolist()], numbers.dtype)

    def read(self, numbers: np.ndarray, read: Callable[[np.ndarray], Result]) -> Result:
        """Returns `read(numbers)`; records that it finds corrupt are replaced by sound ones.

        Raises:
            DataLossError: More records are corrupt than are allowed, or something other than a
                record is damaged.
        """
        found: list[DataLossError] = []
        wanted = numbers.copy()
        try:
            while True:
                try:
                    return read(self.replaced(wanted))
                except DataLossError as error:
                    if error.record is None or not self._limit:
                        raise
                    if self._added(error.record, error):
                        found.append(error)
                    if error.row is not None:
                        wanted[error.row] = (error.record + 1) % self._length
        finally:
            for error in found:
                self._warn(error)

    def _added(self, number: int, error: DataLossError) -> bool:
        """Adds a corrupt record; returns False if it was known already."""
        with self._lock:
            if number in self.replacements:
                return False
            corrupt = {*self.replacements, number}
            if len(corrupt) > min(self._limit, self._length - 1):
                raise self._refused(sorted(corrupt), error) from error
            always, by_seed = set(self._replacements), set(self._by_seed)
            (always if error.row is None else by_seed).add(number)
            self._replacements = {each: self._next_sound(each, always) for each in always}
            self._by_seed = {each: self._next_sound(each, always | {each}) for each in by_seed}
            return True

    def _next_sound(self, number: int, corrupt: set[int]) -> int:
        while number in corrupt:
            number = (number + 1) % self._length
        return number

    def _warn(self, error: DataLossError) -> None:
        assert error.record is not None
        found = self.replacements
        _log.warning(
            "%s",
            error_message(
                self.subject,
                f"record {error.record} is corrupt, and record {found[error.record]} is delivered"
                " in its place.",
                where=self._where(error.record),
                reason=error.reason,
                corrupt=f"{len(found)} so far, and max_corrupt_records={self._limit}",
                fix=RESTORE,
            ),
        )

    def _refused(self, corrupt: list[int], error: DataLossError) -> DataLossError:
        count, shown = len(corrupt), corrupt[:_MAX_SHOWN]
        records = [f"{number}: {self._where(number)}" for number in shown]
        records += [f"and {count - len(shown)} more"] * (count > len(shown))
        every = ", and this is every record" if count == self._length else ""
        return refused(
            DataLossError,
            self.subject,
            f"{count} records are corrupt, and max_corrupt_records={self._limit} allows no more"
            f" than {count - 1}{every}.",
            records="\n".join(records),
            last=f"{error.record}: {error.reason}",
            fix=f"{RESTORE}; or set max_corrupt_records to {count} or more, if the job can do"
            " without these records",
        )
