"""Whether the main thread is stuck in a computation that needs other processes.

A process that is still writing a checkpoint, or evaluating on its own devices, does not need one
that has ended. So this looks at the main thread: it waits for other processes if it stays in one
call, and arrays that span processes take part in that call.
"""

import contextlib
import dis
import inspect
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jax.sharding import Sharding

_JAX = str(Path(jax.__file__).parent)


class MainThread:
    """Where the main thread is, and since when."""

    def __init__(self):
        self._frame: FrameType | None = None
        self._instruction = -1
        self._since = time.monotonic()

    def seconds_in_call(self) -> float:
        """How long the main thread has been in one call, as seen by successive calls of this."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        instruction = -1 if frame is None else frame.f_lasti
        # Keeps the frame itself, because a new frame may get the address of one that has ended.
        if frame is not self._frame or instruction != self._instruction:
            self._frame, self._instruction = frame, instruction
            self._since = time.monotonic()
        return time.monotonic() - self._since

    def where(self) -> str:
        """The line of the user's code, for messages."""
        frame = self._user_frame()
        return "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"

    def waits_for_other_processes(self) -> bool:
        """Whether arrays or shardings that span several processes take part in the call."""
        frame, user_frame = self._frame, self._user_frame()
        while frame is not None and frame is not user_frame:
            if any(map(_spans_processes, frame.f_locals.values())):
                return True
            frame = frame.f_back
        return user_frame is not None and any(map(_spans_processes, _values_in_call(user_frame)))

    def _user_frame(self) -> FrameType | None:
        """The innermost frame outside of JAX."""
        frame = self._frame
        while frame is not None and frame.f_code.co_filename.startswith(_JAX):
            frame = frame.f_back
        return frame


def _spans_processes(value: Any) -> bool:
    # In `train_step(next(batches))`, no variable holds the batch, but a pipeline has a sharding.
    owner = value.gi_frame.f_locals if inspect.isgenerator(value) and value.gi_frame else {}
    with contextlib.suppress(Exception):  # an object of the user may raise anything
        for leaf in [*jax.tree.leaves(value), value, *owner.values()]:
            sharding = leaf if isinstance(leaf, Sharding) else getattr(leaf, "sharding", None)
            if isinstance(sharding, Sharding) and not sharding.is_fully_addressable:
                return True
    return False


def _values_in_call(frame: FrameType) -> list[Any]:
    """The variables and attributes that are named in the expression that a frame evaluates."""
    instructions = list(dis.get_instructions(frame.f_code))
    call = next((found for found in instructions if found.offset == frame.f_lasti), None)
    if call is None or call.positions is None or call.positions.lineno is None:
        return []
    names: set[str] = set()
    for part in instructions:
        if part.opname.startswith("LOAD_") and _lies_within(part.positions, call.positions):
            argval = part.argval if isinstance(part.argval, tuple) else (part.argval,)
            names.update(name for name in argval if isinstance(name, str))
    variables = frame.f_globals | dict(frame.f_locals)
    values = [variables[name] for name in names if name in variables]
    fields = [vars(value) for value in values if hasattr(value, "__dict__")]
    return values + [found[name] for found in fields for name in names if name in found]


def _lies_within(part: dis.Positions | None, whole: dis.Positions) -> bool:
    if part is None or part.lineno is None:
        return False
    (begin, end), (first, last) = map(_range_of, (part, whole))
    return first <= begin and end <= last


def _range_of(place: dis.Positions) -> tuple[tuple[Any, int], tuple[Any, int]]:
    return (place.lineno, place.col_offset or 0), (place.end_lineno, place.end_col_offset or 0)
