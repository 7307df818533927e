"""Reads records by number and decodes them, as rows of a batch on the host."""

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Self

import jax
import numpy as np

from datarax_tfds.config.config import AnyConfig
from datarax_tfds.decoding.corrupt_records import CorruptRecords
from datarax_tfds.decoding.decode_failures import decode_failure, quotes_the_record, reason
from datarax_tfds.decoding.decoder import decoder_of
from datarax_tfds.decoding.device_dtypes import path_name, to_device_dtype
from datarax_tfds.decoding.episodes import equal_steps
from datarax_tfds.decoding.functions.transform import Transform, type_specs
from datarax_tfds.decoding.padding import PadTo
from datarax_tfds.decoding.plan import DecodingPlan
from datarax_tfds.decoding.record_spec import holds_arrays, record_spec, require_tensors
from datarax_tfds.decoding.stacking import Stack
from datarax_tfds.decoding.tensorflow_import import tensorflow
from datarax_tfds.decoding.tfds_decoding import values_of_tfds
from datarax_tfds.errors import DataLossError
from datarax_tfds.files.block_files import BlockFiles
from datarax_tfds.files.kept_records import KeptFiles
from datarax_tfds.files.prefetched_files import THREADS, PrefetchedFiles, records_ahead
from datarax_tfds.files.record_files import RecordFiles
from datarax_tfds.files.split import Split
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.threads import bounded, decoding_threads, native_call
from datarax_tfds.runtime.timings import DECODING, READING, TRANSFORM, Timings
from sharding.checks import refused
from sharding.hosts.agreement import extend_deadlines

_EPISODES_COUNTED = 32
_SAMPLE_BYTES = 64 << 20


