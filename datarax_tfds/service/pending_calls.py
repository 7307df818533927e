"""Keeps the calls to workers that are not answered yet."""

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.service.executor import Rows


@dataclasses.dataclass(frozen=True)
class Call:
    """A call to a worker for records.

    Args:
        worker: Its number.
        key: Names the reader.
        values: The numbers of the records, and their keys.
        future: Of the rows.
    """

    worker: int
    key: str
    values: tuple[np.ndarray, np.ndarray | None]
    future: Future[Rows] = dataclasses.field(default_factory=Future)


@not_copied
class PendingCalls:
    """Calls by number. Each is answered once, whatever becomes of its worker.

    Any thread may use it. Futures complete in the thread that does so, while no lock is held.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._calls: dict[int, Call] = {}
        self._numbers = 0

    def add(self, call: Call) -> int:
        """Keeps a call, and returns its number."""
        with self._lock:
            number, self._numbers = self._numbers, self._numbers + 1
            self._calls[number] = call
        return number

    def get(self, number: int) -> Call | None:
        """The call, if it is not answered yet, and has not failed."""
        with self._lock:
            return self._calls.get(number)

    def answer(self, number: int, rows: Callable[[], Rows]) -> None:
        """Completes a call with what `rows` returns or raises, unless it has failed before."""
        if (call := self._taken(number)) is None:
            return
        try:
            found = rows()
        except Exception as error:  # of any kind, as the rows come from elsewhere
            call.future.set_exception(error)
        else:
            call.future.set_result(found)

    def answer_error(self, number: int, why: str) -> None:
        """Lets a call fail with what its worker said, unless it has failed before."""
        if (call := self._taken(number)) is not None:
            call.future.set_exception(RuntimeError(why))

    def fail(self, why: str, worker: int | None = None) -> None:
        """Lets the calls to a worker fail, or those to all workers."""
        with self._lock:
            numbers = [
                number
                for number, call in self._calls.items()
                if worker is None or call.worker == worker
            ]
            failed = [self._calls.pop(number) for number in numbers]
        for call in failed:
            call.future.set_exception(ConnectionError(why))

    def _taken(self, number: int) -> Call | None:
        with self._lock:
            return self._calls.pop(number, None)
