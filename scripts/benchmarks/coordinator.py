#!/usr/bin/env python3
"""Counts what a job of thousands of processes asks of JAX's coordinator, and prints a table.

    scripts/benchmarks/coordinator.py 1000 2000 4000

A stand-in for the coordinator counts the requests and their bytes. The processes are objects in
this one: each with the library's own `Watch`, `Rendezvous` and endings, which do not know it.
"""

import argparse
import contextlib
import io
import json
import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any
from unittest import mock

import benchmark_words  # noqa: F401  (says what takes so long)
from rich.console import Console
from rich.table import Table

from sharding.hosts import endings
from sharding.hosts.coordination import Coordinator
from sharding.hosts.job import Job, Limits
from sharding.hosts.rendezvous import Rendezvous
from sharding.hosts.watch import Watch

WORDS = "ValueError: the last words of process 0"
_GUARD_S = 600.0


class Store:
    """The stand-in: the key-value store and its barriers, with counts of what is asked."""

    def __init__(self):
        self.notes: dict[str, str] = {}
        self.requests: Counter[str] = Counter()
        self.bytes = 0
        self._awaited: defaultdict[str, list[Future[Any]]] = defaultdict(list)
        self._lock = threading.Lock()

    def ask(self, request: str, *args: Any, **options: Any) -> Any:
        told: list[Future[Any]] = []
        with self._lock:
            self.requests[request] += 1
            answer = getattr(self, request)(*args, **options)
            if request == "key_value_set":
                told = self._awaited.pop(args[0], [])
        self.bytes += len(json.dumps([args, None if isinstance(answer, Future) else answer]))
        for future in told:
            self.bytes += len(args[1])
            future.set_result(json.loads(args[1]))
        return answer

    def key_value_set(self, place: str, note: str, allow_overwrite: bool = False) -> None:
        if place in self.notes and not allow_overwrite:
            raise ConnectionError("ALREADY_EXISTS")
        self.notes[place] = note

    def key_value_try_get(self, place: str) -> str:
        if place not in self.notes:
            raise ConnectionError("NOT_FOUND")
        return self.notes[place]

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        return [pair for pair in self.notes.items() if pair[0].startswith(folder)]

    def blocking_key_value_get(self, place: str) -> Future[Any]:
        future: Future[Any] = Future()
        if place in self.notes:
            future.set_result(json.loads(self.notes[place]))
        else:
            self._awaited[place].append(future)
        return future

    def wait_at_barrier(self, name: str, timeout_ms: int, processes: list[int] | None) -> None:
        """Only counted: the processes that wait here for each other share one thread."""


class Host(Coordinator):
    """The stand-in, as one process of many sees it, each on a machine of its own."""

    def __init__(self, store: Store, process: int, count: int):
        super().__init__()
        self._store, self._process, self._count = store, process, count

    @property
    def process(self) -> int:
        return self._process

    @property
    def count(self) -> int:
        return self._count

    @property
    def host(self) -> str:
        return f"host{self._process}"

    @property
    def machine(self) -> str:
        return self.host

    def arrival(self, place: str) -> Future[Any]:
        return self._store.ask("blocking_key_value_get", f"datarax_tfds/{place}")

    def _asked(self, request: str, *args: Any, **options: Any) -> Any:
        return self._store.ask(request, *args, **options)


class Cluster:
    """A job of many processes, and what they ask in each phase."""

    def __init__(self, count: int):
        self.count, self.store = count, Store()
        limits = Limits(stall_warn_s=0.0)  # so that each beat finds a stall, without waiting for it
        self.jobs = [
            Job(coordinator=Host(self.store, process, count), limits=limits)
            for process in range(count)
        ]
        cause: Any = SimpleNamespace(thread_error=None)
        self.watches = [Watch(job, cause, fail_fast=True) for job in self.jobs]
        self.phases: dict[str, tuple[float, float]] = {}
        """Requests and bytes of each phase: in a second, or of each process if it is an event."""

    @contextlib.contextmanager
    def counted(self, phase: str, units: float) -> Iterator[None]:
        requests, size = self.store.requests.total(), self.store.bytes
        yield
        requests, size = self.store.requests.total() - requests, self.store.bytes - size
        self.phases[phase] = requests / units, size / units

    def beat(self, steps: int, late: int | None = None) -> None:
        """Lets the time between two beats pass, with this many new batches on all but one."""
        for process, (job, watch) in enumerate(zip(self.jobs, self.watches, strict=True)):
            job.progress.steps += steps * (process != late)
            watch.beat()

    def together(self, call: Callable[[int], object], processes: Any) -> list[threading.Thread]:
        threads = [
            threading.Thread(target=call, args=(process,), daemon=True) for process in processes
        ]
        for thread in threads:
            thread.start()
        return threads


