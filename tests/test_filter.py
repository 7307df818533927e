"""A filtered source keeps what every source promises, over the records that the filter keeps."""

import json
import shutil

import contract
import jax
import jax.numpy as jnp
import numpy as np
import object_servers
import pytest
from checkout import run
from contract import KEPT, N, check_records, equal, ids, some_labels
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from oracle import mixed
from refusals import refused
from sources import source_of
from test_audit import audited

from datarax_tfds import (
    CursorLog,
    DataLossError,
    MixtureSource,
    PackedSource,
    Pipeline,
    StateMismatchError,
    TFDSEagerSource,
    TFDSStreamingSource,
    from_tfds,
    prefetch_to_device,
)
from datarax_tfds.files.kept_records import KeptRecords
from datarax_tfds.order.block_order import BlockOrder
from datarax_tfds.order.order import Order
from datarax_tfds.order.strata import StrataOrder

SIZE = 24
K = len(KEPT)


# What kind of source, on which mesh, and how it is filtered and ordered.
SOURCES = {
    "eager": (TFDSEagerSource, "one device", {}),
    "eager, in Python": (TFDSEagerSource, "one device", {"filter_with": "numpy"}),
    "eager, sharded": (TFDSEagerSource, "8 devices, explicit axes", {"layout": "sharded"}),
    "eager, strata": (TFDSEagerSource, "8 devices", {"layout": "sharded", "strata": 8}),
    "stream": (TFDSStreamingSource, "one device", {}),
    "stream, replicas": (TFDSStreamingSource, "4 x 2, replicas", {"name": "tiny_array"}),
    "stream, uneven files": (TFDSStreamingSource, "8 devices, permuted", {"name": "tiny_uneven"}),
    "stream, blocks": (
        TFDSStreamingSource,
        "8 devices",
        {"access": "sequential", "shuffle_buffer_size": 30},
    ),
}


def order_of(name):
    if "blocks" in name:
        return BlockOrder(K, 5, 8, 30)
    return StrataOrder(K, 5, 8) if "strata" in name else Order(K, 5)


