"""What a source reads and how, checked once at construction."""

import os
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, fields
from typing import Any, Literal, final, get_args, get_origin

import numpy as np
from flax import nnx

from datarax_tfds.order import check_seed
from sharding.integers import is_integer
from sharding.messages import explain

Access = Literal["random", "sequential"]
Layout = Literal["auto", "replicated", "sharded"]

_FUNCTION = (Callable, "a function", "pass the function itself, as {}=made_of")
_DICT = (Mapping, "a dict", "use a dict by name, as {}={{'image': ...}}")
# What a field of a type may be given, in code and in words, and an example.
_WANTED: dict[Any, tuple[Any, str, str]] = {
    bool: (bool | np.bool_, "True or False", "use {}=True or leave it out"),
    str | None: (str, "a text that is not empty", "use {}='...' or leave it out"),
    Callable[..., Any] | None: _FUNCTION,
    Callable[..., Any] | nnx.Module | None: _FUNCTION,
    dict[str, Any] | None: _DICT,
    Mapping[str, Any] | None: _DICT,
}


@dataclass(frozen=True)
class _Choice:
    """What is done beside reading, and which records are read: what both configs begin with."""

    cacheable: bool = False
    batch_stats_fn: Callable[..., Any] | nnx.Module | None = None
    # Not compared: arrays have no one truth. A source holds its statistics apart.
    precomputed_stats: dict[str, Any] | None = field(default=None, compare=False)
    stochastic: bool = False
    stream_name: str | None = None
    name: str | None = None
    split: str | None = None
    data_dir: str | None = None
    include_keys: Set[str] | None = None
    exclude_keys: Set[str] | None = None
    try_gcs: bool = False
    shuffle: bool = False

    def __post_init__(self):
        for required in ("name", "split"):
            value = getattr(self, required)
            if not isinstance(value, str) or not value:
                raise self._refused(required, f"{required} is required.", f"pass {required}='...'")
        for each in fields(self):
            # None stands for what is absent, where that is the default.
            if getattr(self, each.name) is not None or each.default is not None:
                object.__setattr__(self, each.name, self._checked(each.name, each.type))
        if self.include_keys is not None and self.exclude_keys is not None:
            raise self._refused(
                "include_keys", "both key filters are set.", "set include_keys or exclude_keys"
            )
        if self.try_gcs and self.data_dir is not None:
            raise self._refused(
                "try_gcs", "try_gcs and data_dir exclude each other.", "set only one of the two"
            )
        if self.data_dir is not None and "://" in self.data_dir:
            raise self._refused(
                "data_dir",
                "datasets are read from file systems only.",
                "mount the store, or copy the dataset, and name that directory",
            )
        if self.stochastic and self.stream_name is None:
            raise self._refused(
                "stream_name",
                "a stochastic source draws its seed from a stream.",
                "name the stream of rngs, as stream_name='shuffle', or leave stochastic out",
            )
        if self.stream_name is not None and not self.stochastic:
            raise self._refused(
                "stream_name",
                "nothing is drawn from a stream.",
                "set stochastic=True too, or leave stream_name out",
            )

    def _checked(self, name: str, kind: Any) -> Any:
        """The value of a field that is not absent, as the type of the field asks."""
        value = getattr(self, name)
        if name == "seed":
            return check_seed(value)
        if name == "data_dir" and isinstance(value, os.PathLike):
            value = os.fspath(value)
        if kind in (int, int | None):
            least = 0 if name == "prefetch_buffer" else 1
            if is_integer(value, least):
                return int(value)
            problem, fix = f"{name} is an integer of at least {least}.", f"use {name}={least}"
        elif get_origin(kind) is Literal:
            if isinstance(value, str) and value in get_args(kind):
                return value
            problem, fix = f"no such {name}.", f"one of {', '.join(get_args(kind))}"
        elif kind == Set[str] | None:
            listed = isinstance(value, Iterable) and not isinstance(value, str | bytes)
            keys = list(value) if listed else [None]
            if all(isinstance(key, str) and key for key in keys):
                return frozenset(keys)
            problem, fix = f"{name} is a set of names.", f"use {name}={{'image', 'label'}}"
        else:
            wanted, words, fix = _WANTED[kind]
            if isinstance(value, wanted) and not (isinstance(value, str) and not value):
                return bool(value) if kind is bool else value
            problem, fix = f"{name} is {words}.", fix.format(name)
        raise self._refused(name, problem, fix)

    def _refused(self, name: str, problem: str, fix: str) -> ValueError:
        return ValueError(
            explain(type(self).__name__, problem, fix=fix, **{name: repr(getattr(self, name))})
        )

    def _hash(self) -> int:
        # The fields may hold dicts; equal configs still have equal hashes.
        return hash((type(self), self.name, self.split, self.data_dir))


