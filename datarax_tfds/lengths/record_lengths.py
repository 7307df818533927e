"""Reads how long the ragged parts of records are, for the index of lengths."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from datarax_tfds.config.config import AnyConfig
from datarax_tfds.counts.counting import Counted
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.files.split import Split
from datarax_tfds.runtime.copying import not_copied


@not_copied
class RecordLengths:
    """The lengths of records by number, which `Counting` counts.

    Args:
        open_reader: Opens what reads them, when it is first needed: usually, a file has them.
        names: The ragged parts of a record.
        length: The number of records.
    """

    counted_as = "lengths"

    def __init__(self, open_reader: Callable[[], RecordReader], names: Sequence[str], length: int):
        self._open_reader = open_reader
        self._names = names
        self._reader: RecordReader | None = None
        self._length = length

    @property
    def reader(self) -> RecordReader:
        if self._reader is None:
            self._reader = self._open_reader()
        return self._reader

    def __len__(self) -> int:
        return self._length

    def counted(self, numbers: np.ndarray, /) -> Counted:
        """The lengths of the ragged parts of records: uint32 `[n]`, or `[n, names]` of several."""
        lengths = self.reader.lengths(numbers, self._names).astype(np.uint32)
        return Counted(lengths[:, 0] if len(self._names) == 1 else lengths)

    def keep(self, start: int, part: Counted, /) -> None:
        """Keeps nothing but the counts."""


def lengths_reader(
    split: Split, config: AnyConfig, names: Sequence[str], subject: str
) -> RecordReader:
    """A reader of lengths only: it keeps nothing of what is ragged, and decodes no other features,
    unless a function of the user makes the records.
    """
    tops = {name.split("/")[0] for name in names}
    own = dict.fromkeys(names, 1)
    others: Mapping[str, object] = config.pad_to or {}
    config = dataclasses.replace(
        config, host_keys=None, pad_to={**others, **own}, truncate=frozenset(names)
    )
    # A record that is corrupt in another feature must be replaced here, too.
    whole = config.mapped_by is not None or config.as_supervised or config.max_corrupt_records
    if not whole and tops <= set(split.info.features):
        decoders = config.decoders
        if isinstance(decoders, Mapping):
            decoders = {key: value for key, value in decoders.items() if key in tops}
        config = dataclasses.replace(
            config, include_keys=tops, exclude_keys=None, pad_to=own, decoders=decoders or None
        )
    return RecordReader(split, config, subject)