def expected(name, count):
    epochs = -(-count // K)
    numbers = np.concatenate([order_of(name).host_numbers(e, 0, K) for e in range(epochs)])
    return np.array(KEPT)[numbers[:count]].tolist()


@pytest.fixture(scope="module")
def filtered(data_dir):
    """Makes a filtered source at its beginning."""
    made = {}

    def make(name, **others):
        kind, mesh, fields = SOURCES[name]
        fields = {"shuffle": True, "seed": 5, "filter_fn": some_labels} | fields | others
        key = (name, *others)
        if key not in made:
            made[key] = source_of(data_dir, kind, mesh, **fields)
        return made[key].clone()

    return make


@pytest.fixture(params=list(SOURCES))
def name(request):
    return request.param


@pytest.fixture
def own_copy(data_dir, tmp_path):
    """A copy of a dataset, without the indexes that other tests left."""
    for name in ("tiny", "tiny_array"):
        shutil.copytree(data_dir / name, tmp_path / name)
        shutil.rmtree(tmp_path / name / "1.0.0" / ".record_index", ignore_errors=True)
    return tmp_path


class Noting:
    """A filter in Python that notes which records it is asked about."""

    def __init__(self, labels=(1, 3, 4)):
        self.asked = []
        self._labels = labels

    def __call__(self, record):
        self.asked.append(int(record["id"]))
        return record["label"] in self._labels

    def source(self, data_dir, **fields):
        """A filtered stream, and how often the filter was asked for it."""
        self.asked.clear()
        fields = {"filter_fn": self, "filter_with": "numpy", "filter_name": "labels"} | fields
        return source_of(data_dir, **fields), len(self.asked)


class TestKeptRecords:
    @given(
        records=st.integers(1, 3000),
        share=st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_the_numbers_are_those_of_a_table(self, records, share, seed):
        kept = np.random.default_rng(seed).random(records) < share
        found = KeptRecords(np.packbits(kept, bitorder="little"), records)
        table = np.flatnonzero(kept)
        assert len(found) == len(table)
        assert np.array_equal(found.stored_numbers(np.arange(len(table))), table)
        assert np.array_equal(np.unpackbits(found.bits, count=records, bitorder="little"), kept)

    def test_the_digest_of_a_set_stays_as_it_is(self):
        """It is part of every state of a filtered source."""
        kept = np.arange(97) % 7 == 3
        found = KeptRecords(np.packbits(kept, bitorder="little"), 97)
        assert found.digest == "9a2b28d5c487ced7"

    def test_many_records_take_little_memory_and_are_found_at_once(self):
        records = 40_000_000
        kept = KeptRecords(np.full(records // 8, 0b00100001, np.uint8), records)
        assert len(kept) == records // 4
        numbers = np.array([0, 1, 2, len(kept) // 2, len(kept) - 2, len(kept) - 1])
        table = [0, 5, 8, records // 2, records - 8, records - 3]
        assert kept.stored_numbers(numbers).tolist() == table
        arrays = [value for value in vars(kept).values() if isinstance(value, np.ndarray)]
        assert sum(array.nbytes for array in arrays) * 8 < 1.13 * records  # bits for each record


class TestContract:
    def test_batches_are_those_of_the_order_over_the_kept_records(self, filtered, name):
        source = filtered(name)
        assert len(source) == source.sampler.order.records == K
        assert len(Pipeline(source=source, batch_size=SIZE)) == -(-K // SIZE)
        assert source.stored_numbers(np.arange(K)).tolist() == KEPT
        served = []
        if "strata" in name:
            for batch in Pipeline(source=source, batch_size=8, remainder="pad"):
                served += np.asarray(batch["id"])[np.asarray(batch["mask"])].tolist()
            assert sorted(served) == KEPT
            return
        for _ in range(5):  # two epochs and more
            batch = source.get_batch(SIZE)
            check_records(batch)
            served += ids(batch)
        assert served == expected(name, 5 * SIZE)

    @pytest.mark.parametrize("name", ["eager, sharded", "stream, replicas", "stream, blocks"])
    def test_all_ways_of_reading_agree(self, filtered, name):
        source, stepped, size = filtered(name), filtered(name), 16
        prefetched = prefetch_to_device(Pipeline(source=filtered(name), batch_size=size), 3)
        batches = [source.get_batch(size) for _ in range(3)]
        for step, batch in enumerate(batches):
            assert equal(next(prefetched), batch)
            assert equal(filtered(name).get_batch_at(step * size, size), batch)
        if source.supports_indexed_access():
            in_program = nnx.jit(lambda source: source.get_batch(size))
            for batch in batches:
                assert equal(in_program(stepped), batch)
            at = jax.jit(lambda start: filtered(name).get_batch_at(start, size))
            assert ids(at(size)) == ids(batches[1])
            scanned = Pipeline(source=filtered(name), batch_size=size)
            found = scanned.scan(lambda batch: batch["id"], length=3)
            assert np.asarray(found).tolist() == list(map(ids, batches))
        everything = source.collect_to_array()
        assert np.asarray(everything["id"])[:K].tolist() == KEPT
        assert [int(source[number]["id"]) for number in (0, 5, -1)] == [KEPT[0], KEPT[5], KEPT[-1]]
        check_records(source.get_records(np.arange(8) * 5))

    @pytest.mark.parametrize("prefetch", [None, 2])
    @pytest.mark.parametrize("kind", ["eager, sharded", "stream", "stream, blocks"])
    def test_a_pipeline_resumes_after_every_batch(self, filtered, kind, prefetch):
        def make():
            return Pipeline(source=filtered(kind), batch_size=16, remainder="pad")

        contract.check_resume_after_every_batch(make, prefetch)

    @pytest.mark.parametrize("kind", ["eager", "stream, blocks"])
    def test_the_audit_proves_that_each_kept_record_came_once(self, filtered, kind, tmp_path):
        pipeline = Pipeline(source=filtered(kind), batch_size=16, record_numbers=True)
        log = CursorLog(tmp_path / "log", pipeline)
        for _ in range(6):
            batch = pipeline.step()
            numbers = np.asarray(batch["record_number"])
            assert pipeline.source.stored_numbers(numbers).tolist() == ids(batch)
            log.note(batch["record_number"])
        found = audited(tmp_path / "log")
        assert found.sound
        assert found.reached.epoch == 2
        assert "each record was delivered once" in str(found)

    def test_a_mixture_of_filtered_parts(self, data_dir, filtered):
        parts = {
            "some": filtered("eager"),
            "others": source_of(data_dir, shuffle=True, seed=5, filter_fn=others, split="train"),
        }
        source = MixtureSource(parts, {"some": 0.7, "others": 0.3})
        assert len(source) == N
        left = [number for number in range(N) if number not in KEPT]
        numbers = {"some": KEPT, "others": left}
        orders = {"some": Order(K, 5), "others": Order(N - K, 5)}
        drawn = mixed([(0, {"some": 7, "others": 3})], orders, 4 * SIZE)
        want = [numbers[part][number] for part, number in drawn]
        assert [n for _ in range(4) for n in ids(source.get_batch(SIZE))] == want
        state = source.get_state()
        again = MixtureSource(parts, {"some": 0.7, "others": 0.3})
        again.set_state(state)
        assert equal(again.get_batch(SIZE), source.get_batch(SIZE))
        unfiltered = parts | {"some": source_of(data_dir, shuffle=True, seed=5)}
        with refused(StateMismatchError, "the part 'some'"):
            MixtureSource(unfiltered, source.weights, epoch_records=N).set_state(state)

    def test_packed_text_of_the_kept_documents(self, data_dir):
        fields = {"name": "text", "filter_fn": lambda record: record["label"] >= 2}
        source = PackedSource(
            source_of(data_dir, **fields),
            feature="text",
            encode=lambda text: [*text.encode()],
            length=8,
        )
        rows = np.asarray(source.get_batch(3)["tokens"]).tolist()
        assert [bytes(row) for row in rows] == [b"number 2", b"number 3", b"number 4"]
        assert len(source) == 3


def others(record):
    return ~some_labels(record)


class TestFunctions:
    def test_the_filter_gets_what_map_fn_gets(self, data_dir):
        """Features that the batches do not have, and text, which no batch can have."""

        def mapped(record):
            return {"label": record["label"] + jnp.int32(0).item()}

        fields = {"name": "text", "map_fn": mapped}
        in_graph = lambda record: len_of(record["text"]) > 7 - record["label"]
        one = source_of(data_dir, filter_fn=in_graph, **fields)
        assert np.asarray(one.get_batch(len(one))["label"]).tolist() == [0, 1, 2, 3, 4]

        def in_python(record):
            assert record["photo"].shape == (record["label"] + 1, 2, 3)
            assert record["wide"].dtype == np.int64
            return record["text"].endswith((b"1", b"4"))

        other = source_of(data_dir, filter_fn=in_python, filter_with="numpy", **fields)
        assert np.asarray(other.get_batch(2)["label"]).tolist() == [1, 4]

    def test_features_that_the_filter_does_not_use_are_not_decoded(self, own_copy):
        """An image that cannot be decoded is no error of a filter by label."""
        path = next((own_copy / "tiny" / "1.0.0").glob("*train*00000-of*"))
        rewrite(path, lambda record: record.replace(b"IHDR", b"XXXX"), places=[3])
        fields = {"split": "train[:20]", "include_keys": {"id", "label", "image"}}
        assert len(source_of(own_copy, filter_fn=some_labels, **fields)) == 9
        with refused(DataLossError, "a record cannot be decoded"):
            source_of(own_copy, filter_fn=bright, **fields)

    def test_corrupt_records_are_left_out_as_far_as_that_is_allowed(self, own_copy):
        path = next((own_copy / "tiny" / "1.0.0").glob("*train*00001-of*"))
        rewrite(path, lambda record: b"\xff" * 20, places=[0, 3])  # records 24 and 27
        with refused(DataLossError, "a record cannot be decoded"):
            source_of(own_copy, filter_fn=any_label, max_corrupt_records=1)
        for _ in range(2):
            source = source_of(own_copy, filter_fn=any_label, max_corrupt_records=2)
            kept = source.stored_numbers(np.arange(len(source))).tolist()
            assert kept == [number for number in range(N) if number not in (24, 27)]
        assert source.corrupt_records == {}
        assert not list(own_copy.glob("tiny/1.0.0/.record_index/kept-*"))  # it may be mended

    def test_from_tfds_chooses_by_what_is_kept(self, data_dir):
        fields = {"data_dir": str(data_dir), "filter_fn": some_labels, "seed": 5, "shuffle": True}
        source = from_tfds("tiny", "train", **fields)
        assert f"{K * (60 + 8):,} bytes of records" in source.choice
        assert ids(source.get_batch(SIZE)) == expected("eager", SIZE)

    def test_a_copy_with_another_filter_begins_anew(self, filtered):
        import dataclasses

        source = filtered("stream")
        source.get_batch(8)
        assert source.copy(name="other").cursor == source.cursor
        other = source.copy(config=dataclasses.replace(source.config, filter_fn=others))
        assert (len(other), other.cursor.index) == (N - K, 0)


def len_of(text):
    import tensorflow as tf

    return tf.cast(tf.strings.length(text), tf.int64)


def bright(record):
    import tensorflow as tf

    return tf.reduce_mean(tf.cast(record["image"], tf.float32)) > 0


def any_label(record):
    return record["label"] >= 0


def rewrite(path, change, places=None):
    """Writes a TFRecord file anew, with some or all of its records changed."""
    import tensorflow as tf

    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for place, record in enumerate(records):
            writer.write(change(record) if places is None or place in places else record)


class TestState:
    def test_the_state_is_small_and_passes_from_one_kind_of_source_to_the_other(self, filtered):
        source, other = filtered("eager, in Python"), filtered("stream")
        source.get_batch(SIZE)
        state = json.loads(json.dumps(source.get_state()))
        assert len(json.dumps(state)) < 2048
        other.set_state(state)
        assert ids(other.get_batch(30)) == expected("stream", SIZE + 30)[SIZE:]

    def test_a_state_of_another_filter_is_refused(self, data_dir, filtered):
        state = filtered("stream").get_state()
        for function, fix in ((others, "the filter_fn of that run"), (None, "the filter_fn")):
            with refused(StateMismatchError, "fingerprint") as said:
                source_of(data_dir, shuffle=True, seed=5, filter_fn=function).set_state(state)
            assert fix in str(said.value)
        whole = source_of(data_dir, shuffle=True, seed=5)
        with refused(StateMismatchError, "with no filter_fn"):
            filtered("stream").set_state(whole.get_state())

    def test_a_changed_function_that_keeps_the_same_records_is_no_other_filter(
        self, data_dir, filtered
    ):
        state = filtered("stream").get_state()
        same = source_of(data_dir, shuffle=True, seed=5, filter_fn=lambda r: ~others(r))
        same.set_state(state)


class TestIndex:
    def test_a_filter_is_evaluated_once(self, own_copy):
        filter_fn = Noting()
        source, asked = filter_fn.source(own_copy)
        assert (len(source), asked) == (K, N + 16)  # the first 16 twice
        again, asked = filter_fn.source(own_copy, shuffle=True, include_keys={"id", "label"})
        assert asked == 0
        assert again.stored_numbers(np.arange(K)).tolist() == KEPT
        assert filter_fn.source(own_copy, filter_name="other")[1] == N + 16
        assert filter_fn.source(own_copy, split="train[:40]")[1] == 40 + 16
        assert filter_fn.source(own_copy, name="tiny_array")[1] == N + 16
        for _ in range(2):  # without a name, nobody knows whether the function is the same
            assert filter_fn.source(own_copy, filter_name=None)[1] == N + 16

    def test_the_code_of_a_function_of_tensors_is_its_name(self, own_copy):
        def indexes():
            return {path.name for path in own_copy.glob("tiny/1.0.0/.record_index/kept-*")}

        def made(filter_fn, **fields):
            before = indexes()
            source = source_of(own_copy, filter_fn=filter_fn, **fields)
            return len(source), len(indexes() - before)

        assert made(some_labels) == (K, 1)
        assert made(some_labels, shuffle=True) == (K, 0)
        assert made(lambda r: some_labels(r)) == (K, 0)
        assert made(others) == (N - K, 1)
        # The same code, of a feature at the same place among others.
        assert made(lambda r: r["id"] == 3, include_keys={"id"}) == (1, 1)
        assert made(lambda r: r["label"] == 3, include_keys={"label"}) == (14, 1)

    @pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "a directory"])
    def test_a_damaged_index_is_made_again(self, own_copy, damage):
        filter_fn = Noting()
        filter_fn.source(own_copy)
        (path,) = own_copy.glob("tiny/1.0.0/.record_index/kept-*")
        content = bytearray(path.read_bytes())
        if damage == "a directory":
            path.unlink()
            path.mkdir()
        elif damage == "flipped":
            content[-1] ^= 1
            path.write_bytes(content)
        else:
            path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
        source, asked = filter_fn.source(own_copy)
        assert (len(source), asked) == (K, N + 16)
        if damage != "a directory":
            assert filter_fn.source(own_copy)[1] == 0

    def test_a_filter_is_evaluated_again_when_files_have_changed(self, own_copy):
        filter_fn = Noting()
        before = filter_fn.source(own_copy)[0]
        path = next((own_copy / "tiny" / "1.0.0").glob("*train*00000-of*"))
        rewrite(path, lambda record: record)  # the same bytes, at another time
        source, asked = filter_fn.source(own_copy)
        assert asked == N + 16
        assert source.get_state() == before.get_state()

    def test_the_cache_keeps_the_index_of_a_directory_that_cannot_be_written(
        self, own_copy, tmp_path, monkeypatch
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        (own_copy / "tiny" / "1.0.0" / ".record_index").symlink_to(tmp_path)  # is not followed
        filter_fn = Noting()
        assert filter_fn.source(own_copy)[1] == N + 16
        assert filter_fn.source(own_copy)[1] == 0
        assert len(list((tmp_path / "cache").rglob("kept-*"))) == 1
        monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")  # nowhere
        assert filter_fn.source(own_copy)[1] == N + 16

    def test_a_store_keeps_the_index_for_all_hosts(self, data_dir, tmp_path, monkeypatch):
        datasets = f"gs://{object_servers.BUCKET}/filtered"
        filter_fn = Noting()

        def asked(cache):
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
            source, asked = filter_fn.source(datasets, shuffle=True, seed=5, access="random")
            assert ids(source.get_batch(SIZE)) == expected("stream", SIZE)
            return asked

        with (
            object_servers.gcs(tmp_path / "gcs") as variables,
            object_servers.environment(**variables),
        ):
            object_servers.upload(data_dir / "tiny", f"{datasets}/tiny")
            assert [asked("one"), asked("one"), asked("other")] == [N + 16, 0, 0]
            object_servers.upload(data_dir / "tiny", f"{datasets}/tiny")  # another generation
            assert [asked("one"), asked("other")] == [N + 16, 0]


@pytest.fixture(scope="module")
def two_processes(data_dir, tmp_path_factory):
    """What two processes noted that filter together."""
    directory = tmp_path_factory.mktemp("two")
    shutil.copytree(data_dir / "tiny", directory / "tiny")
    index = directory / "tiny" / "1.0.0" / ".record_index"
    shutil.rmtree(index, ignore_errors=True)
    index.symlink_to(directory)  # so that each process has an index of its own
    run(2, "filters.py", directory, directory, logs=directory)
    return [json.loads((directory / f"{n}.json").read_text()) for n in range(2)]


class TestProcesses:
    def test_each_is_asked_about_its_share(self, two_processes):
        shares = [set(notes["asked"]) for notes in two_processes]
        assert not shares[0] & shares[1]
        assert shares[0] | shares[1] == set(range(N))
        twice = [len(each["asked"]) - len(set(each["asked"])) for each in two_processes]
        assert twice == [16, 16]  # the first ones of a share

    def test_one_that_has_no_index_is_asked_about_its_share_alone(self, two_processes):
        assert [len(notes["asked_without_index"]) for notes in two_processes] == [
            0,
            len(two_processes[1]["asked"]),
        ]
        assert [notes["asked_with_index"] for notes in two_processes] == [[], []]

    def test_all_have_the_batches_of_one(self, two_processes):
        for notes in two_processes:
            for served in notes["served"].values():
                assert served == expected("stream", len(served))

    def test_one_process_goes_on_where_two_have_stopped(self, two_processes, filtered):
        for notes in two_processes:
            source = filtered("stream")
            source.set_state(notes["state"])
            want = expected("stream", 3 * SIZE + 20)[3 * SIZE :]
            assert ids(source.get_batch(20)) == want

    def test_they_refuse_different_filters(self, two_processes):
        for notes in two_processes:
            assert "the processes do not agree on filter_fn" in notes["refused"]
