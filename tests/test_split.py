import dataclasses
import json
import shutil
import socket
import threading

import pytest
from contract import ids
from flax import nnx

from datarax_tfds import (
    Cursor,
    DatasetNotFoundError,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
)
from datarax_tfds.files.split import open_split
from datarax_tfds.state.state import to_state


def opened(data_dir, split="train", name="tiny", **fields):
    return open_split(TFDSEagerConfig(name=name, split=split, data_dir=str(data_dir), **fields))


@pytest.mark.parametrize(
    ("split", "ranges", "length"),
    [
        ("train", "train[0:97]", 97),
        ("test", "test[0:13]", 13),
        ("train[:10]", "train[0:10]", 10),
        ("train[-5:]", "train[92:97]", 5),
        ("train[10%:20%]", "train[10:19]", 9),
        ("train[90:]+test[:3]", "train[90:97]+test[0:3]", 10),
        ("all", "train[0:97]+test[0:13]", 110),
    ],
)
def test_a_split_is_what_tfds_resolves_it_to(data_dir, split, ranges, length):
    found = opened(data_dir, split)
    assert (found.ranges, len(found)) == (ranges, length)


# Splits as objects of TFDS, and the ranges that they stand for.
OBJECTS = {
    "a slice by percent": (lambda tfds: tfds.core.ReadInstruction("train", to=10, unit="%"),
                           "train[0:10]"),
    "a slice": (lambda tfds: tfds.core.ReadInstruction("train", from_=-5, unit="abs"),
                "train[92:97]"),
    "shards": (lambda tfds: tfds.core.ReadInstruction("train", from_=1, to=2, unit="shard"), None),
    "a half": (lambda tfds: tfds.even_splits("train", n=2)[1], "train[49:97]"),
    "a third of a sum": (lambda tfds: tfds.even_splits("train[:10]+test[:5]", n=3)[0],
                         "train[0:4]+test[0:2]"),
    "without the remainder": (lambda tfds: tfds.even_splits("train", n=4, drop_remainder=True)[3],
                              "train[72:96]"),
    "of this process": (lambda tfds: tfds.split_for_jax_process("train"), "train[0:97]"),
    "of another process": (
        lambda tfds: tfds.split_for_jax_process("train", process_index=1, process_count=2),
        "train[49:97]"),
    "a sum": (lambda tfds: tfds.core.ReadInstruction("train", to=5, unit="abs")
              + tfds.core.ReadInstruction("train", from_=90, unit="abs"),
              "train[0:5]+train[90:97]"),
    "a sum with text": (lambda tfds: tfds.even_splits("train", n=2)[0] + "test[:3]",
                        "train[0:49]+test[0:3]"),
    "Split.TRAIN": (lambda tfds: tfds.Split.TRAIN, "train[0:97]"),
    "Split.ALL": (lambda tfds: tfds.Split.ALL, "train[0:97]+test[0:13]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OBJECTS)
def test_a_split_as_an_object_is_what_tfds_resolves_it_to(data_dir, kind):
    import tensorflow_datasets as tfds

    make, ranges = OBJECTS[kind]
    split = make(tfds)
    read = tfds.ReadConfig(interleave_cycle_length=1)
    whole = tfds.builder("tiny", data_dir=data_dir).as_dataset(split=split, read_config=read)
    expected = [int(record["id"]) for record in whole]
    found = opened(data_dir, split)
    assert ranges in (None, found.ranges)
    for config in (TFDSEagerConfig, TFDSStreamingConfig):
        made = config(name="tiny", split=split, data_dir=data_dir, include_keys={"id"})
        again = config(name="tiny", split=make(tfds), data_dir=data_dir, include_keys={"id"})
        assert (made, hash(made)) == (again, hash(again))
        assert made != config(name="tiny", split="train[:7]", data_dir=data_dir)
        assert "split=" in repr(made)
    source = TFDSStreamingSource(made)
    assert source.get_state()["split"] == found.ranges
    assert [int(record["id"]) for record in source] == expected


def test_a_state_goes_on_with_another_spelling_of_the_same_split(data_dir):
    import tensorflow_datasets as tfds

    def source(split):
        return TFDSEagerSource(TFDSEagerConfig(name="tiny", split=split, data_dir=data_dir))

    half = source(tfds.even_splits("train", n=2)[1])
    half.get_batch(8)
    text = source("train[49:]")
    text.set_state(half.get_state())
    assert text.get_batch(4)["id"].tolist() == half.get_batch(4)["id"].tolist()


def test_a_state_goes_on_with_slices_that_follow_each_other(data_dir):
    """The slices cut a file in two, and are the same records as the whole."""

    def source(split):
        return TFDSEagerSource(TFDSEagerConfig(name="tiny", split=split, data_dir=data_dir))

    whole, slices = source("train"), source("train[:30]+train[30:]")
    for one, other in ((whole, slices), (slices, whole)):
        one.get_batch(40)
        other.set_state(one.get_state())
        assert ids(other.get_batch(20)) == ids(nnx.clone(one).get_batch(20))
    turned = source("train[30:]+train[:30]")
    with pytest.raises(ValueError, match="differ in split"):
        turned.set_state(whole.get_state())


def test_states_of_earlier_versions_that_looked_at_the_sizes_of_files_are_restored(data_dir):
    split = "train[:30]+train[30:]"
    source = TFDSEagerSource(TFDSEagerConfig(name="tiny", split=split, data_dir=data_dir))
    now = source.identity
    earlier = opened(data_dir, name="tiny", split=split).earlier_fingerprints()
    assert len({now.fingerprint, *earlier}) == 3
    for fingerprint in earlier:
        state = to_state(Cursor(0, 30), dataclasses.replace(now, fingerprint=fingerprint))
        source.set_state(state)
        assert ids(source.get_batch(2)) == [30, 31]


@pytest.mark.parametrize("name", ["tiny", "tiny:1.0.0", "tiny:1.*.*"])
def test_a_dataset_is_found_by_name_and_version(data_dir, name):
    assert opened(data_dir, name=name).dataset == "tiny/1.0.0"


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("mnist", {"local_files_only": True}, "local_files_only is set"),
        ("no_such_dataset", {"local_files_only": True}, "TFDS knows none of that name"),
        ("no_such_dataset", {}, "TFDS knows none of that name"),
    ],
)
def test_a_dataset_that_is_not_there_is_refused_without_asking_the_network(
    data_dir, monkeypatch, name, fields, reason
):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: asked.append(args) or [])
    with pytest.raises(DatasetNotFoundError, match=f"{reason}(.|\n)*{data_dir}(.|\n)*fix:"):
        opened(data_dir, name=name, **fields)
    assert asked == []  # TFDS alone asks for Google's storage, and again for 204 s


