"""Finds out how this process ends, so that the others can be told.

`sys.excepthook` is not called for every error: `sys.exit("bad flag")` bypasses it, and another
library may have replaced it. An exit hook sees both. Ends that bypass exit hooks as well (a signal,
`os._exit`) are seen by the other processes.
"""

import dis
import functools
import os
import sys
import threading
from types import CodeType, FrameType
from typing import Any

_UNKNOWN = object()
_TOOLS = (3, 4)  # the ids of `sys.monitoring` that are not reserved for debuggers and the like


class ExitCause:
    """How this process ends, as far as Python shows it.

    A forked child may call `failure` and `remarks` of its parent's object for its own end.
    """

    def __init__(self):
        self._pid = os.getpid()
        self.thread_error: str | None = None
        """The last exception that ended a thread, but not the process."""
        self._main = _outermost_frame()
        self._status: object = _UNKNOWN
        self._remember_exit_status()
        self._remember_errors_of_threads()

    @property
    def is_mine(self) -> bool:
        """Whether this process built it; false in a forked child, which inherits the hooks."""
        return os.getpid() == self._pid

    def failure(self) -> tuple[str, int] | None:
        """The error that ends the main program, and the exit status; None if it ends well.

        The status 75 (`os.EX_TEMPFAIL`) is a good end: with it, a job that was stopped by a notice
        of preemption asks its launcher to start it again. Call this from an exit hook. On Python
        3.11, a bare `raise SystemExit(3)` counts as a good end, because exit hooks cannot find its
        status there.
        """
        if _returned(self._main):
            return None
        error = self._printed_error()
        if error is not None:
            return f"{type(error).__name__}: {error}", 1
        if self._status is _UNKNOWN or self._status in (None, 0, os.EX_TEMPFAIL):
            return None
        status = self._status & 0xFF if isinstance(self._status, int) else 1
        return f"SystemExit: {self._status} (exit status {status})", status

    def remarks(self) -> dict[str, str | None]:
        """What others should know about an end that does not look like a failure."""
        unknown = None
        left = not _returned(self._main) and self._printed_error() is None
        if left and self._status is _UNKNOWN:
            unknown = "by a SystemExit that sys.exit() did not raise, so its status is unknown"
        return {"thread_error": self.thread_error, "exit": unknown}

    def _printed_error(self) -> BaseException | None:
        error = getattr(sys, "last_value", None)
        trace = getattr(error, "__traceback__", None)
        # An older error, which IPython printed before it went on, has other frames.
        return error if trace is not None and trace.tb_frame is self._main else None

    def _remember_exit_status(self) -> None:
        if sys.version_info >= (3, 12) and self._watch_main_frame():
            return
        leave = sys.exit

        @functools.wraps(leave)
        def noted(status: Any = None, /) -> None:
            if threading.current_thread() is threading.main_thread():
                self._status = status
            leave(status)

        sys.exit = noted

    if sys.version_info >= (3, 12):

        def _watch_main_frame(self) -> bool:
            """Notes the status of a SystemExit that leaves the main program, whoever raises it.

            It costs 0.06 us for each frame that an exception leaves. Returns False if other tools
            use all ids.
            """
            monitoring = sys.monitoring
            free = [tool for tool in _TOOLS if monitoring.get_tool(tool) is None]
            if not free or self._main is None:
                return False
            main_code = self._main.f_code

            def unwound(code: CodeType, _: int, error: BaseException) -> None:
                if code is main_code and isinstance(error, SystemExit):
                    self._status = error.code

            monitoring.use_tool_id(free[0], "datarax_tfds")
            monitoring.register_callback(free[0], monitoring.events.PY_UNWIND, unwound)
            monitoring.set_events(free[0], monitoring.events.PY_UNWIND)
            return True

    def _remember_errors_of_threads(self) -> None:
        report = threading.excepthook

        def noted(args: threading.ExceptHookArgs) -> None:
            report(args)
            if not issubclass(args.exc_type, SystemExit):
                name = "a thread" if args.thread is None else f"thread {args.thread.name!r}"
                self.thread_error = f"{name} ended by {args.exc_type.__name__}: {args.exc_value}"

        threading.excepthook = noted


def _outermost_frame() -> FrameType | None:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _returned(frame: FrameType | None) -> bool:
    """Whether the code of a frame ran to its end; false if an exception left it."""
    if frame is None or frame.f_lasti < 0:
        return True
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("RETURN")
