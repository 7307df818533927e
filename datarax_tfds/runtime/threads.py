"""The pool of threads that all reading and decoding uses.

The garbage collector may end a pool inside any call, even inside `submit` of another pool, which
then holds locks. So the code that ends a pool never waits for a lock.
"""

import atexit
import contextlib
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.forks import refuse_in_forked_child
from sharding.checks import refused
from sharding.hosts.job import job
from sharding.hosts.waits import result_of

_POLL_S = 0.01

Result = TypeVar("Result")


def decoding_threads() -> int:
    """The number of cores of this process and one more, which reads while all cores decode.

    Processes on one machine share its cores, unless their launcher bound each to its own.

    On two cores, 60,000 PNG images of 28x28 then take 1.0 s, not 1.2 s. AUTOTUNE of tf.data is not
    used, because it starts its threads again in each epoch (0.4 s).
    """
    cores = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return max(1, min(allowed, cores // job.processes_here)) + 1


@not_copied
class ThreadPool:
    """A FIFO pool with a fixed number of threads, which drops queued work when it ends.

    It ends when it is closed, when it is garbage-collected, or when the interpreter exits. Work
    that has begun is then finished, and other work is cancelled. `close` and the finalizer only set
    a flag and put a sentinel into a `queue.SimpleQueue`, which never blocks.

    The threads are daemons, so that a read that hangs does not keep the interpreter alive. At exit,
    running work gets a few seconds to finish, and work inside a `native_call` gets longer.

    Args:
        threads: The number of threads. They start as work is submitted.
        name: The beginning of the threads' names.
    """

    def __init__(self, threads: int, name: str):
        self._queue = _Queue()
        self._names = iter([f"{name}_{number}" for number in range(threads)])
        weakref.finalize(self, self._queue.end).atexit = False

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Runs `work(*args)` after the work that was submitted before.

        Raises:
            RuntimeError: The pool has ended, or this is a forked child, which lacks the threads.
        """
        refuse_in_forked_child("a pool of threads")
        future: Future[Any] = Future()
        if not self._queue.ended:
            for name in itertools.islice(self._names, 1):
                _start_thread(name, self._queue)
            self._queue.items.put(_Item(future, work, args))
        if self._queue.ended:  # perhaps after the first test, so that no thread takes the item
            future.cancel()
            while running.exiting and threading.current_thread().daemon:
                # Holds a background thread of the user until the process ends, without a traceback.
                time.sleep(_POLL_S)
            raise refused(
                RuntimeError,
                "a pool of threads",
                "it takes no more work, because it was closed.",
                work=getattr(work, "__qualname__", work),
                fix="read before the interpreter exits: exit handlers cannot read records",
            )
        return future

    def close(self) -> None:
        """Cancels the work that has not begun; never waits."""
        self._queue.end()


def bounded(work: Callable[[], Result], subject: str, doing: Callable[[], str]) -> Result:
    """Runs work that may hang in the file system, and waits for it up to `stall_timeout_s`.

    Args:
        work: The function to run, in a new thread.
        subject: The source that waits, for messages.
        doing: Says what the work is doing, as "reading the metadata".

    Raises:
        WaitTimeoutError: The work takes longer.
    """
    with contextlib.closing(ThreadPool(1, "datarax_tfds_bounded")) as pool:
        return result_of(pool.submit(work), subject, doing)


class _Item(NamedTuple):
    future: Future[Any]
    work: Callable[..., Any]
    args: tuple[Any, ...]

    def run(self) -> None:
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self.work(*self.args))
            except BaseException as error:  # raised by `result`
                self.future.set_exception(error)


class _Queue:
    """The queue of a pool. Its threads refer to this, not to the pool, which can be collected."""

    def __init__(self):
        self.items: SimpleQueue[_Item | None] = SimpleQueue()
        self.ended = False

    def end(self) -> None:
        self.ended = True
        self.items.put(None)

    def serve(self) -> None:
        """Runs the items of the queue until the sentinel comes."""
        while (item := self.items.get()) is not None:
            if self.ended:
                item.future.cancel()
            else:
                item.run()
            del item  # otherwise a waiting thread would keep its last result alive
        self.items.put(None)  # for the next thread
        running.pool_threads.pop(threading.current_thread(), None)


@dataclass
class Running:
    """What the interpreter waits for when it exits.

    Args:
        pool_threads: The threads of all pools, with the queues that they serve.
        native_calls: The identifiers of the threads that are in a `native_call`.
        exiting: Whether the exit has begun.
        pool_wait_s: The longest wait for pools, because work never ends if a file system hangs.
        native_wait_s: The longest wait for native calls, which would abort the process.
    """

    pool_threads: dict[threading.Thread, _Queue] = field(default_factory=dict)
    native_calls: set[int] = field(default_factory=set)
    exiting: bool = False
    pool_wait_s: float = 5.0
    native_wait_s: float = 30.0


running = Running()


def _start_thread(name: str, queue: _Queue) -> None:
    thread = threading.Thread(target=queue.serve, name=name, daemon=True)
    running.pool_threads[thread] = queue
    thread.start()


@contextlib.contextmanager
def native_call() -> Iterator[None]:
    """Marks a call into C++ code, which the interpreter waits for when it exits.

    Python ends a daemon thread that returns from C++ during its shutdown by an exception that C++
    does not let through, which aborts the process (seen with TensorFlow on Python 3.11 and 3.13).
    """
    thread = threading.get_ident()
    running.native_calls.add(thread)
    try:
        if running.exiting:
            raise refused(
                RuntimeError,
                "a pool of threads",
                "the interpreter exits, so no more records are read.",
                thread=threading.current_thread().name,
                fix="read before the interpreter exits",
            )
        yield
    finally:
        running.native_calls.discard(thread)


@atexit.register
def _end_all() -> None:
    """Ends all pools, and gives running work time to finish."""
    running.exiting = True
    for queue in list(running.pool_threads.values()):
        queue.end()
    begun = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):  # the user does not want to wait
        while running.pool_threads or running.native_calls:
            waited_s = time.monotonic() - begun
            if waited_s > (running.native_wait_s if running.native_calls else running.pool_wait_s):
                break
            time.sleep(_POLL_S)


def _forget_threads() -> None:
    """A forked child lacks the threads of its parent, and must not wait for them at its exit."""
    running.pool_threads.clear()
    running.native_calls.clear()


os.register_at_fork(after_in_child=_forget_threads)
