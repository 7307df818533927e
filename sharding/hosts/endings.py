"""Tells the other processes that this one ends, and why, before it does."""

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from sharding.hosts import coordination
from sharding.hosts.coordination import Coordinator

_log = logging.getLogger(f"datarax_tfds.{__name__}")

FAILED = 70  # exit status; EX_SOFTWARE of sysexits.h
# The place of the note that every process waits for: the first failure; empty if all end well.
OUTCOME = "outcome"
_MAX_CHARACTERS = 2000  # of an error
_ANSWERS_PER_S = 500  # of the coordinator, at least


def publish_failure(
    coordinator: Coordinator, process: int, error: str, told_by: int | None = None
) -> Mapping[str, Any]:
    """Tells the others that a process has failed, and with what error.

    Returns:
        What all are told: the failure of the first process that failed.
    """
    told = error[:_MAX_CHARACTERS].replace("\n", "\n  ")
    # A process reports only those on its own machine.
    note = {"process": process, "host": coordinator.host, "error": told, "told_by": told_by}
    coordinator.put(f"ended/{process}", note)
    return coordinator.put_first(OUTCOME, note)


def publish_end(coordinator: Coordinator, remarks: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tells the others that this process has come to its end without an error."""
    note = {"host": coordinator.host, "error": None, **remarks}
    coordinator.put(f"ended/{coordinator.process}", note)
    return note


def described(process: int, note: Mapping[str, Any]) -> str:
    """Describes how a process ended, from the note about its end."""
    cause = note["error"] or note.get("thread_error") or note.get("exit")
    who = coordination.named(process, note["host"])
    return f"{who} has ended: {cause}" if cause else f"{who} has ended"


def last_words_s(count: int) -> float:
    """How long a process waits for the others to hear of an error: one may never, if suspended."""
    return 5.0 + count / _ANSWERS_PER_S


def end_now(
    coordinator: Coordinator, message: str, failure: Mapping[str, Any], *, status: int = FAILED
) -> None:
    """Ends this process once all others know of the failure, or have had the time to.

    If one ended earlier, its connections to the others would break, and they would raise an error
    that names another cause. Process 0 is the last, because it runs the coordinator.
    """
    sys.stderr.write(message)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    dead = failure["process"] if failure["told_by"] is not None else None
    try:
        coordinator.meet("last words", last_words_s(coordinator.count), without=dead)
    except ConnectionError:
        _log.debug("not all others have heard of the failure", exc_info=True)
    if coordinator.process == 0:
        time.sleep(0.2 + coordinator.count / _ANSWERS_PER_S)  # until the answers have left
    os._exit(status)
