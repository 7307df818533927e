"""Defines the two sources, and `from_tfds`, which chooses between them."""

import dataclasses
import logging
from typing import Any, final

import jax
from flax import nnx
from jax.sharding import NamedSharding
from tqdm import tqdm

from datarax_tfds.config.config import TFDSEagerConfig, TFDSStreamingConfig
from datarax_tfds.config.fields import Field, SplitExpression, flag, require_known
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.files.split import open_split
from datarax_tfds.order.block_order import BlockOrder
from datarax_tfds.order.order import Order
from datarax_tfds.order.record_order import RecordOrder
from datarax_tfds.order.strata import StrataOrder
from datarax_tfds.order.wide_numbers import is_wide
from datarax_tfds.records.eager import EagerRecords
from datarax_tfds.records.filtering import filtered
from datarax_tfds.records.memory import EAGER_MEMORY_FRACTION, memory_share
from datarax_tfds.records.packing import Packing
from datarax_tfds.records.streaming import StreamingRecords
from datarax_tfds.service.executor import Executor
from datarax_tfds.service.serving import served
from datarax_tfds.sources.dataset_source import DatasetSource
from datarax_tfds.sources.default_sharding import resolved_sharding
from sharding.hosts.agreement import extend_deadlines
from sharding.placement import Placement

logger = logging.getLogger(__name__)

_PROGRESS_DELAY_S = 2.0


@final
class TFDSEagerSource(DatasetSource[TFDSEagerConfig, EagerRecords]):
    """Keeps all records of a split on the devices, and makes batches in stored or shuffled order.

    Global batch k is the same, bit for bit, on any mesh, number of processes and device order, and
    after any resume. Each process reads the records that its devices hold, once, at construction.
    The records are not part of the state, of `nnx.split` or of a checkpoint. The first batch that
    is taken inside a compiled function of yours makes a second copy of them on the devices.

        source = TFDSEagerSource(TFDSEagerConfig(name="mnist", split="train", shuffle=True))
        batch = source.get_batch(32)    # {"image": uint8[32, 28, 28, 1], "label": int32[32]}

    Args:
        config: What to read.
        rngs: Streams from which a `stochastic` config draws its seed, in place of `config.seed`.
        name: The name in messages, `TFDSEagerSource(dataset:split)` by default.
        sharding: The placement of batches on a mesh, one device by default.

    Attributes:
        index: The next position to hand out, in `[0, N)`, as an `nnx.Variable`.
        epoch: The epoch of that position, from 0, as an `nnx.Variable`.
        length: Number of records N.
        choice: Why `from_tfds` chose this kind of source; None if it did not choose.

    Raises:
        ValueError: An array cannot hold a feature, the records do not fit the devices, or the
            dataset does not have the split.
        DatasetNotFoundError: The dataset is not prepared, and must not or cannot be prepared.
        DataLossError: The files differ from what their metadata say.
    """

    @property
    def data(self) -> dict[str, Any]:
        """All records in stored order, `[N, ...]`: the same as `collect_to_array()`."""
        return self.collect_to_array()

    _config_type = TFDSEagerConfig

    def _opened(self, reader: RecordReader) -> EagerRecords:
        strata = self.config.strata or 1
        return EagerRecords(reader, batch=self.sharding, layout=self.config.layout, strata=strata)

    def ordered(self, seed: int | None) -> RecordOrder:
        if self.config.strata is not None:
            return StrataOrder(self.length, seed, self.config.strata)
        return Order(self.length, seed)

    def supports_indexed_access(self) -> bool:
        return True


@final
class TFDSStreamingSource(DatasetSource[TFDSStreamingConfig, StreamingRecords]):
    """Leaves the records of a split on disk, and decodes them before they are needed.

    It gives the same batches and state as a `TFDSEagerSource`, bit for bit, unless `access` is
    `"sequential"`, as it is by default in an object store: a run may begin with one and continue
    with the other. Each record is read directly from its place in its file. So the shuffle is of
    the whole split, and a resume costs the same anywhere in it.

        source = TFDSStreamingSource(
            TFDSStreamingConfig(name="imagenet2012", split="train", shuffle=True, map_fn=crop)
        )
        for batch in Pipeline(source=source, batch_size=1024):
            train_step(batch)

    `for record in source` also works for records that cannot be batched, such as text (as bytes)
    and images of different shapes.

    The attributes are those of `TFDSEagerSource`. With 2**31 records and more, the value of `index`
    may be two words, for `join_words`; `cursor.index` is an integer.

    Args:
        config: What to read.
        rngs: Streams from which a `stochastic` config draws its seed, in place of `config.seed`.
        name: The name in messages, `TFDSStreamingSource(dataset:split)` by default.
        sharding: The placement of batches on a mesh, one device by default.
        executor: Decodes records beside the threads of this process: see `Executor`. For Ray, set
            `service` in the config instead.

    Raises:
        ValueError: The dataset does not have the split, a key or `map_fn` cannot be used, or a
            feature is not an array even in one record.
        DatasetNotFoundError: The dataset is not prepared, and must not or cannot be prepared.
        DataLossError: A file is missing, or one that is opened differs from what the metadata say.
            Other files are compared with the metadata when a batch first reads them.
    """

    _config_type = TFDSStreamingConfig

    def __init__(
        self,
        config: TFDSStreamingConfig,
        *,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
        sharding: Placement | None = None,
        executor: Executor | None = None,
        _reader: RecordReader | None = None,
    ):
        self._executor = nnx.static(executor)
        super().__init__(config, rngs=rngs, name=name, sharding=sharding, _reader=_reader)

    def _opened(self, reader: RecordReader) -> StreamingRecords:
        built = reader.files.build_indexes(jax.process_index(), jax.process_count())
        progress = tqdm(
            built,
            desc=f"{self.name}: finding records",
            unit=" files",
            delay=_PROGRESS_DELAY_S,
            disable=None if jax.process_index() == 0 else True,
        )
        with extend_deadlines(f"finding records of {self.name}", measured=True) as advance:
            for _ in progress:
                advance()
        if self._block_size is not None:
            reader.read_blocks(self._block_size, self.config.shuffle_buffer_size)
        return StreamingRecords(
            served(reader, self.config, self._executor),
            batch=self.sharding,
            prefetch_buffer=self.config.prefetch_buffer,
            cacheable=self.config.cacheable,
        )

    def supports_indexed_access(self) -> bool:
        return False

    def ordered(self, seed: int | None) -> RecordOrder:
        if seed is not None and self._block_size is not None:
            return BlockOrder(self.length, seed, self._block_size, self.config.shuffle_buffer_size)
        if self.config.strata is not None:
            return StrataOrder(self.length, seed, self.config.strata)
        return Order(self.length, seed)


