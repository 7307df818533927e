"""What JAX and TensorFlow print of themselves when they start, and how it is left out.

    with startup_notes_left_out():
        import tensorflow

TensorFlow 2.21 prints notes on the processor whatever TF_CPP_MIN_LOG_LEVEL says.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_NOTES = re.compile(
    rb"^(?:\[Gloo\] Rank \d+ is connected to .*"
    rb"|WARNING: All log messages before absl::InitializeLog\(\) is called .*"
    rb"|I0000 .*"  # an INFO of absl before that call
    rb"|To enable the following instructions: .* rebuild TensorFlow .*)\n",
    re.MULTILINE,
)
_STARTS = (
    b"[Gloo] Rank ",
    b"WARNING: All log messages before absl::InitializeLog() is called ",
    b"I0000 ",
    b"To enable the following instructions: ",
)


def without_startup_notes(printed: bytes) -> bytes:
    """What was printed, without the lines that are notes."""
    return _NOTES.sub(b"", printed)


def may_become_note(line: bytes) -> bool:
    """Whether this, with more to come, may become a line that is a note."""
    return any(line.startswith(start[: len(line)]) for start in _STARTS)


@contextmanager
def startup_notes_left_out() -> Iterator[None]:
    """Holds back what is written to the standard error, then writes it without the notes.

    Only for a program that has one thread and no child processes yet, because what others write
    meanwhile is held back, too. What is held back is lost if the process is killed. TensorFlow
    aborts on a processor that lacks instructions; import JAX first, which raises an error then.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            sys.stderr.write(without_startup_notes(held.read()).decode(errors="replace"))
            sys.stderr.flush()