def test_a_format_that_loses_records_is_refused(data_dir, tmp_path):
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny")
    info = tmp_path / "tiny/1.0.0/dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "parquet"}))
    with pytest.raises(ValueError, match=r"parquet(.|\n)*tfrecord, array_record(.|\n)*fix:"):
        opened(tmp_path)


@pytest.mark.parametrize("changed", [{"numBytes": "7"}, {"shardLengths": ["25", "24", "24", "24"]}])
def test_the_fingerprint_is_of_what_the_metadata_say_of_the_files(data_dir, tmp_path, changed):
    before = opened(data_dir).fingerprint
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny")
    assert opened(tmp_path).fingerprint == before  # another place, the same files
    info = tmp_path / "tiny/1.0.0/dataset_info.json"
    content = json.loads(info.read_text())
    next(split for split in content["splits"] if split["name"] == "train").update(changed)
    info.write_text(json.dumps(content))
    assert opened(tmp_path).fingerprint != before
    assert opened(tmp_path, "test").fingerprint == opened(data_dir, "test").fingerprint


def test_a_missing_dataset_is_prepared_once_by_whoever_comes_first(tmp_path):
    import digits

    class CountedDigits(digits.Digits):
        """Digits, with a note of each time they are made."""

        name = "counted_digits"
        made = 0

        def _generate_examples(self, test):
            CountedDigits.made += not test
            return super()._generate_examples(test)

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(opened(tmp_path, "test", "counted_digits")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(split) for split in found] == [360] * 3
    assert CountedDigits.made == 1
