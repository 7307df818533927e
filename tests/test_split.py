import json
import shutil
import threading
import time

import pytest

from datarax_tfds import DatasetNotFoundError, TFDSEagerConfig
from datarax_tfds.split import open_split


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


@pytest.mark.parametrize("name", ["tiny", "tiny:1.0.0", "tiny:1.*.*"])
def test_a_dataset_is_found_by_name_and_version(data_dir, name):
    assert opened(data_dir, name=name).dataset == "tiny/1.0.0"


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("valid", "no such split(.|\n)*'train': 97, 'test': 13(.|\n)*fix:"),
        ("train[", "no such split(.|\n)*fix:"),
        ("train[:200]", "no such split(.|\n)*97 examples(.|\n)*fix:"),
        ("train[:0]", "has no records(.|\n)*fix:"),
        ("train[50:40]", "has no records(.|\n)*fix:"),
        ("train[:50]+train[40:]", "overlap(.|\n)*fix:"),
    ],
)
def test_a_split_that_cannot_be_is_refused(data_dir, split, message):
    with pytest.raises(ValueError, match=message):
        opened(data_dir, split)


@pytest.mark.parametrize(
    "name",
    ["../tiny", "tiny/..", "tiny/../tiny", "a:b:c", "hub:x/y", "tiny/data_dir=elsewhere", "/tmp"],
)
def test_what_is_no_name_of_a_dataset_is_refused(data_dir, name):
    with pytest.raises(ValueError, match=r"not the name of a dataset(.|\n)*fix:"):
        opened(data_dir, name=name)


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("mnist", {"local_files_only": True}, "local_files_only is set"),
        ("no_such_dataset", {"local_files_only": True}, "TFDS knows none of that name"),
        ("no_such_dataset", {}, "TFDS knows none of that name"),
    ],
)
def test_a_dataset_that_is_not_there_is_refused_at_once(data_dir, name, fields, reason):
    start = time.monotonic()
    with pytest.raises(DatasetNotFoundError, match=f"{reason}(.|\n)*{data_dir}(.|\n)*fix:"):
        opened(data_dir, name=name, **fields)
    assert time.monotonic() - start < 30  # TFDS alone retries look-ups for 204 s


def test_a_format_that_loses_records_is_refused(data_dir, tmp_path):
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny")
    info = tmp_path / "tiny/1.0.0/dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "parquet"}))
    with pytest.raises(ValueError, match=r"parquet(.|\n)*tfrecord, array_record(.|\n)*fix:"):
        opened(tmp_path)


def test_the_fingerprint_is_of_the_files(data_dir, tmp_path):
    before = opened(data_dir).fingerprint
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny")
    assert opened(tmp_path).fingerprint == before  # another place, the same files
    with (tmp_path / "tiny/1.0.0/tiny-train.tfrecord-00002-of-00004").open("ab") as file:
        file.write(b"x")
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
