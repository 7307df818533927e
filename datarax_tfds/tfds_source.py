"""The two sources, records on the devices and records left on disk, and which suits a split."""

import dataclasses
import difflib
import logging
from typing import Any, final

import jax
from flax import nnx
from jax.sharding import NamedSharding
from tqdm import tqdm

from datarax_tfds.block_order import BlockOrder
from datarax_tfds.config import TFDSEagerConfig, TFDSStreamingConfig
from datarax_tfds.eager_records import EagerRecords
from datarax_tfds.layout import EASY_SHARE, memory_share
from datarax_tfds.order import Order
from datarax_tfds.packing import Packing
from datarax_tfds.records import RecordReader
from datarax_tfds.source import Source
from datarax_tfds.split import open_split
from datarax_tfds.streaming_records import StreamingRecords
from sharding import resolved_sharding
from sharding.messages import explain

logger = logging.getLogger(__name__)

_PROGRESS_DELAY_S = 2.0


@final
class TFDSEagerSource(Source[TFDSEagerConfig, EagerRecords]):
    """All records of a split on the devices, served in order or shuffled, as pure JAX.

    Global batch k is the same, bit for bit, on any mesh, number of processes and device order,
    and after any resume. The records are read once, at construction, by each process those that
    its devices hold; they are no part of the state, of `nnx.split` or of a checkpoint, and no
    transformation copies them.

        source = TFDSEagerSource(TFDSEagerConfig(name="mnist", split="train", shuffle=True))
        batch = source.get_batch(32)    # {"image": uint8[32, 28, 28, 1], "label": int32[32]}

    Args:
        config: What to read.
        rngs: Where a `stochastic` config has its seed from; it is `config.seed` otherwise.
        name: For messages; `TFDSEagerSource(dataset:split)` where absent.
        sharding: How batches lie on a mesh; one device where absent.

    Attributes:
        index: The next position to hand out, in `[0, N)`, as an `nnx.Variable`.
        epoch: The epoch of that position, from 0, as an `nnx.Variable`.
        length: Number of records N.

    Raises:
        ValueError: A feature that no array can hold, records that do not fit the devices, or a
            split that the dataset does not have.
        DatasetNotFoundError: The dataset is not prepared and may not be.
        DataLossError: The files are not what their metadata say.
    """

    @property
    def data(self) -> dict[str, Any]:
        """All records in stored order, `[N, ...]`: what `collect_to_array` returns."""
        return self.collect_to_array()

    _config_type = TFDSEagerConfig
    # The rows are on the devices whether or not arrays made of them are kept.
    _not_of_reading = Source._not_of_reading | {"cacheable"}

    def _opened(self, reader: RecordReader) -> EagerRecords:
        return EagerRecords(reader, batch=self.sharding, layout=self.config.layout)

    def _ordered(self, seed: int | None) -> Order:
        return Order(self.length, seed)

    def supports_indexed_access(self) -> bool:
        return True


@final
class TFDSStreamingSource(Source[TFDSStreamingConfig, StreamingRecords]):
    """The records of a split of any size, left on disk and decoded ahead of their use.

    The same batches as of a `TFDSEagerSource`, bit for bit, and the same state: a run may begin
    with one and go on with the other. Any record is read at once from its place in its file, so
    that the shuffle is of the whole split, and a resume costs the same anywhere.

        source = TFDSStreamingSource(
            TFDSStreamingConfig(name="imagenet2012", split="train", shuffle=True, map_fn=crop)
        )
        for batch in Pipeline(source=source, batch_size=1024):
            train_step(batch)

    `for record in source` takes what no batch can hold, too: text as bytes, images each of a shape
    of its own.

    Args:
        config: What to read.
        rngs: Where a `stochastic` config has its seed from; it is `config.seed` otherwise.
        name: For messages; `TFDSStreamingSource(dataset:split)` where absent.
        sharding: How batches lie on a mesh; one device where absent.

    Attributes:
        index: The next position to hand out, in `[0, N)`, as an `nnx.Variable`.
        epoch: The epoch of that position, from 0, as an `nnx.Variable`.
        length: Number of records N.

    Raises:
        ValueError: A split that the dataset does not have, a key or `map_fn` that cannot be, or a
            feature that is no array even in one record.
        DatasetNotFoundError: The dataset is not prepared and may not be.
        DataLossError: The files are not what their metadata say.
    """

    _config_type = TFDSStreamingConfig

    def _opened(self, reader: RecordReader) -> StreamingRecords:
        checked = reader.files.check(jax.process_index(), jax.process_count())
        for _ in tqdm(
            checked,
            desc=f"{self.name}: finding records",
            unit=" files",
            delay=_PROGRESS_DELAY_S,
            disable=None if jax.process_index() == 0 else True,
        ):
            pass
        if self.config.access == "sequential":
            reader.read_blocks(self.config.block_size, self.config.shuffle_buffer_size)
        return StreamingRecords(
            reader,
            batch=self.sharding,
            prefetch_buffer=self.config.prefetch_buffer,
            cacheable=self.config.cacheable,
        )

    def supports_indexed_access(self) -> bool:
        return False

    def _ordered(self, seed: int | None) -> Order | BlockOrder:
        if seed is not None and self.config.access == "sequential":
            return BlockOrder(
                self.length, seed, self.config.block_size, self.config.shuffle_buffer_size
            )
        return Order(self.length, seed)


