"""Files that are not what was written: named with what is wrong, and never read past it."""

import json
import os
import shutil

import numpy as np
import pytest
import tfds_datasets
from refusals import refused

from datarax_tfds import (
    DataLossError,
    DatasetNotFoundError,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
)
from datarax_tfds.files.tfrecord import scanned_starts

SHARDS = {
    "tiny": "tiny-train.tfrecord-00001-of-00004",
    "tiny_array": "tiny_array-train.array_record-00001-of-00004",
}


def shortened(by):
    return lambda path: path.write_bytes(path.read_bytes()[:-by])


def left(count):
    return lambda path: path.write_bytes(path.read_bytes()[:count])


def lengthened(tail):
    return lambda path: path.write_bytes(path.read_bytes() + tail)


def flipped(byte, bit=2):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[byte] ^= 1 << bit
        path.write_bytes(content)

    return damage


def of_another_shard(path):
    longer = path.with_name(path.name.replace("00001-of", "00002-of"))
    assert len(scanned_starts(longer)) != len(scanned_starts(path))
    shutil.copy(longer, path)


def a_record_less(path):
    path.write_bytes(path.read_bytes()[: scanned_starts(path)[-2]])


def a_record_more(path):
    starts = scanned_starts(path)
    path.write_bytes(path.read_bytes() + path.read_bytes()[: starts[1]])


def the_first_record_twice_in_place_of_the_last(path):
    starts, content = scanned_starts(path), path.read_bytes()
    path.write_bytes(content[: starts[-2]] + content[: starts[1]] + content[: starts[1]])


def a_directory(path):
    path.unlink()
    path.mkdir()


def a_dangling_link(path):
    path.unlink()
    path.symlink_to("nowhere")


def renamed(path):
    path.rename(path.with_name(path.name + ".bak"))


def not_to_be_read(path):
    path.chmod(0)


# What is done to a file, and what is said of it. Bytes 0 to 7 of a frame are its length, 8 to 11
# the checksum of that, the last four that of the record.
TFRECORDS = [
    *[(shortened(by), "cut short.*record: .*offset: byte") for by in (1, 3, 4, 5, 17)],
    *[(left(count), "cut short.*record: +0.*offset: byte 0 of") for count in (1, 8, 11, 12, 40)],
    (left(0), "holds 0 records, dataset_info.json says 2[0-9]"),
    (a_record_less, r"holds \d+ records, dataset_info.json says"),
    (a_record_more, r"holds \d+ records, dataset_info.json says"),
    (the_first_record_twice_in_place_of_the_last, r"holds \d+ records, dataset_info.json says"),
    *[(lengthened(tail), "cut short|length fails its checksum") for tail in
      (b"\n", b"\0" * 4, b"\0" * 12, b"\0" * 64, b"garbage, more than a header", b"\xff" * 16)],
    *[(flipped(byte), "length fails its checksum.*record: +0") for byte in range(12)],
    *[(flipped(byte), "record fails its checksum.*record: +0.*offset: byte 0 of") for byte in
      (12, 13, 20, 40, 60)],
    *[(flipped(byte), "record fails its checksum.*record: +2[0-9]") for byte in
      (-1, -2, -3, -4, -9)],
    (lambda path: path.write_bytes(b"not a TFRecord file\n" * 20), "length fails its checksum"),
    (lambda path: path.write_bytes(b"\0" * 300), "length fails its checksum"),
    (lambda path: path.write_text(json.dumps(list(range(99)))), "length fails its checksum"),
    (of_another_shard, r"holds \d+ records, dataset_info.json says"),
    (a_directory, "missing"),
    (a_dangling_link, "missing"),
    (renamed, "missing"),
    (os.remove, "missing"),
]  # fmt: skip

ARRAY_RECORDS = [
    *[(shortened(by), "cannot be read|holds 0 records") for by in (1, 5, 100, 1_000)],
    *[(left(count), "cannot be read|holds 0 records") for count in (0, 1, 64, 1_000)],
    (lambda path: path.write_bytes(b"not an ArrayRecord file\n" * 20), "cannot be read|holds 0"),
    (lambda path: path.write_bytes(b"\0" * 70_000), "cannot be read|holds 0 records"),
    (a_directory, "missing"),
    (a_dangling_link, "missing"),
    (renamed, "missing"),
    (os.remove, "missing"),
]  # fmt: skip


def info(change):
    """Changes dataset_info.json as a dict."""

    def damage(directory):
        path = directory / "dataset_info.json"
        content = json.loads(path.read_text())
        change(content, next(part for part in content["splits"] if part["name"] == "train"))
        path.write_text(json.dumps(content))

    return damage


def lengths(*counts):
    return info(lambda _, split: split.update(shardLengths=[str(count) for count in counts]))


def text(name, content):
    return lambda directory: (directory / name).write_text(content)


def removed(name):
    return lambda directory: (directory / name).unlink()


