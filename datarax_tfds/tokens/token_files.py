"""Keeps the tokens of documents on the disk, so that no document is encoded twice.

They are beside the counts, in a file for each part of the counting, which is written as a temporary
file and renamed. Several processes may read it at once, and share what the system keeps of it in
memory. A file that is damaged, or was made of other texts or by another tokenizer, is not used.

A file is read in blocks with a checksum each, so that nothing has to be read at the start. It is
not mapped into memory: if another host cut it short, that would end the process.

The content of a file, little-endian:

    32 bytes    SHA-256 of the next 40 bytes
    32 bytes    SHA-256 of what the tokens were made of, and of the counts
    int64       the bytes of a token: 2, or 4 if an id needs them
    blocks      each of 8,192 bytes of tokens after their CRC-32C, 4 bytes; zeros fill the last one
"""

import hashlib
import logging
import shutil
import struct
from pathlib import Path

import google_crc32c
import numpy as np

from datarax_tfds.files.stored_file import StoredFile
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.small_files import draft_of

FORMAT = 1
_DIGEST_BYTES = 32
_WIDTH = struct.Struct("<q")
_HEAD_BYTES = 2 * _DIGEST_BYTES + _WIDTH.size
_CRC_BYTES, BLOCK_BYTES = 4, 8192
_STORED_BYTES = _CRC_BYTES + BLOCK_BYTES

# Of the disk, this stays free: 10 GiB, or a tenth of a disk of less than 100 GiB.
_FREE_BYTES, _FREE_FRACTION = 10 << 30, 0.1

_log = logging.getLogger(__name__)


def narrowed(ids: np.ndarray) -> np.ndarray:
    """The same ids in as many bytes each as in a file."""
    return ids.astype("<u2" if ids.max(initial=0) < 1 << 16 else "<u4")


class TokenFiles:
    """The files of one split and one tokenizer.

    Args:
        places: The directories in which they may be, the preferred one first.
        made_of: Identifies the texts and the tokenizer.
        eos_id: The token that ends each document, if any.
        subject: The source that keeps tokens, for messages.
    """

    def __init__(self, places: list[Path], made_of: str, eos_id: int | None, subject: str):
        self._places = places
        self._made_of = f"{FORMAT}, {made_of}, eos {eos_id}"
        self._prefix = "tokens" if eos_id is None else f"tokens-eos{eos_id}"
        self._subject = subject
        self._warned = False

    def keep(self, start: int, counts: np.ndarray, ids: np.ndarray) -> None:
        """Writes the tokens of consecutive documents to the first place that has room for them.

        Args:
            start: The number of the first document.
            counts: The tokens of each document, `[documents]`.
            ids: All these tokens, `narrowed`.
        """
        reason: object = "no directory can be used"
        for place in self._places:
            try:
                place.mkdir(parents=True, exist_ok=True)
                if not _has_room(place, _file_bytes(ids.nbytes)):
                    reason = f"the disk of {place} is nearly full"
                    continue
                self._write(self._path(place, start, counts), self._digest(start, counts), ids)
                return
            except OSError as error:
                reason = error
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        says = "%s: tokens of documents are not kept, and are made again when they are read: %s"
        _log.log(level, says, self._subject, reason)

    def _write(self, path: Path, digest: bytes, ids: np.ndarray) -> None:
        head, content = digest + _WIDTH.pack(ids.itemsize), ids.view(np.uint8)
        with draft_of(path) as draft:
            draft.write(hashlib.sha256(head).digest() + head)
            for start in range(0, len(content), BLOCK_BYTES):
                block = content[start : start + BLOCK_BYTES].tobytes().ljust(BLOCK_BYTES, b"\0")
                draft.write(_crc(block) + block)

    def opened(self, start: int, counts: np.ndarray) -> "TokenFile | None":
        """The tokens of consecutive documents; None if no sound file of these counts has them."""
        for place in self._places:
            try:
                file = StoredFile(self._path(place, start, counts), own=True)
                head, size = file.read_at(0, _HEAD_BYTES), file.version().size
            except OSError:
                continue
            digest, head = head[:_DIGEST_BYTES], head[_DIGEST_BYTES:]
            if hashlib.sha256(head).digest() != digest:
                continue
            (width,) = _WIDTH.unpack(head[_DIGEST_BYTES:])
            tokens = int(counts.sum(dtype=np.int64))
            same = head[:_DIGEST_BYTES] == self._digest(start, counts)
            if same and size == _file_bytes(tokens * width):
                return TokenFile(file, width)
        return None

    def _digest(self, start: int, counts: np.ndarray) -> bytes:
        of = f"{self._made_of}, documents {start} to {start + len(counts)}, ".encode()
        return hashlib.sha256(of + counts.astype("<u4").tobytes()).digest()

    def _path(self, place: Path, start: int, counts: np.ndarray) -> Path:
        return place / f"{self._prefix}-{start}-{start + len(counts)}"


@not_copied
class TokenFile:
    """An open file of tokens. Several threads may read it at once.

    Args:
        file: The file.
        width: The bytes of a token.
    """

    def __init__(self, file: StoredFile, width: int):
        self._file = file
        self.width = width

    def blocks(self, start: int, stop: int) -> np.ndarray | None:
        """The blocks `[start, stop)`, uint8 `[n, BLOCK_BYTES]`; None if one of them is damaged.

        Raises:
            OSError: The file cannot be read.
        """
        length = (stop - start) * _STORED_BYTES
        content = self._file.read_at(_HEAD_BYTES + start * _STORED_BYTES, length)
        if len(content) != length:
            return None
        for at in range(0, length, _STORED_BYTES):
            block = at + _CRC_BYTES
            if content[at:block] != _crc(content[block : at + _STORED_BYTES]):
                return None
        return np.frombuffer(content, np.uint8).reshape(-1, _STORED_BYTES)[:, _CRC_BYTES:]


def _file_bytes(token_bytes: int) -> int:
    return _HEAD_BYTES + -(-token_bytes // BLOCK_BYTES) * _STORED_BYTES


def _has_room(directory: Path, size: int) -> bool:
    disk = shutil.disk_usage(directory)
    return disk.free - size >= min(_FREE_BYTES, _FREE_FRACTION * disk.total)


def _crc(block: bytes) -> bytes:
    return google_crc32c.value(block).to_bytes(_CRC_BYTES, "little")