def from_tfds(
    name: str,
    split: str,
    *,
    eager: bool | None = None,
    rngs: nnx.Rngs | None = None,
    sharding: NamedSharding | None = None,
    **fields: Any,
) -> TFDSEagerSource | TFDSStreamingSource:
    """The source that suits a split: on the devices if it is small there, else left on disk.

    Eager where the decoded records, cut over the devices of the sharding, take up to a tenth of
    the free memory of each, if they are of one shape and the same in every epoch. The
    log says which source was chosen, and why.

        source = from_tfds("mnist", "train", shuffle=True)

    Args:
        name: Name in TFDS.
        split: Any split that TFDS understands.
        eager: Chooses in advance: true or false.
        rngs: As for the sources.
        sharding: As for the sources.
        **fields: Those of `TFDSEagerConfig` and `TFDSStreamingConfig`; what the chosen one does not
            have is without effect.

    Raises:
        TypeError: A field that neither config has.
        ValueError: As the configs and the sources do; no error makes it choose the other one.
    """
    eager_fields = {field.name for field in dataclasses.fields(TFDSEagerConfig)}
    streaming_fields = {field.name for field in dataclasses.fields(TFDSStreamingConfig)}
    known = sorted(eager_fields | streaming_fields)
    for unknown in fields.keys() - set(known):
        near = difflib.get_close_matches(unknown, known, n=1)
        raise TypeError(
            explain(
                "from_tfds",
                f"neither config has a field {unknown!r}.",
                fields=", ".join(known),
                fix=f"use {near[0]}" if near else "use one of these, or leave it out",
            )
        )

    def own(names: set[str]) -> dict[str, Any]:
        return {key: value for key, value in fields.items() if key in names}

    # Both are checked, whichever is chosen.
    on_devices = TFDSEagerConfig(name=name, split=split, **own(eager_fields))
    on_disk = TFDSStreamingConfig(name=name, split=split, **own(streaming_fields))
    if eager is None:
        everywhere = on_devices.layout == "replicated"
        eager, reason = _suits_the_devices(on_disk, sharding, everywhere)
        choice = "eager" if eager else "streaming"
        logger.info("from_tfds(%s:%s): %s, since %s", name, split, choice, reason)
    if eager:
        return TFDSEagerSource(on_devices, rngs=rngs, sharding=sharding)
    return TFDSStreamingSource(on_disk, rngs=rngs, sharding=sharding)


def _suits_the_devices(
    config: TFDSStreamingConfig, sharding: NamedSharding | None, everywhere: bool
) -> tuple[bool, str]:
    """Whether records had better lie on the devices (all on each, or cut over them), and why."""
    subject = f"from_tfds({config.name}:{config.split})"
    reader = RecordReader(open_split(config), config, subject)
    if not reader.holds_arrays:
        return False, "records are not all of one shape, or hold text"
    if reader.stochastic:
        return False, "map_fn changes records from epoch to epoch"
    if config.access == "sequential":
        return False, "access is sequential"
    row_bytes = Packing(reader.spec).row_bytes
    rows = resolved_sharding(sharding, subject)
    copies = rows.mesh.size if everywhere else 1
    share = memory_share(reader.length * copies, row_bytes, rows)
    size = (
        f"{reader.length * row_bytes:,} bytes of records take {share:.1%} of each device's memory"
    )
    return share <= EASY_SHARE, size