LOST = DataLossError
# What is done to the metadata of a dataset, and which error tells of it.
METADATA = [
    (lengths(24, 24, 24, 24), LOST, "holds 25 records, dataset_info.json says 24|holds"),
    (lengths(97, 0, 0, 0), LOST, "holds"),
    (lengths(25, 24, 24, 23), LOST, "holds"),
    (lengths(0, 0, 0, 97), LOST, "holds"),
    (lengths(10_000_000, 24, 24, 24), LOST, "holds"),
    (lengths(97), LOST, "missing"),
    (lengths(24, 24, 24, 24, 1), LOST, "missing"),
    (lengths(0, 0, 0, 0), ValueError, "no records"),
    (lengths(-1, 25, 25, 48), LOST, "negative|holds|dataset_info"),
    (lengths("many"), LOST, "dataset_info.json"),
    (info(lambda _, split: split.pop("shardLengths")), ValueError, "no records|no such split"),
    (info(lambda content, _: content.update(splits=[])), ValueError, "no such split"),
    (info(lambda _, split: split.update(name="training")), ValueError, "no such split"),
    (info(lambda content, _: content.update(splits={})), LOST, "dataset_info.json"),
    (info(lambda content, _: content.update(fileFormat="parquet")), ValueError, "parquet"),
    (info(lambda content, _: content.update(fileFormat="riegeli")), ValueError, "riegeli"),
    (info(lambda content, _: content.update(fileFormat="array_record")), LOST, "missing|cannot"),
    (info(lambda content, _: content.update(unknown=1)), LOST, "dataset_info.json"),
    (text("dataset_info.json", ""), LOST, "dataset_info.json"),
    (text("dataset_info.json", "{"), LOST, "dataset_info.json"),
    (text("dataset_info.json", "null"), LOST, "dataset_info.json"),
    (text("dataset_info.json", "\x00\x01"), LOST, "dataset_info.json"),
    (text("features.json", ""), LOST, "features.json"),
    (text("features.json", "{"), LOST, "features.json"),
    (removed("dataset_info.json"), LOST, "dataset_info.json"),
    (removed("features.json"), (LOST, DatasetNotFoundError), "features.json|not prepared"),
    (shutil.rmtree, DatasetNotFoundError, "not prepared"),
]


@pytest.fixture
def copy(data_dir, tmp_path):
    for name in SHARDS:
        shutil.copytree(data_dir / name, tmp_path / name)
    shutil.rmtree(tmp_path / "tiny/1.0.0/.record_index", ignore_errors=True)
    return tmp_path


def read_all(data_dir, name, source=TFDSStreamingSource, config=TFDSStreamingConfig):
    opened = source(config(name=name, split="train", data_dir=data_dir, local_files_only=True))
    opened.get_records(np.arange(tfds_datasets.TINY_TRAIN))


def check_no_content(message, content):
    """No eight printable bytes of the file stand in the message."""
    printable = message.encode()
    assert not any(content[k : k + 8] in printable for k in range(min(len(content), 4_000)))


@pytest.mark.parametrize(("damage", "message"), TFRECORDS)
def test_a_tfrecord_file_that_is_not_what_was_written(copy, damage, message):
    path = copy / "tiny" / "1.0.0" / SHARDS["tiny"]
    content = path.read_bytes()
    damage(path)
    with refused(DataLossError, f"{path.name}.*{message}|{message}.*{path.name}") as caught:
        read_all(copy, "tiny")
    check_no_content(str(caught.value), content)


@pytest.mark.parametrize(("damage", "message"), ARRAY_RECORDS)
def test_an_array_record_file_that_is_not_what_was_written(copy, damage, message):
    path = copy / "tiny_array" / "1.0.0" / SHARDS["tiny_array"]
    damage(path)
    with refused(DataLossError, f"{path.name}.*({message})|({message}).*{path.name}"):
        read_all(copy, "tiny_array")


@pytest.mark.parametrize(("damage", "kind", "message"), METADATA)
def test_metadata_that_do_not_hold(copy, damage, kind, message):
    damage(copy / "tiny" / "1.0.0")
    with pytest.raises(kind) as caught:
        read_all(copy, "tiny")
    with refused(caught.type, message):
        raise caught.value


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
@pytest.mark.parametrize("name", list(SHARDS))
def test_a_file_that_may_not_be_read(copy, name):
    not_to_be_read(copy / name / "1.0.0" / SHARDS[name])
    with refused(PermissionError if name == "tiny" else DataLossError, SHARDS[name]):
        read_all(copy, name)


@pytest.mark.parametrize(
    ("damage", "message"), [(flipped(40), "checksum"), (shortened(5), "cut short")]
)
def test_the_eager_source_refuses_the_same_files(copy, damage, message):
    damage(copy / "tiny" / "1.0.0" / SHARDS["tiny"])
    with refused(DataLossError, f"{SHARDS['tiny']}.*{message}"):
        read_all(copy, "tiny", TFDSEagerSource, TFDSEagerConfig)
