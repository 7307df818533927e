"""The base class of sources that are made of the records of a stream."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from datarax_tfds.config.fields import Field, flag, source_name
from datarax_tfds.counts.counting import Counting, Share
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.order.order import check_seed
from datarax_tfds.runtime.forks import refuse_in_forked_child
from datarax_tfds.runtime.signatures import set_signature
from datarax_tfds.runtime.untraced import refuse_while_traced
from datarax_tfds.service.served_reader import ServedReader
from datarax_tfds.sources.source import Opened
from datarax_tfds.sources.split_source import SplitSource
from datarax_tfds.tfds_source import TFDSStreamingSource
from sharding.checks import refused
from sharding.placement import processes_of


class DerivedSource(SplitSource[Opened]):
    """Delivers what is made of the records of a stream, of which something is counted first.

    Its mesh is that of the stream. Subclasses are final.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        set_signature(cls, [])

    def _derive(self, source: Any, name: str | None) -> RecordReader:
        """Takes over the mesh of a stream, and returns its reader.

        Raises:
            TypeError: `source` is not a `TFDSStreamingSource`.
            RuntimeError: JAX traces the caller, or it runs in a forked child.
        """
        kind = type(self).__name__
        if not isinstance(source, TFDSStreamingSource):
            raise refused(
                TypeError,
                kind,
                "source must be a TFDSStreamingSource.",
                got=type(source).__name__,
                fix="pass TFDSStreamingSource(TFDSStreamingConfig(name=..., split=...)), or"
                " from_tfds(..., eager=False)",
            )
        config, reader = source.config, source.records.reader
        reader = reader.reader if isinstance(reader, ServedReader) else reader
        assert isinstance(reader, RecordReader)
        self.name = source_name(name, f"{kind}({config.name}:{config.split})")
        refuse_in_forked_child(self.name)
        refuse_while_traced(self.name, config.name)
        self.sharding = nnx.static(source.sharding)
        self.rngs = nnx.data(None)
        self.stochastic, self.stream_name, self.draws = False, None, False
        return reader

    def _ordering_of(
        self, source: TFDSStreamingSource, shuffle: bool | None, seed: int | None
    ) -> dict[str, Any]:
        """The fields `shuffle` and `seed` of the config: by default, as the stream does."""
        if shuffle is not None:
            flag(Field(self.name, "shuffle", shuffle))
        return {
            "shuffle": source.is_random_order if shuffle is None else shuffle,
            "seed": source.sampler.seed if seed is None else check_seed(seed),
        }

    def _require_repeatable(self, reader: RecordReader, counted: str) -> None:
        """Raises a `ValueError` if records, and so what is counted, differ from epoch to epoch."""
        if reader.stochastic:
            raise refused(
                ValueError,
                self.name,
                f"records must be the same in every epoch, because {counted} are counted once.",
                random=f"{reader.random_by} takes random numbers",
                fix=f"use a {reader.random_by} without random numbers, and a random stage of the"
                " Pipeline",
            )

    def _counted_together(self, counting: Counting, **agreed: Any) -> np.ndarray:
        """What all processes count, each its share.

        Args:
            counting: Counts.
            agreed: What must be the same on all processes.
        """
        processes = sorted(set(processes_of(self.sharding)))
        if jax.process_index() in processes:
            counting.count_share(Share(processes.index(jax.process_index()), len(processes)))
        self.agree("counting", agreed)
        return counting.all_counts()
