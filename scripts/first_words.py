"""Says what a script is doing, from its first moment on: its imports alone take seconds.

Import it before everything else. Of the processes of a job, only process 0 says anything. This
module imports TensorFlow, and leaves out the notes on the processor that TensorFlow prints.
"""

import atexit
import gc
import os
import sys
from pathlib import Path

from datarax_tfds.runtime.startup_notes import startup_notes_left_out

_NUMBERS = ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "RANK")


def doing(what: str) -> None:
    """Says what is done next, as "compiling the first step"."""
    if all(os.environ.get(name, "0") == "0" for name in _NUMBERS):
        print(f"{Path(sys.argv[0]).name}: {what} ...", file=sys.stderr, flush=True)


doing("importing JAX and TensorFlow")
with startup_notes_left_out():
    import jax  # noqa: F401
    import tensorflow  # noqa: F401
# Without it, Python searches all that was imported for garbage when it ends: 3 s, not 0.1 s.
atexit.register(gc.freeze)
