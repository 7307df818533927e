"""Which features become arrays, and that each value is the one that was written."""

import datasets
import jax
import numpy as np
import pytest
from conftest import shardings

from datarax_tfds import (
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
)


def config(data_dir, name, **fields):
    return TFDSEagerConfig(**({"name": name, "split": "train", "data_dir": str(data_dir)} | fields))


def same_bits(value, written):
    value, written = np.asarray(value), np.asarray(written)
    return value.shape == written.shape and value.tobytes() == written.tobytes()


@pytest.mark.parametrize("mesh", ["one device", "8 devices"])
@pytest.mark.parametrize("source", [TFDSEagerSource, TFDSStreamingSource])
def test_every_dtype_and_rank_arrives_bit_for_bit(data_dir, source, mesh):
    of = TFDSEagerConfig if source is TFDSEagerSource else TFDSStreamingConfig
    fields = {"layout": "sharded"} if source is TFDSEagerSource else {}
    source = source(
        of(name="dtypes", split="train", data_dir=str(data_dir), **fields),
        sharding=shardings()[mesh],
    )
    batch = jax.tree.map(np.asarray, source.get_batch(8))
    for number in range(8):
        written = datasets.every_dtype(number)
        # 64-bit types arrive as 32-bit ones, where the values allow it.
        written["int64"] = written["int64"].astype(np.int32)
        written["float64"] = written["float64"].astype(np.float32)
        written["sequence"] = written["sequence"].astype(np.int32)
        record = jax.tree.map(lambda column: column[number], batch)
        assert jax.tree.structure(record) == jax.tree.structure(written)
        assert all(jax.tree.leaves(jax.tree.map(same_bits, record, written)))


def test_64_bits_arrive_whole_where_jax_has_them(data_dir):
    with jax.enable_x64(True):
        source = TFDSEagerSource(config(data_dir, "text", include_keys={"wide"}))
        batch = source.get_batch(5)
        assert batch["wide"].dtype == np.int64
        assert batch["wide"].tolist() == [2**40 + number for number in range(5)]


def test_an_integer_that_would_wrap_is_refused(data_dir):
    with pytest.raises(
        OverflowError,
        match=r"record 0 of \S+text-train\S+ \(.+\), feature 'wide': the value does not"
        r" fit int32(.|\n)*"
        r"value: +-?\d+ \(int64\)(.|\n)*fix:(.|\n)*jax_enable_x64(.|\n)*map_fn(.|\n)*exclude_keys",
    ):
        TFDSEagerSource(config(data_dir, "text", include_keys={"wide", "label"}))


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ("text", "feature 'text' holds no numbers"),
        ("tokens", "feature 'tokens' varies in shape"),
        ("photo", "feature 'photo' varies in shape"),
    ],
)
def test_what_no_array_can_hold_is_refused_by_name(data_dir, feature, message):
    fix = rf"{message}(.|\n)*fix:(.|\n)*exclude_keys={{'{feature}'}}"
    with pytest.raises(ValueError, match=fix):
        TFDSEagerSource(config(data_dir, "text", include_keys={feature, "label"}))


class TestKeys:
    def test_included_and_excluded_features(self, data_dir):
        only = TFDSEagerSource(config(data_dir, "tiny", include_keys={"label", "id"}))
        without = TFDSEagerSource(config(data_dir, "tiny", exclude_keys={"image"}))
        for source in (only, without):
            assert set(source.element_spec()) == set(source.get_batch(3)) == {"id", "label"}
        assert only.include_keys == {"id", "label"}
        assert without.exclude_keys == {"image"}
        assert without.include_keys is None

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"include_keys": {"imge"}}, "no feature 'imge'(.|\n)*features: id, image, label"),
            ({"exclude_keys": {"x", "y"}}, "no feature 'x', 'y'"),
            ({"include_keys": set()}, "leaves no feature"),
            ({"exclude_keys": {"id", "image", "label"}}, "leaves no feature"),
            ({"as_supervised": True}, "input and a target(.|\n)*supervised_keys: None"),
        ],
    )
    def test_keys_that_cannot_be_are_refused(self, data_dir, fields, message):
        with pytest.raises(ValueError, match=rf"{message}(.|\n)*fix:"):
            TFDSEagerSource(config(data_dir, "tiny", **fields))

    def test_supervised_records_are_image_and_label(self, data_dir):
        source = TFDSEagerSource(config(data_dir, "pair", as_supervised=True))
        assert source.as_supervised
        batch = source.get_batch(4)
        assert set(batch) == {"image", "label"}
        assert batch["image"].tolist() == [0, 1, 2, 3]
        assert batch["label"].tolist() == [0, 10, 20, 30]

    def test_a_filter_must_leave_the_supervised_pair(self, data_dir):
        with pytest.raises(ValueError, match="input and a target"):
            TFDSEagerSource(config(data_dir, "pair", as_supervised=True, exclude_keys={"target"}))


@pytest.mark.parametrize("layout", ["replicated", "sharded", "auto"])
def test_records_that_do_not_fit_are_refused_before_they_are_read(data_dir, layout, monkeypatch):
    from datarax_tfds import decoding
    from datarax_tfds import layout as layouts

    # The one thing of the machine that a test cannot make small.
    monkeypatch.setattr(layouts, "free_host_bytes", lambda: 8 * 100)
    monkeypatch.setattr(decoding.Decoder, "__call__", lambda *_: pytest.fail("it was read"))
    with pytest.raises(
        ValueError, match=r"do not fit the devices(.|\n)*needed:(.|\n)*free: +100 bytes(.|\n)*fix:"
    ):
        TFDSEagerSource(config(data_dir, "tiny", layout=layout), sharding=shardings()["8 devices"])


@pytest.mark.parametrize(
    ("free", "layout"),
    [(10**9, "replicated"), (8 * 97 * 68 * 10, "replicated"), (8 * 97 * 68 * 5, "sharded")],
)
def test_auto_replicates_up_to_a_tenth_of_a_device(data_dir, free, layout, monkeypatch):
    from datarax_tfds import layout as layouts

    monkeypatch.setattr(layouts, "free_host_bytes", lambda: free)
    source = TFDSEagerSource(config(data_dir, "tiny"), sharding=shardings()["8 devices"])
    assert source.records.layout == layout


def test_sources_of_the_same_features_share_what_is_compiled(data_dir):
    def decoder(**fields):
        config = TFDSStreamingConfig(**{"name": "tiny", "split": "train"} | fields)
        return TFDSStreamingSource(config).records._reader._decoder

    here = {"data_dir": str(data_dir)}
    assert decoder(**here) is decoder(**here, split="test") is decoder(**here, name="tiny_one")
    assert decoder(**here) is not decoder(**here, exclude_keys={"id"})
    assert decoder(**here) is not decoder(**here, name="dtypes")
    assert decoder(**here) is not decoder(**here, map_fn=lambda record: record)
