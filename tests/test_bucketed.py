"""Batches of a few lengths keep what every source promises, and are as short as can be."""

import json

import contract
import jax
import numpy as np
import pytest
import ragged_records
from contract import equal
from oracle import numbers_of_epochs
from ragged_records import LENGTHS, SIZES, N, bucket
from refusals import refused
from sources import source_of
from test_audit import audited

from datarax_tfds import (
    BucketedSource,
    CursorLog,
    MixtureSource,
    Pipeline,
    StateMismatchError,
    evaluate,
    prefetch_to_device,
)
from datarax_tfds.cli import main
from datarax_tfds.order.block_order import BlockOrder

SIZE = 8
BOTH = {"tokens": LENGTHS, "pairs": LENGTHS}
ALONE = {"tokens": LENGTHS}


def doubled(record):
    return {"id": record["id"], "tokens": np.repeat(record["tokens"], 2)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ragged")
    ragged_records.write(directory)
    return directory


@pytest.fixture(scope="module")
def bucketed(directory):
    """Makes a bucketed source at its beginning."""
    made = {}

    def make(lengths=BOTH, mesh="one device", stream=None, **fields):
        keys = {"include_keys": {"id", *lengths}}
        fields = {"run": SIZE, "shuffle": True, "seed": 5} | fields
        stream = {"name": "ragged"} | keys | (stream or {})
        key = repr((lengths, mesh, stream, fields))
        if key not in made:
            made[key] = BucketedSource(source_of(directory, mesh=mesh, **stream), lengths, **fields)
        return made[key].clone()

    return make


BLOCKS = {"access": "sequential", "block_size": 4, "shuffle_buffer_size": 16}

# The lengths, the mesh, fields of the stream, and of the source.
KINDS = {
    "shuffled": (BOTH, "one device", {}, {}),
    "stored": (ALONE, "8 devices, permuted", {"prefetch_buffer": 0}, {"shuffle": False}),
    "replicas": (BOTH, "4 x 2, replicas", {"cacheable": True}, {"remainder": "drop"}),
    "blocks": (ALONE, "8 devices, explicit axes", BLOCKS, {}),
}


@pytest.fixture(params=list(KINDS))
def source(request, bucketed):
    lengths, mesh, stream, fields = KINDS[request.param]
    return bucketed(lengths, mesh, stream, **fields)


def on_host(batch):
    return jax.tree.map(np.asarray, batch)


def check(batch, numbers):
    """A batch has these records, with the smallest length that holds all of them."""
    batch, length = on_host(batch), LENGTHS[max(map(bucket, numbers))]
    assert batch["id"].tolist() == numbers
    assert batch["tokens"].shape[1] == length
    parts = {"tokens": batch["tokens"], **batch.get("pairs", {})}
    for row, number in enumerate(numbers):
        wanted = ragged_records.padded(number, length)
        assert batch["tokens_length"][row] == SIZES[number]
        assert all(np.array_equal(x[row], wanted[name]) for name, x in parts.items()), number


class TestContract:
    def test_batches_are_those_of_the_order_and_as_short_as_can_be(self, source):
        assert len(source) == N
        wanted = numbers_of_epochs(source.sampler.order, 3).tolist()
        assert [sorted(wanted[at : at + N]) for at in (0, N, 2 * N)] == [[*range(N)]] * 3
        if not source.is_random_order:
            by_bucket = [[n for n in wanted[:N] if bucket(n) == b] for b in range(len(LENGTHS))]
            assert all(each[: -2 * SIZE] == sorted(each[: -2 * SIZE]) for each in by_bucket)
        for step in range(2 * N // SIZE):  # also over the end of an epoch
            check(source.get_batch(SIZE), wanted[step * SIZE : (step + 1) * SIZE])

    def test_all_ways_of_reading_agree(self, source):
        looped = iter(Pipeline(source=source.clone(), batch_size=SIZE))
        ahead = prefetch_to_device(Pipeline(source=source.clone(), batch_size=SIZE), 2)
        singly = iter(source.clone())
        for step in range(3):
            batch = on_host(source.get_batch(SIZE))
            assert equal(source.get_batch_at(step * SIZE, SIZE), batch)
            assert equal(next(looped), batch)
            assert equal(next(ahead), batch)
            for row, number in enumerate(batch["id"].tolist()):
                one, size = next(singly), LENGTHS[bucket(number)]
                assert one["id"] == number
                assert one["tokens"].shape == (size,)
                assert np.array_equal(one["tokens"], batch["tokens"][row, :size])
        assert source[4]["tokens"].shape == (LENGTHS[2],)
        check(source.get_records([0, 1, 6, 2] * 2), [0, 1, 6, 2] * 2)
        everything = source.collect_to_array()
        assert np.array_equal(everything["id"][:N], np.arange(N))
        assert everything["tokens"].shape[1:] == LENGTHS[-1:]

    @pytest.mark.parametrize(("remainder", "prefetch"), [("pad", None), ("wrap", 2)])
    def test_a_pipeline_resumes_after_every_batch(self, bucketed, remainder, prefetch):
        source = bucketed(mesh="8 devices", remainder=remainder)

        def make():
            options = {"batch_size": SIZE, "remainder": remainder, "record_numbers": True}
            return Pipeline(source=source.clone(), **options)

        contract.check_resume_after_every_batch(make, prefetch)

    def test_the_audit_proves_that_each_record_comes_once_over_resumes_with_other_sizes(
        self, source, tmp_path, capsys
    ):
        state, seen = None, []
        for size, steps in ((8, 5), (16, 2), (24, 6)):
            pipeline = Pipeline(source=source.clone(), batch_size=size, record_numbers=True)
            if state is not None:
                pipeline.set_state(state)
            log = CursorLog(tmp_path / "log", pipeline)
            for _ in range(steps):
                batch = pipeline.step()
                assert batch["id"].tolist() == batch["record_number"].tolist()
                log.note(batch["record_number"])
                seen += batch["id"].tolist()
            state = pipeline.get_state()
            assert len(json.dumps(state)) < 2048
        assert sorted(seen[:N]) == list(range(N))
        assert seen == numbers_of_epochs(source.sampler.order, 3).tolist()[: len(seen)]
        assert audited(tmp_path / "log").sound
        main(["audit", str(tmp_path / "log")])
        assert "each record was delivered once" in capsys.readouterr().out


def test_a_log_with_damaged_or_other_buckets_is_refused(bucketed, tmp_path):
    log = CursorLog(tmp_path / "log", Pipeline(source=bucketed(), batch_size=SIZE))
    log.flush()
    line = json.loads((tmp_path / "log").read_text())
    others = bucketed({"tokens": (5, 20)}).sampler.order.buckets.written()
    for text in (others, others[:-8], "no", None):
        line["begins"]["parts"] = [[text]]
        (tmp_path / "log").write_text(json.dumps(line) + "\n")
        with refused(ValueError, "the line is not of a log of cursors"):
            audited(tmp_path / "log")


def test_a_stage_is_compiled_once_for_each_of_the_lengths(bucketed):
    lengths = []

    def stage(batch):
        lengths.append(batch["tokens"].shape[1])
        return batch | {"sum": batch["tokens"].sum(axis=1)}

    source = bucketed()
    for batch in Pipeline(source=source, stages=[stage], batch_size=SIZE).steps(3 * N // SIZE):
        assert batch["sum"].shape == (SIZE,)
    assert sorted(lengths) == list(LENGTHS)
    specs = source.element_specs()
    assert [spec["tokens"].shape for spec in specs] == [(length,) for length in LENGTHS]
    assert [spec["pairs"]["right"].shape for spec in specs] == [(x, 2) for x in LENGTHS]
    assert specs[-1] == source.element_spec()


def test_what_is_known_of_the_buckets(bucketed):
    source = bucketed()
    sizes = tuple(sum(bucket(n) == b for n in range(N)) for b in range(len(LENGTHS)))
    assert source.bucket_sizes == sizes
    padded = sum(size * length for size, length in zip(sizes, LENGTHS, strict=True))
    assert source.padding == pytest.approx(1 - sum(SIZES) / padded)


def test_an_evaluation_reads_each_record_once_whatever_its_length(bucketed):
    pipeline = Pipeline(source=bucketed(), batch_size=16)
    found = evaluate(pipeline, lambda batch: {"tokens": batch["tokens_length"]})
    assert found.records == N
    assert found.sums == {"tokens": sum(SIZES)}


def test_a_batch_size_may_grow(bucketed):
    seen = []
    sizes = [(0, 4), (40, 8)]
    for batch in Pipeline(source=bucketed(), batch_size=sizes, remainder="drop"):
        check(batch, batch["id"].tolist())
        seen += batch["id"].tolist()
    assert len(set(seen)) == len(seen) == N // 8 * 8


def test_several_features_have_lengths_of_their_own(bucketed):
    lengths = {"target": (3, 6, 10), "tokens": LENGTHS}
    for batch in Pipeline(source=bucketed(lengths), batch_size=SIZE):
        numbers = batch["id"].tolist()
        targets = [3 * n % 11 for n in numbers]
        need = max(max(map(bucket, numbers)), sum(max(targets) > x for x in lengths["target"]))
        shapes = batch["tokens"].shape[1], batch["target"].shape[1]
        assert shapes == (LENGTHS[need], lengths["target"][need])
        assert batch["target_length"].tolist() == targets


def test_a_filter_leaves_only_records_that_it_keeps(bucketed):
    keep = {"filter_fn": lambda record: record["id"] % 3 == 1}
    source = bucketed(ALONE, stream=keep)
    kept = list(range(1, N, 3))
    assert len(source) == len(kept)
    found = [i for b in Pipeline(source=source, batch_size=4, remainder="pad") for i in b["id"]]
    assert sorted(map(int, found))[-len(kept) :] == kept


def test_features_may_stay_on_the_host(bucketed):
    source = bucketed(stream={"host_keys": {"id"}})
    pipeline, seen = Pipeline(source=source, batch_size=SIZE), []
    for batch in prefetch_to_device(pipeline, 2):
        on_devices = jax.tree.map(lambda column: isinstance(column, jax.Array), batch)
        assert not on_devices["id"]
        assert all(jax.tree.leaves([on_devices["tokens"], on_devices["pairs"]]))
        check(batch, batch["id"].tolist())
        seen += batch["id"].tolist()
    assert set(seen) == set(range(N))


def test_what_is_longer_is_cut_if_asked(bucketed):
    source = bucketed({"tokens": (4, 8)}, truncate=True)
    for batch in map(on_host, Pipeline(source=source, batch_size=SIZE)):
        length = batch["tokens"].shape[1]
        for row, number in enumerate(batch["id"].tolist()):
            assert batch["tokens_length"][row] == min(SIZES[number], 8)
            kept = ragged_records.record(number)["tokens"][:length]
            assert np.array_equal(batch["tokens"][row, : len(kept)], kept)
    whole = bucketed({"tokens": (4, 8, 20)})
    with refused(StateMismatchError, "differ in features, order"):
        whole.set_state(source.get_state())


class TestIndexOfLengths:
    def test_the_lengths_of_what_a_function_returns_are_counted_once(self, directory):
        calls = []

        def transform(record):
            calls.append(1)
            return doubled(record)

        def build():
            calls.clear()
            stream = source_of(directory, name="ragged", transform=transform)
            return BucketedSource(stream, {"tokens": (10, 40)}, run=4)

        source = build()
        assert len(calls) >= N
        assert len(list((directory / "ragged" / "1.0.0" / ".record_lengths").glob("*/*"))) >= 1
        again = build()
        assert len(calls) < 10
        assert again.bucket_sizes == source.bucket_sizes
        batch = again.get_batch(4)
        assert batch["tokens_length"].tolist() == [2 * SIZES[n] for n in batch["id"].tolist()]

    def test_a_function_of_unknown_code_does_not_share_the_lengths_of_the_split(self, directory):
        def changed(transform=None):
            fields = {"include_keys": {"id", "tokens"}} if transform is None else {}
            fields |= {"transform": transform, "allow_stateful_map_fn": transform is not None}
            stream = source_of(directory, name="ragged", **fields)
            return BucketedSource(stream, {"tokens": (10, 40)}, run=4)

        once, twice = changed(), changed(doubled)
        sizes = np.array(SIZES)
        assert once.bucket_sizes[0] == (sizes <= 10).sum()
        assert twice.bucket_sizes[0] == (sizes <= 5).sum()

    def test_a_corrupt_record_is_in_the_bucket_of_the_record_that_replaces_it(self, tmp_path):
        ragged_records.write(tmp_path)
        path = min(tmp_path.glob("ragged/1.0.0/*.tfrecord*"))
        content = bytearray(path.read_bytes())
        content[200] ^= 1
        path.write_bytes(content)
        fields = {"include_keys": {"id", "tokens"}, "max_corrupt_records": 1}
        source = BucketedSource(source_of(tmp_path, name="ragged", **fields), ALONE, run=4)
        source.collect_to_array()
        ((corrupt, other),) = source.corrupt_records.items()
        columns = on_host(source.get_records([corrupt, other]))
        assert columns["id"].tolist() == [other, other]
        assert columns["tokens"].shape == (2, LENGTHS[bucket(other)])
        assert sum(source.bucket_sizes) == N

    def test_a_record_that_is_longer_than_when_it_was_counted_is_named(self, directory):
        factor = {"is": 1}

        class Changing:
            def map(self, record):
                return record | {"tokens": np.repeat(record["tokens"], factor["is"])}

        fields = {"include_keys": {"id", "tokens"}, "allow_stateful_map_fn": True}
        stream = source_of(directory, name="ragged", transform=Changing(), **fields)
        source = BucketedSource(stream, ALONE, run=4, shuffle=False, truncate=True)
        factor["is"] = 3
        with refused(ValueError, r"another length than when(.|\n)*record: +(?!0:)\d+:.*ragged"):
            source.get_batch(40)


# What is asked for, and what the error says.
BAD = {
    "nothing": ({}, "lengths must have the lengths of the buckets"),
    "no dict": ((64, 128), "lengths must have the lengths of the buckets"),
    "no name": ({5: (64, 128)}, "lengths must have the lengths of the buckets"),
    "none": ({"tokens": ()}, "must be 1 to 64 positive integers"),
    "not ascending": ({"tokens": (8, 4, 20)}, r"use lengths={'tokens': \(4, 8, 20\)}"),
    "twice the same": ({"tokens": (4, 4, 20)}, r"use lengths={'tokens': \(4, 20\)}"),
    "zero": ({"tokens": (0, 20)}, r"use lengths={'tokens': \(20,\)}"),
    "no integer": ({"tokens": (2.5, 20)}, r"use lengths={'tokens': \(20,\)}"),
    "one number": ({"tokens": 20}, r"use lengths={'tokens': \(20,\)}"),
    "too many": ({"tokens": tuple(range(1, 80))}, "79 of them"),
    "fewer of one": ({"tokens": (4, 20), "target": (20,)}, "equally many lengths"),
    "unknown": ({"tokns": (20,)}, "use 'tokens' in place of 'tokns'"),
    "one number a record": ({"id": (20,)}, "feature 'id' must vary in its first axis"),
    "one shape": ({"pair": (20,)}, "lengths must name features of a record, got 'pair'"),
    "too long": ({"tokens": (4, 8)}, rf"\n  first: +4: .*(.|\n)*\(4, {max(SIZES)}\)"),
}


@pytest.mark.parametrize(("lengths", "message"), BAD.values(), ids=BAD)
def test_lengths_that_cannot_be_are_refused(bucketed, lengths, message):
    kind = TypeError if lengths in ((64, 128), {5: (64, 128)}) else ValueError
    with refused(kind, message):
        bucketed(lengths, stream={"include_keys": {"id", "tokens", "target"}})


def test_it_is_no_part_of_a_mixture_and_in_no_compiled_function(bucketed):
    source = bucketed()
    with refused(TypeError, "in place of a BucketedSource, pass a stream with pad_to"):
        MixtureSource({"one": source}, {"one": 1})
    for call in (source.get_batch_at, source.record_indices_at):
        with refused(NotImplementedError, "cannot be computed within a compiled function"):
            jax.jit(lambda start, call=call: call(start, SIZE))(0)
    with refused(NotImplementedError, "cannot be read within a compiled function"):
        Pipeline(source=source, batch_size=SIZE).scan(lambda batch: batch["id"], length=2)


def test_blocks_are_read_by_blocks(bucketed):
    lengths, mesh, stream, fields = KINDS["blocks"]
    order = bucketed(lengths, mesh, stream, **fields).sampler.order
    assert isinstance(order.base, BlockOrder)
    assert order.window == 16 * SIZE
