"""Gives other loaders the records of a split by their numbers."""

import dataclasses
import operator
import threading
from collections.abc import Sequence
from typing import Any, final, get_args

import jax
import numpy as np

from datarax_tfds.config.config import AnyConfig
from datarax_tfds.config.fields import Field, integer
from datarax_tfds.decoding.decoder import decode_chunk_size
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.errors import DataLossError
from datarax_tfds.files.kept_records import KeptRecords
from datarax_tfds.files.split import Split, open_split
from datarax_tfds.order.keys import record_keys
from datarax_tfds.records.filtering import filtered
from datarax_tfds.runtime.forks import refuse_in_forked_child
from datarax_tfds.runtime.threads import ThreadPool, decoding_threads
from datarax_tfds.sources.arguments import require_records
from sharding.checks import refused
from sharding.hosts.waits import result_of
from sharding.placement import Uncommitted

# What a process that reads records by number does not need, and could perhaps not unpickle.
_NOT_READ = dict.fromkeys(("filter_fn", "filter_name", "batch_stats_fn", "precomputed_stats"))
_NOT_READ |= {"filter_with": "tensorflow"}


def random_access(config: AnyConfig, *, epoch: int = 0) -> "RandomAccess":
    """Gives a map-style dataset of a split: a data source for Grain, a `Dataset` for PyTorch.

        source = random_access(TFDSStreamingConfig(name="mnist", split="train"))
        source[7]    # {"image": uint8[28, 28, 1], "label": int64}, as NumPy arrays

        grain.MapDataset.source(source).shuffle(seed=42).repeat().batch(128)
        torch.utils.data.DataLoader(source, batch_size=128, shuffle=True)

    It reads TFRecord and ArrayRecord files, from a disk or a store. `source[i]` is the record with
    the number i, as stored: the library that uses it decides on the order, the batches and the
    processes. So of the config, `shuffle`, `strata`, `access` and what else is about the order and
    about batches has no effect. What makes a record has: keys, decoders, `map_fn`, `transform` and
    `pad_to`. With `filter_fn`, the kept records have the numbers `[0, K)`; the filter is evaluated
    here, once, and not in the processes that read.

    Values have the dtypes that TFDS, `map_fn` or `transform` give them, also 64 bits, in every
    process and whatever the settings of JAX are. Texts are bytes. The caller may change arrays.

    A random `map_fn` or `transform` gets random numbers of the seed of the config, `epoch` and the
    number of the record: `source[i]` is always the same, and the same as that record in this epoch
    of a `TFDSStreamingSource`. For random values that differ from epoch to epoch, use the random
    transforms of the other library, or another source for each epoch.

    The source can be pickled if the functions in the config can. Each process opens the files when
    it first reads a record. Start processes with `spawn` (as Grain does; in PyTorch,
    `multiprocessing_context="spawn"`) if this one has used JAX or TensorFlow: a forked child could
    only wait for ever, so that it is refused there. Several threads may read at once.

    Args:
        config: Which records, and how they are made: a `TFDSStreamingConfig` or `TFDSEagerConfig`.
        epoch: The epoch of the random numbers of `map_fn` and `transform`.

    Returns:
        An object with `len(source)`; `source[i]`, for integers of Python or NumPy in `[-N, N)`,
        where negative numbers count from the end; and `source.__getitems__(numbers)`, which PyTorch
        and Grain call to read many records at once, which costs less.

    Raises:
        TypeError: `config` is not one of the two configs.
        ValueError: `epoch` is not an integer of at least 0, the config draws its seed from `rngs`,
            or the dataset does not have the split.
        DatasetNotFoundError: The dataset is not prepared, and must not or cannot be prepared.
        DataLossError: A file is missing; or, when records are read, as for a source.
    """
    if not isinstance(config, get_args(AnyConfig)):
        raise refused(
            TypeError,
            "random_access",
            "config must be a TFDSStreamingConfig or a TFDSEagerConfig.",
            config=type(config).__name__,
            fix="pass a config such as TFDSStreamingConfig(name='mnist', split='train')",
        )
    if config.stochastic:
        raise refused(
            ValueError,
            "random_access",
            "the config draws its seed from a stream of rngs, and there are none here.",
            stream_name=config.stream_name,
            fix="set seed in the config, and leave out stochastic and stream_name",
        )
    return RandomAccess(config, integer(0)(Field("random_access", "epoch", epoch)))


