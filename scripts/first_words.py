"""Says what a script is doing, from its first moment on: its imports alone take seconds.

Import it before everything else. Of the processes of a job, only process 0 says anything.
"""

import os
import sys
from pathlib import Path

_NUMBERS = ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "RANK")


def doing(what: str) -> None:
    """Says what is done next, as "compiling the first step"."""
    if all(os.environ.get(name, "0") == "0" for name in _NUMBERS):
        print(f"{Path(sys.argv[0]).name}: {what} ...", file=sys.stderr, flush=True)


doing("importing JAX and TensorFlow")