@final
@dataclass(frozen=True)
class TFDSEagerConfig(_Choice):
    """What a `TFDSEagerSource` reads.

        TFDSEagerConfig(name="mnist", split="train", shuffle=True, seed=7)

    Args:
        cacheable: Whether `data` and `collect_to_array` keep the arrays that they make, so that the
            next call returns the same ones. The records are on the devices in any case.
        batch_stats_fn: Makes the statistics of a batch: see `compute_statistics`.
        precomputed_stats: Statistics known beforehand: see `get_statistics`.
        stochastic: Whether the seed is drawn from `rngs`, in place of `seed`.
        stream_name: Of the stream of `rngs` that it is drawn from.
        name: Name in TFDS, as `mnist`, `coco/2017` or `mnist:3.0.1`. Required.
        split: Any split that TFDS understands, as `train`, `test[:10%]`, `train+test`. Required.
        data_dir: Where datasets are prepared; TFDS's own default where absent.
        include_keys: The features to load; all where absent. Exclusive with `exclude_keys`.
        exclude_keys: The features to leave out.
        try_gcs: Whether TFDS may copy the prepared dataset from its public bucket rather than
            prepare it. Exclusive with `data_dir`.
        shuffle: Whether every epoch has a random order of its own.
        seed: Of that order, in `[0, 2**32)`.
        as_supervised: Whether records are `{"image": ..., "label": ...}`, made of the dataset's
            supervised keys, whatever those are called.
        download_and_prepare_kwargs: Passed to TFDS when it prepares the dataset.
        beam_num_workers: With how many processes Apache Beam prepares a dataset that needs it.
        local_files_only: Whether to refuse at once a dataset that is not prepared.
        shuffle_buffer_size: Accepted and without effect: the eager order is a shuffle of the
            whole split.
        layout: How the records lie on the mesh: `replicated` on every device, `sharded` over all
            of them, or `auto`: replicated where that takes up to a tenth of the smallest device.
        map_fn: A TensorFlow function from record to record, run where records are decoded:
            `map_fn({"image": ..., "label": ...})` returns a dict of tensors of fixed shapes.
        decoders: How to decode features otherwise than TFDS does, by their names, as
            `{"image": tfds.decode.SkipDecoding()}` for a `map_fn` that decodes itself.
    """

    seed: int = 42
    as_supervised: bool = False
    download_and_prepare_kwargs: Mapping[str, Any] | None = None
    beam_num_workers: int | None = None
    local_files_only: bool = False
    shuffle_buffer_size: int = 1000
    layout: Layout = "auto"
    map_fn: Callable[..., Any] | None = None
    decoders: Mapping[str, Any] | None = None

    __hash__ = _Choice._hash


@final
@dataclass(frozen=True)
class TFDSStreamingConfig(_Choice):
    """What a `TFDSStreamingSource` reads: the fields of `TFDSEagerConfig` but `layout`, and more.

        TFDSStreamingConfig(name="imagenet2012", split="train", shuffle=True, map_fn=crop)

    Args:
        cacheable: Whether decoded records are kept on the host, so that later epochs read and
            decode them no more: the first ones, up to a tenth of the host's free memory. Not with
            a random `map_fn`; without effect where records are no arrays of one shape.
        shuffle_buffer_size: With `access="sequential"`, the records among which the order is
            random, rounded down to a power of two of blocks. Each process reads blocks of its own
            where the batch size divides that number of blocks; where the batch is k times as
            large, k processes read each block. Without effect otherwise: the order is a shuffle
            of the whole split.
        prefetch_buffer: How many batches may wait decoded while another one is; small ones are
            decoded several in one call, up to 16 MiB of them, and count as one. 0: none is read
            before it is asked for.
        seed: Of the order and of a random `map_fn`, in `[0, 2**32)`.
        access: `random` reads record by record, in a shuffle of the whole split. `sequential` is
            for stores where small reads are slow: blocks of consecutive records come in random
            order, and records are shuffled within `shuffle_buffer_size` of them.
        block_size: With `access="sequential"`, the consecutive records that are read in one go.
        map_fn: As there; and `map_fn(record, seed)` gets an int32[2] for `tf.random.stateless_*`
            which is the same for the same record in the same epoch, on any number of hosts and
            after any resume.
    """

    shuffle_buffer_size: int = 1000
    as_supervised: bool = False
    download_and_prepare_kwargs: Mapping[str, Any] | None = None
    beam_num_workers: int | None = None
    prefetch_buffer: int = 2
    local_files_only: bool = False
    seed: int = 42
    access: Access = "random"
    block_size: int = 8
    map_fn: Callable[..., Any] | None = None
    decoders: Mapping[str, Any] | None = None

    __hash__ = _Choice._hash


AnyConfig = TFDSEagerConfig | TFDSStreamingConfig
