"""Splits of 2**31 records and more: everything that numbers records, positions and epochs."""

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from grain.experimental import index_shuffle as grains
from refusals import refused
from sources import source_of

from datarax_tfds import (
    Cursor,
    Pipeline,
    TFDSEagerSource,
    audit,
    from_tfds,
    join_words,
    prefetch_to_device,
)
from datarax_tfds.order.block_order import BlockOrder
from datarax_tfds.order.cursor import Schedule
from datarax_tfds.order.keys import epoch_key
from datarax_tfds.order.order import Order
from datarax_tfds.order.sampler import BatchAt, Sampler
from datarax_tfds.order.strata import StrataOrder
from datarax_tfds.state.state import Identity, to_state

SIZES = [2**31 - 1, 2**31, 2**31 + 1, 3 * 10**9, 2**32 - 1, 2**32, 2**32 + 5, 10**15, 2**61]
STORED = 97  # records of the dataset in whose place a wide split stands
B = 24


class RepeatedFiles:
    """Files of any number of records: record n is record n % 97 of a small dataset."""

    def __init__(self, files: Any, length: int):
        self._files = files
        self._length = length

    @property
    def paths(self) -> list[Any]:
        return self._files.paths

    @property
    def requests(self) -> int:
        return self._files.requests

    def __len__(self) -> int:
        return self._length

    def build_indexes(self, *_: int) -> Iterator[Any]:
        return iter(())

    def read(self, numbers: np.ndarray) -> list[bytes]:
        assert ((numbers >= 0) & (numbers < self._length)).all()
        return self._files.read(numbers % STORED)

    def read_one(self, number: int) -> bytes:
        assert 0 <= number < self._length
        return self._files.read_one(number % STORED)

    def where(self, number: int) -> str:
        return self._files.where(number % STORED)

    def slowest(self) -> str:
        return self._files.slowest()


@pytest.fixture
def wide(data_dir, monkeypatch):
    """Makes a stream of a split that claims to have any number of records."""
    from dataclasses import replace

    from datarax_tfds import tfds_source
    from datarax_tfds.files.split import open_split
    from datarax_tfds.sources import dataset_source

    def open_wide(length: int) -> Any:
        def opened(config: Any) -> Any:
            split = open_split(config)
            files = RepeatedFiles(split.files, length)
            return replace(split, files=files, ranges=f"train[0:{length}]")

        for module in (dataset_source, tfds_source):
            monkeypatch.setattr(module, "open_split", opened)

    def make(length: int, **fields: Any) -> Any:
        open_wide(length)
        return source_of(data_dir, **{"shuffle": True, "seed": 5} | fields)

    make.opened = open_wide
    return make


def expected(length: int, epoch: int, start: int, stop: int, seed: int = 5) -> list[int]:
    """The record numbers at positions `[start, stop)`, by Grain's function."""
    key = epoch_key(seed, epoch)
    return [grains(at, max_index=length - 1, seed=key, rounds=16) for at in range(start, stop)]


def around(length: int) -> list[int]:
    """Positions at the ends of an epoch, and where a number of 31 or 32 bits would wrap."""
    near = {
        0,
        1,
        length // 2,
        length - 1,
        *(2**bits + by for bits in (31, 32) for by in (-1, 0, 1)),
    }
    return sorted(position for position in near if 0 <= position < length)


@pytest.mark.parametrize("length", SIZES)
def test_the_order_on_the_host_is_that_of_grain(length):
    order = Order(length, 5)
    for position in around(length):
        numbers = order.host_numbers(3, position, position + 1, stride=99)
        assert numbers.tolist() == expected(length, 3, position, position + 1)
        assert numbers.dtype == (np.int32 if length < 2**31 else np.int64)
    tail = order.host_numbers(3, length - 5, length)
    assert tail.tolist() == expected(length, 3, length - 5, length)


