"""When to save and stop because the machine is about to be taken away: at one step everywhere."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Whether a SIGTERM, to any process, asks all of them to save and stop.

        preemption = Preemption()
        for batch in pipeline:
            train_step(batch)
            step += 1
            if preemption.reached(step):
                save(step)
                break

    With several processes this is JAX's own service: the notice reaches all, and all stop at the
    same step, the first that none has passed. Alone, a process notes the signal by itself. Build
    it in the main thread; ask at every step, from the same step on.
    """

    def __init__(self):
        self._noticed = threading.Event()
        # With several, JAX takes the signal; a handler of Python's would take it away.
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, lambda *_: self._noticed.set())

    def reached(self, step: int) -> bool:
        """Whether to save and stop now, after this step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noticed.is_set()
