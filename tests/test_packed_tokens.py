"""Tokens are read from the disk, or made again if they are not there: the rows are the same."""

import logging
import os
import resource
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import packed_texts
import pytest
from contract import equal
from faulty_store import FaultyStore
from object_servers import BUCKET, environment
from packed_texts import LENGTH, TEXTS, encode, rows_of
from refusals import refused
from sources import source_of

from datarax_tfds import PackedSource
from datarax_tfds.tokens.kept_tokens import KeptTokens
from datarax_tfds.tokens.rows import Pieces
from datarax_tfds.tokens.token_counts import TokenCounts
from datarax_tfds.tokens.token_files import TokenFile, TokenFiles, narrowed

PART = 10


class Kept:
    """Random tokens of random documents in files of ten documents each."""

    def __init__(self, directory, largest=50_000, documents=57):
        chance = np.random.default_rng(4)
        self.places = [directory]
        self.counts = chance.integers(0, 6000, documents).astype(np.uint32)
        self.counts[[0, 7, *range(20, 30)]] = 0  # among them a file without tokens
        self.ids = [chance.integers(0, largest + 1, count) for count in self.counts]
        self.ids[-1][-1] = largest

    def files(self, made_of="texts", eos_id=None):
        return TokenFiles(self.places, made_of, eos_id, "test")

    def write(self):
        files = self.files()
        for start in range(0, len(self.counts), PART):
            part = slice(start, start + PART)
            files.keep(start, self.counts[part], narrowed(np.concatenate(self.ids[part])))
        return self

    def tokens(self, files=None, counts=None):
        counts = TokenCounts(self.counts if counts is None else counts)
        return KeptTokens(files or self.files(), counts, "test")

    def every_piece(self):
        documents = np.flatnonzero(self.counts)
        start = np.zeros_like(documents)
        return Pieces(start, documents, start, self.counts[documents].astype(np.int64))

    def found(self, **fields):
        """Of which documents tokens are found; those that are found are right."""
        pieces = self.every_piece()
        into = np.full(int(pieces.count.sum()), -1, np.int32)
        found = self.tokens(**fields).read(pieces, into)
        ends = np.cumsum(pieces.count)[:-1]
        for number, ids, here in zip(pieces.document, np.split(into, ends), found, strict=True):
            assert np.array_equal(ids, self.ids[number] if here else np.full(len(ids), -1))
        return set(pieces.document[found].tolist())

    def all(self):
        return set(np.flatnonzero(self.counts).tolist())


@pytest.fixture
def kept(tmp_path):
    return Kept(tmp_path / "kept").write()


def flipped(at, bit=1):
    def damaged(content):
        return content[:at] + bytes([content[at] ^ bit]) + content[at:][1:]

    return damaged


