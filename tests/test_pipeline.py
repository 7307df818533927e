import itertools
from typing import ClassVar

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shardings
from contract import N, check_records, equal, ids
from flax import nnx
from oracle import expected_ids
from refusals import refused
from sources import SOURCES, config_of
from sources import loaded as loaded_once

from datarax_tfds import (
    Cursor,
    Pipeline,
    StateMismatchError,
    TFDSEagerConfig,
    TFDSEagerSource,
    evaluate,
    prefetch_to_device,
)

SIZE = 24


@pytest.fixture(scope="module")
def loaded(data_dir):
    config = TFDSEagerConfig(
        name="tiny", split="train", data_dir=str(data_dir), shuffle=True, seed=5
    )
    return TFDSEagerSource(config, sharding=shardings()["4 x 2, replicas"])


@pytest.fixture
def source(loaded):
    return nnx.clone(loaded)


class Scale(nnx.Module):
    """A stage with a parameter, and a count of the batches that it saw."""

    def __init__(self, factor: float):
        self.factor = nnx.Param(jnp.float32(factor))
        self.table = nnx.Param(jnp.zeros((64, 64)))
        self.seen = nnx.Variable(jnp.int32(0))

    def __call__(self, batch):
        self.seen.set_value(self.seen.get_value() + 1)
        scaled = batch["image"].astype(jnp.float32) * self.factor.get_value()
        return batch | {"scaled": scaled}


class Noise(nnx.Module):
    """A stage that draws from a stream of its own."""

    def __init__(self, rngs: nnx.Rngs):
        self.rngs = rngs

    def __call__(self, batch):
        return batch | {"noise": jax.random.normal(self.rngs.noise(), (SIZE,))}


class TestRemainder:
    def test_wrap_completes_the_last_batch_from_the_next_epoch(self, source):
        pipeline = Pipeline(source=source, batch_size=SIZE)
        assert len(pipeline) == 5
        served = [ids(batch) for batch in pipeline]
        assert list(map(len, served)) == [SIZE] * 5
        assert pipeline.cursor == Cursor(1, 5 * SIZE - N)
        served += [ids(batch) for batch in pipeline]
        assert sum(served, []) == expected_ids(3)[: len(served) * SIZE]

    def test_drop_leaves_out_the_end_of_each_epoch(self, source):
        pipeline = Pipeline(source=source, batch_size=SIZE, remainder="drop")
        assert len(pipeline) == 4
        served = sum((ids(batch) for _ in range(2) for batch in pipeline), [])
        assert served == expected_ids(1)[: 4 * SIZE] + expected_ids(2)[N : N + 4 * SIZE]
        assert pipeline.cursor == Cursor(2, 0)

    def test_pad_marks_the_rows_that_are_records(self, source):
        pipeline = Pipeline(source=source, batch_size=SIZE, remainder="pad")
        batches = list(pipeline)
        assert len(batches) == 5
        masks = np.concatenate([np.asarray(batch["mask"]) for batch in batches])
        assert masks.tolist() == [True] * N + [False] * (5 * SIZE - N)
        served = sum(map(ids, batches), [])
        assert served[:N] == expected_ids(1)
        assert not np.asarray(batches[-1]["image"])[~np.asarray(batches[-1]["mask"])].any()
        assert pipeline.cursor == Cursor(1, 0)


