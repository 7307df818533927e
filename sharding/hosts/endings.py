"""Tells the other processes that this one ends, and why, before it does."""

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax

from sharding.hosts import coordination

_log = logging.getLogger(f"datarax_tfds.{__name__}")

FAILED = 70  # exit status; EX_SOFTWARE of sysexits.h
LAST_WORDS_S = 5.0  # the time for the others to hear of an error before the coordinator ends
_MAX_CHARACTERS = 2000  # of an error
_POLL_S = 0.05


def publish_failure(process: int, error: str, told_by: int | None = None) -> None:
    """Tells the others that a process has failed, and with what error."""
    told = error[:_MAX_CHARACTERS].replace("\n", "\n  ")
    host = coordination.host()  # a process reports only those on its own machine
    coordination.put(f"ended/{process}", {"host": host, "error": told, "told_by": told_by})


def publish_end(process: int, remarks: Mapping[str, Any]) -> None:
    """Tells the others that this process has come to its end without an error."""
    coordination.put(f"ended/{process}", {"host": coordination.host(), "error": None, **remarks})


def described(process: int, note: Mapping[str, Any]) -> str:
    """Describes how a process ended, from the note about its end."""
    cause = note["error"] or note.get("thread_error") or note.get("exit")
    who = coordination.named(process, note["host"])
    return f"{who} has ended: {cause}" if cause else f"{who} has ended"


def end_now(message: str, process: int, *, status: int = FAILED) -> None:
    """Ends this process once the others know why; process 0, with the coordinator, waits longer."""
    sys.stderr.write(message)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # The wait is bounded, because a suspended process never hears of the end.
    deadline = time.monotonic() + LAST_WORDS_S
    everyone = set(range(jax.process_count())) - {process}
    try:
        while time.monotonic() < deadline:
            ended = coordination.notes_by_process("ended")
            failed = {other for other, note in ended.items() if note["error"] is not None}
            if coordination.notes_by_process("heard").keys() | failed >= everyone:
                break
            time.sleep(_POLL_S)
        if process == 0:
            time.sleep(4 * _POLL_S)
    except ConnectionError:
        _log.debug("nobody can be told", exc_info=True)
    os._exit(status)
