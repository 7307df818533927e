"""Defines the source whose batches have one of a few lengths."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from flax import nnx

from datarax_tfds.config.config import TFDSStreamingConfig
from datarax_tfds.config.fields import Field, flag
from datarax_tfds.counts.count_files import CountFiles
from datarax_tfds.counts.counting import Counting
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.derived_source import DerivedSource
from datarax_tfds.files.split import Split
from datarax_tfds.lengths.batch_shapes import BatchShapes
from datarax_tfds.lengths.bucketed_reader import BucketedReader
from datarax_tfds.lengths.declared_lengths import DeclaredLengths
from datarax_tfds.lengths.record_lengths import RecordLengths, lengths_reader
from datarax_tfds.order.block_order import BlockOrder
from datarax_tfds.order.bucket_order import BucketOrder, Buckets
from datarax_tfds.order.cursor import Remainder, Schedule
from datarax_tfds.order.order import Order
from datarax_tfds.records.streaming import StreamingRecords
from datarax_tfds.service.serving import served
from datarax_tfds.sources.dataset_source import digest_of
from datarax_tfds.tfds_source import TFDSStreamingSource
from sharding.checks import is_integer, refused, whole_number

_WINDOW = 65_536  # positions that are arranged together: 15 ms of a core
_MIN_RUNS = 64  # in a window: with fewer runs, more of its records are left over
_MIN_RUNS_OF_BLOCKS = 16  # fewer, because the bytes of a window of blocks are held in memory
_MAX_SHOWN = 200  # characters of the lengths in a state


@final
class BucketedSource(DerivedSource[StreamingRecords]):
    """Delivers the records of a stream in batches that are padded to one of a few lengths.

        config = TFDSStreamingConfig(name="lm1b", split="train", transform=tokenized)
        sentences = TFDSStreamingSource(config)
        source = BucketedSource(sentences, lengths={"tokens": (64, 128, 256)}, shuffle=True)
        for batch in Pipeline(source=source, batch_size=64):
            train_step(batch)    # {"tokens": int32[64, 64], [64, 128] or [64, 256], ...}

    It is used like any other source. Each record belongs to the bucket of the smallest length that
    holds it, and nearly every batch is made of records of one bucket, padded to its length. A
    function of a batch is compiled at most once for each length.

    Batch k is a pure function of the arguments and k, on any number of hosts and after any resume,
    and each record comes exactly once in an epoch.

    At the first construction, the lengths of all records are read: by all processes together, in
    all their threads. They are kept on the disk, so that later constructions find them. All
    processes know the shape of each batch from them.

    A batch has all features of the stream's records. Each feature in `lengths` is padded with
    zeros at its end, and `<name>_length`, int32 `[batch_size]`, is its length before padding, as
    with `pad_to`. A batch of records of several buckets has the length of the largest bucket. A
    single record has the length of its own bucket; `element_spec()` and `collect_to_array()` have
    the length of the last one.

    Args:
        source: The stream of records, in which the ragged features vary in length, as stored or as
            `map_fn` or `transform` make them. Its order and its cursor are not used.
        lengths: The lengths of the buckets, by the name of a ragged feature, or of a dict of
            features of one length: `{"tokens": (64, 128, 256)}`. With several names, bucket b holds
            the records of which all features fit their own length b.
        truncate: Whether what is longer than the last length is cut. By default it is an error.
        run: How many records of one bucket come one after the other: a multiple of the batch sizes,
            so that batches are made of one bucket.
        remainder: Must be the `remainder` of the pipelines that read the source, because it decides
            where runs begin in an epoch. With another one, a warning says that many batches mix
            buckets.
        shuffle: Whether the records come in random order, which differs from epoch to epoch; by
            default, as those of `source` do. Without it, those of a bucket come in stored order.
        seed: The seed of the order, in `[0, 2**32)`; by default, that of `source`.
        name: The name in messages, `BucketedSource(dataset:split)` by default.

    Attributes:
        index: The next position to hand out, as in other sources.
        epoch: The epoch of that position.
        length: The number of records.
        bucket_sizes: The number of records in each bucket.

    Raises:
        TypeError: `source` is not a `TFDSStreamingSource`, or `lengths` is not a dict.
        ValueError: A feature is unknown, or not ragged in its first axis only; the lengths do not
            ascend; or a record is longer than the last one.
    """

    def __init__(
        self,
        source: TFDSStreamingSource,
        lengths: Mapping[str, Sequence[int]],
        *,
        truncate: bool = False,
        run: int = 256,
        remainder: Remainder = "wrap",
        shuffle: bool | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        stream = self._derive(source, name)
        config, split = source.config, stream.split
        declared = DeclaredLengths.checked(lengths, self.name)
        _require_arguments(self.name, run, truncate)
        Schedule(1, 1, remainder)  # it raises if there is no such remainder
        declared.require_ragged(stream.spec | stream.host_spec, config, self.name)
        self._require_repeatable(stream, "lengths")
        names = frozenset(declared.by_name)
        self.config = nnx.static(
            dataclasses.replace(
                config,
                pad_to={**(config.pad_to or {}), **declared.longest},
                truncate=(config.truncate or frozenset()) | (names if truncate else frozenset()),
                stochastic=False,
                stream_name=None,
                **self._ordering_of(source, shuffle, seed),
            )
        )
        reader = RecordReader(split, self.config, self.name)
        self._reads(reader)
        files = _length_files(config, reader, declared)
        counts = self._counted(split, files, declared)
        if not truncate:
            _require_short(counts, declared, reader, self.name)
        self.length = len(split)
        places = declared.buckets(counts)
        self.bucket_sizes = tuple(np.bincount(places, minlength=len(declared)).tolist())
        self._padding = _padding(counts, declared, self.bucket_sizes)
        buckets = Buckets(places)
        self._ordering = nnx.static(
            self._ordered(source, reader, buckets, run, remainder == "wrap")
        )
        self.sampler = self._sampler_of(self.config.shuffle, self.config.seed)
        shown = str(declared)
        if len(shown) > _MAX_SHOWN:
            shown = hashlib.sha256(shown.encode()).hexdigest()[:16]
        features = f"lengths {shown}{', truncated' * truncate}, {digest_of(reader.spec, config)}"
        self._identify(reader, features, max_corrupt_records=config.max_corrupt_records)
        files.remove_parts(self.length)
        self._shapes = nnx.static(
            BatchShapes(declared, reader.spec | reader.host_spec, buckets, run, self.name)
        )
        self._start(
            StreamingRecords(
                BucketedReader(served(reader, self.config), declared, buckets, str(files)),
                batch=self.sharding,
                prefetch_buffer=config.prefetch_buffer,
                cacheable=config.cacheable,
                shapes=self._shapes,
            )
        )

    def _counted(self, split: Split, files: CountFiles, declared: DeclaredLengths) -> np.ndarray:
        """The lengths of all records `[N, names]`, which the processes read together."""
        names = tuple(declared.by_name)
        asked = RecordLengths(
            lambda: lengths_reader(split, self.config, names, self.name), names, len(split)
        )
        counting = Counting(asked, files, self.name)
        counts = self._counted_together(counting, records=len(split), lengths=str(declared))
        return counts.reshape(len(split), len(names))

    def _ordered(
        self,
        source: TFDSStreamingSource,
        reader: RecordReader,
        buckets: Buckets,
        run: int,
        continuous: bool,
    ) -> BucketOrder:
        """The order, with any seed. It reads blocks of records if the source does."""
        order = source.ordered(0)
        if not isinstance(order, BlockOrder):
            window = max(_WINDOW // run, _MIN_RUNS) * run
            return BucketOrder(Order(self.length, 0), buckets, run, window, continuous)
        window = max(-(-order.window // run), _MIN_RUNS_OF_BLOCKS) * run
        # A window may begin in the middle of one of the blocks' own.
        reader.read_blocks(order.block_size, window + order.window)
        return BucketOrder(order, buckets, run, window, continuous)

    def ordered(self, seed: int | None) -> BucketOrder:
        """Returns the order of a seed; for None, the stored order of each bucket."""
        order = self._ordering
        base = Order(self.length) if seed is None else dataclasses.replace(order.base, seed=seed)
        return dataclasses.replace(order, base=base)

    def element_specs(self) -> list[dict[str, Any]]:
        """One record of each bucket as `jax.ShapeDtypeStruct`s, without a batch axis: all shapes
        that batches may have. `element_spec()` is the last of them.
        """
        return self._shapes.specs(self.records.spec)

    @property
    def padding(self) -> float:
        """The share of padding in the ragged features of all records, in `[0, 1)`, if each is
        padded to the length of its bucket.
        """
        return self._padding

    def supports_indexed_access(self) -> bool:
        return False


def _require_arguments(subject: str, run: Any, truncate: Any) -> None:
    flag(Field(subject, "truncate", truncate))
    if not is_integer(run, 1) or run > 2**16:
        problem = "run must be a number of records in [1, 2**16]: a multiple of the batch size."
        fix = f"use run={min(max(whole_number(run) or 256, 1), 2**16)}"
        raise Field(subject, "run", run).refusal(problem, fix=fix)


def _require_short(
    counts: np.ndarray, declared: DeclaredLengths, reader: RecordReader, subject: str
) -> None:
    """Raises if a record is longer than the last bucket."""
    limits = np.array(list(declared.longest.values()))
    longer = (counts > limits).any(axis=1)
    if not longer.any():
        return
    number = int(longer.argmax())
    most = counts.max(axis=0).tolist()
    needed = {
        name: (*of[:-1], max(of[-1], longest))
        for (name, of), longest in zip(declared.by_name.items(), most, strict=True)
    }
    raise refused(
        ValueError,
        subject,
        f"{int(longer.sum()):,} of {len(counts):,} records are longer than the last of the"
        " lengths.",
        first=f"{number}: {reader.files.where(number)}",
        length=dict(zip(declared.by_name, counts[number].tolist(), strict=True)),
        lengths=declared,
        fix=f"use lengths={needed}, or cut what is longer, with truncate=True",
    )


def _padding(counts: np.ndarray, declared: DeclaredLengths, bucket_sizes: Sequence[int]) -> float:
    padded = sum(
        length * size
        for of in declared.by_name.values()
        for length, size in zip(of, bucket_sizes, strict=True)
    )
    limits = np.array(list(declared.longest.values()))
    return 1 - int(np.minimum(counts, limits).sum(dtype=np.int64)) / padded


def _length_files(
    config: TFDSStreamingConfig, reader: RecordReader, declared: DeclaredLengths
) -> CountFiles:
    """The files with the lengths of the records of a split."""
    names = list(declared.by_name)
    what = f"{names}, supervised {config.as_supervised}"
    if config.max_corrupt_records:
        what += ", corrupt records replaced"
    return CountFiles.of_reader(reader, what, folder="record_lengths", columns=len(names))
