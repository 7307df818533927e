"""Configs, names and splits that cannot be: refused by name, before a record is read."""

import re
from datetime import date
from decimal import Decimal

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from refusals import refused

from datarax_tfds import (
    DatasetNotFoundError,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    from_tfds,
)
from datarax_tfds.files.split import open_split

GOOD = {"name": "tiny", "split": "train"}

FLAGS = ("cacheable", "stochastic", "try_gcs", "shuffle", "as_supervised", "local_files_only")
FUNCTIONS = ("batch_stats_fn", "map_fn")
DICTS = ("precomputed_stats", "download_and_prepare_kwargs", "decoders")
KEYS = ("include_keys", "exclude_keys")

# Fields of both configs: the field, its value, and what is said of it.
FIELDS = [
    *[(name, value, f"{name} is required") for name in ("name", "split") for value in (None, "")],
    *[("name", value, "name must be a string") for value in (7, b"tiny", ["tiny"], {"tiny"}, True)],
    *[("split", value, "split must be a string, or") for value in (7, b"train", True, dict)],
    *[("split", value, "must be one split, got several") for value in (["train"], {"test"}, ())],
    *[(name, value, f"{name} must be True or False") for name in FLAGS
      for value in ("no", 0, None)],
    *[("seed", value, r"\[0, 2\*\*32\)")
      for value in (-1, 2**32, 2**63, 10**100, 1.5, 7.0, True, None, "7", [7], np.float64(7),
                    np.int64(-1), np.bool_(True), float("nan"), Decimal(7), date(2024, 1, 1),
                    jnp.int32(7))],
    *[("shuffle_buffer_size", value, "must be an integer of at least 1")
      for value in (0, -1, 10.0, "1000", True, None, np.float32(8))],
    *[("beam_num_workers", value, "must be an integer of at least 1")
      for value in (0, -4, 1.0, "4", False, [4])],
    *[(name, value, f"{name} must be a function") for name in FUNCTIONS
      for value in (3, "normalize", {"image": len}, [len])],
    *[(name, value, f"{name} must be a dict") for name in DICTS
      for value in (3, "image", ["image"], [("image", 1)], len)],
    *[(name, value, f"{name} must be a set of names") for name in KEYS
      for value in ("image", b"image", 3, {1}, [["image"]], {""}, [None], True)],
    *[("stream_name", value, "stream_name must be a string")
      for value in (7, "", b"shuffle", ["a"])],
    *[("data_dir", value, "data_dir must be a string") for value in (7, "", b"/data", [], True)],
    *[("data_dir", value, "got several") for value in (["/data"], ("/a", "/b"))],
    *[("data_dir", value, "or in a store that is read") for value in ("https://a.org", "hdfs://a")],
    *[("data_dir", value, "must name a bucket") for value in ("gs://", "s3://a/../b", "gs://a//b")],
]  # fmt: skip

# What goes wrong only together.
TOGETHER = [
    ({"include_keys": {"a"}, "exclude_keys": {"b"}}, "both key filters are set"),
    ({"include_keys": set(), "exclude_keys": set()}, "both key filters are set"),
    ({"try_gcs": True, "data_dir": "here"}, "exclude each other"),
    ({"stochastic": True}, "draws the seed from a stream"),
    ({"stream_name": "shuffle"}, "nothing is drawn from it"),
]

EAGER_FIELDS = [
    ("layout", value, "layout must be one of")
    for value in ("split", "", "Auto", None, 1, ["sharded"], ("auto", "sharded"))
]

STREAMING_FIELDS = [
    *[("access", value, "access must be one of")
      for value in ("blocks", "", "RANDOM", None, 0, ["random"])],
    *[("prefetch_buffer", value, "must be an integer of at least 0")
      for value in (-1, 1.5, True, "2", None, np.float64(2), -np.int64(1), float("inf"))],
    *[("max_corrupt_records", value, "must be an integer of at least 0")
      for value in (-1, 0.5, True, "1", None)],
    *[("block_size", value, "must be an integer of at least 1")
      for value in (0, -8, 8.0, "8", True, [8])],
]  # fmt: skip

UNKNOWN_FIELDS = [
    ({"shufle": True}, "neither config has a field 'shufle'.*fix: +use shuffle"),
    ({"batch_size": 32}, "neither config has a field 'batch_size'"),
    ({"prefetch": 2}, "neither config has a field 'prefetch'.*fix: +use prefetch_buffer"),
    ({"download": True}, "neither config has a field 'download'"),
    ({"Seed": 1}, "neither config has a field 'Seed'.*fix: +use seed"),
]