def from_tfds(
    name: str,
    split: str | SplitExpression,
    *,
    eager: bool | None = None,
    rngs: nnx.Rngs | None = None,
    sharding: NamedSharding | None = None,
    **fields: Any,
) -> TFDSEagerSource | TFDSStreamingSource:
    """Builds an eager source if the records are small enough for the devices, else a stream.

    The source is eager if the decoded records have one shape, are the same in every epoch, and take
    up to a tenth of the free memory of each device when they are sharded over all devices (with
    `layout="replicated"`, when each device holds all). With `access="sequential"`, it is a stream.
    `print(source)` and `source.choice` say which source was chosen, and why.

        source = from_tfds("mnist", "train", shuffle=True)

    Args:
        name: The name of the dataset in TFDS.
        split: Any split that TFDS understands.
        eager: True forces an eager source, False a stream.
        rngs: Streams from which a `stochastic` config draws its seed.
        sharding: The placement of batches on a mesh, one device by default.
        **fields: Fields of `TFDSEagerConfig` and `TFDSStreamingConfig`. Those that the config of
            the chosen source does not have are ignored.

    Raises:
        TypeError: A field belongs to neither config.
        ValueError: A config or the chosen source raises it. The other source is not tried then.
    """
    eager_fields = {field.name for field in dataclasses.fields(TFDSEagerConfig)}
    streaming_fields = {field.name for field in dataclasses.fields(TFDSStreamingConfig)}
    require_known(fields, eager_fields | streaming_fields, "from_tfds", "neither config has")
    if eager is not None:
        eager = flag(Field("from_tfds", "eager", eager))

    def own(names: set[str]) -> dict[str, Any]:
        return {key: value for key, value in fields.items() if key in names}

    # Both configs are built, so that both are checked, whichever source is chosen.
    on_devices = TFDSEagerConfig(name=name, split=split, **own(eager_fields))
    on_disk = TFDSStreamingConfig(name=name, split=split, **own(streaming_fields))
    reader = choice = None
    if eager is None:
        subject = f"from_tfds({name}:{split})"
        batch = resolved_sharding(sharding, subject)
        opened = filtered(open_split(on_disk), on_disk, subject, batch)
        reader = RecordReader(opened, on_disk, subject)
        copied = on_devices.layout == "replicated"
        eager, why = _suits_the_devices(reader, on_disk, batch, copied)
        choice = f"{'eager' if eager else 'streaming'}, since {why}"
        logger.info("%s: %s", subject, choice)
    source: TFDSEagerSource | TFDSStreamingSource
    if eager:
        source = TFDSEagerSource(on_devices, rngs=rngs, sharding=sharding, _reader=reader)
    else:
        source = TFDSStreamingSource(on_disk, rngs=rngs, sharding=sharding, _reader=reader)
    source.choice = choice
    return source


def _suits_the_devices(
    reader: RecordReader, config: TFDSStreamingConfig, batch: Placement, copied: bool
) -> tuple[bool, str]:
    """Whether records should be kept on the devices, copied to each or sharded, and why."""
    if not reader.holds_arrays:
        return False, "the records are not all of one shape, or hold text"
    if reader.stochastic:
        return False, f"{reader.random_by} changes the records from epoch to epoch"
    if config.access == "sequential":
        return False, "access is sequential"
    if is_wide(reader.length):
        return False, "the records are 2**31 or more"
    row_bytes = Packing(reader.spec).row_bytes
    share = memory_share(reader.length * (batch.num_devices if copied else 1), row_bytes, batch)
    return (
        share <= EAGER_MEMORY_FRACTION,
        f"{reader.length * row_bytes:,} bytes of records take {share:.1%} of the free memory of"
        " each device",
    )
