"""Every config trains on random records with the features of its dataset, which `fill` makes."""

import functools
import re
import shutil

import config_file
import jax
import numpy as np
import pytest
import train
import train_detection
import train_lm
import yaml
from checkout import ROOT
from orbax.checkpoint import StandardCheckpointer

from datarax_tfds import make_mesh
from datarax_tfds.cli import main

TINY_RESNET = "--model.width 4 --model.blocks 1"
# The script, the flags that make the config small, and what is printed at the end.
CONFIGS = {
    "cifar10": (train, f"--epochs 1 {TINY_RESNET}", "test accuracy: .* of 9 records.*, step 3"),
    "coco2017": (
        train_detection,
        f"--epochs 2 {TINY_RESNET} --source.map-fn.size 32 32 --checkpoint-every 2",
        "found .* of .* objects, step 5",
    ),
    "c4": (
        train_lm,
        "--source.split train --rows.length 32 --steps 3"
        " --model.width 8 --model.layers 1 --model.heads 2",
        r"PackedSource\(c4/en:train\): .* records",
    ),
    "imagenet2012": (
        train,
        f"--epochs 1 {TINY_RESNET} --source.map-fn.size 32 32 --test-source.map-fn.size 16 24",
        "test accuracy: .* of 9 records.*, step 3",
    ),
    "mnist": (train, "--epochs 1", "test accuracy: .* of 9 records.*, step 3"),
}
OTHERS = {"digits": "test_train.py", "docstrings": "test_train_lm.py"}  # run on their own data
RECORDS, BATCH = 9, 4
RUNS = ("whole", "died")


@pytest.fixture(scope="module")
def random_data(tmp_path_factory):
    """A directory with a random dataset for each config."""
    place = tmp_path_factory.mktemp("random")
    for name in CONFIGS:
        config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
        splits = f"train,{config.get('test_source', {}).get('split', 'validation')}"
        words = ["--out", place, "--records", RECORDS, "--splits", splits, "--max-image-size", 40]
        assert main(["fill", config["source"]["name"], *map(str, words)]) == 0
    return place


def config_of(name, random_data, checkpoint_dir):
    script, flags, _ = CONFIGS[name]
    words = [str(ROOT / f"configs/{name}.yaml"), *flags.split(), "--batch-size", str(BATCH)]
    words += ["--source.data-dir", str(random_data), "--checkpoint-dir", str(checkpoint_dir)]
    return config_file.config_from_args(script.Config, words)


@pytest.fixture(autouse=True)
def as_a_user(monkeypatch):
    """One device, for which programs compile in half the time; and Optax and Flax promote dtypes
    and ranks without being told to.
    """
    for script in (train, train_lm):  # the first one makes the mesh of train_detection, too
        devices = jax.devices()[:1]
        monkeypatch.setattr(script, "make_mesh", functools.partial(make_mesh, devices=devices))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_trains_on_random_records_of_its_dataset(name, random_data, tmp_path, capsys):
    script, _, printed = CONFIGS[name]
    script.train(config_of(name, random_data, tmp_path / "whole"))
    assert re.search(printed, capsys.readouterr().out)
    if script is not train_detection:
        return  # the others are killed in test_train.py and test_train_lm.py
    shutil.copytree(tmp_path / "whole/4", tmp_path / "died/4")
    script.train(config_of(name, random_data, tmp_path / "died"))
    assert "from step 4" in capsys.readouterr().err
    whole, died = (StandardCheckpointer().restore(tmp_path / run / "5/model") for run in RUNS)
    jax.tree.map(np.testing.assert_array_equal, whole, died)
    assert len(jax.tree.leaves(whole)) > 20


def test_a_config_is_shown_with_the_functions_of_the_scripts(random_data, tmp_path, capsys):
    words = ["--data-dir", str(random_data), "--code", str(ROOT / "scripts/images.py")]
    words += ["--picture", str(tmp_path / "show.png")]
    assert main(["show", str(ROOT / "configs/imagenet2012.yaml"), *words]) == 0
    assert capsys.readouterr().out == f"9 of 9 records in {tmp_path}/show.png\n"


def test_every_config_is_trained_with():
    assert {path.stem for path in ROOT.glob("configs/*.yaml")} == {*CONFIGS, *OTHERS}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batchsize": 3}, "there is no key 'batchsize'(.|\n)*did you mean 'batch_size'"),
        ({"colour": "red"}, "there is no key 'colour'(.|\n)*keys: source, stages"),
        ({"optimizer": {"name": "sgd", "learning_rat": 1}}, "optimizer: .*'learning_rat'(.|\n)*"
         "did you mean 'learning_rate'"),
        ({"optimizer": {"name": "sgd"}}, "optimizer: the key 'learning_rate' is missing"),
        ({"optimizer": 3}, "optimizer: there must be keys with values, got 3"),
        ({"model": {"name": "small", "wdth": 1}}, "model: there is no key 'wdth'"),
        ({"model": {"name": "resnt"}}, "model: there is no key 'resnt'(.|\n)*mean 'resnet'"),
        ({"stages": ["to_flot"]}, "stages: there is no key 'to_flot'(.|\n)*mean 'to_float'"),
        ({"source": {"name": "mnist", "split": "train", "shufle": True}},
         "a field 'shufle'(.|\n)*use shuffle"),
        ({"source": {"name": "mnist", "split": "train", "map_fn": "randm_crop"}},
         "map_fn must name one(.|\n)*use map_fn: random_crop"),
    ],
)  # fmt: skip
def test_a_wrong_key_of_a_config_suggests_the_nearest(change, said, random_data, tmp_path):
    path = tmp_path / "wrong.yaml"
    right = yaml.safe_load((ROOT / "configs/mnist.yaml").read_text())
    if "source" not in change:
        right["source"]["data_dir"] = str(random_data)
    path.write_text(yaml.safe_dump(right | change))
    with pytest.raises((SystemExit, TypeError, ValueError), match=said):
        train.train(config_file.config_from_args(train.Config, [str(path)]))
