"""`datarax-tfds launch`: runs a command as several JAX processes on this machine."""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from datarax_tfds.cli.launching import launch
from datarax_tfds.cli.terminal import wrong_usage


@dataclass(frozen=True)
class Command:
    """Runs a command as N JAX processes on this machine.

    The command has to call datarax_tfds.initialize(). The processes connect over 127.0.0.1. Each
    writes a log, and the output of process 0 is shown as well. If a process fails, all of them are
    ended; which one failed is printed, with the end of its log, and its exit status is that of this
    command. After the time limit, that is 124. A SIGTERM or SIGUSR1 is passed on to all of them, so
    that they can save and stop; a second one ends them.

    Args:
        processes: The number of processes.
        command: The command, after two dashes.
        timeout_s: End all processes after this many seconds.
        logs: The directory of the logs; by default, a new one.
    """

    processes: Annotated[Positional[int], arg(metavar="N")]
    command: Annotated[Positional[tuple[str, ...]], arg(metavar="-- COMMAND ...")]
    timeout_s: Annotated[float | None, arg(metavar="S")] = None
    logs: Annotated[Path | None, arg(metavar="DIR")] = None

    def run(self) -> int:
        if self.processes < 1 or not self.command:
            return wrong_usage("launch", "give a number of processes, then -- and a command")
        logs = self.logs or Path(tempfile.mkdtemp(prefix="datarax-tfds-launch-"))
        logs.mkdir(parents=True, exist_ok=True)
        with _notices() as notices:
            return launch(self.processes, list(self.command), logs, self.timeout_s, notices=notices)


@contextmanager
def _notices() -> Iterator[list[int]]:
    """Collects the signals that announce a preemption, so that they do not end this process."""
    got: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: got.append(number))
        for number in (signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
