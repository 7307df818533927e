"""Holds how many tokens each document has, and finds the document of a token."""

import numpy as np

_BLOCK = 32  # documents whose tokens are summed once


class TokenCounts:
    """The number of tokens of each document, in stored order: 4.25 bytes a document.

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

    def starts(self, documents: np.ndarray) -> np.ndarray:
        """The first token of each document `[n]`, or the one that would be, int64 `[n]`."""
        blocks, place = np.divmod(documents, _BLOCK)
        inside = np.where(np.arange(_BLOCK) < place[:, None], self._of_blocks(blocks), 0)
        return self._block_starts[blocks] + inside.sum(axis=1, dtype=np.int64)

    def located(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The document of each token `[n]`, and the place of the token in it, by binary search."""
        blocks = np.searchsorted(self._block_starts, tokens, side="right") - 1
        within = tokens - self._block_starts[blocks]
        ends = np.cumsum(self._of_blocks(blocks), axis=1, dtype=np.int64)
        place = (ends <= within[:, None]).sum(axis=1)
        before = np.where(place > 0, ends[np.arange(len(place)), place - 1], 0)
        return blocks * _BLOCK + place, within - before

    def _of_blocks(self, blocks: np.ndarray) -> np.ndarray:
        """The counts in each block, `[n, _BLOCK]`; what follows the last document is not used."""
        documents = blocks[:, None] * _BLOCK + np.arange(_BLOCK)
        return self.counts[np.minimum(documents, len(self.counts) - 1)]
