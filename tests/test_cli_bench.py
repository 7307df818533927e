"""`datarax-tfds bench`: what it measures; how much that is depends on the machine."""

import json
import os
import re
import shutil

import pytest
import yaml
from checkout import ROOT

from datarax_tfds.cli import main

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def bench(data_dir, *words):
    words = ("--data-dir", data_dir, "--batch-size", 8, "--seconds", 0.05, *words)
    return main(["bench", "tiny", *map(str, words)])


def test_a_stream_is_measured_with_and_without_steps(data_dir, tmp_path, capsys):
    assert bench(data_dir, "--cores", CORES, "--step-ms", 1, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["cores"] == CORES
    assert found["records_per_s"] > 0
    assert found["first_batch_s"] > 0
    assert 0 <= found["waiting"] < 1  # a step takes a part of the time
    assert set(found["stages"]) == {"reading", "decoding"}
    assert re.match("(input|compute)-bound: ", found["verdict"])
    picture = tmp_path / "bench.png"
    words = ("--exclude-keys", "image,id", "--picture", picture)
    assert bench(data_dir, "--cores", CORES, *words) == 0
    columns, row = capsys.readouterr().out.splitlines()[:2]
    assert columns.split() == ["cores", "records/s", "first", "batch,", "s", "decoding", "reading"]
    assert row.split()[0] == str(CORES)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(CORES < 2, reason="needs two cores")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a choice of cores")
def test_each_number_of_cores_is_measured_in_a_process_of_its_own(data_dir, tmp_path, capsys):
    """To which a config is sent, with the functions that it names."""
    (tmp_path / "measured_here.py").write_text("def same(record):\n    return record\n")
    config = tmp_path / "tiny.yaml"
    source = {"name": "tiny", "split": "train", "data_dir": str(data_dir), "map_fn": "same"}
    config.write_text(yaml.safe_dump({"source": source, "batch_size": 8}))
    words = ["--code", str(tmp_path / "measured_here.py"), "--exclude-keys", "label"]
    assert (
        main(["bench", str(config), *words, *["--cores", "1", "--seconds", "0.05", "--json"]]) == 0
    )
    (found,) = json.loads(capsys.readouterr().out)
    assert found["cores"] == 1
    assert found["records_per_s"] > 0
    assert len(os.sched_getaffinity(0)) == CORES


def test_rows_of_packed_text_are_measured_as_the_config_says(tmp_path, capsys):
    shutil.copytree(ROOT / "tests/golden/earlier/texts", tmp_path / "data")
    config = yaml.safe_load((ROOT / "configs/docstrings.yaml").read_text())
    config["source"] = {"name": "golden_text", "data_dir": str(tmp_path / "data")}
    path = tmp_path / "texts.yaml"
    path.write_text(yaml.safe_dump(config))
    words = ["--code", ROOT / "scripts/texts.py", "--cores", CORES, "--seconds", 0.05]
    assert main(["bench", str(path), *map(str, words)]) == 0
    columns, row = capsys.readouterr().out.splitlines()[:2]
    assert columns.split()[:2] == ["cores", "rows/s"]
    assert int(row.split()[1].replace(",", "")) > 0


@pytest.mark.parametrize(
    "words", [["--cores", "0"], ["--cores", "9999"], ["--cores", "two"], ["--seconds", "0"]]
)
def test_what_cannot_be_measured_is_refused(words, data_dir, capsys):
    assert bench(data_dir, *words) == 2
    assert "--cores must be numbers from 1 to" in capsys.readouterr().err