NAMES = [
    "../tiny", "/tiny", "/tmp", "a/../b", "tiny/..", "tiny/../tiny", "a:b:c", "hub:x/y",
    "tiny/data_dir=elsewhere", "tiny/", "tiny ", " tiny", "tiny\n", "a b", ".", "..", "~",
    "huggingface:mnist/x/y", "kaggle:a:b", "tiny:1.0.0:2", "tiny/config/more", "tiny(split=1)",
    "tiny/a=1,b=2", "tiny\x00", "-tiny", ".tiny", "tiny;ls", "$HOME", "tiny:", "*",
]  # fmt: skip

# A name that neither data_dir nor TFDS has, and what is said of it.
UNKNOWN_NAMES = [
    ("tinny", "TFDS knows none of that name.*fix: +use name='tiny'"),
    ("tïny", "TFDS knows none of that name.*fix: +use name='tiny'"),
    ("TINY", "TFDS knows none of that name.*fix: +use name='tiny'"),
    ("tiny_", "TFDS knows none of that name.*fix: +use name='tiny'"),
    ("nothing-like-it", "TFDS knows none of that name.*prepared: .*tiny, .*fix: +set data_dir"),
]

SPLITS = [
    ("valid", "no such split(?=.*'train': 97, 'test': 13)"),
    ("train[:200]", "no such split(?=.*97 examples)"),
    *[(split, "no such split") for split in
      ("Train", "train[", "train]", "train[:x]", "train[1:2:3]", "train[5]", "[:5]",
       "train,test", "train test", "train++test", "+train", "train-test", "train[:10%%]",
       "train[:101%]", "train[200%:]", "train[-101%:]", "train[:5.5]", "train()", " ", "all/train",
       "train[:5]]", "train/../test", "TRAIN[:5]")],
    *[(split, "no records") for split in
      ("train[:0]", "train[50:50]", "train[97:]", "train[:0%]", "train[60:50]",
       "train[:0]+test[:0]")],
    *[(split, "overlap") for split in
      ("train+train", "train[:5]+train[4:]", "train[:50%]+train[40%:]",
       "train[10:20]+test+train[:11]")],
]  # fmt: skip

FEATURES = [
    ("tiny", {"include_keys": {"imge"}}, "no feature 'imge'"),
    ("tiny", {"exclude_keys": {"imge", "lable"}}, "no feature 'imge', 'lable'"),
    ("tiny", {"include_keys": {"Image"}}, "no feature 'Image'"),
    ("dtypes", {"include_keys": {"nested/a"}}, "no feature 'nested/a'"),
    ("tiny", {"include_keys": set()}, "must leave at least one feature"),
    ("tiny", {"exclude_keys": {"id", "image", "label"}}, "must leave at least one feature"),
    ("tiny", {"as_supervised": True}, "input and a target"),
    ("pair", {"as_supervised": True, "include_keys": {"input"}}, "input and a target"),
    ("tiny", {"decoders": {"imge": None}}, "decoders must name .*, got 'imge'"),
    (
        "tiny",
        {"decoders": {"image": None}, "include_keys": {"id"}},
        "decoders must name .*, got 'image'",
    ),
    ("tiny", {"decoders": {"image": 5}}, "decoder of 'image'"),
    ("tiny", {"decoders": {"image": "SkipDecoding"}}, "decoder of 'image'"),
    ("tiny", {"decoders": {"image": lambda record: record}}, "decoder of 'image'"),
    (
        "tiny",
        {"decoders": {1: None, "x": None}},
        "decoders must name .*, got 'x'",
    ),
    ("tiny", {"map_fn": lambda: None}, "cannot trace map_fn"),
    ("tiny", {"map_fn": lambda record, seed, more: record}, "cannot trace map_fn"),
    ("tiny", {"map_fn": lambda *, record: record}, "cannot trace map_fn"),
    ("tiny", {"map_fn": lambda record: record["imge"]}, "cannot trace map_fn.*'imge'"),
    ("tiny", {"map_fn": lambda record: record["id"]}, "must return a dict of tensors"),
    ("tiny", {"map_fn": lambda record: None}, "must return a dict of tensors"),
    ("tiny", {"map_fn": lambda record: {}}, "must return a dict of tensors"),
    ("tiny", {"map_fn": lambda record: {"id": None}}, "must return a dict of tensors"),
    ("tiny", {"map_fn": lambda record: [record["id"]]}, "must return a dict of tensors"),
    ("tiny", {"map_fn": print}, "cannot trace map_fn|must return a dict"),
    ("tiny", {"map_fn": dict.fromkeys}, "cannot trace map_fn|must return a dict"),
]

CONFIGS_OF_A_SOURCE = [
    ("tiny", "str"),
    (None, "NoneType"),
    ({"name": "tiny", "split": "train"}, "dict"),
    (TFDSEagerConfig, "type"),
]

RNGS = [7, "order", {"order": 0}, True]


