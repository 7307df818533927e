"""Finds out which records of a split a filter keeps, once for all processes and all runs."""

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from datarax_tfds.config.config import AnyConfig
from datarax_tfds.decoding.decoder import decode_chunk_size
from datarax_tfds.errors import DataLossError
from datarax_tfds.files.kept_index import KeptIndex
from datarax_tfds.files.kept_records import KeptRecords
from datarax_tfds.files.split import Split
from datarax_tfds.records.filters import Filter, filter_of
from datarax_tfds.runtime.threads import ThreadPool, bounded, decoding_threads
from sharding import global_batch, local_rows, storage_sharding
from sharding.checks import refused
from sharding.hosts.agreement import agree, extend_deadlines, gathered
from sharding.hosts.waits import Wait, result_of
from sharding.jax_context import OwnContext
from sharding.placement import Placement, processes_of

_log = logging.getLogger(__name__)

_PROGRESS_DELAY_S = 2.0
_QUEUED = 4  # chunks for each thread: a list of all would take 1 GB for a billion records
_ASKED_AGAIN = 16  # records


def filtered(split: Split, config: AnyConfig, subject: str, batch: Placement) -> Split:
    """The split of the records that the filter of a config keeps; without a filter, the split.

    All processes of the mesh must call it. Each evaluates the filter for its share of the records,
    unless it finds the index of an earlier run.

    Args:
        split: The split, with all of its records.
        config: Says what the filter is, and how records are decoded.
        subject: The source, for messages.
        batch: The placement of batches on the mesh.

    Raises:
        ValueError: The filter cannot be used, gives another answer when it is asked again, or keeps
            no record.
        RuntimeError: The filter fails on a record.
        DataLossError: Files are damaged, or more records than the config allows.
        DisagreementError: The processes have different filters.
    """
    if config.filter_fn is None:
        return split
    asked, processes = filter_of(split, config, subject), processes_of(batch)
    about = f"the filter of {subject}"
    fields = {"split": split.ranges, "records": len(split), "filter_fn": asked.code}
    agree(about, fields, processes)
    index = _index_of(split, asked.code, subject)
    kept = None if index is None else bounded(index.read, subject, lambda: f"reading {about}")
    digests = gathered(about, None if kept is None else kept.digest, processes)
    if kept is None or len(digests) > 1:
        if len({*digests} - {None}) > 1:
            kept = None  # of different functions with one name: none is believed
        kept, sound = _evaluated(asked, kept, config, batch)
        # With a corrupt record, it is not written: an error of a network passes, and whoever mends
        # a file wants its records.
        if index is not None and sound:
            _write_in_turn(index, kept, about, processes)
    if not len(kept):
        raise refused(
            ValueError,
            subject,
            f"filter_fn keeps none of the {len(split):,} records.",
            split=split.ranges,
            fix="let filter_fn return True for some records, or leave filter_fn out",
        )
    return split.filtered(kept)


def _index_of(split: Split, code: str | None, subject: str) -> KeptIndex | None:
    if code is None:
        return None
    doing = "looking at the versions of the files"
    return bounded(lambda: KeptIndex(split, code), subject, lambda: doing)


def _write_in_turn(index: KeptIndex, kept: KeptRecords, about: str, processes: list[int]) -> None:
    """Writes the index where it is missing. Processes with one file system write it only once."""
    first = processes[0] == jax.process_index()
    for turn in (first, not first):
        if turn:
            bounded(lambda: _write(index, kept), about, lambda: f"writing {about}")
        agree(about, {"written": True}, processes)


def _write(index: KeptIndex, kept: KeptRecords) -> None:
    if index.read() is None:
        index.write(kept)


