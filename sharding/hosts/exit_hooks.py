"""Exit hooks of a process, so that no other process of the job waits for it after its end."""

import atexit
import itertools
import logging
import sys
import time
from typing import Any

from sharding.hosts import coordination, endings
from sharding.hosts.exit_cause import ExitCause
from sharding.hosts.waits import Wait
from sharding.hosts.watch import Watch

_log = logging.getLogger(f"datarax_tfds.{__name__}")

_EXIT_POLLS_S = (0.01, 0.02, 0.05, 0.1, 0.2)


class ExitHooks:
    """Tells the others how this process ends, and with `fail_fast` ends it together with them."""

    def __init__(self, exit_cause: ExitCause, watch: Watch, *, fail_fast: bool):
        self._exit_cause, self._watch, self._fail_fast = exit_cause, watch, fail_fast
        self._report = sys.excepthook
        atexit.register(self._at_exit)
        if fail_fast:
            sys.excepthook = self._at_exception

    def _at_exception(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        """Ends this process, which would otherwise wait for 300 s at JAX's exit barrier."""
        self._report(kind, error, trace)
        if not self._exit_cause.is_mine:
            return
        self._watch.stop()
        cause = self._watch.cause()
        try:
            endings.publish_failure(self._watch.process, f"{kind.__name__}: {error}{cause}")
        except ConnectionError:
            _log.debug("nobody can be told", exc_info=True)
        endings.end_now(f"{cause.strip()}\n" if cause else "", self._watch.process)

    def _at_exit(self) -> None:
        if not self._exit_cause.is_mine:
            return
        failure = self._exit_cause.failure()
        try:
            if failure is None:
                self._watch.has_finished = True
                endings.publish_end(self._watch.process, self._exit_cause.remarks())
                if self._fail_fast:
                    self._wait_for_the_others()
            else:
                error, status = failure
                endings.publish_failure(self._watch.process, error)
                if self._fail_fast:
                    self._watch.stop()
                    endings.end_now("", self._watch.process, status=status)
        except ConnectionError:
            _log.debug("the coordinator does not answer", exc_info=True)
        self._watch.stop()

    def _wait_for_the_others(self) -> None:
        """Waits until all have ended. JAX's exit barrier would not tell us of their errors, and
        would fail after 300 s even if they are only writing a checkpoint.
        """
        wait = Wait()
        longest_s = max(_EXIT_POLLS_S[-1], self._watch.poll_s / 2)
        polls_s = itertools.chain(_EXIT_POLLS_S, itertools.repeat(longest_s))
        while self._watch.thread.is_alive():
            ended = coordination.notes_by_process("ended")
            missing = [f"process {n}" for n in range(self._watch.count) if n not in ended]
            if any(note["error"] is not None for note in ended.values()):
                # The watch hears of it, too, and ends this process.
                self._watch.thread.join(timeout=endings.LAST_WORDS_S + 10 * self._watch.poll_s)
            if not missing:
                return
            if wait.is_due():
                _log.warning(
                    "process %d has finished, and has waited %.0f s for %s to end",
                    self._watch.process,
                    wait.seconds,
                    coordination.listed(missing),
                )
            time.sleep(next(polls_s))
