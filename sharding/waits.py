"""How long anything may take, and what this process is waiting for just now."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from sharding.errors import WaitTimeoutError
from sharding.messages import explain

_log = logging.getLogger(__name__)

_SOON_S = 1.0  # what takes longer is told to the others

Result = TypeVar("Result")


@dataclass
class Limits:
    """Those of this process; `initialize` sets them.

    Args:
        agree_s: For all processes to come to a point where they must agree.
        warn_s: After which a wait is logged, and those who are late are named.
        end_s: After which such a wait ends the run; never, where absent.
    """

    agree_s: float = 300.0
    warn_s: float = 30.0
    end_s: float | None = None


limits = Limits()


class Activity:
    """What this process has done, and does: the others are told where it holds them up."""

    def __init__(self):
        self.steps = 0
        self.waiting_for: str | None = None

    def step(self) -> None:
        """Notes that a batch was handed out."""
        self.steps += 1


activity = Activity()


def result_of(future: Future[Result], subject: str, what: Callable[[], str]) -> Result:
    """The result of work in another thread; a slow one is logged, and bounded by the limits.

    Args:
        future: The work.
        subject: Who waits, for messages.
        what: Says what the work is busy with.

    Raises:
        WaitTimeoutError: It takes longer than the limit, if there is one.
    """
    begun = time.monotonic()
    warned = 0
    while True:
        try:
            return future.result(timeout=_SOON_S)
        except TimeoutError:
            if future.done():
                raise  # the work's own
        finally:
            activity.waiting_for = None
        waited = time.monotonic() - begun
        activity.waiting_for = what()
        if limits.end_s is not None and waited > limits.end_s:
            raise WaitTimeoutError(
                explain(
                    subject,
                    "reading takes longer than the limit.",
                    waiting_for=activity.waiting_for,
                    waited_s=round(waited, 1),
                    fix="look after that file system, or set a larger stall_timeout_s in"
                    " initialize()",
                )
            )
        if waited > (warned + 1) * limits.warn_s:
            warned += 1
            _log.warning("%s: waiting for %s for %.0f s", subject, activity.waiting_for, waited)
