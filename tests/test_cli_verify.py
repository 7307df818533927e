"""`datarax-tfds verify` finds each damaged record in any file, and goes on where it was stopped."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from faulty_store import FaultyStore
from object_servers import BUCKET

from datarax_tfds.cli import main
from datarax_tfds.files import verification
from datarax_tfds.files.stored_file import StoredFile
from datarax_tfds.files.tfrecord import record_faults, scanned_starts


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datarax_tfds" / "verify"


@pytest.fixture
def copy(data_dir, tmp_path):
    def copied(name):
        shutil.copytree(data_dir / name, tmp_path / "data" / name)
        return tmp_path / "data" / name / "1.0.0"

    return copied


def flip(path, *places):
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= 4
    path.write_bytes(content)


def damage_files(version):
    """Damages files of `tiny`, and returns what must be said of them."""
    one, two, three, four = sorted(version.glob("tiny-train.tfrecord*"))
    starts = scanned_starts(one).tolist()
    flip(one, starts[3] + 20, starts[4] - 1, starts[9] + 12)  # twice in the third record
    others = scanned_starts(two).tolist()
    flip(two, others[5])  # the length
    three.unlink()
    four.write_bytes(four.read_bytes()[:-3])
    wrong = "a record fails its checksum."
    records = records_of(version, four.name)
    return [
        [one.name, 3, f"byte {starts[3]}", wrong],
        [one.name, 9, f"byte {starts[9]}", wrong],
        [two.name, 5, f"byte {others[5]}", "a length fails its checksum."],
        [three.name, None, "", "the file is missing."],
        [four.name, records - 1, "byte ...", "the file is cut short."],
    ]


def records_of(version, name):
    """The number of records of a training file according to the metadata."""
    info = json.loads((version / "dataset_info.json").read_text())
    lengths = next(each for each in info["splits"] if each["name"] == "train")["shardLengths"]
    return int(lengths[int(name.split("-")[2])])


def verified(capsys, *words):
    status = main(["verify", *map(str, words), "--processes", "1", "--json"])
    return status, json.loads(capsys.readouterr().out)


def said(found):
    return [
        [
            each["file"].rpartition("/")[2],
            each["record"],
            "byte ..." if "cut short" in each["problem"] else each["where"],
            each["problem"],
        ]
        for each in found["damaged"]
    ]


@pytest.mark.parametrize("name", ["tiny", "tiny_array"])
def test_sound_files_are_found_sound(name, data_dir, capsys, cache):
    status, found = verified(capsys, name, "--data-dir", data_dir)
    assert (status, found) == (0, {"files": 8, "records": 110, "damaged": []})
    assert main(["verify", name, "--data-dir", str(data_dir), "--processes", "2"]) == 0
    assert capsys.readouterr().out == "110 records in 8 files: all are sound\n"
    assert not list(cache.iterdir())


def test_each_damaged_record_is_named(copy, capsys):
    version = copy("tiny")
    damaged = damage_files(version)
    status, found = verified(capsys, version)
    assert status == 1
    assert said(found) == damaged
    assert main(["verify", str(version), "--processes", "1"]) == 1
    printed = capsys.readouterr().out.splitlines()
    file, record, where, problem = damaged[0]
    assert printed[0] == (
        f"{version}/{file}: record {record} ({where}, tfds_id {file}__{record}): {problem}"
    )
    assert printed[-1] == "110 records in 8 files: 5 faults were found"


def test_damage_in_a_store_is_the_same(copy, capsys):
    version = copy("tiny")
    damaged = damage_files(version)
    with FaultyStore.started() as store:
        store.put(version, "tiny/1.0.0")
        status, found = verified(capsys, f"gs://{BUCKET}/tiny/1.0.0")
    assert (status, said(found)) == (1, damaged)


def test_array_record_files_are_verified(copy, capsys):
    version = copy("tiny_array")
    first, second, *_ = sorted(version.glob("tiny_array-train*"))
    flip(first, 200)
    second.write_bytes(second.read_bytes()[:-100])
    status, found = verified(capsys, version)
    assert status == 1
    one, two = said(found)
    assert one[:3] == [first.name, 0, f"number 0 of {records_of(version, first.name)}"]
    assert "chunk data hash mismatch" in one[3]
    assert two[:2] == [second.name, None]


def test_a_file_with_another_number_of_records_is_named(copy, capsys):
    version = copy("tiny")
    first, second, *_ = sorted(version.glob("tiny-test*"))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    status, found = verified(capsys, version)
    (only,) = said(found)
    assert status == 1
    assert only[:2] == [first.name, None]
    assert "records, dataset_info.json says" in only[3]


def test_it_goes_on_where_it_was_stopped(copy, capsys, monkeypatch, cache):
    version = copy("tiny")
    paths = sorted(version.glob("*.tfrecord*"))
    first = sorted(version.glob("tiny-train*"))[0]
    flip(first, scanned_starts(first)[2] + 12)
    read = []
    really = verification.damage_in

    def stopped(path, *arguments):
        if len(read) == 5:
            raise KeyboardInterrupt
        read.append(path)
        return really(path, *arguments)

    monkeypatch.setattr(verification, "damage_in", stopped)
    assert main(["verify", str(version), "--processes", "1"]) == 130
    (log,) = cache.iterdir()
    with log.open("a") as cut:
        cut.write('["' + str(paths[-1]))  # by a kill
    changed = next(path for path in read if path != first)
    changed.write_bytes(changed.read_bytes()[:-3])
    before, read[:] = list(read), []
    monkeypatch.setattr(verification, "damage_in", lambda *a: read.append(a[0]) or really(*a))
    assert main(["verify", str(version), "--processes", "1"]) == 1
    printed = capsys.readouterr()
    assert "4 of 8 files were verified before" in printed.err
    assert sorted(read) == sorted({*paths} - {*before} | {changed})
    assert f"{first}: record 2 " in printed.out  # also what was found before
    assert f"{changed}: record " in printed.out
    assert not log.exists()


def test_records_of_any_size_are_followed(tmp_path):
    path = tmp_path / "file.tfrecord"
    sizes = [1 << 20, 0, (1 << 20) - 28, 700_000, 700_000, 3, 5 << 20, 1]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for size in sizes:
            writer.write(np.random.default_rng(size).bytes(size))
    starts = scanned_starts(path).tolist()
    assert list(record_faults(StoredFile(path))) == [(start, None) for start in starts[:-1]]
    for number in range(len(sizes)):
        flip(path, starts[number + 1] - 1)
        faults = [problem for _, problem in record_faults(StoredFile(path))]
        assert [at for at, problem in enumerate(faults) if problem] == [number]
        flip(path, starts[number + 1] - 1)
