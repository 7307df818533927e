"""Holds how many tokens each document has, and finds the document of a token."""

import numpy as np

_BLOCK = 256  # documents whose tokens are summed once


class TokenCounts:
    """The number of tokens of each document, in stored order: 4 bytes a document.

    All tokens of all documents, one document after the other, have the numbers `[0, total)`.

    Args:
        counts: `[documents]` uint32.

    Attributes:
        total: The number of all tokens.
    """

    def __init__(self, counts: np.ndarray):
        self.counts = counts
        starts = np.arange(0, len(counts), _BLOCK)
        sums = np.add.reduceat(counts, starts, dtype=np.int64)
        self._block_starts = np.concatenate([[0], np.cumsum(sums)])
        self.total = int(self._block_starts[-1])

    def __len__(self) -> int:
        return len(self.counts)

    def located(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The document of each token `[n]`, and the place of the token in it, by binary search."""
        blocks = np.searchsorted(self._block_starts, tokens, side="right") - 1
        first = blocks * _BLOCK
        within = tokens - self._block_starts[blocks]
        documents = np.minimum(first[:, None] + np.arange(_BLOCK), len(self.counts) - 1)
        ends = np.cumsum(self.counts[documents], axis=1, dtype=np.int64)
        place = (ends <= within[:, None]).sum(axis=1)
        before = np.where(place > 0, ends[np.arange(len(place)), place - 1], 0)
        return first + place, within - before
