"""Counts the tokens of documents, and keeps the tokens."""

import numpy as np

from datarax_tfds.counts.counting import Counted
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.tokens.documents import Documents
from datarax_tfds.tokens.token_files import TokenFiles, narrowed


class CountedTokens:
    """The tokens of documents, which `Counting` counts.

    Args:
        documents: The documents.
        files: Where their tokens are kept; None to keep counts alone.
    """

    counted_as = "tokens"

    def __init__(self, documents: Documents, files: TokenFiles | None):
        self._documents = documents
        self._files = files

    @property
    def reader(self) -> RecordReader:
        return self._documents.reader

    def __len__(self) -> int:
        return len(self._documents)

    def counted(self, numbers: np.ndarray, /) -> Counted:
        """How many tokens documents have; and these tokens, if they are to be kept."""
        tokens = self._documents.encoded(numbers)
        counts = np.array([len(ids) for ids in tokens], np.uint32)
        return Counted(counts, None if self._files is None else narrowed(np.concatenate(tokens)))

    def keep(self, start: int, part: Counted, /) -> None:
        """Keeps the tokens of consecutive documents, of which `start` is the first."""
        if self._files is not None and part.made is not None:
            self._files.keep(start, part.counts, part.made)
