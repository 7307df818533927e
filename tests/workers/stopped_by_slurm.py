"""Runs a training script in a job of Slurm, which stops it in each of its first two starts.

Slurm first sends SIGTERM to the tasks, as it does before the time limit, and then takes the job
from its node, as in a preemption.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path

from datarax_tfds import Preemption

JOB = os.environ["SLURM_JOB_ID"]
STOPS = [(30, ["scancel", "--signal=TERM", JOB]), (70, ["scontrol", "requeue", JOB])]
START = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
arrived = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: arrived.set())
reached = Preemption.reached


def after_a_stop(self, step):
    concerned = len(STOPS) > START and os.environ["SLURM_PROCID"] == "0"
    if concerned and step == STOPS[START][0]:
        subprocess.run(STOPS[START][1], check=True)
        assert arrived.wait(600)
    return reached(self, step)


Preemption.reached = after_a_stop
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
