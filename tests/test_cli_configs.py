"""Commands that are given a config in the place of a dataset."""

import json

import pytest
import tensorflow_datasets as tfds
import yaml
from refusals import refused
from tfds_datasets import TINY_TEST

from datarax_tfds import TFDSStreamingSource, config_fields
from datarax_tfds.cli import main
from datarax_tfds.cli.config_file import ConfigFile
from datarax_tfds.cli.dataset import Dataset

CODE = """
import tensorflow as tf

def enlarged(record, size):
    image = tf.image.resize(record["image"], size)
    return {"image": tf.cast(image, tf.uint8), "label": record["label"]}
"""


@pytest.fixture
def config(data_dir, tmp_path):
    """A config of the dataset `tiny`, beside the code that it names."""
    (tmp_path / "enlarging.py").write_text(CODE)
    source = {
        "name": "tiny",
        "data_dir": str(data_dir),
        "split": "train[:20]",
        "eager": True,
        "layout": "sharded",
        "map_fn": {"name": "enlarged", "size": [30, 40]},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"source": source, "batch_size": 4, "mesh": {"rows": -1}}))
    return path


def test_records_are_read_as_the_config_says(config, tmp_path, capsys):
    code = tmp_path / "enlarging.py"
    source = TFDSStreamingSource(Dataset(str(config)).as_configured(None, code))
    assert source.element_spec()["image"].shape == (30, 40, 3)
    assert len(source) == 20
    words = ["--code", str(code), "--records", "3", "--picture", str(tmp_path / "show.png")]
    assert main(["show", str(config), *words]) == 0
    assert capsys.readouterr().out.startswith("3 of 20 records in ")
    assert main(["show", str(config), *words, "--split", "test"]) == 0
    assert capsys.readouterr().out.startswith(f"3 of {TINY_TEST} records in ")


def test_rows_are_placed_as_the_config_says(config, capsys):
    assert main(["place", str(config), "--devices", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["host", "device", "rows", "rows"]  # the axis, and its rows
    assert [line.split()[-1] for line in lines[1:3]] == ["0:2", "2:4"]
    assert main(["place", str(config), "--mesh", "data=1", "--batch-size", "7"]) == 0
    assert "host 0 reads 7 rows" in capsys.readouterr().out
    assert main(["place"]) == 2
    assert "give --batch-size, or a config" in capsys.readouterr().err


def test_a_config_names_the_dataset_for_other_commands(config, tmp_path, capsys):
    assert main(["info", str(config), "--json"]) == 0  # runs no code
    assert json.loads(capsys.readouterr().out)["dataset"] == "tiny/1.0.0"
    out = tmp_path / "random"
    assert main(["fill", str(config), "--out", str(out), "--records", "2"]) == 0
    assert main(["verify", str(config), "--data-dir", str(out)]) == 0
    assert capsys.readouterr().out.endswith("all are sound\n")


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        ({}, {"image"}),
        ({"exclude_keys": ["id"]}, {"image", "id"}),
        ({"include_keys": ["image", "label"]}, {"label"}),
    ],
)
def test_features_are_left_out_of_those_that_the_config_chooses(chosen, left, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"source": {"name": "tiny"} | chosen}))
    config = Dataset(str(path)).as_configured(None, None, exclude="image")
    assert (config.include_keys or config.exclude_keys) == left


def test_a_config_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["info", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "holds"),
    [
        ("dataset: mnist", "dataset"),
        ("source: mnist", "source"),
        ("source: {split: train}", "source"),
        ("source: !!python/object/apply:os.getcwd []", "ConstructorError"),
        ("a: [", "ParserError"),
        ("- mnist", "mnist"),
        ("", "None"),
    ],
)
def test_a_config_without_a_dataset_is_refused(content, holds, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with refused(ValueError, f"section source(.|\n)*holds: .*{holds}"):
        ConfigFile.read(path)


def test_functions_and_decoders_stand_in_the_place_of_their_names():
    def kept(record, least=0):
        return record["id"] >= least

    values = {
        "name": "tiny",
        "filter_fn": {"name": "kept", "least": 3},
        "decoders": {"image": "skip"},
    }
    fields = config_fields(values, {"kept": kept})
    assert fields["filter_fn"]({"id": 3})
    assert not fields["filter_fn"]({"id": 2})
    assert isinstance(fields["decoders"]["image"], tfds.decode.SkipDecoding)
    assert config_fields({"map_fn": "kept"}, {"kept": kept}) == {"map_fn": kept}
    assert config_fields(fields, {}) == fields
