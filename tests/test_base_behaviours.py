"""What every source does beside reading: statistics, counts, copies, caches, streams of keys."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import N, check_records, equal, ids
from flax import nnx
from sources import EAGER, SIZE, SOURCES, STREAMING, config_of, loaded

from datarax_tfds import (
    Cursor,
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
)

FEW = ["one device", "8 devices, sharded", "streaming, one device", "streaming by blocks"]


@pytest.fixture(params=FEW)
def place(request):
    return SOURCES[request.param]


@pytest.fixture
def make(data_dir, place):
    def make(**fields):
        return nnx.clone(loaded(config_of(data_dir, place, shuffle=True, **fields), place[1]))

    return make


def fresh(data_dir, place, rngs=None, **fields):
    """A source with fields that do not hash."""
    source = loaded(config_of(data_dir, place, shuffle=True), place[1])
    return source.copy(config=dataclasses.replace(source.config, **fields), rngs=rngs)


def mean(batch):
    return {"mean": batch["label"].mean(), "rows": len(batch["label"])}


class TestStatistics:
    def test_there_are_none_without_a_function(self, make):
        source = make()
        assert source.compute_statistics(source.get_batch(SIZE)) is None
        assert source.get_statistics() is None

    def test_those_of_the_last_batch_are_kept(self, data_dir, place):
        source = fresh(data_dir, place, batch_stats_fn=mean)
        for _ in range(2):
            batch = source.get_batch(SIZE)
            computed = source.compute_statistics(batch)
            assert computed["rows"] == SIZE
            assert np.isclose(computed["mean"], np.asarray(batch["label"]).mean())
            assert source.get_statistics() == computed

    def test_those_given_beforehand_go_first_until_a_reset(self, data_dir, place):
        given = {"mean": np.array([1.0, 2.0])}
        source = fresh(data_dir, place, batch_stats_fn=mean, precomputed_stats=given)
        computed = source.compute_statistics(source.get_batch(SIZE))
        assert equal(source.get_statistics(), given)
        source.reset_statistics()
        assert source.get_statistics() is None
        assert source.compute_statistics(source.get_batch(SIZE)) != computed
        assert source.get_statistics()["rows"] == SIZE

    def test_those_that_are_set_replace_all(self, data_dir, place):
        source = fresh(data_dir, place, precomputed_stats={"mean": 1.0})
        source.set_statistics({"mean": 2.0})
        assert source.get_statistics() == {"mean": 2.0}
        source.reset_statistics()
        source.set_statistics({"mean": 3.0})
        assert source.get_statistics() == {"mean": 3.0}

    def test_a_module_may_make_them_and_a_compiled_function_too(self, data_dir, place):
        class Mean(nnx.Module):
            def __init__(self):
                self.shift = nnx.Param(jnp.float32(1))

            def __call__(self, batch):
                return {"mean": batch["label"].mean() + self.shift}

        source = fresh(data_dir, place, batch_stats_fn=Mean())
        batch = source.get_batch(SIZE)
        expected = source.compute_statistics(batch)["mean"]
        source.reset_statistics()
        nnx.jit(lambda source, batch: source.compute_statistics(batch)["mean"])(source, batch)
        assert np.isclose(source.get_statistics()["mean"], expected)

    def test_a_clone_has_its_own(self, data_dir, place):
        source = fresh(data_dir, place, batch_stats_fn=mean)
        other = source.clone()
        source.set_statistics({"mean": 2.0})
        assert other.get_statistics() is None


class TestCounts:
    def test_records_handed_out_are_counted_over_epochs(self, make):
        source = make()
        assert source.get_operation_stats() == {"applied_count": 0, "skipped_count": 0}
        for _ in range(5):
            source.get_batch(SIZE)
        next(iter(source))
        assert source.get_operation_stats()["applied_count"] == 5 * SIZE + 1
        source.reset_operation_stats()
        assert source.get_operation_stats() == {"applied_count": 0, "skipped_count": 0}
        source.get_batch(SIZE)
        assert source.get_operation_stats()["applied_count"] == SIZE

    def test_seeks_do_not_count_as_delivered(self, make):
        source = make()
        state = source.get_state()
        source.get_batch(SIZE)
        source.set_state(state)
        source.get_batch(SIZE)
        source.reset()
        source.get_batch(SIZE)
        source.get_batch_at(50, SIZE)
        assert source.get_operation_stats() == {"applied_count": 3 * SIZE, "skipped_count": 0}

    @pytest.mark.parametrize(("remainder", "left_out"), [("wrap", 0), ("drop", 1), ("pad", 0)])
    def test_what_a_policy_leaves_out_is_told_apart(self, make, remainder, left_out):
        source = make()
        pipeline = Pipeline(source=source, batch_size=SIZE, remainder=remainder)
        for _ in pipeline:
            pass
        served = 5 * SIZE if remainder == "wrap" else N - left_out
        expected = {"applied_count": served, "skipped_count": left_out}
        assert source.get_operation_stats() == expected


class TestCopies:
    def test_a_clone_goes_its_own_way_over_the_same_records(self, make):
        source = make()
        source.get_batch(SIZE)
        other = source.clone()
        batch = source.get_batch(SIZE)
        assert other.records is source.records
        assert equal(other.get_batch(SIZE), batch)
        other.reset(seed=9)
        assert source.cursor == Cursor(0, 2 * SIZE)
        assert source.get_state()["seed"] == 5

    def test_a_copy_has_what_is_given_and_else_what_there_was(self, make):
        source = make()
        source.get_batch(SIZE)
        other = source.copy(name="another", rngs=nnx.Rngs(3))
        assert (other.name, source.name.split("(")[0]) == ("another", type(source).__name__)
        assert other.rngs is not None
        assert source.rngs is None
        assert other.config == source.config
        assert equal(other.get_batch(SIZE), source.get_batch(SIZE))
        other = source.copy()
        assert (other.name, other.cursor) == (source.name, source.cursor)

    def test_a_copy_shares_the_records_where_the_config_reads_the_same(self, make):
        source = make()
        config = dataclasses.replace(source.config, shuffle=False, seed=1)
        other = source.copy(config=config)
        assert other.records is source.records
        assert ids(other.get_batch(SIZE)) == list(range(SIZE))
        elsewhere = source.copy(config=dataclasses.replace(config, split="test"))
        assert len(elsewhere) != len(source)
        assert elsewhere.name == f"{type(source).__name__}({config.name}:test)"

    def test_a_copy_goes_on_in_the_order_that_was_set(self, make):
        source = make()
        source.reset(seed=9)
        source.get_batch(SIZE)
        source.set_statistics({"mean": 1.0})
        config = dataclasses.replace(source.config, batch_stats_fn=mean)
        for other in (source.copy(), source.copy(config=config), source.copy(rngs=nnx.Rngs(0))):
            assert other.get_state() == source.get_state()
            assert other.get_statistics() == {"mean": 1.0}
            assert other.get_operation_stats() == source.get_operation_stats()
            other.get_batch(SIZE)
            other.set_statistics({"mean": 2.0})
        assert source.get_statistics() == {"mean": 1.0}
        assert source.get_operation_stats()["applied_count"] == SIZE

    def test_a_copy_whose_records_are_opened_anew_goes_on_too(self, data_dir):
        place = STREAMING["streaming, one device"]
        source = loaded(config_of(data_dir, place, shuffle=True), place[1]).copy(name="mine")
        source.reset(seed=9)
        source.get_batch(SIZE)
        other = source.copy(config=dataclasses.replace(source.config, prefetch_buffer=0))
        assert other.records is not source.records
        assert other.name == "mine"
        assert other.get_state() == source.get_state()
        assert other.get_operation_stats() == source.get_operation_stats()
        assert equal(other.get_batch(SIZE), source.get_batch(SIZE))
        elsewhere = source.copy(config=dataclasses.replace(source.config, split="test"))
        assert elsewhere.cursor == Cursor()

    def test_a_copy_with_streams_of_its_own_draws_a_seed(self, data_dir, place):
        fields = {"stochastic": True, "stream_name": "order"}
        source = fresh(data_dir, place, rngs=nnx.Rngs(order=1), **fields)
        assert source.copy().get_state() == source.get_state()
        assert source.copy(rngs=nnx.Rngs(order=2)).get_state()["seed"] != source.sampler.seed

    def test_a_config_of_the_other_kind_is_refused(self, data_dir, make):
        source = make()
        kinds = {TFDSEagerConfig: TFDSStreamingConfig, TFDSStreamingConfig: TFDSEagerConfig}
        config = kinds[type(source.config)](name="tiny", split="train", data_dir=str(data_dir))
        with pytest.raises(TypeError, match=r"(Eager|Streaming)Config(.|\n)*config:(.|\n)*fix:"):
            source.copy(config=config)

    def test_no_two_copies_share_a_stream_of_keys(self, make):
        source = make().copy(rngs=nnx.Rngs(0))
        one, other = source.copy(), source.clone()
        keys = [jax.random.key_data(each.rngs()).tolist() for each in (one, other, source)]
        assert keys[0] == keys[1] == keys[2]


def test_a_state_taken_in_another_thread_is_of_one_place(make):
    source = make()
    source.advance_to(Cursor(0, 0))
    stop = threading.Event()

    def move():
        place = 0
        while not stop.is_set():
            place = (place + 1) % N
            source.advance_to(Cursor(place, place))

    thread = threading.Thread(target=move)
    thread.start()
    reads, places = 0, set()
    try:
        while reads < 20_000 or len(places) < 2:  # until the other thread has had its turn, too
            reads += 1
            places.add(source.cursor)
    finally:
        stop.set()
        thread.join()
    assert all(place.epoch == place.index for place in places)


class TestStreams:
    def test_the_seed_is_drawn_from_the_named_stream(self, data_dir, place):
        fields = {"stochastic": True, "stream_name": "order"}
        one, same, other = (
            fresh(data_dir, place, rngs=nnx.Rngs(order=seed), **fields) for seed in (1, 1, 2)
        )
        assert one.stochastic
        assert one.stream_name == "order"
        assert one.requires_rng_streams() == ["order"]
        batch = one.get_batch(SIZE)
        check_records(batch)
        assert equal(same.get_batch(SIZE), batch)
        assert ids(other.get_batch(SIZE)) != ids(batch)
        assert one.get_state()["seed"] == same.get_state()["seed"] != 5
        other.reset(seed=one.get_state()["seed"])
        assert equal(other.get_batch(SIZE), batch)

    @pytest.mark.parametrize("rngs", [None, lambda: nnx.Rngs(params=0)])
    def test_a_stream_that_is_missing_is_named(self, data_dir, place, rngs):
        with pytest.raises(ValueError, match=r"'order' of rngs(.|\n)*fix:"):
            fresh(data_dir, place, rngs=rngs and rngs(), stochastic=True, stream_name="order")

    def test_streams_are_ensured_by_name(self, data_dir, place, make):
        source = make()
        assert source.requires_rng_streams() is None
        source.ensure_rng_streams([])
        drawing = fresh(data_dir, place, rngs=nnx.Rngs(0), stochastic=True, stream_name="order")
        drawing.ensure_rng_streams(["params", "order"])
        with pytest.raises(ValueError, match=r"'order' is missing(.|\n)*streams: +params"):
            drawing.ensure_rng_streams(["params"])


class TestRecordsByNumber:
    def test_process_takes_one_or_many(self, make):
        source = make()
        batch = source.process(np.arange(40, 40 + SIZE))
        assert ids(batch) == list(range(40, 40 + SIZE))
        check_records(batch)
        assert equal(source.process([3, 1] * 4), source.get_records(np.array([3, 1] * 4)))
        assert equal(source.process(7), source[7])
        with pytest.raises(TypeError, match=r"nothing else(.|\n)*fix:"):
            source.process(7, 8)

    def test_the_numbers_at_positions_are_those_of_the_records(self, make):
        source = make()
        for key in (None, jax.random.key(3)):
            numbers = source.record_indices_at(90, SIZE, key)
            assert numbers.dtype == jnp.int32
            assert ids(source.get_batch_at(90, SIZE, key)) == numbers.tolist()
            if isinstance(source, TFDSEagerSource):
                at = jax.jit(
                    lambda start: source.get_records(source.record_indices_at(start, SIZE))
                )
                assert ids(at(90)) == source.record_indices_at(90, SIZE).tolist()

    def test_a_program_follows_the_source_that_it_takes(self, data_dir):
        place = EAGER["one device"]
        source = loaded(config_of(data_dir, place, shuffle=True), place[1]).clone()
        closed = jax.jit(lambda: source.get_batch_at(0, SIZE))
        taking = nnx.jit(lambda source: source.get_batch_at(0, SIZE))
        first = source.get_batch_at(0, SIZE)
        assert equal(closed(), first)
        assert equal(taking(source), first)
        source.reset(seed=9)
        assert equal(taking(source), source.get_batch_at(0, SIZE))
        assert equal(closed(), first)

    def test_all_records_as_arrays(self, make):
        source = make()
        arrays = source.collect_to_array()
        assert ids(arrays)[:N] == list(range(N))
        check_records(jax.tree.map(lambda column: np.asarray(column)[:N], arrays))
        assert arrays["id"].sharding.mesh == source.sharding.mesh


@pytest.mark.parametrize("place", [EAGER["8 devices, sharded"]])
def test_an_eager_cache_keeps_the_arrays_of_all_records(data_dir, place):
    source = fresh(data_dir, place, cacheable=True)
    data = source.data
    assert source.data is data is source.collect_to_array()
    source.reset_cache()
    assert source.data is not data
    kept, other = source.data, fresh(data_dir, place)
    assert other.records is source.records
    assert other.data is not other.data
    assert other.data is not kept
    other.reset_cache()
    assert source.data is kept


class TestStreamingCache:
    def source(self, data_dir, **fields):
        config = TFDSStreamingConfig(
            name="tiny", split="train", data_dir=str(data_dir), shuffle=True, seed=5,
            cacheable=True, prefetch_buffer=0, **fields
        )  # fmt: skip
        return TFDSStreamingSource(config)

    def epoch(self, source):
        for batch in Pipeline(source=source, batch_size=SIZE, remainder="pad"):
            check_records(jax.tree.map(lambda c, m=batch["mask"]: np.asarray(c)[m], batch))

    def test_each_record_is_read_once_until_a_reset(self, data_dir, reads):
        source = self.source(data_dir)
        for _ in range(3):
            self.epoch(source)
            assert sorted(reads) == list(range(N))
        source.reset_cache()
        self.epoch(source)
        assert sorted(reads) == sorted([*range(N)] * 2)

    def test_a_record_that_comes_twice_is_kept_once(self, data_dir, reads):
        source = self.source(data_dir)
        source.get_records([3] * N)
        self.epoch(source)
        reads.clear()
        self.epoch(source)
        assert reads == []

    @pytest.mark.parametrize("rows", [0, 40])
    def test_what_does_not_fit_is_read_again(self, data_dir, reads, monkeypatch, rows):
        from datarax_tfds.records import streaming as streaming_records

        row_bytes = 4 + 4 + 5 * 4 * 3 + 8  # with the number of its record
        free = 10 * rows * row_bytes  # it takes a tenth
        monkeypatch.setattr(streaming_records, "free_host_bytes", lambda: free)
        source = self.source(data_dir)
        for epoch in range(3):
            self.epoch(source)
            assert len(reads) == N + epoch * (N - rows)

    def test_a_random_map_fn_is_refused(self, data_dir):
        with pytest.raises(ValueError, match=r"from epoch to epoch(.|\n)*cacheable(.|\n)*fix:"):
            self.source(data_dir, map_fn=lambda record, seed: record | {"seed": seed})
