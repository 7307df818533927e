"""Which rows of a batch live on which devices, and how the processes of a job keep in step.

    sharding.initialize()                                 # joins the other processes, if any
    mesh = sharding.make_mesh({"data": -1, "model": 2})
    rows = sharding.batch_sharding(mesh, "data")
    batch = sharding.global_batch(read, 1024, rows)       # each process reads only its rows

Users of `datarax_tfds` find these functions there, too.
"""

from sharding.errors import DisagreementError, PeerFailedError, WaitTimeoutError
from sharding.gathers import Layout, storage_sharding, take_rows
from sharding.hosts.preemption import Preemption
from sharding.hosts.processes import initialize
from sharding.meshes import batch_sharding, make_mesh
from sharding.placement import global_batch, local_rows, row_axes, row_shards

__all__ = [
    "DisagreementError",
    "Layout",
    "PeerFailedError",
    "Preemption",
    "WaitTimeoutError",
    "batch_sharding",
    "global_batch",
    "initialize",
    "local_rows",
    "make_mesh",
    "row_axes",
    "row_shards",
    "storage_sharding",
    "take_rows",
]
