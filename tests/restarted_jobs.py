"""Runs a job of several processes again and again, killed in between, and collects its notes."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import warmed
from checkout import GUARD_S, WORKERS

from datarax_tfds.cli import launching

# Processes, batch size, steps, and whether it is killed after the last one, which is not saved.
Run = tuple[int, int, int, bool]


def runs(
    worker: str, arguments: list[object], directory: Path, plan: list[Run], counted: str
) -> Iterator[tuple[list[dict[str, Any]], list[int]]]:
    """For each run, yields the batches noted by process 0, and what each process counted.

    The worker gets `arguments`, then the place of its notes, the batch size, the number of steps,
    and `killed` or `ends`. The runs share one place, and so the saved state.
    """
    place = directory / "place"
    place.mkdir()
    for number, (count, size, steps, killed) in enumerate(plan):
        logs = directory / f"run-{number}"
        logs.mkdir()
        command = [WORKERS / worker, *arguments, place, size, steps, "killed" if killed else "ends"]
        command = [sys.executable, *map(str, command)]
        processes = launching.start(count, command, logs, warmed.Popen)
        deadline = time.monotonic() + GUARD_S
        try:
            while processes[0].poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            if not killed:
                assert [process.wait(GUARD_S) for process in processes] == [0] * count
        finally:
            launching.end(processes)
        printed = "\n".join(path.read_text()[-2000:] for path in logs.glob("*.log"))
        assert processes[0].returncode == (-signal.SIGKILL if killed else 0), printed
        notes = [json.loads(line) for line in (place / "rows-0").read_text().splitlines()]
        yield notes, [int((place / f"{counted}-{n}").read_text()) for n in range(count)]
        for path in place.glob("rows-*"):
            path.unlink()
