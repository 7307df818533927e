"""Which features become arrays, and that each value is the one that was written."""

import functools

import jax
import numpy as np
import pytest
import tfds_datasets
from sources import held, source_of

from datarax_tfds import TFDSEagerSource, TFDSStreamingSource
from datarax_tfds.decoding.decoder import Decoder

eager = functools.partial(source_of, kind=TFDSEagerSource)


def same_bits(value, written):
    value, written = np.asarray(value), np.asarray(written)
    return value.shape == written.shape and value.tobytes() == written.tobytes()


@pytest.mark.parametrize("mesh", ["one device", "8 devices"])
@pytest.mark.parametrize("kind", [TFDSEagerSource, TFDSStreamingSource])
def test_every_dtype_and_rank_arrives_bit_for_bit(data_dir, kind, mesh):
    fields = {"layout": "sharded"} if kind is TFDSEagerSource else {}
    source = source_of(data_dir, kind, mesh, name="dtypes", **fields)
    batch = jax.tree.map(np.asarray, source.get_batch(8))
    for number in range(8):
        written = tfds_datasets.every_dtype(number)
        # 64-bit types arrive as 32-bit ones, where the values allow it.
        written["int64"] = written["int64"].astype(np.int32)
        written["float64"] = written["float64"].astype(np.float32)
        written["sequence"] = written["sequence"].astype(np.int32)
        record = jax.tree.map(lambda column: column[number], batch)
        assert jax.tree.structure(record) == jax.tree.structure(written)
        assert all(jax.tree.leaves(jax.tree.map(same_bits, record, written)))


def test_64_bit_integers_arrive_unchanged_with_jax_enable_x64(data_dir):
    with jax.enable_x64(True):
        source = eager(data_dir, name="text", include_keys={"wide"})
        batch = source.get_batch(5)
        assert batch["wide"].dtype == np.int64
        assert batch["wide"].tolist() == [2**40 + number for number in range(5)]


def test_an_integer_that_would_overflow_is_refused(data_dir):
    with pytest.raises(
        OverflowError,
        match=r"record 0 of \S+text-train\S+ \(.+\), feature 'wide': the value does not"
        r" fit int32(.|\n)*"
        r"value: +-?\d+ \(int64\)(.|\n)*fix:(.|\n)*jax_enable_x64(.|\n)*map_fn(.|\n)*exclude_keys",
    ):
        eager(data_dir, name="text", include_keys={"wide", "label"})


class TestKeys:
    def test_included_and_excluded_features(self, data_dir):
        only = eager(data_dir, include_keys={"label", "id"})
        without = eager(data_dir, exclude_keys={"image"})
        for source in (only, without):
            assert set(source.element_spec()) == set(source.get_batch(3)) == {"id", "label"}
        assert only.include_keys == {"id", "label"}
        assert without.exclude_keys == {"image"}
        assert without.include_keys is None

    def test_supervised_records_are_image_and_label(self, data_dir):
        source = eager(data_dir, name="pair", as_supervised=True)
        assert source.as_supervised
        batch = source.get_batch(4)
        assert set(batch) == {"image", "label"}
        assert batch["image"].tolist() == [0, 1, 2, 3]
        assert batch["label"].tolist() == [0, 10, 20, 30]


@pytest.mark.parametrize("layout", ["replicated", "sharded", "auto"])
def test_records_that_do_not_fit_are_refused_before_they_are_read(data_dir, layout, monkeypatch):
    from datarax_tfds.records import memory as layouts

    # The one thing of the machine that a test cannot make small.
    monkeypatch.setattr(layouts, "free_host_bytes", lambda: 8 * 100)
    monkeypatch.setattr(Decoder, "__call__", lambda *_: pytest.fail("it was read"))
    with pytest.raises(
        ValueError, match=r"do not fit the devices(.|\n)*needed:(.|\n)*free: +100 bytes(.|\n)*fix:"
    ):
        eager(data_dir, mesh="8 devices", layout=layout)


@pytest.mark.parametrize(
    ("free", "layout"),
    [(10**9, "replicated"), (8 * 97 * 68 * 10, "replicated"), (8 * 97 * 68 * 5, "sharded")],
)
def test_auto_replicates_up_to_a_tenth_of_a_device(data_dir, free, layout, monkeypatch):
    from datarax_tfds.records import memory as layouts

    monkeypatch.setattr(layouts, "free_host_bytes", lambda: free)
    source = eager(data_dir, mesh="8 devices")
    assert source.records.layout == layout


def test_sources_of_the_same_features_share_what_is_compiled(data_dir):
    def decoder(**fields):
        return held(source_of(data_dir, **fields), Decoder)

    assert decoder() is decoder(split="test") is decoder(name="tiny_one")
    assert decoder() is not decoder(exclude_keys={"id"})
    assert decoder() is not decoder(name="dtypes")
    assert decoder() is not decoder(map_fn=lambda record: record)
