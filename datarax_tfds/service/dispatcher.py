"""Decodes records here or on workers, whichever is free, and never fails because of a worker."""

import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait

import numpy as np

from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.threads import ThreadPool, decoding_threads
from datarax_tfds.runtime.timings import WORKERS, Timings
from datarax_tfds.service.admission import CANARIES, Admission
from datarax_tfds.service.executor import Executor, Rows
from datarax_tfds.service.team import Member, Team
from sharding.checks import error_message

_log = logging.getLogger(__name__)

# Of threads that wait for workers. Each needs a few KiB until it is used.
MAX_CALLS = 128
_ADMITTED_AT_ONCE = 4


@not_copied
class Dispatcher:
    """Gives calls to the threads of this process and to workers.

    Both give the same rows, because a worker is admitted only if it does. So what comes first is
    used. After an error of a worker of any kind, the records are decoded here: then an error that
    the user sees is the one that there is without workers, and a worker needs no policy for corrupt
    records.

    Args:
        read: Decodes records here.
        fits: Says what is wrong with rows that a worker has sent for so many records; None if
            nothing is.
        admission: Decides which workers are used.
        subject: The source that reads, for messages.
        timings: Counts how long workers take.
        late_s: After how long a call to a worker is late. It is then given to another worker, too,
            and decoded here.
        threads: How many calls are decoded here at once.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray, np.ndarray | None], Rows],
        fits: Callable[[Rows, int], str | None],
        admission: Admission,
        subject: str,
        timings: Timings,
        *,
        late_s: float,
        threads: int | None = None,
    ):
        self._read = read
        self._fits = fits
        self._admission = admission
        self._subject = subject
        self._timings = timings
        self._late_s = late_s
        threads = decoding_threads() if threads is None else threads
        self.team = Team(subject, threads)
        # For calls that are late: a worker may still answer first.
        self._late_calls = ThreadPool(decoding_threads(), "datarax_tfds_late")
        self._admitting = ThreadPool(_ADMITTED_AT_ONCE, "datarax_tfds_admission")
        self._warned: set[tuple[str, str]] = set()
        self._start: Callable[[Dispatcher], object] | None = None
        self._starting = threading.Lock()

    def start_with(self, start: "Callable[[Dispatcher], object]") -> None:
        """Sets what looks for workers. It is called at the first `read`, so that sources of which
        nothing is read start no processes.
        """
        self._start = start

    def read(self, numbers: np.ndarray, keys: np.ndarray | None = None, /) -> Rows:
        """Decodes records: see `RecordReader.read`. Waits until a thread or a worker is free."""
        if self._start is not None:
            with self._starting:
                start, self._start = self._start, None
            if start is not None:
                start(self)
        member = self.team.take()
        if member is None:
            try:
                return self._read(numbers, keys)
            finally:
                self.team.release(None)
        with self._timings.timed(WORKERS):
            rows = self._asked(member, numbers, keys)
        if rows is not None:
            return rows
        with self.team.here():
            return self._read(numbers, keys)

    def _asked(self, member: Member, numbers: np.ndarray, keys: np.ndarray | None) -> Rows | None:
        """The rows that a worker sends, or, if it is late, the first ones; None after an error."""
        count = len(numbers)
        calls = {self._submitted(member, numbers, keys): member}
        done, _ = wait(calls, timeout=self._late_s)
        if done:
            return self._good(*calls.popitem(), count)
        here = self._late_calls.submit(self._read, numbers, keys)
        other = self.team.take_other(than=member)
        if other is not None:
            calls[self._submitted(other, numbers, keys)] = other
        while not here.done():
            done, _ = wait([here, *calls], return_when=FIRST_COMPLETED)
            for call in done - {here}:
                rows = self._good(call, calls.pop(call), count)
                if rows is not None:
                    here.cancel()
                    return rows
        return here.result()

    def _submitted(
        self, member: Member, numbers: np.ndarray, keys: np.ndarray | None
    ) -> Future[Rows]:
        """A call to a worker, which the team counts until it is answered."""
        call: Future[Rows] = Future()
        try:
            call = member.executor.submit(numbers, keys)
        except Exception as error:  # of any kind, as an executor of the user may raise
            call.set_exception(error)
        # Not `self`, which a worker that never answers would keep alive.
        team = self.team
        call.add_done_callback(lambda _: team.release(member))
        return call

    def _good(self, call: Future[Rows], member: Member, count: int) -> Rows | None:
        """The rows of a call that is over, if they are as they must be."""
        if call.cancelled():
            problem = "the call was cancelled"
        elif (error := call.exception()) is not None:
            problem = f"{type(error).__name__}: {error}"
        else:
            problem = self._misfit(call.result(), count)
            if problem is None:
                return call.result()
        kind = problem.partition(":")[0]
        if (member.name, kind) not in self._warned:  # once, and not once for each call
            self._warned.add((member.name, kind))
            says = "%s: worker %s failed, so that its records are decoded here: %s"
            _log.warning(says, self._subject, member.name, problem)
        return None

    def _misfit(self, rows: Rows, count: int) -> str | None:
        try:
            return self._fits(rows, count)
        except Exception as error:  # of any kind, as rows of a worker may be anything
            return f"it sent something else than rows: {type(error).__name__}: {error}"

    def consider(
        self, name: str, executor: Executor, facts: Mapping[str, str] | None = None
    ) -> Future[str | None]:
        """Tests a worker in another thread, and adds it if it gives the same rows.

        Args:
            name: Names the worker in messages, as by its machine and process.
            executor: The worker.
            facts: What the worker says of itself: see `Admission`.

        Returns:
            Why it is refused; None if it is not.
        """
        decided: Future[str | None] = Future()
        self._admitting.submit(self._consider, name, executor, facts, decided)
        return decided

    def _consider(
        self,
        name: str,
        executor: Executor,
        facts: Mapping[str, str] | None,
        decided: Future[str | None],
    ) -> None:
        there = weakref.ref(self)  # as a worker that never answers would keep `self` alive

        def decide(compared: Future[str | None]) -> None:
            reason, dispatcher = compared.result(), there()
            if dispatcher is not None and reason is None:
                dispatcher.team.add(name, executor)
            elif dispatcher is not None and reason is not None:
                dispatcher.refuse(name, reason)
            decided.set_result(reason)

        try:
            compared = self._admission.compare(executor, facts)
        except Exception as error:  # of any kind, as it is of the worker
            compared = Future()
            compared.set_result(f"{type(error).__name__}: {error}")
        limit_s = CANARIES * self._late_s
        says = "%s: worker %s is not used yet: for %g s it has not decoded the %d records by which"
        says += " it is compared with this process"
        late = threading.Timer(
            limit_s, _log.warning, (says, self._subject, name, limit_s, CANARIES)
        )
        late.daemon = True
        late.start()
        compared.add_done_callback(lambda _: late.cancel())
        compared.add_done_callback(decide)

    def refuse(self, name: str, reason: str) -> None:
        """Says that a worker is not used, and why."""
        _log.error("%s", _refused(self._subject, name, reason))


def _refused(subject: str, name: str, reason: str) -> str:
    return error_message(
        subject,
        f"worker {name} is refused, because it has not shown that it gives the same batches.",
        reason=reason,
        fix="mend what the reason says, give it the same versions of libraries, functions and data"
        " as this process, and start it anew",
    )
