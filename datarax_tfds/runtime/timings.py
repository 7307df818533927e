"""Counts where the time of a run goes: in the threads that read, and in the loop that trains."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from datarax_tfds.runtime.copying import not_copied

READING, DECODING, MAP_FN = "reading", "decoding", "map_fn"
TRANSFORM, ENCODING = "transform", "encoding"  # Python functions of the user
WORKERS = "workers"  # while a thread here waits for a worker elsewhere
PLACING = "placing"  # on the devices, in the thread of the training loop


@dataclass(frozen=True)
class Totals:
    """What was counted so far.

    Args:
        steps: The batches that were handed out.
        elapsed_s: From the first request for a batch to the end of the last one.
        waiting_s: Of these seconds, those in which the loop waited for a batch.
        stages: The seconds that each stage took, summed over the threads.
        read_bytes: Of stored records.
        read_records: How many records were read.
        read_requests: In how many reads of a file or a store; records in a row share one.
    """

    steps: int = 0
    elapsed_s: float = 0.0
    waiting_s: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    read_bytes: int = 0
    read_records: int = 0
    read_requests: int = 0


@not_copied
class Timings:
    """The counters of one source. Several threads may count at once.

    Args:
        parts: The counters of the sources that this one is made of.
        reads: Where records are read from, for reports.
        requests: Returns how many reads were made of it so far.
        clock: Returns seconds.

    Attributes:
        map_fn_share: Measures which share of `decoding` is `map_fn`, which runs in the same
            compiled function; None without it.
    """

    def __init__(
        self,
        parts: Sequence["Timings"] = (),
        reads: str = "",
        requests: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.clock = clock
        self.map_fn_share: Callable[[], float] | None = None
        self.reads = reads or ", ".join(dict.fromkeys(part.reads for part in parts))
        self._parts = parts
        self._requests, self._requests_before = requests, 0
        # Reentrant: a signal handler may ask for a batch while this thread counts.
        self._lock = threading.RLock()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._divided_s = 0.0  # of decoding, as far as it is divided
        self._bytes = self._records = self._steps = 0
        self._waiting_s = self._stepping_s = 0.0
        self._handed_out_at: float | None = None
        self._due: tuple[float, float, Callable[[], None]] | None = None

    def timed(self, stage: str) -> "_Timed":
        """A context whose time belongs to a stage. JAX's profiler shows it, too."""
        return _Timed(self, stage)

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self._seconds[stage] += seconds

    def count_read(self, records: Sequence[bytes]) -> None:
        """Counts records that were read from the files."""
        size = sum(map(len, records))
        with self._lock:
            self._bytes += size
            self._records += len(records)

    def count_step(self, asked_at: float) -> None:
        """Counts a batch that was asked for at this time of the clock, and is handed out now."""
        now = self.clock()
        with self._lock:
            self._steps += 1
            self._waiting_s += now - asked_at
            if self._handed_out_at is not None:
                self._stepping_s += max(0.0, asked_at - self._handed_out_at)
            self._handed_out_at = now
            due = self._due
            if due is None or now < due[0]:
                return
            _, every_s, call = due
            self._due = now + every_s, every_s, call
        call()

    def call_every(self, seconds: float, call: Callable[[], None] | None) -> None:
        """Calls a function after the first batch that is handed out in every so many seconds."""
        with self._lock:
            self._due = None if call is None else (self.clock() + seconds, seconds, call)

    def reset(self) -> None:
        """Forgets what was counted, as while a source was built."""
        with self._lock:
            self._seconds.clear()
            self._divided_s = 0.0
            self._bytes = self._records = self._steps = 0
            self._waiting_s = self._stepping_s = 0.0
            self._handed_out_at = None
            self._requests_before = self._requests()

    def totals(self) -> Totals:
        """What was counted so far, with what was counted in the parts."""
        if self.map_fn_share is not None and self._seconds.get(DECODING, 0.0) > self._divided_s:
            self._divide(self.map_fn_share())
        with self._lock:
            seconds = self._seconds.copy()
            requests = self._requests() - self._requests_before
            counts = np.array([self._bytes, self._records, requests])
            steps, waiting_s, stepping_s = self._steps, self._waiting_s, self._stepping_s
        for part in self._parts:
            of_part = part.totals()
            for stage, spent in of_part.stages.items():
                seconds[stage] += spent
            counts += (of_part.read_bytes, of_part.read_records, of_part.read_requests)
        return Totals(steps, waiting_s + stepping_s, waiting_s, dict(seconds), *counts.tolist())

    def _divide(self, share: float) -> None:
        """Counts a share of the decoding since the last call as that of `map_fn`.

        What was divided before stays as it is, so that no time becomes less from report to report.
        """
        with self._lock:
            mapped = share * (self._seconds[DECODING] - self._divided_s)
            self._seconds[DECODING] -= mapped
            self._seconds[MAP_FN] += mapped
            self._divided_s = self._seconds[DECODING]


class _Timed:
    __slots__ = ("_annotation", "_begun", "_stage", "_timings")

    def __init__(self, timings: Timings, stage: str):
        self._timings, self._stage = timings, stage
        self._annotation = jax.profiler.TraceAnnotation(f"datarax_tfds: {stage}")
        self._begun = 0.0

    def __enter__(self) -> None:
        self._annotation.__enter__()
        self._begun = self._timings.clock()

    def __exit__(self, *error: Any) -> None:
        self._timings.add(self._stage, self._timings.clock() - self._begun)
        self._annotation.__exit__(*error)
