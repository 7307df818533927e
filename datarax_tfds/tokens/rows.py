"""Says which tokens of which documents are in each row."""

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from datarax_tfds.tokens.token_counts import TokenCounts

# To be changed when the same counts and length give other rows.
VERSION = 1

# Documents that are packed together: then less than one row in a hundred is padding, unless nearly
# all documents are longer than half a row.
WINDOW = 4096


@dataclass(frozen=True)
class Pieces:
    """Consecutive tokens of documents, in the order in which they fill rows.

    Args:
        row: For each piece, the place of its row among those that were asked for; ascending.
        document: The number of its document.
        start: Its first token in the document.
        count: The number of its tokens, at least 1.
    """

    row: np.ndarray
    document: np.ndarray
    start: np.ndarray
    count: np.ndarray

    def where(self, wanted: np.ndarray) -> "Pieces":
        """Some of the pieces: those where bool `[pieces]` is true."""
        columns = (self.row, self.document, self.start, self.count)
        return Pieces(*(column[wanted] for column in columns))


def counted(lengths: np.ndarray) -> np.ndarray:
    """The numbers `[0, length)` for each of these lengths, one after the other."""
    return np.arange(int(lengths.sum())) - np.repeat(starts_of(lengths), lengths)


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Where each begins if they follow one another."""
    return np.cumsum(lengths) - lengths


class Rows(Protocol):
    """A way to cut all tokens into rows of one length."""

    @property
    def count(self) -> int: ...  # of rows

    def pieces(self, rows: np.ndarray) -> Pieces: ...


class ConcatRows:
    """Rows of a fixed length, cut from all documents one after the other.

    Row r has the tokens `[r * length, (r + 1) * length)`. It takes no memory beside the counts.

    Args:
        counts: The tokens of each document.
        length: The tokens of a row.
    """

    def __init__(self, counts: TokenCounts, length: int):
        self._counts = counts
        self._length = length
        self.count = -(-counts.total // length)

    def pieces(self, rows: np.ndarray) -> Pieces:
        """The pieces of these rows `[n]`."""
        first = rows.astype(np.int64) * self._length
        end = np.minimum(first + self._length, self._counts.total)
        begin, within = self._counts.located(first)
        last, _ = self._counts.located(end - 1)
        # Every document from the first to the last one of each row.
        each = last - begin + 1
        row = np.repeat(np.arange(len(rows)), each)
        document = begin[row] + counted(each)
        sizes = self._counts.counts[document].astype(np.int64)
        # Where each document begins, counted from the first token of its row.
        before = starts_of(sizes)
        offset = before - before[starts_of(each)][row] - within[row]
        start = np.maximum(-offset, 0)
        stop = np.minimum(sizes, (end - first)[row] - offset)
        held = stop > start
        return Pieces(row[held], document[held], start[held], (stop - start)[held])


class BestFitRows:
    """Rows of whole documents. Only documents that are longer than a row are cut.

    A long document fills rows of its own, up to a rest. Rests and short documents are packed in
    windows of consecutive documents: the largest first, each into the fullest row that has room.

    It takes 16 bytes for each piece of a document, and 8 for each row.

    Args:
        counts: The tokens of each document.
        length: The tokens of a row.
        window: How many documents are packed together.
    """

    def __init__(self, counts: TokenCounts, length: int, window: int = WINDOW):
        self._counts = counts
        self._length = length
        rows, documents, starts = [], [], []
        count = 0
        for first in range(0, len(counts), window):
            sizes = counts.counts[first : first + window].astype(np.int64)
            row, document, start, used = _packed(sizes, length)
            rows.append(row + count)
            documents.append(document + first)
            starts.append(start)
            count += used
        self.count = count
        self._documents = np.concatenate(documents)
        self._starts = np.concatenate(starts)
        self._row_starts = np.searchsorted(np.concatenate(rows), np.arange(count + 1))

    def pieces(self, rows: np.ndarray) -> Pieces:
        """The pieces of these rows `[n]`."""
        first = self._row_starts[rows]
        each = self._row_starts[rows + 1] - first
        row = np.repeat(np.arange(len(rows)), each)
        place = first[row] + counted(each)
        document, start = self._documents[place], self._starts[place]
        sizes = self._counts.counts[document].astype(np.int64)
        return Pieces(row, document, start, np.minimum(sizes - start, self._length))


def _packed(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The row, the document and the start of each piece of one window, by row; and the number of
    rows.
    """
    whole, rest = np.divmod(sizes, length)
    cut, nth = np.repeat(np.arange(len(sizes)), whole), counted(whole)
    left = np.flatnonzero(rest)
    row_of, used = _best_fit(rest[left], length)
    row = np.concatenate([np.arange(len(cut)), len(cut) + row_of])
    document = np.concatenate([cut, left])
    start = np.concatenate([nth * length, (whole * length)[left]])
    by_row = np.lexsort((document, row))
    return row[by_row], document[by_row], start[by_row], len(cut) + used


def _best_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, int]:
    """The row of each size, by best fit in decreasing order; and the number of rows."""
    rows = np.zeros(len(sizes), np.int64)
    used, scale = 0, len(sizes) + 1
    room: list[int] = []  # `free * scale + row` for each row that is not full, ascending
    decreasing = np.argsort(-sizes, kind="stable").tolist()
    listed = sizes.tolist()
    for place in decreasing:
        size = listed[place]
        at = bisect_left(room, size * scale)
        if at < len(room):
            free, row = divmod(room.pop(at), scale)
        else:
            free, row, used = length, used, used + 1
        if free > size:
            insort(room, (free - size) * scale + row)
        rows[place] = row
    return rows, used
