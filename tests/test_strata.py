"""Batches that take as many records of each part of a split."""

import dataclasses

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shardings
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from refusals import refused

from datarax_tfds import (
    Pipeline,
    StateMismatchError,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
)
from datarax_tfds.order.cursor import Cursor, Schedule
from datarax_tfds.order.sampler import Sampler
from datarax_tfds.order.strata import Strata, StrataOrder


@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_each_part_is_permuted_for_itself_in_every_epoch(length, strata, seed, epoch):
    strata = min(strata, length)
    numbers = StrataOrder(length, seed, strata).host_numbers(epoch, 0, length)
    assert sorted(numbers) == list(range(length))
    assert np.array_equal(part_of(numbers, length, strata), np.arange(length) % strata)


def part_of(numbers, length, strata):
    parts = np.concatenate([np.full(len(part), k) for k, part in parts_of(length, strata)])
    return parts[numbers]


def parts_of(length, strata):
    return enumerate(np.array_split(np.arange(length), strata))


@pytest.mark.parametrize(("length", "strata"), [(97, 8), (96, 8), (64, 64), (70_003, 16)])
@pytest.mark.parametrize("seed", [7, None])
def test_host_and_device_agree(length, strata, seed):
    order = StrataOrder(length, seed, strata)
    positions = np.unique(np.random.default_rng(0).integers(0, length, 500)).astype(np.int32)
    epochs = jnp.full(len(positions), 3, jnp.int32)
    on_device = jax.jit(order.device_numbers)(epochs, positions)
    assert np.array_equal(on_device, order.host_numbers(3, 0, length)[positions])


def test_the_order_never_changes():
    assert StrataOrder(20, 42, 4).host_numbers(1, 0, 20).tolist() == [
        2, 8, 12, 19, 0, 9, 13, 17, 4, 6, 14, 18, 1, 5, 11, 16, 3, 7, 10, 15,
    ]  # fmt: skip
    assert StrataOrder(97, 42, 8).version == "8 strata, 1"


