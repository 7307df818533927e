"""Reads the tokens of pieces of documents from the files in which they are kept."""

import logging
import resource
import threading
from collections import OrderedDict

import numpy as np

from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.tokens.counting import part_size
from datarax_tfds.tokens.rows import Pieces
from datarax_tfds.tokens.token_counts import TokenCounts
from datarax_tfds.tokens.token_files import TokenFile, TokenFiles

_log = logging.getLogger(__name__)


@not_copied
class KeptTokens:
    """The tokens that are on the disk of this host. Several threads may read them at once.

    A file is opened when the first of its tokens is read.

    Args:
        files: The files.
        counts: The number of tokens of each document.
        subject: The source that reads, for messages.
        part_documents: That of `Counting`.
    """

    def __init__(
        self,
        files: TokenFiles,
        counts: TokenCounts,
        subject: str,
        *,
        part_documents: int | None = None,
    ):
        self._files = files
        self._counts = counts
        self._part_documents = part_documents or part_size(len(counts))
        self._subject = subject
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max_open = max(1, min(soft // 8 if soft > 0 else 1024, 1024))
        self._open: OrderedDict[int, TokenFile] = OrderedDict()
        self._missing: set[int] = set()
        self._said = False
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """How many tokens are in files whose sizes and heads are right."""
        parts = range(-(-len(self._counts) // self._part_documents))
        return sum(int(self._of(part).sum()) for part in parts if self._opened(part) is not None)

    def has(self, documents: np.ndarray) -> np.ndarray:
        """Of which documents `[n]` the tokens are in such files, bool `[n]`."""
        parts, place = np.unique(documents // self._part_documents, return_inverse=True)
        return np.array([self._opened(part) is not None for part in parts.tolist()], bool)[place]

    def read(self, pieces: Pieces, into: np.ndarray) -> np.ndarray:
        """Copies the tokens of pieces, one after the other, into an array.

        Returns:
            For each piece, bool `[n]`, whether its tokens were found.
        """
        part = pieces.document // self._part_documents
        start = self._counts.starts(pieces.document) + pieces.start  # among all tokens
        stop = start + pieces.count
        # Pieces that follow one another in a file are read at once.
        begins = np.ones(len(part), bool)
        begins[1:] = (start[1:] != stop[:-1]) | (part[1:] != part[:-1])
        first = np.flatnonzero(begins)
        end = np.append(first[1:], len(part))
        parts = part[first]
        before = self._counts.starts(parts * self._part_documents)
        begin, finish = start[first] - before, stop[end - 1] - before
        found: list[bool] = []
        filled = 0
        for run in zip(parts.tolist(), begin.tolist(), finish.tolist(), strict=True):
            ids = self._read(*run)
            found.append(ids is not None)
            if ids is not None:
                into[filled : filled + len(ids)] = ids
            filled += run[2] - run[1]
        return np.repeat(found, end - first)

    def _read(self, part: int, start: int, stop: int) -> np.ndarray | None:
        file = self._opened(part)
        if file is None:
            return None
        try:
            ids = file.read(start, stop)
            reason = "a checksum does not match"
        except OSError as error:
            ids, reason = None, str(error)
        if ids is None:
            self._miss(part)
            _log.warning(
                "%s: the tokens of %d documents cannot be read, and are made again: %s",
                self._subject,
                len(self._of(part)),
                reason,
            )
        return ids

    def _opened(self, part: int) -> TokenFile | None:
        with self._lock:
            if part in self._missing:
                return None
            if part in self._open:
                self._open.move_to_end(part)
                return self._open[part]
        file = self._files.opened(part * self._part_documents, self._of(part))
        if file is None:
            self._miss(part)
            if not self._said:
                self._said = True
                says = "%s: tokens of some documents are not on the disk, and are made when read"
                _log.info(says, self._subject)
            return None
        with self._lock:
            self._open[part] = file
            while len(self._open) > self._max_open:
                # Not closed here, because another thread may be reading it.
                self._open.popitem(last=False)
        return file

    def _miss(self, part: int) -> None:
        with self._lock:
            self._missing.add(part)
            self._open.pop(part, None)

    def _of(self, part: int) -> np.ndarray:
        start = part * self._part_documents
        return self._counts.counts[start : start + self._part_documents]
