"""Rows of tokens, packed from texts, keep what every source promises, and more."""

import json
import pickle
import threading
import weakref
from collections import Counter
from concurrent.futures import Future
from types import SimpleNamespace

import contract
import jax
import numpy as np
import packed_texts
import pytest
from contract import equal
from oracle import numbers_of_epochs
from packed_texts import DOCUMENTS, LENGTH, TEXTS, encode, rows_of
from refusals import refused
from sources import source_of
from test_audit import audited

from datarax_tfds import (
    Cursor,
    CursorLog,
    MixtureSource,
    PackedSource,
    Pipeline,
    StateMismatchError,
    prefetch_to_device,
)
from datarax_tfds.counts.count_files import CountFiles
from datarax_tfds.counts.counting import Counting, Share
from datarax_tfds.order.block_order import BlockOrder
from datarax_tfds.order.order import Order
from datarax_tfds.runtime.threads import decoding_threads
from datarax_tfds.service import serving
from datarax_tfds.service.ray_worker import RayWorker
from datarax_tfds.service.rows_format import read, written
from datarax_tfds.tokens.counted_tokens import CountedTokens
from datarax_tfds.tokens.documents import Documents
from datarax_tfds.tokens.encoder import Encoder
from datarax_tfds.tokens.kept_tokens import KeptTokens
from datarax_tfds.tokens.served_tokens import misfit
from datarax_tfds.tokens.served_tokens import rows_of as served_rows
from datarax_tfds.tokens.token_counts import TokenCounts
from datarax_tfds.tokens.token_files import TokenFiles

SIZE, EOS, PART = 8, 3, 10
ALONE = Share(0, 1)

ENDED = [[*ids, EOS] for ids in DOCUMENTS]


