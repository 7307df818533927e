"""The configs of the two sources, which are checked when they are built."""

import os
from collections.abc import Callable, Mapping, Set
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, Literal, Self, final

from flax import nnx

from datarax_tfds.config.dataset_lookup import find_in_directory
from datarax_tfds.config.fields import (
    Field,
    PartialDecoding,
    SplitExpression,
    refuses_unknown_fields,
)
from datarax_tfds.config.ray_service import RayService
from sharding.checks import refused

Access = Literal["random", "sequential", "auto"]
LayoutChoice = Literal["auto", "replicated", "sharded"]
FilterLanguage = Literal["tensorflow", "numpy"]

# What a field decides; without this metadata, it decides what is read and how.
_ORDER, _NEITHER = {"decides": "order"}, {"decides": "neither"}


@dataclass(frozen=True)
class _SourceConfig:
    """Fields shared by both source configs, in the documented order."""

    cacheable: bool = False
    batch_stats_fn: Callable[..., Any] | nnx.Module | None = field(default=None, metadata=_NEITHER)
    # Not compared, because `==` of arrays does not give one bool.
    precomputed_stats: dict[str, Any] | None = field(default=None, compare=False, metadata=_NEITHER)
    stochastic: bool = field(default=False, metadata=_ORDER)
    stream_name: str | None = field(default=None, metadata=_ORDER)
    name: str | None = None
    split: str | SplitExpression | None = None
    data_dir: str | None = None
    include_keys: Set[str] | None = None
    exclude_keys: Set[str] | None = None
    try_gcs: bool = False
    shuffle: bool = field(default=False, metadata=_ORDER)
    _: KW_ONLY  # fields that are not among those of datarax
    map_fn: Callable[..., Any] | None = None
    transform: Any = None
    pad_to: Mapping[str, Any] | None = None
    truncate: Set[str] | None = None
    decoders: Mapping[str, Any] | PartialDecoding | None = None
    allow_stateful_map_fn: bool = False
    host_keys: Set[str] | None = None
    max_corrupt_records: int = 0
    strata: int | None = None
    filter_fn: Callable[..., Any] | None = None
    filter_with: FilterLanguage = "tensorflow"
    filter_name: str | None = None

    @classmethod
    def from_directory(
        cls,
        directory: str | os.PathLike[str] | None = None,
        split: str | SplitExpression | None = None,
        **fields: Any,
    ) -> Self:
        """Builds the config of a dataset from its directory, like `tfds.builder_from_directory`.

            TFDSEagerConfig.from_directory("data/my-dataset/1.0.0", split="train", shuffle=True)

        Args:
            directory: The directory of a version; or that of a dataset or a config, which stands
                for its newest version. Required.
            split: See the field. Required.
            **fields: The other fields except `name` and `data_dir`, which the directory determines.

        Raises:
            DatasetNotFoundError: The directory does not hold a prepared dataset.
            TypeError: `name` or `data_dir` is given.
            ValueError: A field has an invalid value, or `directory` is not a directory in a file
                system or in a store that is read.
            PermissionError: A store does not let this process read it.
            ConnectionError: A store does not answer.
        """
        twice = [name for name in ("name", "data_dir") if name in fields]
        if twice:
            fix = f"leave {' and '.join(twice)} out"
            if directory is None:
                fix = f"use {cls.__name__}(name=..., split=..., data_dir=...) for a dataset by name"
            raise refused(
                TypeError,
                f"{cls.__name__}.from_directory",
                f"{' and '.join(twice)} must not be given: the directory determines that.",
                directory=repr(directory),
                **{name: repr(fields[name]) for name in twice},
                fix=fix,
            )
        name, version = find_in_directory(Field(cls.__name__, "directory", directory).checked())
        return cls(name=name, split=split, data_dir=str(version), **fields)

    def __post_init__(self):
        for each in fields(self):
            value, required = getattr(self, each.name), each.name in ("name", "split")
            # None is not checked if it is the default.
            if value is not None or each.default is not None or required:
                value = Field(type(self).__name__, each.name, value, each.type).checked()
                object.__setattr__(self, each.name, value)
        if self.include_keys is not None and self.exclude_keys is not None:
            problem = "both key filters are set: include_keys and exclude_keys."
            fix = "leave out include_keys, or leave out exclude_keys"
            raise self._refused("include_keys", problem, fix=fix)
        if self.try_gcs and self.data_dir is not None:
            problem = "try_gcs and data_dir exclude each other."
            fix = "leave out try_gcs, or leave out data_dir"
            raise self._refused("try_gcs", problem, fix=fix)
        if self.stochastic and self.stream_name is None:
            problem = "stochastic=True draws the seed from a stream, but stream_name is not set."
            fix = "name the stream, as stream_name='shuffle', or leave stochastic out"
            raise self._refused("stream_name", problem, fix=fix)
        if self.stream_name is not None and not self.stochastic:
            problem = "stream_name is set, but nothing is drawn from it without stochastic=True."
            fix = "set stochastic=True, too, or leave stream_name out"
            raise self._refused("stream_name", problem, fix=fix)

        if self.filter_fn is None:
            for name in ("filter_name", "filter_with"):
                if getattr(self, name) not in (None, "tensorflow"):
                    problem = f"{name} is set, but there is no filter_fn."
                    raise self._refused(name, problem, fix=f"pass filter_fn, or leave {name} out")
        unpadded = sorted((self.truncate or frozenset()) - set(self.pad_to or ()))
        if unpadded:
            problem = f"truncate must name what pad_to pads, got {', '.join(map(repr, unpadded))}."
            fix = f"leave truncate out, or use pad_to={{{unpadded[0]!r}: 8}}, too"
            raise self._refused("truncate", problem, fix=fix)

    @property
    def mapped_by(self) -> str | None:
        """The field whose function returns the records: `transform` if it is set, else `map_fn`."""
        if self.transform is not None:
            return "transform"
        return None if self.map_fn is None else "map_fn"

    def _refused(self, name: str, problem: str, *, fix: str) -> Exception:
        return Field(type(self).__name__, name, getattr(self, name)).refusal(problem, fix=fix)

    @property
    def reading(self) -> tuple[Any, ...]:
        """All that decides which records are read, and how they are decoded and kept. Sources can
        share their records if this is equal in their configs.
        """
        return self._deciding("reading")

    @property
    def ordering(self) -> tuple[Any, ...]:
        """All that decides the order of the records."""
        return self._deciding("order")

    def _deciding(self, what: str) -> tuple[Any, ...]:
        every = (each for each in fields(self) if each.metadata.get("decides", "reading") == what)
        return tuple(getattr(self, each.name) for each in every)

    def _hash(self) -> int:
        # Not of all fields, because some hold dicts, which have no hash.
        return hash((type(self), self.name, self.split, self.data_dir))