def test_a_split_of_more_than_2_to_the_31_records_has_an_order():
    order = StrataOrder(3 * 10**9, 1, 8)
    numbers = order.host_numbers(0, 3 * 10**9 - 16, 3 * 10**9)
    assert np.array_equal(numbers // 375_000_000, np.arange(16) % 8)


def test_records_far_apart_in_time_are_uncorrelated():
    length, strata = 64_000, 8
    numbers = StrataOrder(length, 5, strata).host_numbers(2, 0, length).reshape(-1, strata)
    offsets = numbers - numbers.min(axis=0)
    scaled = (offsets - offsets.mean(axis=0)) / offsets.std(axis=0)
    limit = 5 / np.sqrt(len(scaled))
    for lag in (1, 2, 3, 8):
        assert abs((scaled[lag:] * scaled[:-lag]).mean(axis=0)).max() < limit
    between = scaled.T @ scaled / len(scaled) - np.eye(strata)
    assert abs(between).max() < limit


@pytest.mark.parametrize("remainder", ["wrap", "drop", "pad"])
@pytest.mark.parametrize("length", [97, 96])
def test_batches_take_equally_of_each_part_and_deliver_each_record_once(length, remainder):
    strata, delivered, cursor, programs = 8, [], Cursor(), {}
    sampler = Sampler(StrataOrder(length, 3, strata), 3)
    for size in [48, 16, 24, 8, 96] * 8:  # as after resumes with other batch sizes
        schedule = Schedule(length, size, remainder, strata)
        batch = sampler.at(schedule, cursor)
        numbers = batch.record_numbers()
        spans = list(schedule.spans(cursor))
        at = 0
        for epoch, start, stop in spans:
            delivered += [(epoch, number) for number in numbers[at : at + stop - start]]
            at += stop - start
        if len(spans) == 1 and spans[0].stop - spans[0].start == size:
            equal = np.repeat(np.arange(strata), size // strata)
            assert np.array_equal(part_of(numbers, length, strata), equal)
        if size == 48:
            traced = programs.setdefault(
                remainder,
                jax.jit(lambda e, i, s=schedule: sampler.select(s, Cursor(e, i)).record_numbers()),
            )
            assert np.array_equal(traced(np.int32(cursor.epoch), np.int32(cursor.index)), numbers)
        pieces = [batch.record_numbers(slice(at, at + 8)) for at in range(0, size, 8)]
        assert np.array_equal(np.concatenate(pieces), numbers)
        cursor = schedule.after(cursor)
    assert len(delivered) == len(set(delivered))


@pytest.mark.parametrize("length", [97, 96])
def test_places_and_numbers_are_inverse(length):
    strata = Strata(length, 8)
    places = strata.places_of(np.arange(length))
    assert np.array_equal(strata.numbers_at(places), np.arange(length))
    assert np.array_equal(strata.places_of(jnp.arange(length, dtype=jnp.int32)), places)
    empty = np.setdiff1d(np.arange(strata.places + 8), places)
    assert set(strata.numbers_at(empty)) == {length}
    assert strata.places_of(np.array(length)) >= strata.places


def source(data_dir, kind, mesh="8 devices", **fields):
    config = TFDSEagerConfig if kind is TFDSEagerSource else TFDSStreamingConfig
    fields = {"strata": 8, "shuffle": True, "seed": 5} | fields
    fields = {"name": "tiny", "split": "train", "data_dir": str(data_dir)} | fields
    return kind(config(**fields), sharding=shardings()[mesh])


def test_eager_and_streaming_sources_agree_on_any_mesh_and_after_a_resume(data_dir):
    sources = [
        source(data_dir, TFDSEagerSource, layout="sharded"),
        source(data_dir, TFDSEagerSource, "4 x 2, replicas", layout="sharded"),
        source(data_dir, TFDSEagerSource, "3 of the devices", layout="sharded"),
        source(data_dir, TFDSEagerSource, "one device"),
        source(data_dir, TFDSStreamingSource),
    ]
    pipelines = [Pipeline(source=each, batch_size=24, record_numbers=True) for each in sources]
    for _ in range(9):
        first, *others = [pipeline.step() for pipeline in pipelines]
        for other in others:
            assert all(np.array_equal(first[name], other[name]) for name in first)
    state = pipelines[0].get_state()
    assert state["order"] == "8 strata, 1"
    after = pipelines[0].step()
    pipelines[-1].reset()
    pipelines[-1].set_state(state)
    again = pipelines[-1].step()
    assert all(np.array_equal(after[name], again[name]) for name in after)


@pytest.mark.parametrize("kind", [TFDSEagerSource, TFDSStreamingSource])
def test_a_run_resumes_after_every_batch(data_dir, kind):
    """The rows of a batch are sorted by parts, so the rest of the contract does not fit strata."""
    one = source(data_dir, kind, "one device")
    contract.check_resume_after_every_batch(
        lambda: Pipeline(source=one.clone(), batch_size=24, remainder="pad"), prefetch=2
    )


def test_aligned_batches_need_no_exchange(data_dir, monkeypatch):
    # What is exchanged is lost from here on.
    monkeypatch.setattr(lax, "all_to_all", lambda part, *_, **__: jnp.zeros_like(part))
    kinds = {TFDSEagerSource: {"layout": "sharded"}, TFDSStreamingSource: {}}
    batches, expected = (
        Pipeline(source=source(data_dir, kind, **fields), batch_size=24, remainder="drop")
        for kind, fields in kinds.items()
    )
    for ours, plain in zip(batches, expected, strict=True):
        assert all(np.array_equal(ours[name], plain[name]) for name in plain)
    lost = batches.source.get_records(np.arange(24))["id"]
    assert not np.array_equal(lost, expected.source.get_records(np.arange(24))["id"])


def test_all_records_come_in_stored_order(data_dir):
    sharded = source(data_dir, TFDSEagerSource, layout="sharded").collect_to_array()
    plain = source(data_dir, TFDSEagerSource, layout="replicated").collect_to_array()
    for name, column in plain.items():
        assert np.array_equal(sharded[name][:97], column)
        assert not sharded[name][97:].any()


def test_another_number_of_strata_is_another_order(data_dir):
    state = source(data_dir, TFDSStreamingSource).get_state()
    for strata in (None, 4):
        with refused(StateMismatchError, "order"):
            source(data_dir, TFDSStreamingSource, strata=strata).set_state(state)
    reseeded = source(data_dir, TFDSStreamingSource, seed=6)
    with refused(StateMismatchError, "seed"):
        reseeded.set_state(state)


def test_a_batch_must_take_equally_of_each_part(data_dir):
    stream = source(data_dir, TFDSStreamingSource, "one device")
    for take in (stream.get_batch, lambda size: stream.get_batch_at(0, size)):
        with refused(ValueError, "batch_size.*multiple of 8.*use 8 or 16"):
            take(12)
    with refused(ValueError, "strata.*at most the number of records, 97"):
        source(data_dir, TFDSStreamingSource, strata=98)
    with refused(ValueError, "strata and access='sequential'"):
        dataclasses.replace(stream.config, access="sequential")


def test_single_records_come_in_the_order_of_positions(data_dir):
    stream = source(data_dir, TFDSStreamingSource, "one device")
    ids = [int(record["id"]) for record in stream]
    numbers = StrataOrder(97, 5, 8).host_numbers(0, 0, 97)
    assert ids == np.asarray(stream.get_records(numbers)["id"]).tolist()