@final
class RandomAccess:
    """The records of a split by number, for `random_access`.

    Args:
        config: Which records, and how they are made.
        epoch: The epoch of the random numbers.
    """

    def __init__(self, config: AnyConfig, epoch: int):
        self._epoch = epoch
        self._subject = f"random_access({config.name}:{config.split})"
        split = open_split(config)
        if config.filter_fn is not None:
            # This process alone: the others of a job may not read this split, or not now.
            alone = Uncommitted(jax.local_devices()[0])
            split = filtered(split, config, self._subject, alone)
        self._config = dataclasses.replace(config, **_NOT_READ)
        self._kept = split.kept
        self._length = len(split)
        self._files = _identity(split)
        self._begin(split)

    def _begin(self, split: Split | None) -> None:
        self._opening = threading.Lock()
        self._split = split  # until it is opened
        self._opened: tuple[RecordReader, ThreadPool] | None = None

    def __getstate__(self) -> dict[str, Any]:
        own = ("_opening", "_split", "_opened", "_kept")  # files and threads of this process
        state = {name: value for name, value in self.__dict__.items() if name not in own}
        kept = self._kept
        return state | {"kept": None if kept is None else (kept.bits, kept.records)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = state.pop("kept")
        self.__dict__ |= state
        self._kept = None if kept is None else KeptRecords(*kept)
        self._begin(None)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Returns a record by its number; negative numbers count from the end.

        Raises:
            IndexError: There is no such record.
            TypeError: `number` is not an integer.
            DataLossError: The record is corrupt, or the files are no longer the same.
        """
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Returns records by their numbers, in this order. It decodes many of them in one call."""
        wanted = np.array([self._checked(number) for number in numbers], np.int64)
        if not len(wanted):
            return []
        require_records(wanted, range(-self._length, self._length), self._subject)
        reader, pool = self._open()
        wanted %= self._length
        share, size = -(-len(wanted) // decoding_threads()), 1
        if reader.holds_arrays:
            size = decode_chunk_size(share, reader.record_bytes)
        keys = None
        if reader.stochastic:
            keys = record_keys(self._config.seed, self._epoch, wanted)
        parts = [slice(start, start + size) for start in range(0, len(wanted), size)]
        calls = [
            pool.submit(reader.records, wanted[part], None if keys is None else keys[part])
            for part in parts
        ]
        return [
            record for call in calls for record in result_of(call, self._subject, reader.slowest)
        ]

    _getitems = __getitems__  # the name that Grain gives it

    def _checked(self, number: Any) -> int:
        try:
            return operator.index(number)
        except TypeError as error:
            raise refused(
                TypeError,
                self._subject,
                "a record is taken by its number, which is one integer.",
                got=type(number).__name__,
                fix="pass an integer, as source[0]; for a slice, use"
                " [source[number] for number in range(8)]",
            ) from error

    def _open(self) -> tuple[RecordReader, ThreadPool]:
        """What this process reads with. The first call opens it."""
        refuse_in_forked_child(self._subject)
        with self._opening:
            if self._opened is None:
                reader = RecordReader(self._same_split(), self._config, self._subject)
                self._opened = reader, ThreadPool(decoding_threads(), "datarax_tfds_by_number")
                self._split = None
            return self._opened

    def _same_split(self) -> Split:
        """The split from which the lengths of this and of other processes are."""
        if self._split is not None:
            return self._split
        split = open_split(self._config)
        if self._kept is not None:
            split = split.filtered(self._kept)
        if (found := _identity(split)) != self._files:
            raise refused(
                DataLossError,
                self._subject,
                "the dataset was written anew since this source was made.",
                made_of=self._files,
                found=found,
                fix="make it again, with random_access(config)",
            )
        return split

    def __repr__(self) -> str:
        """Names the records: Grain's DataLoader compares it with that of a checkpoint."""
        return f"{self._subject}: {self._length:,} records of {self._files}, epoch {self._epoch}"


def _identity(split: Split) -> str:
    return f"{split.dataset}, {split.ranges}, {split.fingerprint}"
