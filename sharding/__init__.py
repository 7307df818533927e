"""Which rows of a batch live where: meshes, placement, gathers, processes.

sharding.initialize()                                 # joins the other processes, if any
mesh = sharding.make_mesh({"data": -1, "model": 2})
rows = sharding.batch_sharding(mesh, "data")
batch = sharding.global_batch(read, 1024, rows)       # each process reads only its rows
"""

from sharding.agreement import agree, busy, done_by_others, run_id
from sharding.errors import DisagreementError, PeerFailedError, WaitTimeoutError
from sharding.gathers import Layout, storage_sharding, take_rows
from sharding.meshes import batch_sharding, make_mesh
from sharding.placement import (
    check_batch_size,
    global_batch,
    local_rows,
    on_mesh,
    processes_of,
    row_axes,
    row_shards,
)
from sharding.preemption import Preemption
from sharding.processes import initialize, require_all_processes, resolved_sharding

__all__ = [
    "DisagreementError",
    "Layout",
    "PeerFailedError",
    "Preemption",
    "WaitTimeoutError",
    "agree",
    "batch_sharding",
    "busy",
    "check_batch_size",
    "done_by_others",
    "global_batch",
    "initialize",
    "local_rows",
    "make_mesh",
    "on_mesh",
    "processes_of",
    "require_all_processes",
    "resolved_sharding",
    "row_axes",
    "row_shards",
    "run_id",
    "storage_sharding",
    "take_rows",
]
