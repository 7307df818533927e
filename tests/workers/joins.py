"""One process of a job that its environment describes: joins the others, and notes its place."""

import json
import os
import sys
import time
from pathlib import Path

OUT, ARGUMENTS = sys.argv[1:]

asks_metadata = "TPU_SKIP_MDS_QUERY" not in os.environ

import jax

if asks_metadata:  # JAX has set it, because it finds no TPU here
    os.environ.pop("TPU_SKIP_MDS_QUERY", None)

from sharding import initialize
from sharding.hosts.agreement import gathered
from sharding.hosts.job import job
from sharding.hosts.processes import require_all_processes

initialize(timeout_s=600, **json.loads(ARGUMENTS))
require_all_processes()
while job.processes_here < jax.process_count():  # the test has a limit
    time.sleep(0.05)
note = {
    "process": jax.process_index(),
    "count": jax.process_count(),
    "gpus": jax.config.values["jax_cuda_visible_devices"],
}
together = gathered("the places", note["process"], range(note["count"]))
Path(OUT).write_text(json.dumps(note | {"together": together}))
