"""How many threads read and decode: a fixed number, in a pool of their own."""

import os
from concurrent.futures import ThreadPoolExecutor


def decoding_threads() -> int:
    """One more than cores: while it reads, they all decode (on two cores 1.0 s against 1.2 s for
    60,000 PNG of 28x28). Not AUTOTUNE: it starts its threads anew in each epoch (0.4 s).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (cores or 1) + 1


def decoding_pool() -> ThreadPoolExecutor:
    """A pool of such threads. They end with its last user, and at the exit of the interpreter."""
    return ThreadPoolExecutor(decoding_threads(), thread_name_prefix="datarax_tfds")
