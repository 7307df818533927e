"""A program that trains with a cluster of Ray of its own, and compares each batch with its own.

    own_cluster.py DATA_DIR PLACE STEPS

The rows come through an object store of Ray that is too small for them.
It notes in PLACE when workers are there and when they have been asked, and ends after STEPS steps,
or when its parent has ended.
"""

import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import elsewhere
import jax
import numpy as np

from datarax_tfds import Pipeline, RayService, TFDSStreamingConfig, TFDSStreamingSource
from datarax_tfds.runtime.timings import WORKERS
from datarax_tfds.service import ray_engine

DATA_DIR, PLACE, STEPS = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
SMALL = 80 << 20  # bytes: the least that Ray takes


def pipeline(service):
    config = TFDSStreamingConfig(
        name="tiny", split="train", data_dir=DATA_DIR, transform=elsewhere.large, service=service
    )
    return Pipeline(source=TFDSStreamingSource(config), batch_size=24)


def unreadable(*_):
    raise PermissionError("as of a process in another container")


ray_engine.opened_in = unreadable
logging.basicConfig(level=logging.WARNING, force=True)
run = pipeline(RayService(workers=2, object_store_bytes=SMALL))
local = pipeline(None)
rounds_with_workers = 0
parent = os.getppid()
for _ in range(STEPS):
    if os.getppid() != parent:
        break  # tests that are killed end nothing
    # One after the other without a pause, in which the threads of this process would decode alone.
    batches = [run.step() for _ in range(4)]
    for batch in batches:
        jax.tree.map(np.testing.assert_array_equal, batch, local.step())
    if run.source.records.reader.dispatcher.team.members:
        (PLACE / "there").touch()
    rounds_with_workers += WORKERS in run.source.records.timings.totals().stages
    if rounds_with_workers > 2:
        (PLACE / "asked").touch()
