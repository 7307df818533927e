"""How many threads read and decode: a fixed number, in a pool of their own."""

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sharding.messages import explain


def decoding_threads() -> int:
    """One more than cores: while it reads, they all decode (on two cores 1.0 s against 1.2 s for
    60,000 PNG of 28x28). Not AUTOTUNE: it starts its threads anew in each epoch (0.4 s).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (cores or 1) + 1


class DecodingPool:
    """Runs work in order on a fixed number of threads, and leaves what has not begun when it ends.

    An executor runs all that was submitted before the interpreter may exit. This one hands it a
    piece of work a thread, so that an exit waits for those under way and for no others.
    """

    def __init__(self):
        self._idle = decoding_threads()
        self._executor = ThreadPoolExecutor(self._idle, thread_name_prefix="datarax_tfds")
        self._waiting: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Runs `work(*args)` after what was submitted before; its result is the future's.

        Raises:
            RuntimeError: In a fork of the process, which has none of its threads.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                explain(
                    "a streaming source",
                    "it was opened in a process of which this one is a fork.",
                    process=f"{os.getpid()}, opened in {self._process}",
                    fix="let multiprocessing start processes by spawn, and open it there",
                )
            )
        future: Future[Any] = Future()
        with self._lock:
            self._waiting.append((future, work, args))
            if self._idle:
                self._idle -= 1
                self._executor.submit(self._run_next)
        return future

    def close(self) -> None:
        """Forgets what has not begun; the threads end with what has."""
        with self._lock:
            for future, _, _ in self._waiting:
                future.cancel()
            self._waiting.clear()
        self._executor.shutdown(wait=False)

    def _run_next(self) -> None:
        with self._lock:
            item = self._waiting.popleft() if self._waiting else None
            if item is None:
                self._idle += 1
                return
        future, work, args = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(*args))
            except BaseException as error:  # for whoever asks for the result
                future.set_exception(error)
        try:
            self._executor.submit(self._run_next)
        except RuntimeError:
            self.close()  # the interpreter exits, or the pool was closed meanwhile
