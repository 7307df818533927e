"""Exit hooks of a process, so that no other process of the job waits for it after its end."""

import atexit
import logging
import sys
from collections.abc import Mapping
from typing import Any

from sharding.hosts import endings, rendezvous
from sharding.hosts.exit_cause import ExitCause
from sharding.hosts.job import Job
from sharding.hosts.watch import Watch

_log = logging.getLogger(f"datarax_tfds.{__name__}")


class ExitHooks:
    """Tells the others how this process ends, and with `fail_fast` ends it together with them."""

    def __init__(self, job: Job, exit_cause: ExitCause, watch: Watch, *, fail_fast: bool):
        self._job, self._coordinator = job, job.coordinator
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
        self._end_of(f"{kind.__name__}: {error}", cause, endings.FAILED)

    def _at_exit(self) -> None:
        if not self._exit_cause.is_mine:
            return
        failure = self._exit_cause.failure()
        try:
            if failure is None:
                self._watch.has_finished = True
                remarks = self._exit_cause.remarks()
                rendezvous.end_all(self._job, endings.publish_end(self._coordinator, remarks))
                if self._fail_fast:
                    self._watch.wait_for_the_others()
            elif self._fail_fast:
                error, status = failure
                self._watch.stop()
                self._end_of(error, "", status)
            else:
                endings.publish_failure(self._coordinator, self._watch.process, failure[0])
        except ConnectionError:
            _log.debug("the coordinator does not answer", exc_info=True)
        self._watch.stop()
        self._coordinator.close()

    def _end_of(self, error: str, cause: str, status: int) -> None:
        """Ends the process with its own error, and with that of another one if that came first."""
        failure: Mapping[str, Any] = {"process": self._watch.process, "told_by": None}
        try:
            failure = endings.publish_failure(
                self._coordinator, self._watch.process, f"{error}{cause}"
            )
        except ConnectionError:
            _log.debug("nobody can be told", exc_info=True)
        if failure["process"] != self._watch.process:
            cause += f"\n{endings.described(failure['process'], failure)}, before this process"
        message = f"{cause.strip()}\n" if cause else ""
        endings.end_now(self._coordinator, message, failure, status=status)
