"""The base class of sources whose records are those of one TFDS split, or are made of these."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from flax import nnx

from datarax_tfds.decoding.corrupt_records import CorruptRecords
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.order.cursor import Cursor
from datarax_tfds.order.record_order import RecordOrder
from datarax_tfds.order.sampler import Sampler
from datarax_tfds.sources.source import Opened, Source
from datarax_tfds.state.state import Identity, cursor_from_state


class SplitSource(Source[Opened]):
    """Delivers what is made of the records of a TFDS split."""

    def _reads(self, reader: RecordReader) -> None:
        """Sets what users and saved states ask of the split that a reader reads."""
        self._info = nnx.static(reader.split.info)
        self._earlier_fingerprints = nnx.static(reader.split.earlier_fingerprints)
        self._corrupt: CorruptRecords = nnx.static(reader.corrupt)

    def _identify(self, reader: RecordReader, features: str, **agreed: Any) -> None:
        """Says what a saved cursor is valid for, on which all processes must agree.

        Args:
            reader: Reads the records of the split.
            features: Identifies what the records of the source are made of.
            agreed: What else must be the same on all processes.
        """
        split = reader.split
        self._identity = Identity(
            dataset=split.dataset,
            split=split.ranges,
            records=self.length,
            fingerprint=split.fingerprint,
            features=features,
            user_code=reader.user_code,
            shuffle=self.config.shuffle,
            seed=None,
        )
        self.agree("construction", self.identity.saved() | reader.versions | agreed)

    @abstractmethod
    def ordered(self, seed: int | None) -> RecordOrder:
        """Returns the order of a seed; for None, the stored order."""

    def _sampler_of(self, shuffle: bool, seed: int) -> Sampler:
        return Sampler(self.ordered(seed if shuffle else None), seed)

    def _saved_place(
        self, state: Mapping[str, Any], identity: Identity, subject: str
    ) -> tuple[Cursor, None]:
        return cursor_from_state(state, identity, subject, self._earlier_fingerprints), None

    def get_dataset_info(self) -> Any:
        """The `tfds.core.DatasetInfo`: description, features, splits, citation."""
        return self._info

    @property
    def corrupt_records(self) -> dict[int, int]:
        """The number of each corrupt record that this process has found so far, and the number of
        the record that replaces it. There are at most `config.max_corrupt_records`.
        """
        return self._corrupt.replacements
