"""Waits that are logged from time to time, and bounded by the limits of `initialize`."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from sharding.checks import refused
from sharding.errors import WaitTimeoutError
from sharding.hosts.job import job

_log = logging.getLogger(f"datarax_tfds.{__name__}")

_SOON_S = 1.0  # the others are told of a longer wait

Result = TypeVar("Result")


class Wait:
    """How long a wait has lasted since this was built, and when to log it."""

    def __init__(self):
        self._begun = self._logged = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def is_due(self) -> bool:
        """Whether to log it now: once in every `stall_warn_s`."""
        due = time.monotonic() - self._logged > job.limits.stall_warn_s
        if due:
            self._logged = time.monotonic()
        return due


def result_of(future: Future[Result], subject: str, doing: Callable[[], str]) -> Result:
    """The result of work in another thread; slow work is logged, and bounded by the limits.

    Args:
        future: The work.
        subject: The source or call that waits, for messages.
        doing: Says what the work is doing, as "decoding records".

    Raises:
        WaitTimeoutError: It takes longer than `stall_timeout_s`, if that is set.
    """
    wait = Wait()
    while True:
        try:
            return future.result(timeout=_SOON_S)
        except TimeoutError:
            if future.done():
                raise  # the work itself raised it
        finally:
            job.progress.activity = None
        activity = job.progress.activity = doing()
        limit_s = job.limits.stall_timeout_s
        if limit_s is not None and wait.seconds > limit_s:
            raise refused(
                WaitTimeoutError,
                subject,
                "reading takes longer than the limit.",
                still=activity,
                host=job.coordinator.host,
                waited_s=round(wait.seconds, 1),
                fix="see with ls -l whether that file system answers, and mount it anew if it"
                " does not; if it only needs longer, set a larger stall_timeout_s in"
                " initialize()",
            )
        if wait.is_due():
            place = job.coordinator.host
            _log.warning("%s: still %s after %.0f s on %s", subject, activity, wait.seconds, place)