class TestFiles:
    @pytest.fixture(autouse=True)
    def small_files(self, monkeypatch):
        monkeypatch.setattr("datarax_tfds.counts.counting.MIN_PART", PART)

    @pytest.mark.parametrize(
        ("largest", "width"), [(255, 2), (2**16 - 1, 2), (2**16, 4), (2**31 - 1, 4)]
    )
    def test_any_pieces_are_those_that_were_kept(self, tmp_path, largest, width):
        kept = Kept(tmp_path, largest).write()
        chance = np.random.default_rng(5)
        documents = chance.choice(np.flatnonzero(kept.counts), 300)
        starts = chance.integers(0, kept.counts[documents])
        counts = chance.integers(1, kept.counts[documents] - starts + 1)
        # Among them neighbours, which are read at once, also over the end of a file.
        documents[:40], starts[:40] = np.flatnonzero(kept.counts)[:40], 0
        counts[:40] = kept.counts[documents[:40]]
        into = np.zeros(counts.sum(), np.int32)
        tokens = kept.tokens()
        assert tokens.read(Pieces(documents * 0, documents, starts, counts), into).all()
        expected = [
            kept.ids[number][start : start + count]
            for number, start, count in zip(documents, starts, counts, strict=True)
        ]
        assert np.array_equal(into, np.concatenate(expected))
        assert tokens.total == kept.counts.sum()
        last = kept.places[0] / "tokens-50-57"
        least = width * kept.counts[50:].sum()
        assert least <= last.stat().st_size <= 1.01 * least + 10_000

    @pytest.mark.parametrize("damage", [
        flipped(0),  # the digest of the head
        flipped(40),  # the digest of what it is made of
        flipped(64),  # the width of a token
        flipped(72),  # a checksum
        flipped(-1),  # what fills the last block
        flipped(5000, 128),
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:50],
        lambda content: b"",
    ])  # fmt: skip
    def test_a_damaged_file_is_not_used_and_the_others_are(self, kept, damage):
        path = kept.places[0] / "tokens-10-20"
        path.write_bytes(damage(path.read_bytes()))
        assert kept.found() == kept.all() - set(range(10, 20))

    @pytest.mark.parametrize("replace", [
        lambda path: path.unlink(),
        lambda path: shutil.copy(path.with_name("tokens-30-40"), path),  # of other documents
        lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ])  # fmt: skip
    def test_what_is_in_the_place_of_a_file_is_not_used(self, kept, replace):
        replace(kept.places[0] / "tokens-10-20")
        assert kept.found() == kept.all() - set(range(10, 20))

    def test_a_file_that_is_damaged_or_removed_later_costs_nothing_but_its_tokens(
        self, kept, caplog
    ):
        tokens, pieces = kept.tokens(), kept.every_piece()
        into = np.zeros(int(pieces.count.sum()), np.int32)
        assert tokens.read(pieces, into).all()
        os.truncate(kept.places[0] / "tokens-10-20", 5000)
        (kept.places[0] / "tokens-30-40").unlink()  # is still open
        found = tokens.read(pieces, into)
        assert set(pieces.document[~found].tolist()) == set(range(10, 20))
        assert "10 documents cannot be read" in caplog.text
        assert tokens.has(np.array([5, 10, 19, 20])).tolist() == [True, False, False, True]

    def test_tokens_of_other_texts_or_tokenizers_or_counts_are_not_used(self, kept):
        assert kept.found() == kept.all()
        assert not kept.found(files=kept.files("other texts"))
        assert not kept.found(files=kept.files(eos_id=1))
        counts = kept.counts.copy()
        counts[[11, 12]] += np.array([1, -1], np.int32).astype(np.uint32)
        assert not kept.tokens(counts=counts).has(np.arange(10, 20)).any()

    @pytest.mark.parametrize(("total", "least"), [(10**13, 10 << 30), (10**10, 10**9)])
    def test_a_disk_is_never_filled(self, tmp_path, monkeypatch, caplog, total, least):
        kept = Kept(tmp_path / "nearly full")

        def usage(place):
            used = sum(file.stat().st_size for file in place.iterdir())
            room = 200_000 if "full" in place.name else total
            return SimpleNamespace(total=total, free=least + room - used)

        monkeypatch.setattr(shutil, "disk_usage", usage)
        found = kept.write().found()
        assert set() < found < kept.all()
        said = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert ["nearly full" in record.getMessage() for record in said] == [True]
        kept.places.append(tmp_path / "other")
        assert kept.write().found() == kept.all()

    def test_a_low_limit_of_open_files_is_kept(self, kept, monkeypatch):
        monkeypatch.setattr(resource, "getrlimit", lambda _: (16, 16))
        tokens, pieces = kept.tokens(), kept.every_piece()
        into = np.zeros(int(pieces.count.sum()), np.int32)
        before, blocks, most = len(os.listdir("/dev/fd")), TokenFile.blocks, []

        def noted(*args):
            most.append(len(os.listdir("/dev/fd")) - before)
            return blocks(*args)

        monkeypatch.setattr(TokenFile, "blocks", noted)
        for _ in range(2):
            assert tokens.read(pieces, into).all()
        assert max(most) <= 2


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    directory = tmp_path_factory.mktemp("texts")
    packed_texts.write(directory)
    return directory


class Noting:
    """A tokenizer that counts how often it gets each text."""

    def __init__(self):
        self.texts = Counter()

    def __call__(self, text):
        self.texts[text] += 1
        return encode(text)


def all_rows(source):
    return source.get_records(np.arange(len(source)))