@pytest.mark.parametrize(("length", "keyed", "x64"), [
    (2**31 - 1, False, False),  # the last length of 32-bit numbers
    (2**31, False, False),
    (3 * 10**9, False, False),
    (3 * 10**9, False, True),
    (3 * 10**9, True, False),
    (2**32 + 5, False, False),
    (2**61, False, False),
])  # fmt: skip
def test_the_order_in_compiled_functions_is_that_on_the_host(length, keyed, x64):
    sampler, key = Sampler(Order(length, 5), 5), jax.random.key(7) if keyed else None

    @jax.jit
    def traced(start, key):
        batch = sampler.traced_positions(1, start, 5, key)
        return batch.epochs, batch.record_numbers()

    with jax.enable_x64(True) if x64 else nullcontext():
        for start in (*around(length), length - 3):
            epochs, numbers = traced(np.int64(start) if x64 else words(start, length), key)
            on_host = sampler.positions(1, start, 5, key).record_numbers()
            assert join_words(numbers).tolist() == on_host.tolist()
            assert epochs.tolist() == [1 + (start + row) // length for row in range(5)]
            if length >= 2**31:
                assert numbers.dtype == (np.int64 if x64 else np.uint32)


def words(number: int, length: int) -> Any:
    return np.int32(number) if length < 2**31 else np.array([number], np.int64).view(np.uint32)


@pytest.mark.parametrize("remainder", ["wrap", "drop", "pad"])
@pytest.mark.parametrize("length", [2**31 - 1, 2**31 - 20, 2**30 + 1])
def test_a_traced_cursor_moves_as_one_on_the_host_up_to_31_bits(length, remainder):
    schedule = Schedule(length, B, remainder)

    @jax.jit
    def after(epoch, index):
        cursor = schedule.after(Cursor(epoch, index))
        return cursor.epoch, cursor.index

    for back in (1, B - 1, B, B + 1, 3 * B):
        cursor = Cursor(2, length - back)
        found = Cursor(*map(int, after(jnp.int32(2), jnp.int32(cursor.index))))
        assert found == schedule.after(cursor)
        assert found.index < length


@pytest.mark.parametrize("length", SIZES)
@pytest.mark.parametrize("remainder", ["wrap", "drop", "pad"])
def test_an_epoch_ends_as_it_should(length, remainder):
    schedule = Schedule(length, B, remainder)
    steps = schedule.steps()
    assert (
        steps == {"wrap": -(-length // B), "pad": -(-length // B), "drop": length // B}[remainder]
    )
    last = Cursor(4, (steps - 1) * B)
    assert schedule.steps(last) == 1
    rest = steps * B - length if remainder == "wrap" else 0
    assert schedule.after(last) == Cursor(5, rest)


@pytest.mark.parametrize("remainder", ["wrap", "drop", "pad"])
@pytest.mark.parametrize(
    ("length", "x64"), [(2**31, False), (3 * 10**9, False), (3 * 10**9, True), (2**61, False)]
)
def test_a_stream_numbers_resumes_and_counts_its_records(wide, length, remainder, x64):
    with jax.enable_x64(True) if x64 else nullcontext():
        source = wide(length)

        def make():
            return Pipeline(
                source=source.clone(), batch_size=B, remainder=remainder, record_numbers=True
            )

        pipeline = make()
        begin = Cursor(1, length - B - 7)
        pipeline.source.seek(begin)
        rest = expected(length, 1, begin.index, length)
        following = expected(length, 2, 0, 2 * B)
        batches = {
            "wrap": [rest[:B], rest[B:] + following[: B - 7], following[B - 7 : 2 * B - 7]],
            "drop": [rest[:B], following[:B], following[B : 2 * B]],
            "pad": [rest[:B], rest[B:] + [-1] * (B - 7), following[:B]],
        }[remainder]
        states = []
        for batch in batches:
            states.append(pipeline.get_state())
            found = pipeline.step()
            assert found["record_number"].dtype == (np.int64 if x64 else np.uint32)
            numbers = join_words(found["record_number"])
            assert numbers.tolist() == batch
            real = numbers >= 0
            assert np.array_equal(np.asarray(found["id"])[real], numbers[real] % STORED)
        stats = pipeline.source.get_operation_stats()
        assert stats["skipped_count"] == (7 if remainder == "drop" else 0)
        assert stats["applied_count"] == sum(len([n for n in batch if n >= 0]) for batch in batches)
        for state, batch in zip(states, batches, strict=True):
            restored = make()
            restored.set_state(state)
            assert restored.get_state() == state
            found = next(prefetch_to_device(restored, 2))
            assert join_words(found["record_number"]).tolist() == batch
        restored.reset()
        assert restored.cursor == Cursor()
        restored.source.reset_operation_stats()
        assert restored.source.get_operation_stats() == {"applied_count": 0, "skipped_count": 0}


@pytest.mark.parametrize("strata", [None, 4])
def test_compiled_functions_take_a_stream_and_its_index_as_they_are(wide, strata):
    """Without 64-bit types, a cursor is two words on the devices, and an integer on the host."""
    length = 2**32 + 5
    source = wide(length, strata=strata)
    source.seek(Cursor(1, 2**32))
    assert source.index.get_value().tolist() == [0, 1]

    def taken(source):
        return source.get_batch(8)

    @nnx.jit
    def numbers(source):
        return source.record_indices_at(source.index.get_value(), 8)

    found = join_words(numbers(source))
    rest = expected(length, 1, 2**32, length), expected(length, 2, 0, 3)
    if strata is not None:
        order = StrataOrder(length, 5, strata)
        rest = order.host_numbers(1, 2**32, length), order.host_numbers(2, 0, 3)
    assert found.tolist() == [*rest[0], *rest[1]]
    assert join_words(source.record_indices_at(2**32, 8)).tolist() == found.tolist()
    at_index = source.record_indices_at(source.index.get_value(), 8)
    assert join_words(at_index).tolist() == found.tolist()
    assert source.cursor == Cursor(1, 2**32)
    nnx.jit(lambda source: source.reset())(source)
    assert source.cursor == Cursor()
    assert source.get_operation_stats() == {"applied_count": 0, "skipped_count": 0}
    pipeline = Pipeline(source=source, batch_size=B, remainder="drop")
    for wanted in (lambda: nnx.jit(Pipeline.step)(pipeline), lambda: nnx.jit(taken)(source)):
        with pytest.raises(NotImplementedError, match=r"compiled function(.|\n)*fix:"):
            wanted()
    graphdef, state = nnx.split(source)
    assert nnx.merge(graphdef, state).cursor == source.cursor


def test_a_transfer_guard_does_not_cut_the_cursor(wide):
    source = wide(3 * 10**9)
    pipeline = Pipeline(source=source, batch_size=B, record_numbers=True)
    source.seek(Cursor(0, 2**31 - B))
    with jax.transfer_guard("disallow"):
        batches = [pipeline.step()["record_number"] for _ in range(2)]
    assert source.cursor == Cursor(0, 2**31 + B)
    numbers = [number for batch in batches for number in join_words(batch).tolist()]
    assert numbers == expected(3 * 10**9, 0, 2**31 - B, 2**31 + B)


def test_records_are_taken_by_numbers_of_any_size(wide):
    length = 3 * 10**9
    source = wide(length)
    numbers = np.array([0, 2**31 - 1, 2**31, length - 1])
    taken = source.get_records(numbers)
    assert np.asarray(taken["id"]).tolist() == (numbers % STORED).tolist()
    again = source.get_records(numbers[:, None].view(np.uint32))
    assert np.array_equal(again["id"], taken["id"])
    assert int(source[length - 1]["id"]) == int(source[-1]["id"]) == (length - 1) % STORED
    with refused(IndexError, "no such record"):
        source.get_records([length])


def test_an_eager_source_has_fewer_than_2_31_records(wide, data_dir):
    fields = {"name": "tiny", "split": "train", "data_dir": str(data_dir)}
    wide.opened(2**31)
    with refused(ValueError, "fewer than 2"):
        source_of(data_dir, TFDSEagerSource)
    chosen = from_tfds(**fields)
    assert chosen.choice == "streaming, since the records are 2**31 or more"
    with refused(ValueError, "fewer than 2"):
        chosen.collect_to_array()


@pytest.mark.parametrize("order", [Order, lambda length: BlockOrder(length, 5, 8, 32)])
def test_more_records_than_there_are_keys_are_refused(order):
    with refused(ValueError, "at most 2"):
        order(2**61 + 1)


@pytest.mark.parametrize("length", SIZES)
def test_blocks_are_dealt_out_once_wherever_they_lie(length):
    order = BlockOrder(length, 5, 1000, 4000)
    assert BlockOrder.of_version(order.version, length, 5) == order
    for start in (0, 2**31 - 4000, length - 8000):
        if not 0 <= start < length:
            continue
        numbers = order.host_numbers(1, start, min(start + 8000, length))
        assert len(np.unique(numbers)) == len(numbers)
        assert 0 <= numbers.min() <= numbers.max() < length
        blocks = np.unique(numbers // 1000)
        assert len(blocks) <= 12  # three windows hold the positions


def log_of(name: str, length: int, remainder: str, size: int, cursor: Cursor, steps: int) -> Any:
    """The lines of a run, each with the numbers of a few rows of its batch, and its end."""
    order = Order(length, 5)
    identity = Identity(
        dataset="model/1.0.0", split=f"train[0:{length}]", records=length, fingerprint="0",
        features="0", shuffle=True, seed=5, remainder=remainder, order=order.version,
    )  # fmt: skip
    lines = [{"begins": {"format": 1, "batch_size": size, "state": to_state(cursor, identity)}}]
    schedule = Schedule(length, size, remainder)
    for _ in range(steps):
        batch = BatchAt(order, schedule, cursor, seed=5)
        rows = batch.record_numbers(slice(0, 3)).tolist()
        cursor = schedule.after(cursor)
        lines.append({"at": [cursor.epoch, cursor.index], "rows": [[0, rows]]})
    return [json.dumps({"run": name} | line) for line in lines], cursor


@pytest.mark.parametrize("remainder", ["wrap", "drop", "pad"])
@pytest.mark.parametrize("length", [3 * 10**9, 2**32 + 5])
def test_an_audit_takes_memory_for_batches_and_not_for_records(length, remainder):
    size = 40_000_001
    first, end = log_of("first", length, remainder, size, Cursor(), 2 * length // size)
    again, _ = log_of("again", length, remainder, size, end, 3)
    assert audit(first, again).sound
    tracemalloc.start()
    try:
        found = audit(first, first, first)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.sound, found
    assert found.reached == end
    assert end.epoch >= 1
    assert sum(span.stop - span.start for span in found.left_out) == (
        end.epoch * (length % size) if remainder == "drop" else 0
    )
    assert peak < 20 << 20  # the records would need gigabytes


def test_an_audit_names_what_is_lost_twice_or_wrong_beyond_31_bits():
    length, size = 3 * 10**9, 10**8
    first, end = log_of("first", length, "wrap", size, Cursor(), 25)
    beyond = Cursor(0, end.index + size)
    lost, _ = log_of("later", length, "wrap", size, beyond, 2)
    found = audit(first, lost)
    assert found.lost == ((0, end.index, beyond.index),)
    assert found.numbers(found.lost[0]._replace(stop=end.index + 2)) == expected(
        length, 0, end.index, end.index + 2
    )
    wrong = [json.loads(line) for line in first]
    wrong[24]["rows"][0][1][2] -= 2**32  # as if it had been cut to 32 bits
    assert len(audit([json.dumps(line) for line in wrong]).wrong) == 1
