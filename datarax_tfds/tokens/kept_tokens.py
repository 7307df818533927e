"""Reads the tokens of pieces of documents from the files in which they are kept."""

import itertools
import logging
import resource
import threading
from collections import OrderedDict

import numpy as np

from datarax_tfds.counts.counting import part_size
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.tokens.rows import Pieces, counted, starts_of
from datarax_tfds.tokens.token_counts import TokenCounts
from datarax_tfds.tokens.token_files import BLOCK_BYTES, TokenFile, TokenFiles

_MAX_BLOCKS = 1 << 40  # in a file, so that a number tells the file and the block in it

_log = logging.getLogger(__name__)


@not_copied
class KeptTokens:
    """The tokens that are on the disk of this host. Several threads may read them at once.

    A file is opened when the first of its tokens is read.

    Args:
        files: The files.
        counts: The number of tokens of each document.
        subject: The source that reads, for messages.
    """

    def __init__(self, files: TokenFiles, counts: TokenCounts, subject: str):
        self._files = files
        self._counts = counts
        self._part_documents = part_size(len(counts))
        self._subject = subject
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max_open = max(1, min(soft // 8 if soft > 0 else 1024, 1024))
        self._open: OrderedDict[int, TokenFile] = OrderedDict()
        self._widths: dict[int, int] = {}  # of the files that were looked at
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """How many tokens are in files whose sizes and heads are right."""
        parts = range(-(-len(self._counts) // self._part_documents))
        return sum(int(self._of(part).sum(dtype=np.int64)) for part in parts if self._width(part))

    def has(self, documents: np.ndarray) -> np.ndarray:
        """Whether the tokens of documents `[n]` are in such files, bool `[n]`."""
        parts, place = np.unique(documents // self._part_documents, return_inverse=True)
        return np.array([self._width(part) > 0 for part in parts.tolist()], bool)[place]

    def read(self, pieces: Pieces, into: np.ndarray) -> np.ndarray:
        """Copies the tokens of pieces, one after the other, into an array.

        Each block is read once, also if many short pieces are in it.

        Returns:
            For each piece, bool `[n]`, whether its tokens were found.
        """
        parts, of = np.unique(pieces.document // self._part_documents, return_inverse=True)
        width = np.array([self._width(part) or 1 for part in parts.tolist()])[of]
        before = self._counts.starts(parts * self._part_documents)[of]
        start = self._counts.starts(pieces.document) + pieces.start - before
        # The bytes in the file, and the blocks of each piece, numbered over all parts.
        begin, end = start * width, (start + pieces.count) * width
        first, each = begin // BLOCK_BYTES, (end - 1) // BLOCK_BYTES - begin // BLOCK_BYTES + 1
        first += of * _MAX_BLOCKS
        numbers = np.repeat(first, each) + counted(each)
        blocks = np.unique(numbers)
        content, sound = self._blocks(parts, blocks)
        found = np.logical_and.reduceat(sound[np.searchsorted(blocks, numbers)], starts_of(each))
        place = np.searchsorted(blocks, first) * BLOCK_BYTES + begin % BLOCK_BYTES
        for size in np.unique(width[found]).tolist():
            these = found & (width == size)
            count = pieces.count[these]
            tokens = np.repeat(place[these] // size, count) + counted(count)
            into[np.repeat(these, pieces.count)] = content.reshape(-1).view(f"<u{size}")[tokens]
        return found

    def _blocks(self, parts: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The blocks of ascending numbers, uint8 `[n, BLOCK_BYTES]`, and which of them are sound.

        Blocks that follow one another in a file are read at once.
        """
        content = np.empty((len(numbers), BLOCK_BYTES), np.uint8)
        sound = np.zeros(len(numbers), bool)
        ends = np.append(np.flatnonzero(np.diff(numbers) > 1) + 1, len(numbers)).tolist()
        for start, stop in itertools.pairwise([0, *ends]):
            of, block = divmod(int(numbers[start]), _MAX_BLOCKS)
            read = self._read(int(parts[of]), block, block + stop - start)
            if read is not None:
                content[start:stop], sound[start:stop] = read, True
        return content, sound

    def _read(self, part: int, start: int, stop: int) -> np.ndarray | None:
        file = self._opened(part)
        if file is None:
            return None
        try:
            blocks = file.blocks(start, stop)
            reason = "a checksum does not match"
        except OSError as error:
            blocks, reason = None, str(error)
        if blocks is None:
            with self._lock:
                self._widths[part] = 0
                self._open.pop(part, None)
            _log.warning(
                "%s: the tokens of %d documents cannot be read, and are made again: %s",
                self._subject,
                len(self._of(part)),
                reason,
            )
        return blocks

    def _width(self, part: int) -> int:
        """The bytes of a token in a file; 0 if there is no sound file."""
        if part not in self._widths:
            self._opened(part)
        return self._widths[part]

    def _opened(self, part: int) -> TokenFile | None:
        with self._lock:
            if self._widths.get(part) == 0:
                return None
            if part in self._open:
                self._open.move_to_end(part)
                return self._open[part]
        file = self._files.opened(part * self._part_documents, self._of(part))
        with self._lock:
            if file is None:
                if 0 not in self._widths.values():
                    says = "%s: tokens of some documents are not on the disk, and are made again"
                    _log.info(says, self._subject)
                self._widths[part] = 0
                return None
            self._widths[part] = file.width
            self._open[part] = file
            while len(self._open) > self._max_open:
                # Not closed here, because another thread may be reading it.
                self._open.popitem(last=False)
        return file

    def _of(self, part: int) -> np.ndarray:
        """The counts of the documents in a file."""
        start = part * self._part_documents
        return self._counts.counts[start : start + self._part_documents]