@pytest.mark.parametrize("config", [TFDSEagerConfig, TFDSStreamingConfig])
@pytest.mark.parametrize(("name", "value", "message"), FIELDS)
def test_a_value_that_no_field_can_have_is_refused(config, name, value, message):
    with refused(ValueError, rf"^({config.__name__}|seed): .*{message}.*fix:"):
        config(**GOOD | {name: value})


@pytest.mark.parametrize("config", [TFDSEagerConfig, TFDSStreamingConfig])
@pytest.mark.parametrize(("fields", "message"), TOGETHER)
def test_fields_that_exclude_each_other_are_refused(config, fields, message):
    with refused(ValueError, rf"^{config.__name__}: .*{message}"):
        config(**GOOD | fields)


@pytest.mark.parametrize(("name", "value", "message"), EAGER_FIELDS)
def test_a_field_of_the_eager_config_is_refused(name, value, message):
    with refused(ValueError, rf"^TFDSEagerConfig: {message}.*{name}: +{re.escape(repr(value))}"):
        TFDSEagerConfig(**GOOD | {name: value})


@pytest.mark.parametrize(("name", "value", "message"), STREAMING_FIELDS)
def test_a_field_of_the_streaming_config_is_refused(name, value, message):
    with refused(ValueError, rf"^TFDSStreamingConfig: {name} {message}|: {message}"):
        TFDSStreamingConfig(**GOOD | {name: value})


@pytest.mark.parametrize(("fields", "message"), UNKNOWN_FIELDS)
def test_an_unknown_field_is_refused_with_the_nearest(fields, message):
    with refused(TypeError, f"^from_tfds: {message}"):
        from_tfds(**GOOD, **fields)


def test_integers_and_flags_of_numpy_are_those_of_python():
    config = TFDSStreamingConfig(
        **GOOD,
        shuffle=np.bool_(True),
        seed=np.uint32(7),
        prefetch_buffer=np.int64(0),
        block_size=np.uint8(4),
        shuffle_buffer_size=np.int16(64),
        beam_num_workers=np.int32(2),
    )
    same = TFDSStreamingConfig(
        **GOOD, shuffle=True, seed=7, prefetch_buffer=0, block_size=4, shuffle_buffer_size=64,
        beam_num_workers=2,
    )  # fmt: skip
    assert config == same
    assert type(config.shuffle) is bool
    assert {type(config.prefetch_buffer), type(config.block_size)} == {int}


def test_a_path_is_a_data_dir(tmp_path):
    assert TFDSEagerConfig(**GOOD, data_dir=tmp_path).data_dir == str(tmp_path)


def opened(data_dir, **fields):
    return open_split(
        TFDSEagerConfig(**GOOD | {"data_dir": str(data_dir), "local_files_only": True} | fields)
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_invalid_name_is_refused(data_dir, name):
    with refused(ValueError, "not the name of a dataset.*name: .*fix:"):
        opened(data_dir, name=name)


@pytest.mark.parametrize(("name", "message"), UNKNOWN_NAMES)
def test_a_dataset_that_is_not_there_is_refused_with_what_is(data_dir, name, message):
    with refused(DatasetNotFoundError, message):
        opened(data_dir, name=name)


@pytest.mark.parametrize(("split", "message"), SPLITS)
def test_an_invalid_split_is_refused(data_dir, split, message):
    with refused(ValueError, rf"^tiny:.*{message}.*split: +{re.escape(repr(split))}"):
        opened(data_dir, split=split)


@pytest.mark.parametrize(("name", "fields", "message"), FEATURES)
def test_features_decoders_and_functions_that_do_not_fit_are_refused(
    data_dir, name, fields, message
):
    with refused(ValueError, message):
        TFDSStreamingSource(
            TFDSStreamingConfig(name=name, split="train", data_dir=data_dir, **fields)
        )


@pytest.mark.parametrize("source", [TFDSEagerSource, TFDSStreamingSource])
@pytest.mark.parametrize(("config", "kind"), CONFIGS_OF_A_SOURCE)
def test_a_source_is_built_from_its_own_config(source, config, kind):
    with refused(TypeError, f"^{source.__name__}: .*config: +{kind}"):
        source(config)


def test_a_source_refuses_the_config_of_the_other():
    with refused(TypeError, "config: +TFDSEagerConfig"):
        TFDSStreamingSource(TFDSEagerConfig(**GOOD))
    with refused(TypeError, "config: +TFDSStreamingConfig"):
        TFDSEagerSource(TFDSStreamingConfig(**GOOD))


@pytest.mark.parametrize("rngs", RNGS)
def test_invalid_names_of_streams_are_refused(data_dir, rngs):
    config = TFDSEagerConfig(
        **GOOD, data_dir=data_dir, stochastic=True, stream_name="order", shuffle=True
    )
    assert TFDSEagerSource(config, rngs=nnx.Rngs(order=0)).is_random_order
    with refused(TypeError, r"rngs.*nnx\.Rngs"):
        TFDSEagerSource(config, rngs=rngs)
