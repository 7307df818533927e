"""The base class of the sources of one TFDS split: it opens what a config says."""

import dataclasses
import hashlib
from abc import abstractmethod
from typing import Any, ClassVar, Generic, Self, TypeVar

import jax
import numpy as np
from flax import nnx

from datarax_tfds.config.config import AnyConfig
from datarax_tfds.config.fields import source_name
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.files.split import open_split
from datarax_tfds.order.sampler import Sampler, key_word
from datarax_tfds.records.filtering import filtered
from datarax_tfds.runtime.forks import refuse_in_forked_child
from datarax_tfds.runtime.signatures import set_signature
from datarax_tfds.runtime.untraced import refuse_while_traced
from datarax_tfds.sources.arguments import require, require_config, require_records
from datarax_tfds.sources.default_sharding import resolved_sharding
from datarax_tfds.sources.source import Opened
from datarax_tfds.sources.split_source import SplitSource
from datarax_tfds.sources.statistics import Statistics
from sharding.checks import refused
from sharding.placement import Placement

Config = TypeVar("Config", bound=AnyConfig)


class DatasetSource(SplitSource[Opened], Generic[Config, Opened]):
    """Delivers the records of a TFDS split. Subclasses are final."""

    _config_type: ClassVar[type]

    def __init__(
        self,
        config: Config,
        *,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
        sharding: Placement | None = None,
        _reader: RecordReader | None = None,
    ):
        require_config(config, self._config_type, type(self).__name__)
        name = source_name(name, self._named(config))
        refuse_in_forked_child(name)
        refuse_while_traced(name, config.name)
        self.sharding = nnx.static(resolved_sharding(sharding, name))
        if _reader is None:
            split = filtered(open_split(config), config, name, self.sharding)
        else:
            split = _reader.split
        self._kept = nnx.static(split.kept)
        self.length = len(split)
        self._block_size = split.block_size
        self._configure(config, rngs, name)
        self.sampler = self._configured_sampler()
        reader = RecordReader(split, config, name) if _reader is None else _reader.renamed(name)
        self._reads(reader)
        self.draws = reader.stochastic
        features = digest_of(reader.spec, config)
        self._identify(reader, features, max_corrupt_records=config.max_corrupt_records)
        self._start(self._opened(reader))

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        set_signature(cls, [field.name for field in dataclasses.fields(cls._config_type)])

    @classmethod
    def _named(cls, config: AnyConfig) -> str:
        return f"{cls.__name__}({config.name}:{config.split})"

    def _configure(self, config: Config, rngs: nnx.Rngs | None, name: str) -> None:
        """Sets what a copy may change without opening the records again."""
        require(name, rngs=rngs)
        self.config: Config = nnx.static(config)
        self.rngs = nnx.data(rngs)
        self.name = name
        self.stochastic = config.stochastic
        self.stream_name = config.stream_name

    def _configured_sampler(self) -> Sampler:
        seed = self._drawn_seed() if self.config.stochastic else self.config.seed
        return self._sampler_of(self.config.shuffle, seed)

    def _drawn_seed(self) -> int:
        streams = list(self.rngs or ())
        assert self.stream_name is not None
        if self.rngs is None or not {self.stream_name, "default"} & set(streams):
            raise refused(
                ValueError,
                self.name,
                f"there is no stream {self.stream_name!r} of rngs to draw the seed from.",
                streams=", ".join(streams) or "no rngs",
                fix=f"pass rngs=nnx.Rngs({self.stream_name}=0), or use stochastic=False",
            )
        return key_word(self.rngs[self.stream_name]())

    @abstractmethod
    def _opened(self, reader: RecordReader) -> Opened:
        """Opens the records that the reader reads."""

    def stored_numbers(self, numbers: Any) -> np.ndarray:
        """The numbers in the split of records that a filter keeps, by their numbers in the source.

            source.stored_numbers(np.arange(len(source)))    # all records that are kept, ascending

        Args:
            numbers: Integers `[n]` in `[0, N)`, as in `record_number` of a batch.

        Returns:
            int64 `[n]`; without a filter, the same numbers.

        Raises:
            IndexError: The source has no record of a number.
        """
        numbers = np.atleast_1d(np.asarray(numbers, np.int64))
        require_records(numbers, range(self.length), self.name)
        return numbers if self._kept is None else self._kept.stored_numbers(numbers)

    def copy(
        self,
        *,
        config: Config | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ) -> Self:
        """Returns a source with the given arguments, and otherwise with the order, the position,
        the counts and the statistics of this one.

        The records are shared if the new config reads the same ones in the same way. Otherwise they
        are opened again. A copy that reads other records begins at the first one.

        Args:
            config: Replaces the config.
            rngs: Replaces the streams; a `stochastic` copy draws its seed from them.
            name: Replaces the name.

        Raises:
            TypeError: `config` is that of another kind of source.
        """
        wanted = self.config if config is None else config
        require_config(wanted, self._config_type, self.name)
        reordered = wanted.ordering != self.config.ordering
        reordered |= rngs is not None and wanted.stochastic
        streams = nnx.clone(self.rngs) if rngs is None and self.rngs is not None else rngs
        if name is None and self.name != self._named(self.config):
            name = self.name
        if wanted.reading == self.config.reading:
            other = self.clone()
            other._configure(wanted, streams, source_name(name, self._named(wanted)))
            if reordered:
                other.sampler = other._configured_sampler()
        else:
            other = type(self)(wanted, rngs=streams, name=name, sharding=self.sharding)
            if other._identity != self._identity:
                return other
            other.seek(self.cursor)
            other._counts = nnx.clone(self._counts)
            other._statistics = nnx.clone(self._statistics)
            if not reordered:
                other.sampler = other._sampler_of(self.is_random_order, self.sampler.seed)
        if wanted.precomputed_stats is not self.config.precomputed_stats:
            other._statistics = Statistics(wanted.precomputed_stats)
        return other

    @property
    def dataset_name(self) -> str | None:
        return self.config.name

    @property
    def split_name(self) -> Any:
        return self.config.split

    @property
    def as_supervised(self) -> bool:
        return self.config.as_supervised

    @property
    def include_keys(self) -> Any:
        return self.config.include_keys

    @property
    def exclude_keys(self) -> Any:
        return self.config.exclude_keys


def digest_of(spec: Any, config: AnyConfig) -> str:
    """Identifies what records are made of, for `Identity.features`."""
    lines = [
        f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(spec)
    ]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return f"{digest}, stateful map_fn" if config.allow_stateful_map_fn else digest