class Batched:
    """A tokenizer in the form of the package `tokenizers`, which notes what it is called with."""

    def __init__(self):
        self.calls = []

    def encode_batch(self, texts):
        self.calls.append(list(texts))
        return [SimpleNamespace(ids=encode(text)) for text in texts]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Where datasets of texts are."""
    directory = tmp_path_factory.mktemp("texts")
    packed_texts.write(directory)
    return directory


@pytest.fixture(scope="module")
def packed(texts):
    """Makes a packed source at its beginning."""
    made, streams = {}, {}

    def make(packing="concat", mesh="one device", stream=None, **fields):
        fields = {"length": LENGTH, "encode": encode, "shuffle": True, "seed": 5} | fields
        stream = {"name": "docs"} | (stream or {})
        of_stream = mesh, *map(str, stream.items())
        key = (packing, of_stream, *map(str, fields.items()))
        if key not in made:
            if of_stream not in streams:
                streams[of_stream] = source_of(texts, mesh=mesh, **stream)
            made[key] = PackedSource(streams[of_stream], packing=packing, **fields)
        return made[key].clone()

    return make


def at(columns, numbers):
    return {name: column[numbers] for name, column in columns.items()}


ENCODED = {"keep_tokens": False, "encode_name": "not kept"}  # again for each row
KINDS = {
    "concat": {"packing": "concat"},
    "best fit": {"packing": "best_fit", **ENCODED},
    "best fit, replicas": {"packing": "best_fit", "mesh": "4 x 2, replicas"},
    "concat, eager": {"mesh": "8 devices, explicit axes", "eager": True, **ENCODED},
}


@pytest.fixture(params=list(KINDS))
def kind(request):
    return request.param


class TestContract:
    def test_batches_are_those_of_the_order(self, packed, kind):
        source = packed(**KINDS[kind])
        expected = rows_of(DOCUMENTS, KINDS[kind].get("packing", "concat"))
        rows = len(expected["tokens"])
        assert len(source) == rows
        assert source.kept_tokens == (
            0 if ENCODED.items() <= KINDS[kind].items() else source.tokens
        )
        assert source.tokens == sum(map(len, DOCUMENTS))
        assert source.padding == pytest.approx(1 - source.tokens / (rows * LENGTH))
        numbers = numbers_of_epochs(Order(rows, 5), 3)
        for step in range(2 * rows // SIZE):  # also over the end of the epoch
            wanted = at(expected, numbers[step * SIZE : (step + 1) * SIZE])
            assert equal(source.get_batch(SIZE), wanted)

    def test_all_ways_of_reading_agree(self, packed, kind):
        make = lambda: packed(**KINDS[kind])
        source, looped = make(), iter(Pipeline(source=make(), batch_size=SIZE))
        prefetched = prefetch_to_device(Pipeline(source=make(), batch_size=SIZE), 2)
        singly = iter(make())
        for step in range(3):
            batch = source.get_batch(SIZE)
            assert equal(source.get_batch_at(step * SIZE, SIZE), batch)
            assert equal(next(looped), batch)
            assert equal(next(prefetched), batch)
            for row in range(SIZE):
                assert equal(next(singly), at(jax.tree.map(np.asarray, batch), row))
        numbers = np.arange(SIZE)
        expected = rows_of(DOCUMENTS, KINDS[kind].get("packing", "concat"))
        assert equal(source.get_records(numbers), at(expected, numbers))
        assert equal(source[-1], at(expected, -1))
        everything = jax.tree.map(lambda x: np.asarray(x)[: len(source)], source.collect_to_array())
        assert equal(everything, expected)
        assert source.supports_indexed_access() is KINDS[kind].get("eager", False)
        if source.supports_indexed_access():
            compiled = jax.jit(lambda start: source.get_batch_at(start, SIZE))
            assert equal(compiled(SIZE), source.get_batch_at(SIZE, SIZE))

    @pytest.mark.parametrize(("kind", "prefetch"), [("concat", None), ("best fit, replicas", 2)])
    def test_a_pipeline_resumes_after_every_batch(self, packed, kind, prefetch):
        def make():
            source = packed(**KINDS[kind])
            return Pipeline(source=source, batch_size=SIZE, remainder="pad", record_numbers=True)

        contract.check_resume_after_every_batch(make, prefetch)

    @pytest.mark.parametrize("packing", ["concat", "best_fit"])
    def test_every_token_comes_once_an_epoch_over_resumes_with_other_batch_sizes(
        self, packed, packing
    ):
        seen, state = Counter(), packed(packing, eos_id=EOS).get_state()
        for size in (8, 5, 16, 3, 8):
            source = packed(packing, eos_id=EOS)
            source.set_state(json.loads(json.dumps(state)))
            pipeline = Pipeline(source=source, batch_size=size, remainder="pad")
            last = size == 8 and bool(seen)
            for step, batch in enumerate(pipeline):
                tokens, segments = (np.asarray(batch[n]) for n in ("tokens", "segment_ids"))
                seen.update(tokens[segments > 0].tolist())
                state = source.get_state()
                if step == 1 and not last:
                    break
        assert seen == Counter(token for ids in ENDED for token in ids)
        assert len(json.dumps(state)) < 2048

    def test_the_audit_proves_a_history(self, packed, tmp_path):
        pipeline = Pipeline(source=packed(), batch_size=SIZE, record_numbers=True)
        log = CursorLog(tmp_path / "log", pipeline)
        for _ in range(2 * len(pipeline)):
            log.note(pipeline.step()["record_number"])
        found = audited(tmp_path / "log")
        assert found.sound
        assert found.reached == pipeline.cursor

    def test_sequential_access_orders_rows_by_blocks(self, packed):
        stream = {"access": "sequential", "block_size": 4, "shuffle_buffer_size": 8}
        for packing in ("concat", "best_fit"):
            source = packed(packing, stream=stream)
            assert isinstance(source.sampler.order, BlockOrder)
            numbers = numbers_of_epochs(source.sampler.order, 1)
            assert sorted(numbers.tolist()) == list(range(len(source)))
            expected = rows_of(DOCUMENTS, packing)
            pipeline = Pipeline(source=source, batch_size=SIZE, remainder="pad")
            for step, batch in enumerate(pipeline):
                wanted = at(expected, numbers[step * SIZE :][:SIZE])
                assert equal({n: np.asarray(batch[n])[: len(wanted[n])] for n in wanted}, wanted)

    def test_packed_sources_are_parts_of_a_mixture(self, packed):
        parts = {"one": packed("concat"), "two": packed("concat", stream={"split": "train[:20]"})}
        source = MixtureSource(parts, {"one": 3, "two": 1}, part_column="part")
        batch = jax.tree.map(np.asarray, source.get_batch(SIZE))
        for number, part in enumerate(parts.values()):
            rows = np.flatnonzero(batch["part"] == number)
            assert len(rows) == (6, 2)[number]
            first = part.get_batch_at(0, len(rows))
            assert equal(at({n: batch[n] for n in first}, rows), first)
        other = MixtureSource(parts, {"one": 3, "two": 1}, part_column="part")
        other.set_state(source.get_state())
        assert equal(other.get_batch(SIZE), source.get_batch(SIZE))


class TestChoices:
    def test_order_and_seed_are_those_of_the_stream_unless_given(self, packed):
        shuffled = {"shuffle": True, "seed": 9}
        source = packed(stream=shuffled, shuffle=None, seed=None)
        assert (source.is_random_order, source.sampler.seed) == (True, 9)
        assert not packed(stream=shuffled, shuffle=False, seed=None).is_random_order
        source.set_random_order(False)
        assert equal(source.get_batch(SIZE), at(rows_of(DOCUMENTS, "concat"), np.arange(SIZE)))
        source.reset(seed=4)
        assert source.cursor == Cursor()

    def test_another_feature_end_and_padding(self, packed):
        source = packed(feature="nested/text", eos_id=EOS, pad_id=7, shuffle=False)
        expected = rows_of([[*encode(text.upper()), EOS] for text in TEXTS], "concat")
        expected["tokens"][expected["segment_ids"] == 0] = 7
        assert equal(source.get_records(np.arange(len(source))), expected)

    def test_texts_that_a_map_fn_makes(self, packed):
        import tensorflow as tf

        source = packed(
            stream={"map_fn": lambda record: {"text": tf.strings.upper(record["text"])}},
            shuffle=False,
        )
        expected = rows_of([encode(text.encode().upper().decode()) for text in TEXTS], "concat")
        assert equal(source.get_records(np.arange(len(source))), expected)

    def test_what_the_stream_does_to_other_features_does_not_matter(self, data_dir):
        padded = source_of(data_dir, name="text", pad_to={"tokens": 8, "photo": (8, 2, 3)})
        source = PackedSource(padded, encode=encode, length=LENGTH)
        texts = [encode(f"number {number}") for number in range(5)]
        assert equal(source.get_records(np.arange(len(source))), rows_of(texts, "concat"))

    def test_texts_that_a_filter_keeps(self, packed):
        import tensorflow as tf

        kept = [ids for ids in DOCUMENTS if len(ids) > 9]
        source = packed(
            stream={"filter_fn": lambda record: tf.strings.length(record["text"]) > 9},
            shuffle=False,
        )
        expected = rows_of(kept, "concat")
        assert equal(source.get_records(np.arange(len(source))), expected)
        with refused(StateMismatchError, "fingerprint"):
            source.set_state(packed(shuffle=False).get_state())

    @pytest.mark.parametrize("how", [
        lambda text: np.array(encode(text), np.int64),
        lambda text: np.array(encode(text), np.uint16),
        lambda text: tuple(encode(text)),
        lambda text: SimpleNamespace(ids=encode(text)),
    ])  # fmt: skip
    def test_all_forms_of_ids_are_the_same(self, how):
        made = Encoder(how, EOS, "test")(TEXTS, str)
        assert [ids.tolist() for ids in made] == ENDED
        assert all(ids.dtype == np.int32 for ids in made)

    def test_a_tokenizer_gets_many_texts_at_once_if_it_can(self, packed):
        batched = Batched()
        source = packed(encode=batched)
        assert equal(source.get_batch(SIZE), packed().get_batch(SIZE))
        assert max(map(len, batched.calls)) > 10
        packed().set_state(source.get_state())  # known by what it makes of the texts

    @pytest.mark.parametrize(("errors", "decoded"), [
        ("replace", ["sound", "\ufffd\ufffd not", "caf\ufffd", "sound too"]),
        ("ignore", ["sound", " not", "caf", "sound too"]),
    ])  # fmt: skip
    def test_bytes_that_are_not_utf_8(self, packed, errors, decoded):
        source = packed(stream={"name": "odd"}, errors=errors, shuffle=False)
        expected = rows_of(list(map(encode, decoded)), "concat")
        assert equal(source.get_records(np.arange(len(source))), expected)

    def test_a_text_that_is_not_utf_8_is_named(self, packed):
        with refused(ValueError, "is not UTF-8.*odd-train.*__1.*byte 0 of 6"):
            packed(stream={"name": "odd"})

    def test_documents_without_a_token_are_refused_unless_they_end(self, packed):
        with refused(ValueError, "the documents have no tokens"):
            packed(stream={"name": "empty"})
        source = packed(stream={"name": "empty"}, eos_id=EOS)
        row = source[0]
        assert np.asarray(row["tokens"])[:4].tolist() == [EOS, EOS, EOS, 0]
        assert np.asarray(row["segment_ids"])[:4].tolist() == [1, 2, 3, 0]


class TestCounts:
    @pytest.fixture
    def documents(self, texts):
        """Documents, and how often each was encoded."""
        made = PackedSource(source_of(texts, name="docs"), encode=encode, length=LENGTH)
        return self.noting(made.records.reader._documents.reader)

    def noting(self, reader):
        encoded = Counter()
        lock = threading.Lock()

        def noting(text):
            with lock:
                encoded[text] += 1
            return encode(text)

        return Documents(reader, "text", "strict", Encoder(noting, None, "test"), "test"), encoded

    def count(self, documents, directory, share=ALONE):
        files = CountFiles(directory, "key")
        token_files = TokenFiles(files.places, "texts", None, "test")
        tokens = CountedTokens(documents, token_files)
        counting = Counting(tokens, files, "test")
        counting.count_share(share)
        return counting

    def kept(self, directory):
        """The documents whose tokens are kept."""
        files = TokenFiles(CountFiles(directory, "key").places, "texts", None, "test")
        counts = TokenCounts(np.array(self.expected(), np.uint32))
        tokens = KeptTokens(files, counts, "test")
        return np.flatnonzero(tokens.has(np.arange(len(TEXTS)))).tolist()

    def expected(self):
        return list(map(len, DOCUMENTS))

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("datarax_tfds.counts.counting.MIN_PART", PART)
        return tmp_path / "cache" / "datarax_tfds" / "token_counts"

    def test_tokens_that_are_cached_do_not_keep_the_memory_of_a_call_to_a_worker(self, documents):
        documents, _ = documents
        calls = []

        def of_a_worker(numbers):
            memory = np.arange(5, dtype=np.int32)
            calls.append(weakref.ref(memory))
            return [memory[:3], memory[3:]]

        documents.tokens(np.array([0, 1]), of_a_worker)
        assert documents.tokens(np.array([1]), of_a_worker)[0].tolist() == [3, 4]
        (memory,) = calls
        assert memory() is None

    def test_each_process_counts_its_share_once(self, documents, tmp_path):
        documents, encoded = documents
        two = [self.count(documents, tmp_path, Share(0, 2))]
        numbers = np.arange(len(TEXTS))
        assert self.kept(tmp_path) == numbers[numbers // PART % 2 == 0].tolist()
        two.append(self.count(documents, tmp_path, Share(1, 2)))
        assert self.kept(tmp_path) == numbers.tolist()
        assert encoded == Counter(TEXTS)
        for counting in two:
            assert counting.all_counts().tolist() == self.expected()
        assert encoded == Counter(TEXTS)
        assert self.count(documents, tmp_path).all_counts().tolist() == self.expected()
        assert encoded == Counter(TEXTS)
        CountFiles(tmp_path, "key").remove_parts(len(TEXTS))
        counts = (tmp_path / ".token_counts/key").glob("[0-9]*")
        assert [path.name for path in counts] == ["0-67"]
        assert self.kept(tmp_path) == numbers.tolist()

    def test_a_process_that_does_not_find_those_of_others_counts_them_itself(
        self, documents, tmp_path
    ):
        documents, encoded = documents
        alone = self.count(documents, tmp_path / "its own disk", Share(1, 2))
        assert alone.all_counts().tolist() == self.expected()
        assert encoded == Counter(TEXTS)
        assert len(self.kept(tmp_path / "its own disk")) == len(TEXTS)

    def test_a_process_that_ended_early_goes_on_with_what_it_has_not_kept(
        self, documents, tmp_path, monkeypatch
    ):
        documents, _ = documents
        keep = TokenFiles.keep

        def ends(files, start, *args):
            if start == 2 * PART:
                raise KeyboardInterrupt
            keep(files, start, *args)

        with monkeypatch.context() as patched:
            patched.setattr(TokenFiles, "keep", ends)
            with pytest.raises(KeyboardInterrupt):
                self.count(documents, tmp_path)
        documents, encoded = self.noting(documents.reader)
        assert self.count(documents, tmp_path).all_counts().tolist() == self.expected()
        assert encoded == Counter(TEXTS[2 * PART :])
        assert len(self.kept(tmp_path)) == len(TEXTS)

    def test_damaged_counts_are_made_again(self, documents, tmp_path):
        documents, encoded = documents
        self.count(documents, tmp_path).all_counts()
        kept = tmp_path / ".token_counts/key/0-67"
        sound = kept.read_bytes()
        CountFiles(tmp_path, "key").remove_parts(len(TEXTS))
        for damaged in (sound[:-1], b"", sound[:60] + b"\xff" + sound[61:], sound + b"\0"):
            kept.write_bytes(damaged)
            encoded.clear()
            assert self.count(documents, tmp_path).all_counts().tolist() == self.expected()
            assert encoded == Counter(TEXTS)
            assert kept.read_bytes() == sound
            CountFiles(tmp_path, "key").remove_parts(len(TEXTS))

    def test_counts_go_to_the_cache_if_the_data_cannot_be_written(self, documents, tmp_path, cache):
        documents, encoded = documents
        (tmp_path / ".token_counts").write_bytes(b"no directory")
        self.count(documents, tmp_path).all_counts()
        assert len(list(cache.glob("*/0-67"))) == 1
        assert self.count(documents, tmp_path).all_counts().tolist() == self.expected()
        assert encoded == Counter(TEXTS)

    def test_counts_stay_in_memory_if_nothing_can_be_written(self, documents, tmp_path, cache):
        documents, _ = documents
        cache.parent.parent.mkdir(parents=True)
        cache.parent.write_bytes(b"no directory")
        (tmp_path / ".token_counts").write_bytes(b"no directory")
        assert self.count(documents, tmp_path).all_counts().tolist() == self.expected()

    def test_a_second_source_encodes_a_sample_only(self, texts):
        encoded = Counter()

        def noting(text):
            encoded[text] += 1
            return encode(text)

        stream = source_of(texts, name="docs")
        for _ in range(2):
            encoded.clear()
            PackedSource(stream, encode=noting, length=LENGTH, encode_name="bytes")
        assert encoded.total() == 2 * 32

    @pytest.mark.parametrize("room", [0, 100, 10**6])
    def test_tokens_that_are_cached_are_not_made_again(self, documents, room):
        source, encoded = documents
        kept = Documents(
            source.reader, "text", "strict", source._encoder, "test", cached_tokens=room
        )
        numbers = np.arange(len(TEXTS))
        for _ in range(3):
            assert [ids.tolist() for ids in kept.tokens(numbers, kept.encoded)] == DOCUMENTS
        # Those for which there was no room are made in each of three rounds.
        left = sum(len(encode(text)) for text, count in encoded.items() if count == 3)
        total = sum(map(len, DOCUMENTS))
        assert total - room <= left <= max(total - room + 70, 0)
        kept.forget()
        encoded.clear()
        kept.tokens(numbers, kept.encoded)
        assert encoded == Counter(TEXTS)

    def test_a_cacheable_source_encodes_once(self, texts):
        encoded = Counter()

        def noting(text):
            encoded[text] += 1
            return encode(text)

        fields = {"encode": noting, "length": LENGTH, "encode_name": "cacheable"}
        stream = source_of(texts, name="docs")
        source = PackedSource(stream, cacheable=True, keep_tokens=False, **fields)
        one = source.get_records(np.arange(len(source)))
        encoded.clear()
        assert equal(source.get_records(np.arange(len(source))), one)
        assert not encoded
        source.reset_cache()
        assert equal(source.get_records(np.arange(len(source))), one)
        assert set(encoded) == {text for text in TEXTS if text}


class TestRefusals:
    def test_a_tokenizer_that_draws_at_random_is_noticed(self, packed):
        chance = np.random.default_rng(0)
        with refused(ValueError, "gives other tokens when it is called again.*docs-train"):
            packed(encode=lambda text: [int(chance.integers(9))] * len(text))

    def test_a_tokenizer_that_changes_later_is_noticed_where_it_does(self, packed):
        changed = []
        source = packed(encode=lambda text: encode(text) + changed, **ENCODED)
        source.get_batch(SIZE)
        changed.append(1)
        with refused(ValueError, "gives another number of tokens.*docs-train"):
            for _ in range(len(source)):
                source.get_batch(SIZE)

    def test_counts_of_another_tokenizer_of_the_same_name_are_noticed(self, packed):
        packed(encode_name="mine")
        with refused(ValueError, "gives another number of tokens.*token_counts"):
            packed(encode_name="mine", encode=lambda text: encode(text)[:-1])

    def test_a_failing_tokenizer_names_the_record(self, packed):
        def fails(text):
            return encode(text) if text != TEXTS[4] else [][1]

        with refused(RuntimeError, "encode fails.*docs-train.*IndexError") as caught:
            packed(encode=fails)
        assert "dddd" not in str(caught.value)

    @pytest.mark.parametrize("made", ["abc", [1.5], [[1]], 7, [-1], [2**31], None])
    def test_what_is_no_list_of_ids_is_refused(self, made):
        with refused(TypeError, "a list of integers in"):
            Encoder(lambda text: made, None, "test")(["a text"], lambda row: f"record {row}")

    def test_a_state_of_other_rows_is_refused(self, packed):
        state = packed().get_state()
        for other in (
            packed("best_fit"),
            packed(length=LENGTH + 1),
            packed(eos_id=EOS),
            packed(encode=lambda text: [0] * len(text.encode())),
            packed(feature="nested/text"),
            packed(seed=6),
            packed(stream={"split": "train[:50]"}),
        ):
            with refused(StateMismatchError, "differ in"):
                other.set_state(state)

    @pytest.mark.parametrize(("fields", "error", "says"), [
        ({"length": 0}, ValueError, "length must be"),
        ({"length": 2.5}, ValueError, "length must be"),
        ({"packing": "best-fit"}, ValueError, "packing must be 'concat' or 'best_fit'"),
        ({"eos_id": -1}, ValueError, "eos_id must be"),
        ({"pad_id": None}, ValueError, "pad_id must be"),
        ({"errors": "xml"}, ValueError, "errors must be"),
        ({"encode": "gpt2"}, TypeError, "encode must be"),
        ({"encode_name": ""}, ValueError, "encode_name must be"),
        ({"feature": "txt"}, ValueError, "no feature 'txt'"),
        ({"feature": "id"}, ValueError, "must be one text"),
        ({"feature": "nested"}, ValueError, "must be one text"),
        ({"seed": -1}, ValueError, "seed"),
        *[({name: "no"}, ValueError, f"{name} must be True or False")
          for name in ("shuffle", "keep_tokens", "cacheable", "eager")],
    ])  # fmt: skip
    def test_wrong_arguments_are_refused(self, packed, fields, error, says):
        with refused(error, says):
            packed(**fields)

    def test_only_streams_can_be_packed(self, packed):
        with refused(TypeError, "source must be a TFDSStreamingSource"):
            PackedSource(packed(), encode=encode, length=LENGTH)


class InProcess:
    """Workers that are opened and asked as those of Ray are, but in this process."""

    capacity = 2

    def __init__(self):
        self.worker = RayWorker("test")

    def join(self, dispatcher, description, *, stored_numbers):
        for _ in range(decoding_threads()):
            dispatcher.team.take()  # so that no thread of this process is free
        facts = self.worker.open("docs", pickle.dumps(description))
        assert stored_numbers is None
        self.refusal = dispatcher.consider("worker", self, facts).result()

    def submit(self, numbers, keys):
        answer = Future()
        sent = b"".join(map(bytes, written(*self.worker.read("docs", numbers, keys))))
        answer.set_result(read(np.frombuffer(sent, np.uint8)))
        return answer


def test_workers_make_the_tokens_of_documents_that_are_not_on_the_disk(texts, monkeypatch):
    workers = InProcess()
    monkeypatch.setattr(serving, "engine_of", lambda _: workers)
    stream = source_of(texts, name="docs", service="ray", shuffle=False)
    source = PackedSource(stream, encode=encode, length=LENGTH, eos_id=EOS, keep_tokens=False)
    expected = rows_of(ENDED, "concat")
    got = source.get_batch(len(source))
    for name, column in expected.items():
        np.testing.assert_array_equal(got[name], column)
    assert workers.refusal is None
    assert workers.worker.status()["records"] > len(TEXTS)  # the canaries, too


def test_a_tokenizer_that_workers_cannot_import_is_refused(texts):
    stream = source_of(texts, name="docs", service="ray")
    with refused(ValueError, "encode has no import path"):
        PackedSource(stream, encode=lambda text: encode(text), length=LENGTH)


@pytest.mark.parametrize("column", [
    None,
    [np.arange(2, dtype=np.int32)],  # of one document, and not of two
    [np.arange(2, dtype=np.int32), np.arange(2)],  # int64
    [np.arange(2, dtype=np.int32), np.zeros((1, 2), np.int32)],
    [np.arange(2, dtype=np.int32), None],
])  # fmt: skip
def test_what_is_not_tokens_of_the_documents_is_not_used(column):
    assert misfit(column if column is None else served_rows(column), 2) is not None
