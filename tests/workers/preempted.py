"""One of two processes that train until a signal to one of them asks both to stop."""

import logging
import os
import signal
import sys
import threading
import time

HOW = sys.argv[1]

import jax

from datarax_tfds import Preemption, initialize


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


told = threading.Event()
handler = logging.StreamHandler()
handler.addFilter(lambda record: ("no Preemption" in record.getMessage() and told.set()) or True)
logging.getLogger("datarax_tfds").addHandler(handler)
initialize()
concerned = jax.process_index() == 1
if HOW == "nobody asks":
    if concerned:
        os.kill(os.getpid(), signal.SIGTERM)
    told.wait(600)
    sys.exit()
number = signal.SIGTERM if HOW == "SIGTERM" else signal.SIGUSR1
signal.signal(number, lambda *_: say("the user's handler"))
preemption = Preemption(signals=(signal.SIGTERM, signal.SIGUSR1))
for step in range(1, 1_000_000):
    if concerned and step == 20:
        os.kill(os.getpid(), number)
    if preemption.reached(step):
        say(f"stopped at {step}")
        sys.exit(os.EX_TEMPFAIL)
    time.sleep(0.01)
