"""Feeds JAX jobs from TensorFlow Datasets, on any number of hosts, and resumes exactly.

    source = TFDSEagerSource(TFDSEagerConfig(name="mnist", split="train", shuffle=True))
    for batch in Pipeline(source=source, batch_size=128):
        train_step(model, batch)

Checkpoints: `datarax_tfds.checkpoint`. Meshes and processes: the names of `sharding`, here too.
"""

from datarax_tfds.audit import Audit, audit
from datarax_tfds.config import TFDSEagerConfig, TFDSStreamingConfig
from datarax_tfds.cursor import Cursor
from datarax_tfds.cursor_log import CursorLog
from datarax_tfds.errors import DataLossError, DatasetNotFoundError, StateMismatchError, TrustError
from datarax_tfds.pipeline import Pipeline
from datarax_tfds.prefetch import prefetch_to_device
from datarax_tfds.spec import Unbatched
from datarax_tfds.tfds_source import TFDSEagerSource, TFDSStreamingSource, from_tfds
from sharding import (
    DisagreementError,
    PeerFailedError,
    Preemption,
    WaitTimeoutError,
    batch_sharding,
    global_batch,
    initialize,
    make_mesh,
)

__all__ = [
    "Audit",
    "Cursor",
    "CursorLog",
    "DataLossError",
    "DatasetNotFoundError",
    "DisagreementError",
    "PeerFailedError",
    "Pipeline",
    "Preemption",
    "StateMismatchError",
    "TFDSEagerConfig",
    "TFDSEagerSource",
    "TFDSStreamingConfig",
    "TFDSStreamingSource",
    "TrustError",
    "Unbatched",
    "WaitTimeoutError",
    "audit",
    "batch_sharding",
    "from_tfds",
    "global_batch",
    "initialize",
    "make_mesh",
    "prefetch_to_device",
]