def measured(count: int, wait_s: float) -> dict[str, tuple[float, float]]:
    """What a job of `count` processes asks in each phase: requests and bytes.

    Args:
        count: The number of processes.
        wait_s: How long they wait for one that is late to `agree`.
    """
    cluster = Cluster(count)
    beats, beat_s = 4, cluster.watches[0].beat_s
    with cluster.counted("training: a second", beats * beat_s):
        for _ in range(beats):
            cluster.beat(steps=1)
    cluster.beat(steps=1, late=count - 1)
    with cluster.counted("stalled: a second", beats * beat_s):
        for _ in range(beats):
            cluster.beat(steps=0)

    def meet(process: int) -> None:
        Rendezvous(cluster.jobs[process], range(count)).exchange("a meeting", "the same")

    with cluster.counted("agree: each process", count):
        threads = cluster.together(meet, range(count - 1))
        # Each waits for the outcome of the job, and all but the first and the last for a verdict.
        _until(lambda: cluster.store.requests["blocking_key_value_get"] == 2 * count - 2)
        with cluster.counted("agree, while one is late: a second", wait_s):
            time.sleep(wait_s)
        _join(threads + cluster.together(meet, [count - 1]))

    def differ(process: int) -> None:
        Rendezvous(cluster.jobs[process], range(count)).exchange("a meeting", f"seed {process}")

    with cluster.counted("all say something else: each process", count):
        _join(cluster.together(differ, range(count)))

    coordinators = [job.coordinator for job in cluster.jobs]
    with cluster.counted("the end: each process", count):
        for coordinator in coordinators[:-1]:
            endings.publish_end(coordinator, {})
        # The others wait for the same answer as these two.
        threads = cluster.together(lambda n: cluster.watches[n].wait_for_the_others(), [0, 1])
        with cluster.counted("the end, while one works on: a second", wait_s):
            time.sleep(wait_s)
        endings.publish_end(coordinators[-1], {})
        _join(threads)
    phases = cluster.phases

    cluster = Cluster(count)
    with cluster.counted("process 0 fails: each process", count):
        assert _heard(cluster) == count - 1, "a process has lost the last words of process 0"
    return phases | cluster.phases


def _heard(cluster: Cluster) -> int:
    """How many processes print the error that ends process 0, before they end."""
    left: list[int] = []

    def fail() -> None:
        coordinator = cluster.jobs[0].coordinator
        failure = endings.publish_failure(coordinator, 0, WORDS)
        endings.end_now(coordinator, "", failure)

    printed = io.StringIO()
    with mock.patch("os._exit", left.append), contextlib.redirect_stderr(printed):
        _join(cluster.together(lambda _: fail(), [0]))
        _until(lambda: len(left) == cluster.count)
    return printed.getvalue().count(WORDS)


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(_GUARD_S)
        assert not thread.is_alive()


def _until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _GUARD_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", type=int, nargs="*", default=[1000, 2000, 4000])
    parser.add_argument("--wait-s", type=float, default=20.0)
    args = parser.parse_args()
    threading.stack_size(1 << 18)
    logging.disable(logging.WARNING)  # a thousand processes would say that they wait
    found = {count: measured(count, args.wait_s) for count in args.counts}
    table = Table("requests (kB)", *(f"{count} processes" for count in found))
    for phase in found[args.counts[0]]:
        cells = (
            f"{requests:,.1f} ({size / 1e3:,.1f})"
            for requests, size in (phases[phase] for phases in found.values())
        )
        table.add_row(phase, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
