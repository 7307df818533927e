"""One process of a job that takes batches with workers of Ray until it is told to end.

    trains_with_ray.py DATA_DIR ADDRESS LATE_S PLACE

It notes each step in PLACE: when it ended, how long it took, a digest of the rows that this process
holds, the workers that are there, and the seconds in which workers were waited for. It ends with
its parent, too.
"""

import json
import os
import sys
import time
from pathlib import Path

DATA_DIR, ADDRESS, LATE_S, PLACE = *sys.argv[1:4], Path(sys.argv[4])
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
from service_job import digest_of_rows_here, pipeline

from datarax_tfds import RayService, batch_sharding, initialize, make_mesh
from datarax_tfds.runtime.timings import WORKERS

parent = os.getppid()
initialize()
service = RayService(ADDRESS, late_s=float(LATE_S))
run = pipeline(DATA_DIR, service, batch_sharding(make_mesh({"data": -1})))
team = run.source.records.reader.dispatcher.team
with (PLACE / f"steps-{jax.process_index()}").open("w", buffering=1) as notes:
    while os.getppid() == parent and not (PLACE / "end").exists():
        begun = time.time()
        batch = jax.block_until_ready(run.step())
        ended = time.time()
        note = {
            "ended": ended,
            "seconds": ended - begun,
            "digest": digest_of_rows_here(batch),
            "workers": [each.name for each in team.members],
            "asked": run.source.records.timings.totals().stages.get(WORKERS, 0.0),
        }
        notes.write(json.dumps(note) + "\n")
