#!/usr/bin/env python3
"""Runs a command as N JAX processes on this machine.

    scripts/launch_local.py 4 -- python scripts/train.py configs/digits.yaml

The processes find each other over 127.0.0.1, on a port of their own; the command calls
`datarax_tfds.initialize()`. Each writes a log; what process 0 prints is shown. When one fails, all
are ended, and it is said which one failed and what it printed last.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_TAIL_LINES = 25
_POLL_S = 0.05


def main() -> int:
    """Launches, waits, reports; returns the exit status for the shell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("processes", type=int, help="how many processes")
    parser.add_argument("--timeout-s", type=float, help="end all of them after so many seconds")
    parser.add_argument("--logs", type=Path, help="where the logs go; a new directory by default")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command")
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if args.processes < 1 or not command:
        parser.error("give a number of processes, then -- and a command")
    logs = args.logs or Path(tempfile.mkdtemp(prefix="launch_local-"))
    logs.mkdir(parents=True, exist_ok=True)
    return launch(args.processes, command, logs, args.timeout_s)


def launch(count: int, command: list[str], logs: Path, timeout_s: float | None) -> int:
    """Runs the command `count` times; 0 if all of them end well."""
    address = f"127.0.0.1:{_free_port()}"
    files = [(logs / f"process-{number}.log").open("wb") for number in range(count)]
    processes: list[subprocess.Popen] = []
    deadline = time.monotonic() + (timeout_s if timeout_s is not None else float("inf"))
    shown = 0
    try:
        for number, file in enumerate(files):
            environment = os.environ | {
                "JAX_COORDINATOR_ADDRESS": address,
                # Otherwise the coordinator listens on every interface.
                "JAX_COORDINATOR_BIND_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(number),
                "PYTHONUNBUFFERED": "1",
            }
            processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        while True:
            shown = _show(logs / "process-0.log", shown)
            states = [process.poll() for process in processes]
            failed = [number for number, state in enumerate(states) if state]
            if failed:
                return _report(failed, states, command, logs)
            if all(state == 0 for state in states):
                _show(logs / "process-0.log", shown)
                return 0
            if time.monotonic() > deadline:
                late = [number for number, state in enumerate(states) if state is None]
                print(f"\nlaunch_local: after {timeout_s:g} s still running: processes", *late)
                print(f"  logs: {logs}")
                return 124
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        return 130
    finally:
        for process in processes:
            if process.poll() is None:
                # The whole group: the command may have started others. Not SIGTERM, which JAX
                # takes for a notice of preemption and survives.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for file in files:
            file.close()


def _report(failed: list[int], states: list[int | None], command: list[str], logs: Path) -> int:
    number, status = failed[0], states[failed[0]] or 0
    end = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
    log = logs / f"process-{number}.log"
    print(f"\nlaunch_local: process {number} of {len(states)} ended {end}.", file=sys.stderr)
    print(f"  command: {shlex.join(command)}", file=sys.stderr)
    others = [f"{other}: {_said(state)}" for other, state in enumerate(states) if other != number]
    print(f"  others:  {', '.join(others) or 'none'}", file=sys.stderr)
    print(f"  log:     {log}, which ends so:", file=sys.stderr)
    for line in log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]:
        print(f"    {line}", file=sys.stderr)
    return 128 - status if status < 0 else status


def _said(state: int | None) -> str:
    return {None: "was ended", 0: "had ended well"}.get(state, f"ended with {state}")


def _show(log: Path, start: int) -> int:
    """Passes on what a log has grown by since `start`; returns its length."""
    with log.open("rb") as file:
        file.seek(start)
        news = file.read()
    sys.stdout.buffer.write(news)
    sys.stdout.buffer.flush()
    return start + len(news)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
