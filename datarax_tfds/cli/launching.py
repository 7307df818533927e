"""Runs a command as several JAX processes on this machine.

The processes connect over 127.0.0.1, on a free port. Each has a session of its own, so that it can
be ended together with all that it starts.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datarax_tfds.runtime.startup_notes import may_become_note, without_startup_notes

_NAME = "datarax-tfds launch"
_TAIL_LINES = 25
_POLL_S = 0.05
_NO_FAILURE = (None, 0, os.EX_TEMPFAIL)


def start(
    count: int, command: list[str], logs: Path, popen: Any = subprocess.Popen
) -> list[subprocess.Popen]:
    """Starts the command `count` times with `popen`, each with its own process group and log."""
    address = f"127.0.0.1:{free_port()}"
    processes = []
    for number in range(count):
        environment = os.environ | {
            "JAX_COORDINATOR_ADDRESS": address,
            # Otherwise the coordinator listens on every interface.
            "JAX_COORDINATOR_BIND_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
            "PYTHONUNBUFFERED": "1",
        }
        with _log(logs, number).open("wb") as log:
            processes.append(
                popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    return processes


def end(processes: list[subprocess.Popen]) -> None:
    """Kills the processes that still run, together with all that they started."""
    for process in processes:
        if process.poll() is None:
            # Not SIGTERM, which JAX takes for a notice of preemption and survives.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def launch(
    count: int,
    command: list[str],
    logs: Path,
    timeout_s: float | None,
    popen: Any = subprocess.Popen,
    notices: Sequence[int] = (),
) -> int:
    """Runs the command `count` times.

    Args:
        count: The number of processes.
        command: The command.
        logs: The directory of the logs.
        timeout_s: End all processes after this many seconds; None for no limit.
        popen: Starts a process.
        notices: The signals that this process was sent; its handler adds to them. The first goes to
            all processes. The second ends them.

    Returns:
        0 if all processes succeed; 75 (`os.EX_TEMPFAIL`) if they end so, after a notice of
        preemption; otherwise what says how one of them failed.
    """
    deadline = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
    processes = start(count, command, logs, popen)
    sys.stderr.write(f"{_NAME}: {count} processes; their logs are in {logs}\n")
    sys.stderr.flush()
    shown = passed_on = 0
    try:
        while True:
            states = [process.poll() for process in processes]
            shown = print_news(_log(logs, 0), shown, ended=states[0] is not None)
            failed = [number for number, state in enumerate(states) if state not in _NO_FAILURE]
            if failed:
                return _report(failed[0], states, command, _log(logs, failed[0]))
            if None not in states:
                return max(state or 0 for state in states)
            if len(notices) > 1:
                return 128 + notices[-1]
            if len(notices) > passed_on:
                passed_on += 1
                for process in processes:
                    process.send_signal(notices[0])
            if time.monotonic() > deadline:
                late = [str(number) for number, state in enumerate(states) if state is None]
                sys.stderr.write(
                    f"\n{_NAME}: after {timeout_s:g} s still running: process"
                    f" {', '.join(late)}.\n  logs: {logs}\n"
                )
                return 124
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{_NAME}: stopped by Ctrl-C; all processes are killed\n")
        return 130
    finally:
        end(processes)


def _report(number: int, states: list[int | None], command: list[str], log: Path) -> int:
    """Prints which process failed, how, and the end of its log. Returns its exit status."""
    others = [f"{other} {_said(state)}" for other, state in enumerate(states) if other != number]
    lines = [
        f"\n{_NAME}: process {number} of {len(states)} {_said(states[number])}.",
        f"  command: {shlex.join(command)}",
        f"  others:  {', '.join(others) or 'none'}",
        f"  log:     {log}, which ends with:",
        *(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]),
    ]
    sys.stderr.write("\n".join([*lines, ""]))
    status = states[number] or 0
    return 128 - status if status < 0 else status


def _said(status: int | None) -> str:
    if status is None:
        return "was still running"
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"


def _log(logs: Path, number: int) -> Path:
    return logs / f"process-{number}.log"


def print_news(log: Path, start: int, *, ended: bool) -> int:
    """Prints what was added to a log since offset `start`. Returns the new offset.

    Notes that JAX and TensorFlow print of themselves stay in the log. The beginning of a line that
    may become one is left for the next call, unless the process has ended. Other beginnings are
    printed at once, such as a progress bar, which has no end of line.
    """
    with log.open("rb") as file:
        file.seek(start)
        news = file.read()
    if not ended:
        line = news.rfind(b"\n") + 1
        if may_become_note(news[line:]):
            news = news[:line]
    sys.stdout.buffer.write(without_startup_notes(news))
    sys.stdout.buffer.flush()
    return start + len(news)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
