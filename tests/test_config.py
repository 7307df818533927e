import dataclasses
import re

import numpy as np
import pytest

from datarax_tfds import TFDSEagerConfig, TFDSStreamingConfig

GOOD = {"name": "mnist", "split": "train"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "train"}, "name is required"),
        ({"name": "mnist"}, "split is required"),
        ({"name": "", "split": "train"}, "name is required"),
        ({"name": "mnist", "split": ["train"]}, "split is required"),
        (GOOD | {"include_keys": {"a"}, "exclude_keys": {"b"}}, "both key filters"),
        (GOOD | {"include_keys": "image"}, "include_keys is a set of names"),
        (GOOD | {"try_gcs": True, "data_dir": "here"}, "exclude each other"),
        (GOOD | {"layout": "split"}, "no such layout"),
        (GOOD | {"data_dir": "gs://bucket/data"}, "from file systems only"),
        (GOOD | {"seed": -1}, re.escape("[0, 2**32)")),
        (GOOD | {"seed": 2**32}, re.escape("[0, 2**32)")),
        (GOOD | {"seed": 1.5}, re.escape("[0, 2**32)")),
        (GOOD | {"seed": None}, re.escape("[0, 2**32)")),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=f"{message}(.|\n)*fix:"):
        TFDSEagerConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "train"}, "name is required"),
        (GOOD | {"include_keys": {"a"}, "exclude_keys": {"b"}}, "both key filters"),
        (GOOD | {"seed": 2**32}, re.escape("[0, 2**32)")),
        (GOOD | {"access": "blocks"}, "no such access"),
        (GOOD | {"prefetch_buffer": -1}, "an integer of at least 0"),
        (GOOD | {"prefetch_buffer": 1.5}, "an integer of at least 0"),
        (GOOD | {"prefetch_buffer": True}, "an integer of at least 0"),
        (GOOD | {"shuffle_buffer_size": 0}, "an integer of at least 1"),
        (GOOD | {"block_size": "8"}, "an integer of at least 1"),
        (GOOD | {"beam_num_workers": 0}, "an integer of at least 1"),
        (GOOD | {"decoders": "SkipDecoding"}, "decoders is a dict"),
    ],
)
def test_a_streaming_config_that_cannot_be_is_refused(fields, message):
    with pytest.raises(
        ValueError, match=f"^(TFDSStreamingConfig|seed): (.|\n)*{message}(.|\n)*fix:"
    ):
        TFDSStreamingConfig(**fields)


def test_a_config_is_a_frozen_value():
    config = TFDSEagerConfig(**GOOD, include_keys={"image"}, seed=np.uint32(7))
    with pytest.raises(dataclasses.FrozenInstanceError, match="seed"):
        config.seed = 8  # pyright: ignore
    same = TFDSEagerConfig(**GOOD, include_keys={"image"}, seed=7)
    assert config == same
    assert hash(config) == hash(same)
    assert type(config.seed) is int
    assert config.include_keys == {"image"}


def test_no_keys_are_not_all_keys():
    assert TFDSEagerConfig(**GOOD).include_keys is None
    assert TFDSEagerConfig(**GOOD, include_keys=set()).include_keys == set()
