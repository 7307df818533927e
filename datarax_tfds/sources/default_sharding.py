"""Chooses the sharding of a source if the caller passes none."""

import jax
import numpy as np

from sharding import local_rows, row_shards
from sharding.checks import refused
from sharding.hosts.processes import require_all_processes
from sharding.placement import Placement, Uncommitted


def resolved_sharding(sharding: Placement | None, subject: str) -> Placement:
    """Checks a sharding. Without one, batches are uncommitted, on the default device."""
    require_all_processes()
    if sharding is None:
        if jax.process_count() > 1:
            raise refused(
                ValueError,
                subject,
                "there are several processes, and no sharding says which rows are whose.",
                processes=jax.process_count(),
                fix="pass sharding=batch_sharding(make_mesh({'data': -1}))",
            )
        return Uncommitted(jax.device_put(np.int32(0)).device)
    local_rows(sharding, row_shards(sharding))  # raises if no row is for this process
    return sharding
