"""Holds which records of a split a filter keeps, and reads only those, under numbers of their own.

The kept records have the numbers `[0, K)` in the order in which they are stored. So whatever reads
or orders records sees a split of K records, and need not know of the filter.
"""

import hashlib
from functools import cached_property
from typing import final

import numpy as np

from datarax_tfds.errors import DataLossError
from datarax_tfds.files.record_files import RecordFiles
from datarax_tfds.runtime.copying import not_copied

_WORDS = 8  # of 64 bits in a block, for each of which the records before it are counted
_BLOCK_BITS = 64 * _WORDS
_BLOCK_BYTES = _BLOCK_BITS // 8


@final
@not_copied
class KeptRecords:
    """Which records of a split are kept, as one bit for each, with an index of 1/8 bit for each.

    Any kept record is found in O(log N), without a table of numbers: a billion records take 141 MB.

    Args:
        bits: Bit `n % 8` of byte `n // 8` says whether record n is kept, uint8
            `[ceil(records / 8)]`; other bits are 0.
        records: The number of records of the split, N.
    """

    def __init__(self, bits: np.ndarray, records: int):
        self.records = records
        padded = np.zeros(-(-records // _BLOCK_BITS) * _BLOCK_BYTES, np.uint8)
        padded[: len(bits)] = bits
        self._words = padded.view("<u8").reshape(-1, _WORDS)
        # How many records are kept before each block, and in all.
        self._before = np.zeros(len(self._words) + 1, np.int64)
        for start in range(0, len(self._words), 1 << 16):  # without a large temporary array
            some = self._words[start : start + (1 << 16)]
            self._before[start + 1 : start + 1 + len(some)] = np.bitwise_count(some).sum(axis=1)
        np.cumsum(self._before, out=self._before)

    def __len__(self) -> int:
        """The number of kept records, K."""
        return int(self._before[-1])

    @property
    def bits(self) -> np.ndarray:
        """The argument `bits`."""
        return self._words.reshape(-1).view(np.uint8)[: -(-self.records // 8)]

    @cached_property
    def digest(self) -> str:
        """Identifies the set of kept records, in any process."""
        return hashlib.sha256(b"%d " % self.records + self.bits.tobytes()).hexdigest()[:16]

    def stored_numbers(self, numbers: np.ndarray) -> np.ndarray:
        """The numbers in the split, int64 `[n]`, of kept records by their own numbers `[n]`."""
        block = np.searchsorted(self._before, numbers, side="right") - 1
        left = numbers - self._before[block]  # kept records before it, in its block
        words = self._words[block]
        counts = np.bitwise_count(words).cumsum(axis=1, dtype=np.int64)
        word = (counts <= left[:, None]).sum(axis=1)
        rows = np.arange(len(numbers))
        left = left - np.where(word > 0, counts[rows, word - 1], 0)
        bits, place = words[rows, word].astype(np.uint64), np.zeros(len(numbers), np.uint64)
        for width in (32, 16, 8, 4, 2, 1):  # halves the bits among which the record is
            lower = np.bitwise_count(bits >> place & np.uint64((1 << width) - 1)).astype(np.int64)
            above = left >= lower
            left = left - np.where(above, lower, 0)
            place += np.where(above, np.uint64(width), np.uint64(0))
        return block.astype(np.int64) * _BLOCK_BITS + word * 64 + place.astype(np.int64)

    def stored_number(self, number: int) -> int:
        """The number in the split of one kept record."""
        return int(self.stored_numbers(np.array([number]))[0])


@not_copied
class KeptFiles:
    """The kept records of a split as one sequence: used like `RecordFiles`.

    Args:
        files: All records of the split.
        kept: Which of them are kept.
    """

    def __init__(self, files: RecordFiles, kept: KeptRecords):
        self._files = files
        self._kept = kept
        self.paths = files.paths
        self.build_indexes, self.slowest = files.build_indexes, files.slowest

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def requests(self) -> int:
        """As `RecordFiles.requests`."""
        return self._files.requests

    def read(self, numbers: np.ndarray) -> list[bytes]:
        """The serialized records of these numbers; raises as `RecordFiles.read`."""
        stored = self._kept.stored_numbers(numbers)
        try:
            return self._files.read(stored)
        except DataLossError as error:
            if error.record is not None:
                error.record = int(numbers[stored.tolist().index(error.record)])
            raise

    def read_one(self, number: int) -> bytes:
        """The serialized record of one number; raises as `RecordFiles.read_one`."""
        return self._files.read_one(self._kept.stored_number(number))

    def where(self, number: int) -> str:
        """Describes a record for a message."""
        return self._files.where(self._kept.stored_number(number))