def _evaluated(
    asked: Filter, known: KeptRecords | None, config: AnyConfig, batch: Placement
) -> tuple[KeptRecords, bool]:
    """Which records are kept, the same on every process; and whether no record was corrupt.

    `known` is what this process knows from an index; it then evaluates nothing.
    """
    reader, processes = asked.reader, processes_of(batch)
    storage = storage_sharding(batch, "sharded")
    # Each device has the same number of bytes, which are eight records each.
    count = -(-reader.length // (8 * batch.num_devices)) * batch.num_devices
    share = _Share(asked, config.max_corrupt_records)
    begun = time.monotonic()
    bits = {
        part: share.bits(*part) if known is None else _padded(known.bits[slice(*part)], part)
        for part in local_rows(storage, count)
    }
    # Before the collective, which no process may enter if another one fails.
    sound = gathered(f"the filter of {reader.subject}", not share.corrupt, processes) == [True]
    if len(processes) == 1:
        whole = np.concatenate([bits[part] for part in sorted(bits)])
    else:
        assert isinstance(batch, NamedSharding)
        placed = global_batch(lambda rows: bits[rows.start, rows.stop], count, storage)
        everywhere = NamedSharding(batch.mesh, PartitionSpec())
        with OwnContext(None):
            every = jax.jit(lambda every: every, out_shardings=everywhere)(placed)
            whole = jax.device_get(every.addressable_data(0))
    kept = KeptRecords(whole[: -(-reader.length // 8)], reader.length)
    took_s = time.monotonic() - begun
    of = f"{len(kept):,} of {reader.length:,} records"
    _log.info("%s: filter_fn keeps %s (%.1f s)", reader.subject, of, took_s)
    return kept, sound


def _padded(bits: np.ndarray, part: tuple[int, int]) -> np.ndarray:
    return np.concatenate([bits, np.zeros(part[1] - part[0] - len(bits), np.uint8)])


class _Share:
    """Evaluates a filter for the records of one process.

    Args:
        asked: The filter.
        max_corrupt: How many corrupt records are left out; with more, it is an error.

    Attributes:
        corrupt: The numbers of the corrupt records found so far.
    """

    def __init__(self, asked: Filter, max_corrupt: int):
        self._filter = asked
        self._reader = asked.reader
        self._max_corrupt = max_corrupt
        self.corrupt: set[int] = set()

    def bits(self, first: int, last: int) -> np.ndarray:
        """The bytes `[first, last)` of `KeptRecords.bits`."""
        bits = np.zeros(last - first, np.uint8)
        start, stop = (min(8 * byte, self._reader.length) for byte in (first, last))
        chunk = decode_chunk_size((stop - start) // (4 * decoding_threads()), 0)
        chunk = -(-chunk // 8) * 8  # whole bytes
        ahead = self._reader.records_ahead(shuffled=False)
        self._reader.prefetch(np.arange(start, min(start + ahead, stop)))

        def evaluate(at: int) -> int:
            self._reader.prefetch(np.arange(min(at + ahead, stop), min(at + ahead + chunk, stop)))
            numbers = np.arange(at, min(at + chunk, stop))
            some = np.packbits(self._answers(numbers), bitorder="little")
            bits[(at - start) // 8 : (at - start) // 8 + len(some)] = some
            return len(numbers)

        self._each(evaluate, range(start, stop, chunk), stop - start)
        again = np.arange(start, min(start + _ASKED_AGAIN, stop))
        before = np.unpackbits(bits[:_ASKED_AGAIN], count=len(again), bitorder="little")
        self._require_same(again, before.astype(bool))
        return bits

    def _each(self, evaluate: Callable[[int], int], starts: range, records: int) -> None:
        """Evaluates the filter in several threads, and shows how far it is."""
        subject, wait, done = self._reader.subject, Wait(), 0
        evaluating = extend_deadlines(f"evaluating the filter of {subject}", measured=True)
        shown = tqdm(
            total=records,
            desc=f"{subject}: filtering",
            unit=" records",
            delay=_PROGRESS_DELAY_S,
            # None: shown on a terminal only.
            disable=None if jax.process_index() == 0 else True,
        )
        pool = ThreadPool(decoding_threads(), "datarax_tfds_filter")
        waiting: deque[Future[int]] = deque()
        left = iter(starts)
        try:
            with evaluating as advance, shown as progress:
                while True:
                    while len(waiting) < _QUEUED * decoding_threads():
                        if (at := next(left, None)) is None:
                            break
                        waiting.append(pool.submit(evaluate, at))
                    if not waiting:
                        break
                    count = result_of(waiting.popleft(), subject, self._reader.slowest)
                    done += count
                    progress.update(count)
                    advance()
                    if wait.is_due():
                        of = f"{done:,} of {records:,} records"
                        _log.info("%s: filter_fn was evaluated for %s", subject, of)
        finally:
            pool.close()

    def _answers(self, numbers: np.ndarray) -> np.ndarray:
        """As `Filter.answers`; corrupt records are left out, as far as that is allowed."""
        kept, rows = np.zeros(len(numbers), bool), np.arange(len(numbers))
        while len(rows):
            try:
                kept[rows] = self._filter.answers(numbers[rows])
                break
            except DataLossError as error:
                if error.record is None or len({*self.corrupt, error.record}) > self._max_corrupt:
                    raise
                self.corrupt.add(error.record)
                where = self._reader.files.where(error.record)
                _log.warning(
                    "%s: a corrupt record is left out: %s (%s)",
                    *(self._reader.subject, where, error.reason),
                )
                rows = rows[numbers[rows] != error.record]
        return kept

    def _require_same(self, numbers: np.ndarray, kept: np.ndarray) -> None:
        """Raises if the filter gives other answers for some records now than before."""
        if not len(numbers):
            return
        differ = np.flatnonzero(self._answers(numbers) != kept)
        if len(differ):
            first = int(differ[0])
            raise refused(
                ValueError,
                self._reader.subject,
                "filter_fn gives another answer when it is asked again about the same record.",
                where=self._reader.files.where(int(numbers[first])),
                answers=f"{bool(kept[first])}, then {not kept[first]}",
                fix="let filter_fn depend on the record alone; to keep a random part of the"
                " records, take a hash of a feature, as zlib.crc32(record['image']) % 10 == 0",
            )