@not_copied
class RecordReader:
    """Reads records of a split from its files and decodes them.

    Several threads may read at the same time; each keeps one core busy.

    Args:
        split: The split whose records are read.
        config: Says which features to read, and how to decode them.
        subject: The source that reads, for messages.

    Attributes:
        split: The split whose records are read.
        length: Number of records N.
        corrupt: The corrupt records that were found, and the records in their places.
        reach: The number of consecutive positions that may be read ahead at once without reading
            any bytes twice.
        spec: The part of a record that goes to the devices, as `record_spec` gives it.
        host_spec: The part that stays on the host: shape and dtype by feature.
        record_bytes: The size of a decoded record on the host; 0 unless `holds_arrays`.
        holds_arrays: Whether a record is made of arrays of fixed shapes, so that many can be read
            in one call.
        takes_many: Whether many records can be decoded in one call of `values`.
        mapped_by: The field of the config with the function that makes the records, if any.
        random_by: The field with a function that takes random numbers, if any.
        stochastic: Whether `read` needs keys.
        user_code: Identifies what users' code computes, with the versions that it depends on. None
            without such code, or if it may give other results in another run.
        versions: The versions of the libraries that decode records.
        timings: Counts how long reading, decoding and functions of the user take.
        max_calls: The most threads that call `read` at once.

    Raises:
        ValueError: The dataset lacks a feature of the config, `map_fn` cannot be used, or a feature
            is not an array even in one record.
    """

    fan_out = 1

    @property
    def parallel(self) -> int:
        """How many calls of `read` to have under way at once."""
        return self.max_calls

    def __init__(self, split: Split, config: AnyConfig, subject: str):
        self.length = self.reach = len(split)
        self.subject = subject
        self.max_calls = decoding_threads()  # asking the system takes 0.06 ms, each time
        self.files = split.files
        self.split = split
        files = split.files  # not `self`, because of the reference cycle
        self.timings = Timings(reads=str(files.paths[0].parent), requests=lambda: files.requests)
        self._bytes: RecordFiles | KeptFiles | PrefetchedFiles | BlockFiles = split.files
        if split.in_store:
            self._bytes = PrefetchedFiles(split.files.read, split.record_bytes)
        self.corrupt = CorruptRecords(
            self.length, config.max_corrupt_records, self.files.where, subject
        )
        plan = self._plan = self._with_steps(DecodingPlan.of(split.info, config, subject))
        self._decoder = decoder_of(plan)
        self._compare_with_tfds()
        # Other versions of these may decode a record to other values.
        self.versions = {
            "jax": jax.__version__,
            "tensorflow": tensorflow().__version__,
            "numpy": np.__version__,
        }
        self.takes_many = self._decoder.takes_many
        self.mapped_by = config.mapped_by
        self._transform = None if config.transform is None else Transform(config.transform)
        self.random_by = "map_fn" if self._decoder.stochastic else None
        if self._transform is not None and self._transform.stochastic:
            self.random_by = "transform"
        self.stochastic = self.random_by is not None
        if config.map_fn is not None:
            # Not a method of `self`, because of the reference cycle.
            self.timings.map_fn_share = self._decoder.map_fn_share
        self._stack: Stack | None = None
        self._pads_in_graph = False
        outputs, versions = self._decoder.outputs, f"tensorflow {tensorflow().__version__}"
        codes = [self._decoder.user_code]
        if self._transform is not None or config.pad_to is not None:
            require_tensors(outputs, plan)
            if self._transform is not None:
                outputs, code = self._tried(self._transform)
                codes.append(code)
                versions += f", python {sys.version_info.major}.{sys.version_info.minor}"
            pad_to = PadTo(tensorflow(), outputs, config, subject)
            self._stack, outputs = Stack(pad_to), pad_to.outputs
            # Small lists of numbers are padded ten times as fast so, many in one call.
            self._pads_in_graph = self._transform is None and pad_to.fixes_all
            if self._pads_in_graph:
                self._decoder.then(partial(pad_to.in_graph, tensorflow()))
                self.takes_many = True
        self.user_code = f"{versions}: {'+'.join(filter(None, codes))}" if any(codes) else None
        self.spec, self.host_spec = record_spec(outputs, plan)
        self.holds_arrays = holds_arrays(self.spec)
        self.record_bytes = 0
        if self.holds_arrays:
            leaves = jax.tree.leaves(self.spec)
            self.record_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    def holds(self, numbers: np.ndarray) -> np.ndarray:
        """Which of these numbers, bool `[n]`, are those of records to read; others are padding."""
        return numbers < self.length

    def slowest(self) -> str:
        """What the threads that read have waited for longest, for messages."""
        return self.files.slowest()

    def renamed(self, subject: str) -> Self:
        """Makes the messages of this reader name another source, and returns the reader."""
        self.subject = self.corrupt.subject = subject
        self._plan = dataclasses.replace(self._plan, subject=subject)
        return self

    def _with_steps(self, plan: DecodingPlan) -> DecodingPlan:
        """The plan with the number of steps of episodes, if all of a sample have equally many."""
        episodes = plan.episode_keys if plan.config.map_fn is None else []
        if not episodes:
            return plan
        sample = list(self._sample(_EPISODES_COUNTED))
        tf = tensorflow()
        try:
            steps = equal_steps(tf, (values_of_tfds(plan, record, episodes) for record in sample))
        except Exception:  # of TFDS; the decoder raises it again, and names the feature
            return plan
        padded = [f"{name}/" for name in plan.config.pad_to or ()]
        steps = {
            path: count
            for path, count in steps.items()
            if not any(name.startswith(f"{path}/") for name in padded)
        }
        return dataclasses.replace(plan, steps=steps)

    def _tried(self, transform: Transform) -> tuple[dict[str, Any], str | None]:
        """The type specs of the first record that a transform returns, and a digest of its code."""

        def first(numbers: np.ndarray) -> tuple[int, dict[str, Any]]:
            columns = self._decode(numbers, self._stored(numbers), np.zeros((1, 2), np.int32))
            return int(numbers[0]), columns

        read = partial(self.corrupt.read, np.zeros(1, np.int64), first)
        with extend_deadlines(f"finding records of {self.subject}", measured=True):
            number, columns = bounded(read, self.subject, self.files.slowest)
        record, code = transform.tried(
            _values(columns, 0),
            partial(self._where, number),
            allow_stateful=self._plan.config.allow_stateful_map_fn,
            subject=self.subject,
        )
        return type_specs(tensorflow(), record), code

    def _compare_with_tfds(self) -> None:
        """Raises if we decode a feature to another value than TFDS does.

        Compares the first record, or the last one if the first cannot be decoded.
        """
        for record in self._sample(2):
            try:
                self._decoder.require_as_tfds(record)
            except self._decoder.errors:
                continue  # the error is raised, with the place of the record, when it is read
            break

    def _sample(self, most: int) -> Iterator[bytes]:
        """Some records from all over the split, up to 64 MiB of them."""
        read = 0
        # A file may have to be indexed first, which takes long if it is large.
        with extend_deadlines(f"finding records of {self.subject}", measured=True):
            # Integers, because floats are not exact beyond 2**53.
            for number in sorted({n * (self.length - 1) // (most - 1) for n in range(most)}):
                read_one = partial(self.files.read_one, number)
                try:
                    record = bounded(read_one, self.subject, self.files.slowest)
                except DataLossError:
                    continue  # as in `_compare_with_tfds`
                yield record
                read += len(record)
                if read > _SAMPLE_BYTES:
                    return

    def read_blocks(self, block_size: int, window: int) -> None:
        """Makes `read` read whole blocks of records, and keep those of the window in use, and those
        that are read ahead: of the next window, or of more from a store.

        Args:
            block_size: The number of records in a block.
            window: The number of positions over which the records of a block are spread.
        """
        # Not `self`, because a reference cycle would keep the reader until the collector runs.
        files, corrupt = self.files, self.corrupt
        self.reach = window
        self._bytes = BlockFiles(
            lambda numbers: files.read(corrupt.replaced(numbers)),
            length=self.length,
            block_size=block_size,
            kept=math.ceil(window / block_size)
            + math.ceil(max(window, self.records_ahead(shuffled=False)) / block_size),
            threads=THREADS if self.split.in_store else 16,
        )

    def records_ahead(self, *, shuffled: bool) -> int:
        """How many records to `prefetch` before the batches that are being decoded; 0 if they are
        in a file system.

        Args:
            shuffled: Whether the records come in random order.
        """
        if not self.split.in_store:
            return 0
        blocks = isinstance(self._bytes, BlockFiles)
        ahead = records_ahead(self.split.record_bytes, alone=shuffled and not blocks)
        if blocks and shuffled:
            ahead = max(ahead, self.reach)  # the next window begins with a record of each block
        return min(ahead, self.length)

    def prefetch(self, numbers: np.ndarray) -> None:
        """Begins to read records from a store, without decoding them, for a `read` that follows."""
        if isinstance(self._bytes, PrefetchedFiles | BlockFiles) and self.split.in_store:
            self._bytes.prefetch(numbers)

    def read(self, numbers: np.ndarray, keys: np.ndarray | None = None) -> dict[str, Any]:
        """Reads and decodes records. A corrupt one is replaced by the next sound one, if the
        config allows that.

        Args:
            numbers: `[n]`, in `[0, N)`; n is 1 unless `holds_arrays`.
            keys: `[n, 2]` int32, for a stochastic `map_fn`.

        Returns:
            NumPy arrays `[n, ...]` of the dtypes of `spec` and `host_spec`. Do not write to them.

        Raises:
            DataLossError: More records than the config allows have bytes that are not what was
                written, or that do not decode.
            OverflowError: A value does not fit the dtype on the devices.
            RuntimeError: `map_fn` fails on a record, or XLA cannot compile it.
        """
        return self.corrupt.read(numbers, lambda sound: self._read(sound, keys))

    def read_intact(self, numbers: np.ndarray, keys: np.ndarray | None = None) -> dict[str, Any]:
        """Reads and decodes records as `read` does; a corrupt one is an error, and not replaced."""
        return self._read(numbers, keys)

    def records(self, numbers: np.ndarray, keys: np.ndarray | None = None) -> list[dict[str, Any]]:
        """Reads and decodes records as `read` does, into values and arrays of their own.

        The dtypes are those that TFDS, `map_fn` or `transform` give, and not those on the devices.
        """
        columns = self.corrupt.read(numbers, lambda sound: self._columns(sound, keys))
        return [_values(columns, row) for row in range(len(numbers))]

    def values(self, numbers: np.ndarray, keys: np.ndarray | None = None) -> dict[str, Any]:
        """Reads and decodes records, in the dtypes of TFDS. A corrupt one is an error.

        Args:
            numbers: `[n]`, in `[0, N)`; n is 1 unless `takes_many`.
            keys: See `read`.

        Returns:
            NumPy arrays `[n, ...]`, nested as a record is. Do not write to them.
        """
        return self._decode(numbers, self._stored(numbers), keys)

    def lengths(self, numbers: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Reads how long features are before `pad_to` pads or cuts them.

        Args:
            numbers: `[n]`, in `[0, N)`.
            names: Names in `pad_to`, each with a length there.

        Returns:
            int64 `[n, names]`.
        """
        return self.corrupt.read(numbers, lambda sound: self._lengths(sound, names))

    def _lengths(self, numbers: np.ndarray, names: Sequence[str]) -> np.ndarray:
        assert self._stack is not None

        def where(row: int) -> str:
            return self._where(int(numbers[row]))

        serialized = self._stored(numbers)
        if self._pads_in_graph:
            padded = self._decode(numbers, serialized, None)
            arrays = [of_leaf.tolist() for of_leaf in padded["shapes"]]
            shapes = ([tuple(of_leaf[row]) for of_leaf in arrays] for row in range(len(numbers)))
        else:
            records = enumerate(self._records(numbers, serialized, None))
            shapes = (self._stack.shapes(record, where, row) for row, record in records)
        return self._stack.lengths(names, shapes, where)

    def _read(self, numbers: np.ndarray, keys: np.ndarray | None) -> dict[str, Any]:
        columns = self._columns(numbers, keys)
        on_host = {name: columns.pop(name) for name in self.host_spec}
        on_devices = jax.tree_util.tree_map_with_path(
            lambda path, spec, column: to_device_dtype(
                column,
                np.dtype(spec.dtype),
                lambda row: f"{self._where(numbers[row])}, feature {path_name(path)!r}",
            ),
            self.spec,
            columns,
        )
        return on_devices | on_host

    def _columns(self, numbers: np.ndarray, keys: np.ndarray | None) -> dict[str, Any]:
        """Reads, decodes, transforms and pads records, in the dtypes that this gives."""
        serialized = self._stored(numbers)
        if self._stack is None:
            return self._decode(numbers, serialized, keys)

        def where(row: int) -> str:
            return self._where(int(numbers[row]))

        if self._pads_in_graph:
            padded = self._decode(numbers, serialized, keys)
            return self._stack.checked(padded, len(numbers), where)
        return self._stack(self._records(numbers, serialized, keys), len(numbers), where)

    def _stored(self, numbers: np.ndarray) -> list[bytes]:
        """The serialized records of these numbers."""
        with self.timings.timed(READING):
            records = self._bytes.read(numbers)
        self.timings.count_read(records)
        return records

    def _where(self, number: int) -> str:
        return f"{self.subject}: {self.files.where(number)}"

    def _records(
        self, numbers: np.ndarray, serialized: list[bytes], keys: np.ndarray | None
    ) -> Iterator[dict[str, Any]]:
        """Decodes records, in as few calls as possible, and transforms each of them."""
        transform_s = 0.0
        size = len(numbers) if self.takes_many else 1
        for start in range(0, len(numbers), size or 1):
            part = slice(start, start + size)
            key = None if keys is None else keys[part]
            columns = self._decode(numbers[part], serialized[part], key, first_row=start)
            for row, number in enumerate(numbers[part]):
                if self._transform is None:
                    yield jax.tree.map(lambda column, row=row: _element(column, row), columns)
                    continue
                where = partial(self._where, number)
                own = None if key is None else key[row]
                begun = self.timings.clock()
                record = self._transform(_values(columns, row), own, where)
                transform_s += self.timings.clock() - begun
                yield record
        if transform_s:
            self.timings.add(TRANSFORM, transform_s)

    def _decode(
        self,
        numbers: np.ndarray,
        serialized: list[bytes],
        keys: np.ndarray | None,
        first_row: int = 0,
    ) -> dict[str, Any]:
        try:
            with self.timings.timed(DECODING), native_call():
                return self._decoder(serialized, keys)
        except self._decoder.errors as error:
            if len(numbers) > 1:
                # Decodes the records one by one, so that the error names the one that fails.
                for row in range(len(numbers)):
                    alone = slice(row, row + 1)
                    key = None if keys is None else keys[alone]
                    self._decode(numbers[alone], serialized[alone], key, first_row=row)
                raise refused(
                    RuntimeError,
                    self.subject,
                    "these records decode one by one, but not in one call.",
                    records=len(numbers),
                    error=reason(error),
                    fix="free memory, or use a smaller batch_size",
                ) from error
            record = int(numbers[0]), serialized[0]
            failure = decode_failure(
                self.split, self._plan, self._decoder, record, error, row=first_row
            )
            # Without `from None`, the traceback would show the record that the error quotes.
            raise failure from None if quotes_the_record(error) else error


def _element(column: np.ndarray, row: int) -> np.ndarray:
    """The array of a record, which is an element of an object array if its shape varies."""
    value = column[row]
    return value if isinstance(value, np.ndarray) else column[row, ...]


def _values(columns: dict[str, Any], row: int) -> dict[str, Any]:
    """The values of a record, for a function that may change them: scalars, texts and arrays."""

    def value(column: np.ndarray) -> Any:
        return column[row].copy() if column.ndim > 1 else column[row]

    return jax.tree.map(value, columns)
