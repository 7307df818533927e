"""What `datarax-tfds info` says of a dataset, and how tables look on a terminal and elsewhere."""

import json
import sys

import pytest
import tensorflow_datasets as tfds
from faulty_store import FaultyStore
from object_servers import BUCKET
from tfds_datasets import detection_features, detection_record, store

from datarax_tfds.cli import main
from datarax_tfds.cli.terminal import doing, print_table


def info(capsys, *words):
    assert main(["info", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_splits_are_those_of_the_metadata_with_the_memory_that_they_take(data_dir, capsys):
    found = info(capsys, "tiny", "--data-dir", data_dir, "--device-gib", 1e-6)  # 1,073 bytes
    assert found["dataset"] == "tiny/1.0.0"
    assert (found["format"], found["files"]) == ("tfrecord", 8)
    (train, test) = found["splits"]
    assert (train["name"], train["records"], train["shards"]) == ("train", 97, 4)
    assert train["eager_bytes"] == 97 * (5 * 4 * 3 + 2 * 4)
    assert train["devices"] == 7  # with 15 records on each
    assert (test["records"], test["devices"]) == (13, 1)
    none = info(capsys, "tiny", "--data-dir", data_dir, "--device-gib", 0)
    assert {split["devices"] for split in none["splits"]} == {None}


def test_features_are_those_of_a_record_and_say_why_they_are_in_no_batch(tmp_path, capsys):
    records = map(detection_record, range(2))
    store(tmp_path, "detection", detection_features(tfds.features), records)
    capsys.readouterr()  # of TFDS
    found = info(capsys, tmp_path / "detection")
    by_name = {each.pop("name"): each for each in found["features"]}
    assert by_name["id"] == {"dtype": "int32", "shape": [], "fix": None}
    boxes = by_name["objects/bbox"]
    assert (boxes["dtype"], boxes["shape"]) == ("float32", [None, 4])
    assert boxes["fix"].startswith("pad it, with pad_to={'objects/bbox': 8}")
    assert {split["eager_bytes"] for split in found["splits"]} == {None}
    assert main(["info", str(tmp_path / "detection")]) == 0
    printed = capsys.readouterr().out
    assert f"objects/bbox: {boxes['fix']}\n" in printed


def test_it_says_the_same_of_a_copy_in_a_store(data_dir, capsys):
    with FaultyStore.started() as bucket:
        bucket.put(data_dir / "tiny_array", "data/tiny_array")
        found = info(capsys, "tiny_array", "--data-dir", f"gs://{BUCKET}/data")
        read = {request.name for request in bucket.requests if request.kind == "read"}
    assert found.pop("directory") == f"gs://{BUCKET}/data/tiny_array/1.0.0"
    here = info(capsys, "tiny_array", "--data-dir", data_dir)
    here.pop("directory")
    assert found == here
    assert not [name for name in read if "array_record-" in name]


@pytest.mark.parametrize("on_a_terminal", [True, False])
def test_a_table_has_lines_on_a_terminal_only(on_a_terminal, capsys, monkeypatch):
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: on_a_terminal)
    print_table(("split", "records"), [("train[:1]", 60_000), ("test", None)])
    doing("reading")
    printed = capsys.readouterr()
    if on_a_terminal:
        assert "│ train[:1] │  60,000 │" in printed.out
        assert printed.err == "datarax-tfds: reading ...\n"
    else:
        assert printed.out == "split      records\ntrain[:1]   60,000\ntest             -\n\n"
        assert printed.err == ""