class TestSteps:
    @pytest.mark.parametrize("remainder", ["wrap", "drop", "pad"])
    @pytest.mark.parametrize("prefetch", [None, 0, 3])
    def test_they_are_as_many_as_asked_for_past_the_ends_of_epochs(
        self, loaded, remainder, prefetch
    ):
        stepped, pipeline = (
            Pipeline(source=nnx.clone(loaded), batch_size=SIZE, remainder=remainder)
            for _ in range(2)
        )
        for count in (0, 4, 7):
            steps = pipeline.steps(count)
            batches = steps if prefetch is None else prefetch_to_device(steps, prefetch)
            taken = 0
            for batch in batches:
                assert ids(batch) == ids(stepped.step())
                assert pipeline.get_state() == stepped.get_state()
                taken += 1
            assert taken == count
            assert next(batches, None) is None

    def test_a_move_of_the_cursor_does_not_change_how_many_they_are(self, source):
        pipeline = Pipeline(source=source, batch_size=SIZE)
        state, served = pipeline.get_state(), []
        for batch in prefetch_to_device(pipeline.steps(7), 2):
            served += ids(batch)
            if len(served) == 3 * SIZE:
                pipeline.set_state(state)
        assert served == expected_ids()[: 3 * SIZE] + expected_ids()[: 4 * SIZE]

    @pytest.mark.parametrize("begin", [iter, lambda pipeline: pipeline.steps(5)])
    def test_an_iterator_that_has_begun_can_be_prefetched(self, source, begin):
        pipeline = Pipeline(source=source, batch_size=SIZE)
        batches = begin(pipeline)
        next(batches)
        rest = []
        for batch in prefetch_to_device(batches, 2):
            rest += ids(batch)
            assert pipeline.cursor == Cursor(*divmod(SIZE + len(rest), N))
        assert rest == expected_ids(2)[SIZE : 5 * SIZE]