@final
@refuses_unknown_fields
@dataclass(frozen=True)
class TFDSEagerConfig(_SourceConfig):
    """What a `TFDSEagerSource` reads, and how.

        TFDSEagerConfig(name="mnist", split="train", shuffle=True, seed=7)

    Args:
        cacheable: Whether `data` and `collect_to_array` keep the arrays that they make, and return
            them at the next call. The records are on the devices in any case.
        batch_stats_fn: Computes the statistics of a batch: see `compute_statistics`.
        precomputed_stats: Statistics that are already known: see `get_statistics`.
        stochastic: Whether the seed is drawn from `rngs`; `seed` is then not used.
        stream_name: The stream of `rngs` to draw from.
        name: The name in TFDS, as `mnist`, `coco/2017` or `mnist:3.0.1`. Required.
        split: Any split that TFDS understands, as `train`, `test[:10%]`, `train+test`, a
            `tfds.core.ReadInstruction` or one of `tfds.even_splits`. It must be the same on every
            process. Required.
        data_dir: The directory in which datasets are prepared, or that of the dataset itself, of
            its config or of its version. By default, the directories of TFDS: `TFDS_DATA_DIR`, and
            those registered with `tfds.core.add_data_dir`.
        include_keys: The features to load; by default, all. Exclusive with `exclude_keys`.
        exclude_keys: The features to leave out.
        try_gcs: Whether TFDS may copy the prepared dataset from its public bucket instead of
            preparing it. Exclusive with `data_dir`.
        shuffle: Whether the records come in random order, which differs from epoch to epoch.
        seed: The seed of the order, in `[0, 2**32)`.
        as_supervised: Whether records are `{"image": ..., "label": ...}`: the dataset's supervised
            keys under these names, with a `"weight"` if there are three. An input of several
            features stays a dict or a tuple of them, as in TFDS.
        download_and_prepare_kwargs: Arguments for TFDS when it prepares the dataset.
        beam_num_workers: The number of processes of Apache Beam, for a dataset that needs it.
        local_files_only: Whether to raise at once if the dataset is not prepared.
        shuffle_buffer_size: Has no effect: an eager source shuffles the whole split.
        layout: How the records lie on the mesh: `replicated` on every device, or `sharded` over all
            devices. `auto` replicates them if there is one device, or if they take at most a tenth
            of the free memory of each device.
        map_fn: A TensorFlow function from record to record, run where records are decoded:
            `map_fn({"image": ..., "label": ...})` returns a dict of tensors of fixed shapes.
        transform: A Python function from record to record, run after `map_fn` in the threads that
            decode: `transform({"image": ..., "label": ...})` gets NumPy arrays, and returns a dict
            of values that NumPy makes arrays of. Or an object with a method `map`, as Grain's
            transforms.
        pad_to: Pads parts of a record that vary in size, after `map_fn` and `transform`, as
            `{"objects": 100, "image": (640, 640, 3)}`. A length pads the first axis of a part, or
            of all parts in a dict, and adds an int32 `objects_length`; a shape pads all axes, and
            adds an int32[3] `image_shape`. A record that is larger is an error.
        truncate: Which names of `pad_to` are cut if they are larger.
        decoders: Decoders that replace those of TFDS, by feature, as
            `{"image": tfds.decode.SkipDecoding()}` for a `map_fn` that decodes the image itself; or
            a `tfds.decode.PartialDecoding`, which can also leave out parts of nested features.
        allow_stateful_map_fn: Whether to accept a `map_fn`, `transform` or decoders whose results
            depend on variables, the clock, random numbers without a seed, Python functions or the
            like. After a resume the same records are read, but their values may differ. Set it only
            if it is needed: a state that was saved with it can be restored only with it.
        host_keys: Features that stay on the host, such as ids to match predictions with. In a
            batch, each is a NumPy array of the rows on the devices of this process, with text as
            bytes. Stages, compiled functions and `collect_to_array` do not get them. Every process
            decodes all records for them.
        max_corrupt_records: How many different records may be corrupt before a process raises a
            `DataLossError`. A record is corrupt if it fails its checksum or cannot be decoded; each
            process counts those that it finds, from the construction of its source. A corrupt
            record is replaced by the next sound record by number, or by the first one if none
            follows: by the same one on every process and after every resume, as long as the files
            do not change. Each corrupt record is logged, and listed in `source.corrupt_records`. A
            feature that `SkipDecoding` leaves to `map_fn` is corrupt if both `map_fn` and the
            decoder of TFDS fail on it.
        strata: Each batch takes as many records of each of this number of contiguous parts of the
            split, and its size is a multiple of it. With `layout="sharded"`, on a number of devices
            that divides it, a batch then needs no exchange between devices. It is part of the state
            and independent of the devices. By default, a batch takes any records.
        filter_fn: Which records to keep: `filter_fn(record)` is given what `map_fn` would be given,
            and returns one bool. It is evaluated once for all records of the split, before the
            first batch; the kept ones are then the records of the source. By default, all are.
        filter_with: Whether `filter_fn` is a function of TensorFlow's tensors, like `map_fn`, or a
            Python function of NumPy arrays, with text as bytes. Several threads call it at a time.
        filter_name: Names what `filter_fn` computes, in place of its code: the index of the kept
            records is kept on disk under this name, and used again as long as the files do not
            change. Give another name to a changed function. Without it, the index of a function of
            NumPy arrays is not kept, and each run evaluates the function again.
    """

    # This only decides whether arrays made of the records are kept, not the records themselves.
    cacheable: bool = field(default=False, metadata=_NEITHER)
    seed: int = field(default=42, metadata=_ORDER)
    as_supervised: bool = False
    download_and_prepare_kwargs: Mapping[str, Any] | None = None
    beam_num_workers: int | None = None
    local_files_only: bool = False
    shuffle_buffer_size: int = 1000
    layout: LayoutChoice = "auto"

    __hash__ = _SourceConfig._hash


