"""The names that users import from `datarax_tfds`."""

from datarax_tfds.adapters.grain_dataset import grain_dataset
from datarax_tfds.adapters.prometheus import PipelineCollector
from datarax_tfds.adapters.random_access import random_access
from datarax_tfds.bucketed_source import BucketedSource
from datarax_tfds.config.config import TFDSEagerConfig, TFDSStreamingConfig
from datarax_tfds.config.config_fields import config_fields
from datarax_tfds.config.ray_service import RayService
from datarax_tfds.decoding.image_crops import decode_center_crop, decode_random_crop
from datarax_tfds.decoding.record_spec import Unbatched
from datarax_tfds.errors import (
    CursorTraceError,
    DataLossError,
    DatasetNotFoundError,
    StateMismatchError,
    TrustError,
)
from datarax_tfds.evaluation import Evaluation, evaluate
from datarax_tfds.history.audit import Audit, audit
from datarax_tfds.history.cursor_log import CursorLog
from datarax_tfds.mixture_source import MixtureSource
from datarax_tfds.order.cursor import Cursor
from datarax_tfds.order.wide_numbers import join_words
from datarax_tfds.packed_source import PackedSource
from datarax_tfds.pictures.contact_sheet import show
from datarax_tfds.pictures.picture import Picture
from datarax_tfds.pictures.placement import draw_placement
from datarax_tfds.pipeline import Pipeline
from datarax_tfds.report.report import HostReport, Report
from datarax_tfds.service.executor import Executor
from datarax_tfds.sources.prefetch import prefetch_to_device
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
    "BucketedSource",
    "Cursor",
    "CursorLog",
    "CursorTraceError",
    "DataLossError",
    "DatasetNotFoundError",
    "DisagreementError",
    "Evaluation",
    "Executor",
    "HostReport",
    "MixtureSource",
    "PackedSource",
    "PeerFailedError",
    "Picture",
    "Pipeline",
    "PipelineCollector",
    "Preemption",
    "RayService",
    "Report",
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
    "config_fields",
    "decode_center_crop",
    "decode_random_crop",
    "draw_placement",
    "evaluate",
    "from_tfds",
    "global_batch",
    "grain_dataset",
    "initialize",
    "join_words",
    "make_mesh",
    "prefetch_to_device",
    "random_access",
    "show",
]