class TestGrowing:
    """The arithmetic is in `test_growing.py`."""

    SIZES: ClassVar = [(0, 8), (30, 24), (150, 16)]

    @pytest.mark.parametrize(
        ("place", "remainder"),
        [
            ("8 devices, sharded", "wrap"),
            ("one device", "drop"),
            ("one device", "pad"),
            ("streaming, one device", "wrap"),
            ("streaming, replicas, uneven files", "drop"),
            ("streaming by blocks", "pad"),
        ],
    )
    def test_a_run_resumes_after_every_batch(self, data_dir, place, remainder):
        config = config_of(data_dir, SOURCES[place], shuffle=True)
        source = loaded_once(config, SOURCES[place][1])

        def make():
            return Pipeline(source=source.clone(), batch_size=self.SIZES, remainder=remainder)

        batches = contract.uninterrupted(make, epochs=2)
        sizes = [len(batch["id"]) for batch in batches]
        assert sizes[:5] == [8, 8, 8, 8, 24]
        assert sizes[-1] == 16
        for batch in batches:
            records = batch["mask"] if remainder == "pad" else np.ones(len(batch["id"]), bool)
            check_records({name: column[records] for name, column in batch.items()})
        contract.check_resume_after_every_batch(make, prefetch=2)

    def test_step_and_cursor_convert_and_the_epochs_have_as_many_steps_as_they_say(self, source):
        pipeline = Pipeline(source=source, batch_size=self.SIZES)
        step = 0
        for epoch in range(3):
            assert len(pipeline) == pipeline.step_at(Cursor(epoch + 1)) - step
            for _ in pipeline:
                step += 1
                assert pipeline.step_at(pipeline.cursor) == step
                assert pipeline.cursor_at(step) == pipeline.cursor

    @pytest.mark.parametrize("cursor", [7, Cursor(-1, 0), Cursor(0, 10**9)])
    def test_a_step_at_no_place_of_an_epoch_is_refused(self, source, cursor):
        kind = ValueError if isinstance(cursor, Cursor) else TypeError
        with refused(kind, "cursor must be a Cursor"):
            Pipeline(source=source, batch_size=8).step_at(cursor)

    def test_a_run_goes_on_with_another_schedule(self, source, loaded):
        sizes = [8, self.SIZES, [(0, 16), (40, 8), (300, 32)], self.SIZES, 24]
        served, state = [], source.get_state()
        for size in sizes * 3:
            pipeline = Pipeline(source=nnx.clone(loaded), batch_size=size)
            pipeline.set_state(state)
            for batch in prefetch_to_device(pipeline.steps(2), 1):
                served += ids(batch)
            state = pipeline.get_state()
        assert served == expected_ids(6)[: len(served)]

    def test_each_size_is_compiled_once_in_a_loop_and_in_scan(self, source, loaded):
        traced = []
        stage = lambda batch: traced.append(len(batch["id"])) or batch
        pipelines = [
            Pipeline(source=nnx.clone(loaded), stages=[stage], batch_size=self.SIZES)
            for _ in range(2)
        ]
        looped = [ids(batch) for batch in pipelines[0].steps(12)]
        assert traced == [8, 24, 16]
        scanned = []
        for length in (4, 5, 3):
            scanned += np.asarray(
                pipelines[1].scan(lambda batch: batch["id"], length=length)
            ).tolist()
        assert scanned == looped
        assert pipelines[0].get_state() == pipelines[1].get_state()

    def test_an_evaluation_has_the_first_size(self, source):
        seen = []
        step_fn = lambda batch: seen.append(len(batch["id"])) or {"id": batch["id"]}
        found = evaluate(Pipeline(source=source, batch_size=self.SIZES), step_fn)
        assert (seen, found.sums) == ([8], {"id": N * (N - 1) // 2})

    def test_it_says_which_sizes_it_has(self, source):
        pipeline = Pipeline(source=source, batch_size=[(0, 8), (1_000_000, 1024)])
        assert "batches of 8, 1,024 from record 1,000,000, remainder" in str(pipeline)
        assert pipeline.batch_size == ((0, 8), (1_000_000, 1024))


class TestStages:
    def test_stages_run_in_order_and_keep_their_state(self, source):
        scale = Scale(0.5)
        table = scale.table.get_value().unsafe_buffer_pointer()
        plus_one = lambda batch: batch | {"scaled": batch["scaled"] + 1}
        pipeline = Pipeline(source=source, stages=[scale, plus_one], batch_size=SIZE)
        for batch in itertools.islice(pipeline, 3):
            check_records(batch)
            expected = np.asarray(batch["image"]).astype(np.float32) * 0.5 + 1
            assert np.array_equal(batch["scaled"], expected)
        assert scale.seen.get_value() == 3
        assert scale.table.get_value().unsafe_buffer_pointer() == table

    def test_a_parameter_that_changes_is_seen_by_the_next_batch(self, source):
        scale = Scale(1)
        batches = iter(Pipeline(source=source, stages=[scale], batch_size=SIZE))
        next(batches)
        scale.factor.set_value(jnp.float32(3))
        batch = next(batches)
        assert np.array_equal(batch["scaled"], np.asarray(batch["image"]).astype(np.float32) * 3)

    def test_a_stage_may_be_random(self, source):
        pipeline = Pipeline(source=source, stages=[Noise(nnx.Rngs(0))], batch_size=SIZE)
        one, other = itertools.islice(pipeline, 2)
        assert not equal(one["noise"], other["noise"])

    def test_stages_see_the_mask(self, source):
        count = lambda batch: batch | {"real": batch["mask"].sum()}
        pipeline = Pipeline(source=source, stages=[count], batch_size=SIZE, remainder="pad")
        assert [int(batch["real"]) for batch in pipeline] == [24, 24, 24, 24, 1]

    def test_a_stage_is_compiled_once(self, source):
        traced = []
        stage = lambda batch: traced.append(1) or batch
        pipeline = Pipeline(source=source, stages=[stage], batch_size=SIZE)
        for _ in range(2):
            for _ in pipeline:
                pass
        assert len(traced) == 1


class TestState:
    def test_every_remainder_resumes_after_every_batch(self, loaded):
        for remainder in ("drop", "pad"):
            contract.check_resume_after_every_batch(
                lambda remainder=remainder: Pipeline(
                    source=nnx.clone(loaded), batch_size=SIZE, remainder=remainder
                ),
                prefetch=2,
            )

    @pytest.mark.parametrize("prefetch", [None, 0, 1, 3])
    def test_set_state_within_the_loop_takes_effect_with_the_next_batch(self, source, prefetch):
        pipeline = Pipeline(source=source, batch_size=SIZE)
        batches = pipeline if prefetch is None else prefetch_to_device(pipeline, prefetch)
        states, served = [pipeline.get_state()], []
        for batch in batches:
            served.append(ids(batch))
            states.append(pipeline.get_state())
            if len(served) == 3:
                pipeline.set_state(states[1])
        assert served[3:5] == served[1:3]
        assert served[:3] + served[5:] == [
            expected_ids(2)[i : i + SIZE] for i in range(0, 5 * SIZE, SIZE)
        ]

    def test_another_batch_size_goes_on_with_the_same_records(self, source, loaded):
        sizes, served = [8, 24, 4, 48, 12, 96, 32], []
        state = source.get_state()
        for size in sizes * 2:
            pipeline = Pipeline(source=nnx.clone(loaded), batch_size=size)
            pipeline.set_state(state)
            served += ids(next(iter(pipeline)))
            state = pipeline.get_state()
        assert served == expected_ids(5)[: len(served)]

    def test_a_state_of_another_remainder_is_refused(self, source):
        wrap = Pipeline(source=source, batch_size=SIZE)
        drop = Pipeline(source=source, batch_size=SIZE, remainder="drop")
        with pytest.raises(StateMismatchError, match="remainder: saved 'drop', now 'wrap'"):
            wrap.set_state(drop.get_state())
        source.set_state(wrap.get_state())  # a source is read with wrap, too

    def test_an_iterator_that_is_left_alone_has_moved_nothing(self, source):
        pipeline = Pipeline(source=source, batch_size=SIZE)
        prefetched = prefetch_to_device(pipeline, 4)
        next(prefetched)
        del prefetched
        assert pipeline.cursor == Cursor(0, SIZE)
        assert ids(next(iter(pipeline))) == expected_ids(1)[SIZE : 2 * SIZE]


def test_two_loops_over_one_pipeline_share_its_position(source):
    pipeline = Pipeline(source=source, batch_size=SIZE)
    pairs = list(zip(pipeline, prefetch_to_device(pipeline, 2), strict=False))
    served = sum((ids(one) + ids(other) for one, other in pairs), [])
    assert served == expected_ids(1)[: 4 * SIZE]


def test_any_iterable_can_be_prefetched():
    items = [{"x": np.arange(3) + step} for step in range(5)]
    for size in (0, 1, 2, 9):
        moved = list(prefetch_to_device(iter(items), size))
        assert equal(moved, items)
        assert all(isinstance(item["x"], jax.Array) for item in moved)


def test_a_mask_among_the_features_is_refused_with_pad(data_dir):
    config = TFDSEagerConfig(name="mask", split="train", data_dir=str(data_dir))
    source = TFDSEagerSource(config)
    with pytest.raises(ValueError, match=r"a feature of that name(.|\n)*exclude_keys(.|\n)*"):
        Pipeline(source=source, batch_size=2, remainder="pad")
    assert set(next(iter(Pipeline(source=source, batch_size=2)))) == {"mask"}


@pytest.mark.parametrize(
    ("remainder", "size", "told"),
    [("wrap", N, False), ("wrap", N + 1, True), ("pad", N + 1, False)],
)
def test_a_batch_in_which_records_repeat_is_told_once(data_dir, caplog, remainder, size, told):
    config = TFDSEagerConfig(name="tiny", split="train", data_dir=str(data_dir))
    source = TFDSEagerSource(config, name=f"{remainder} {size}")
    for _ in range(2):
        Pipeline(source=source, batch_size=size, remainder=remainder).step()
    assert caplog.text.count("records repeat within it") == told
    caplog.clear()
    for _ in range(2):
        source.get_batch(size)
    assert caplog.text.count("records repeat within it") == (size > N)
