"""Says what a benchmark is doing, from its first moment on: its imports alone take seconds.

Import it before everything else. Nothing is said where a benchmark is imported, as tests do.
"""

import sys
from pathlib import Path


def doing(what: str) -> None:
    """Says what is done next, as "measuring shuffled batches"."""
    program = Path(sys.argv[0]).resolve()
    if program.parent == Path(__file__).parent:
        print(f"{program.name}: {what} ...", file=sys.stderr, flush=True)


doing("importing JAX and others")