@final
@refuses_unknown_fields
@dataclass(frozen=True)
class TFDSStreamingConfig(_SourceConfig):
    """What a `TFDSStreamingSource` reads, and how.

    It has the fields of `TFDSEagerConfig` except `layout`. Fields that differ, or are new:

        TFDSStreamingConfig(name="imagenet2012", split="train", shuffle=True, map_fn=crop)

    Args:
        cacheable: Whether decoded records are kept on the host, so that later epochs need not read
            and decode them again. The first records that are read are kept, up to a tenth of the
            host's free memory. Cannot be combined with a random `map_fn`. Has no effect if records
            are not arrays of one shape.
        shuffle_buffer_size: With `access="sequential"`, the number of records that are shuffled
            together, rounded down so that the number of their blocks is a power of two. If the
            batch size divides that number of blocks, each process reads its own blocks; if the
            batch is k times as large, k processes read each block. Has no effect with
            `access="random"`.
        prefetch_buffer: How many decoded batches may wait while another one is decoded. Several
            small batches, up to 16 MiB of them, are decoded in one call and count as one. With 0, a
            batch is read when it is requested.
        seed: The seed of the order and of a random `map_fn`, in `[0, 2**32)`.
        access: `random` reads record by record, and shuffles the whole split. `sequential` is for
            stores where small reads are slow: it reads blocks of consecutive records in random
            order, and shuffles `shuffle_buffer_size` records at a time. `auto` is `sequential` for
            a `data_dir` in an object store, and `random` for a file system: set another value for
            the same batches from both.
        block_size: With `access="sequential"`, the number of consecutive records read at once, by
            default 8. With `auto` in an object store, as many as have about 2 MiB on average.
        cache_dir: A directory on the local disk where blocks from an object store are kept, so that
            later epochs and other jobs of the host find them there. By default, none is. Has no
            effect for a file system, and for ArrayRecord.
        cache_bytes: How many bytes the files in `cache_dir` may take together; the blocks used
            least recently are removed. By default, half of the room that is free there.
        map_fn: See `TFDSEagerConfig`. It may also be random: `map_fn(record, seed)` gets an
            int32[2] for `tf.random.stateless_*`, which is the same for the same record in the same
            epoch, on any number of hosts and after any resume. The seed goes to the parameter named
            `seed`, or to the second parameter if that has no default.
        transform: See `TFDSEagerConfig`. It may also be random: `transform(record, rng)` gets a
            `numpy.random.Generator` of its own for each record and epoch, as does the method
            `random_map` of an object. It goes to the parameter named `rng`, or to the second
            parameter if that has no default.
        host_keys: See `TFDSEagerConfig`. For a batch, a process decodes only the records in the
            rows of its own devices, these features included.
        max_corrupt_records: See `TFDSEagerConfig`. A `map_fn` that fails on a sound record is an
            error.
        strata: See `TFDSEagerConfig`. A process then reads only its own parts of the split, if the
            number of row shards divides it. Exclusive with `access="sequential"`.
        service: Where else records are decoded: `"ray"` in other processes of this machine,
            `"ray:HOST:PORT"` on all machines of a Ray cluster, or a `RayService`. Batches and
            states are the same with it and without.
    """

    shuffle_buffer_size: int = 1000
    as_supervised: bool = False
    download_and_prepare_kwargs: Mapping[str, Any] | None = None
    beam_num_workers: int | None = None
    prefetch_buffer: int = 2
    local_files_only: bool = False
    seed: int = field(default=42, metadata=_ORDER)
    access: Access = "auto"
    block_size: int | None = None
    cache_dir: str | None = None
    cache_bytes: int | None = None
    service: RayService | str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.strata is not None and self.access == "sequential":
            problem = "strata and access='sequential' exclude each other: both order the records."
            raise self._refused("strata", problem, fix="leave out strata, or leave out access")
        if self.cache_bytes is not None and self.cache_dir is None:
            problem = "cache_bytes is set, but nothing is kept without cache_dir."
            fix = "set cache_dir, too, or leave out cache_bytes"
            raise self._refused("cache_bytes", problem, fix=fix)

    __hash__ = _SourceConfig._hash


AnyConfig = TFDSEagerConfig | TFDSStreamingConfig
