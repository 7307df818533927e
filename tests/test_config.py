"""Configs are values. What they refuse: `test_bad_configs.py`."""

import dataclasses

import numpy as np
import pytest

from datarax_tfds import TFDSEagerConfig

GOOD = {"name": "mnist", "split": "train"}


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
