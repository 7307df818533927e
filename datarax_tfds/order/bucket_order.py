"""Decides which record comes next if batches are made of records of about one length."""

import functools
import hashlib
import re
import zlib
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import jax
import numpy as np

from datarax_tfds.order.block_order import BlockOrder
from datarax_tfds.order.keys import record_keys
from datarax_tfds.order.one_split import OneSplit
from datarax_tfds.order.order import Order
from sharding.checks import refused

_VERSION = 1  # to be changed when the same fields give another order
_DIGEST_CHARS = 16


class Buckets:
    """The bucket of each record, 0 for those with the shortest records: a byte a record.

    Two are equal if they put the same records into the same buckets.

    Args:
        of_records: Integers `[N]` in `[0, 256)`.

    Attributes:
        digest: Identifies them.
    """

    def __init__(self, of_records: np.ndarray):
        # With one more, because padding has the number N.
        self._of = np.append(of_records, 0).astype(np.uint8)
        self.digest = hashlib.sha256(self._of.tobytes()).hexdigest()[:_DIGEST_CHARS]

    def __len__(self) -> int:
        return len(self._of) - 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Buckets) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """The buckets of records `[n]`, uint8; 0 for the number that stands for padding."""
        return self._of[numbers]

    def written(self) -> str:
        """The buckets as a text, of up to half a byte a record if they are few."""
        return b64encode(zlib.compress(self._of[:-1].tobytes())).decode()

    @classmethod
    def read(cls, text: str) -> Self | None:
        """The inverse of `written`; None for a text that is damaged."""
        try:
            return cls(np.frombuffer(zlib.decompress(b64decode(text)), np.uint8))
        except (ValueError, zlib.error):
            return None


@dataclass(frozen=True)
class BucketOrder(OneSplit):
    """An order in which records of one bucket come in runs.

    It arranges another order, window by window. The records of a bucket that are in a window, in
    the other order, are cut into runs of equal length, and the runs of all buckets come in random
    order. Then come the records that are left over, fewer than a run of each bucket, those of
    shorter buckets first. So each record still comes once an epoch.

    All runs begin at multiples of their length, so that no batch has records of two runs if its
    size divides that length. With `continuous`, positions are counted over all epochs. Where an
    epoch then begins between two multiples, records that are left over fill the gap.

    It is a pure function of its fields, and is used like `Order`. The positions of a window are
    computed together: 65,536 in 15 ms.

    Args:
        base: The order that is arranged; in stored order if that is.
        buckets: The bucket of each record.
        run: The records of a run.
        window: The positions that are arranged together, a multiple of `run`.
        continuous: Whether a batch at the end of an epoch goes on with the next epoch, as it does
            with the remainder `wrap`.
    """

    base: Order | BlockOrder
    buckets: Buckets
    run: int
    window: int
    continuous: bool

    @property
    def length(self) -> int:  # type: ignore[override]
        return self.base.length

    @property
    def seed(self) -> int | None:
        return self.base.seed

    @property
    def strata(self) -> int:
        return 1

    @property
    def version(self) -> str:
        """The version of the algorithm and its parameters, as saved states hold them."""
        epochs = "continuous" if self.continuous else "separate"
        return (
            f"buckets {self.buckets.digest} in runs of {self.run} and windows of {self.window},"
            f" {epochs} epochs, {_VERSION}, over {self.base.version}"
        )

    @staticmethod
    def base_version(version: int | str) -> int | str | None:
        """The version of the order that is arranged; None if this is not one of buckets."""
        found = re.fullmatch(r"buckets .* over (.+)", str(version))
        if found is None:
            return None
        return int(found[1]) if found[1].isdigit() else found[1]

    @classmethod
    def of_version(cls, version: str, base: Order | BlockOrder, buckets: Buckets) -> Self | None:
        """The order with this `version`; None if that is not one of buckets, or of others."""
        form = r"buckets \w+ in runs of (\d+) and windows of (\d+), (continuous|separate) epochs.*"
        if (found := re.fullmatch(form, version)) is None:
            return None
        order = cls(base, buckets, int(found[1]), int(found[2]), found[3] == "continuous")
        return order if order.version == version else None

    def host_numbers(self, epoch: int, start: int, stop: int, stride: int = 0) -> np.ndarray:  # noqa: ARG002
        """The numbers of the records at positions `[start, stop)` of an epoch, as in `Order`."""
        parts = [self.base.host_numbers(epoch, 0, 0)]
        while start < stop:
            window = max(start - self._lead(epoch), 0) // self.window
            first, _ = self._bounds(epoch, window)
            parts.append(_arranged(self, epoch, window)[start - first : stop - first])
            start += len(parts[-1])
        return np.concatenate(parts) if len(parts) > 2 else parts[-1]

    def device_numbers(self, epochs: jax.Array, positions: jax.Array) -> NoReturn:  # noqa: ARG002
        """Raises, because buckets are arranged on the host."""
        raise refused(
            NotImplementedError,
            "lengths",
            "the order of buckets cannot be computed within a compiled function.",
            window=self.window,
            fix="take the batch outside and pass it in",
        )

    def _lead(self, epoch: int) -> int:
        """How many positions of an epoch come before the first that may begin a run."""
        return -epoch * self.length % self.run if self.continuous else 0

    def _bounds(self, epoch: int, window: int) -> tuple[int, int]:
        """The first position of a window, and the one after its last."""
        lead = self._lead(epoch)
        last = min(lead + (window + 1) * self.window, self.length)
        return (lead + window * self.window if window else 0), last


@functools.lru_cache(maxsize=4)  # the window in use, the next, and those of an evaluation set
def _arranged(order: BucketOrder, epoch: int, window: int) -> np.ndarray:
    """The record numbers of one window, in their order."""
    first, last = order._bounds(epoch, window)
    numbers = order.base.host_numbers(epoch, first, last)
    buckets = order.buckets.of(numbers)
    by_bucket = np.argsort(buckets, kind="stable")
    counts = np.bincount(buckets)
    of_each = buckets[by_bucket]
    within = np.arange(len(numbers)) - (np.cumsum(counts) - counts)[of_each]
    in_runs = within < (counts // order.run * order.run)[of_each]
    runs, rest = by_bucket[in_runs].reshape(-1, order.run), by_bucket[~in_runs]
    runs = runs[_ranks(order, epoch, numbers, runs[:, 0]).argsort(kind="stable")]
    lead = min(order._lead(epoch), len(numbers)) if window == 0 else 0
    if lead > len(rest):  # then a run is left over, too
        rest = np.concatenate([runs[-1], rest])
        rest = rest[buckets[rest].argsort(kind="stable")]
        runs = runs[:-1]
    # The longest come first, because the epoch before has ended with its longest.
    leading, trailing = rest[len(rest) - lead :][::-1], rest[: len(rest) - lead]
    arranged = numbers[np.concatenate([leading, runs.ravel(), trailing])]
    arranged.flags.writeable = False
    return arranged


def _ranks(order: BucketOrder, epoch: int, numbers: np.ndarray, firsts: np.ndarray) -> Any:
    """What the runs are sorted by, given the place of the first record of each."""
    if order.seed is None:
        return firsts
    keys = record_keys(order.seed, epoch, numbers[firsts]).astype(np.int64)
    return keys[:, 0] << 32 ^ keys[:, 1]