class TestSources:
    @pytest.fixture(autouse=True)
    def data(self, texts, tmp_path):
        """Data of its own, without counts."""
        self.directory = tmp_path / "data"
        shutil.copytree(texts, self.directory, ignore=shutil.ignore_patterns(".token_counts"))
        self.stream = source_of(self.directory, name="docs")

    def packed(self, encode=None, **fields):
        self.noting = Noting()
        fields = {"length": LENGTH, "encode_name": "mine"} | fields
        source = PackedSource(self.stream, encode=encode or self.noting, **fields)
        self.noting.texts.clear()
        return source

    @pytest.mark.parametrize("packing", ["concat", "best_fit"])
    def test_no_document_is_encoded_for_a_row(self, packing):
        for _ in range(2):
            source = self.packed(packing=packing)
            assert source.kept_tokens == source.tokens
            assert equal(all_rows(source), rows_of(packed_texts.DOCUMENTS, packing))
            assert not self.noting.texts

    @pytest.mark.parametrize("lost", [
        lambda self, path: path.unlink(),
        lambda self, path: path.write_bytes(path.read_bytes()[:-1]),
        lambda self, path: [os.utime(x) for x in self.directory.glob("docs/*/*.tfrecord*")],
    ])  # fmt: skip
    def test_rows_are_the_same_without_the_tokens(self, lost):
        self.packed()
        (path,) = self.directory.glob("docs/1.0.0/.token_counts/*/tokens-0-67")
        lost(self, path)
        source = self.packed()
        assert source.kept_tokens == 0
        assert equal(all_rows(source), rows_of(packed_texts.DOCUMENTS, "concat"))
        assert set(self.noting.texts) == {text for text in TEXTS if text}

    def test_tokens_are_kept_only_if_they_should_be(self):
        assert self.packed(keep_tokens=False).kept_tokens == 0
        assert not list(self.directory.glob("docs/1.0.0/.token_counts/*/tokens*"))
        state = self.packed().get_state()
        assert self.packed().kept_tokens == 0  # there are counts, so that nothing is counted
        shutil.rmtree(self.directory / "docs/1.0.0/.token_counts")
        source = self.packed()
        assert source.kept_tokens == source.tokens
        source.set_state(state)
        self.packed(keep_tokens=False).set_state(source.get_state())

    def test_texts_that_may_change_are_not_kept(self):
        self.stream = source_of(
            self.directory,
            name="docs",
            map_fn=lambda record: {"text": record["text"]},
            allow_stateful_map_fn=True,
        )
        source = self.packed()
        assert source.kept_tokens == 0
        assert equal(all_rows(source), rows_of(packed_texts.DOCUMENTS, "concat"))

    def test_the_text_of_a_corrupt_record_is_not_kept(self):
        (path,) = self.directory.glob("docs/1.0.0/*.tfrecord-00000-*")
        path.write_bytes(path.read_bytes().replace(b"c" * 17, b"c" * 16 + b"d"))
        self.stream = source_of(self.directory, name="docs", max_corrupt_records=1)
        source = self.packed()
        assert source.corrupt_records == {3: 4}
        assert source.kept_tokens == 0

    def test_ends_of_documents_belong_to_their_tokens(self):
        for eos_id in (2, 3, 2):
            ended = [[*ids, eos_id] for ids in packed_texts.DOCUMENTS]
            source = self.packed(eos_id=eos_id)
            assert equal(all_rows(source), rows_of(ended, "concat"))

    def test_a_tokenizer_of_the_same_name_and_other_tokens_is_noticed(self):
        self.packed()
        with refused(ValueError, "gives other tokens than those that are kept.*docs-train"):
            self.packed(lambda text: [token + 1 for token in encode(text)])

    def test_an_eager_source_takes_them_from_the_disk(self):
        self.packed()
        source = self.packed(eager=True)
        assert equal(all_rows(source), rows_of(packed_texts.DOCUMENTS, "concat"))
        assert not self.noting.texts

    def test_tokens_of_texts_in_a_store_are_on_the_disk(self, texts, tmp_path):
        with FaultyStore.started() as store, environment(XDG_CACHE_HOME=str(tmp_path / "cache")):
            store.put(texts / "docs", "datasets/docs")
            for first in (True, False):
                self.stream = source_of(f"gs://{BUCKET}/datasets", name="docs")
                source = self.packed(packing="best_fit", shuffle=False)
                assert source.kept_tokens == source.tokens
                del store.requests[:]
                for start in range(0, len(source), 4):
                    batch = source.get_batch(4)
                    expected = rows_of(packed_texts.DOCUMENTS, "best_fit")
                    numbers = np.arange(start, start + 4) % len(source)
                    assert equal(batch, {name: c[numbers] for name, c in expected.items()})
                assert not store.count("read", ".tfrecord")
                assert not self.noting.texts
                if first:
                    shutil.rmtree(tmp_path / "cache" / "datarax_tfds" / "record_index")
            (kept,) = (tmp_path / "cache").glob("datarax_tfds/token_counts/*/tokens*")
            kept.unlink()
            source = self.packed(packing="best_fit", shuffle=False)
            assert equal(all_rows(source), rows_of(packed_texts.DOCUMENTS, "best_fit"))
            assert store.count("read", ".tfrecord")
