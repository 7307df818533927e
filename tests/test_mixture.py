"""Mixtures of eager sources, of streams, and of both keep what every source promises, and more."""

import json

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shardings
from contract import N, check_records, equal, ids
from flax import nnx
from oracle import mixed
from refusals import refused
from sources import source_of
from test_audit import audited

from datarax_tfds import (
    Cursor,
    CursorLog,
    MixtureSource,
    Pipeline,
    StateMismatchError,
    TFDSEagerSource,
    TFDSStreamingSource,
    prefetch_to_device,
)
from datarax_tfds.order.order import Order

SIZE = 24
WEIGHTS = {"web": 0.7, "code": 0.3}
STAGES = [(0, {"web": 7, "code": 3})]

# The parts are pieces of one dataset, so that an id says whether the record is the right one.
WEB, CODE = "train[:60]", "train[60:]"
FIRST = {"web": 0, "code": 60}

# Whether each part is a stream, and the mesh.
MIXTURES = {
    "eager": ((False, False), "one device"),
    "eager, 8 devices": ((False, False), "8 devices, explicit axes"),
    "streams": ((True, True), "one device"),
    "streams, replicas": ((True, True), "4 x 2, replicas"),
    "both": ((True, False), "one device"),
    "both, 8 devices": ((False, True), "8 devices, permuted"),
}


@pytest.fixture(scope="module")
def part(data_dir):
    """Makes a part, once for each choice."""
    made = {}

    def make(split, stream, mesh="one device", name="tiny", **fields):
        key = (split, stream, mesh, name, *map(str, fields.items()))
        if key not in made:
            kind = TFDSStreamingSource if stream else TFDSEagerSource
            fields = {"shuffle": True, "seed": 5} | fields
            made[key] = source_of(data_dir, kind, mesh, split=split, name=name, **fields)
        return made[key]

    return make


@pytest.fixture(scope="module")
def mixture(part):
    """Makes a mixture at its beginning."""
    made = {}

    def make(name, **fields):
        (web, code), mesh = MIXTURES[name]
        key = (name, *fields.items())
        if key not in made:
            parts = {"web": part(WEB, web, mesh), "code": part(CODE, code, mesh)}
            made[key] = MixtureSource(parts, WEIGHTS, **fields)
        return made[key].clone()

    return make


@pytest.fixture(params=list(MIXTURES))
def name(request):
    return request.param


def expected(count, stages=STAGES):
    orders = {"web": Order(60, 5), "code": Order(N - 60, 5)}
    return [FIRST[part] + number for part, number in mixed(stages, orders, count)]


class TestContract:
    def test_batches_are_those_of_the_rule_and_the_records_are_whole(self, mixture, name):
        source = mixture(name, part_column="part")
        assert (len(source), source.sampler.order.records) == (N, N)
        served = []
        for _ in range(9):  # two epochs and more
            batch = source.get_batch(SIZE)
            check_records({key: column for key, column in batch.items() if key != "part"})
            assert np.asarray(batch["part"]).tolist() == [int(n >= 60) for n in ids(batch)]
            served += ids(batch)
        assert served == expected(9 * SIZE)

    def test_all_ways_of_reading_agree(self, mixture, name):
        source, pipeline = mixture(name), Pipeline(source=mixture(name), batch_size=SIZE)
        prefetched = prefetch_to_device(Pipeline(source=mixture(name), batch_size=SIZE), 3)
        singly, stepped = iter(mixture(name)), mixture(name)
        looped = iter(pipeline)
        in_program = nnx.jit(lambda source: source.get_batch(SIZE))
        eager = source.supports_indexed_access()
        assert eager is ("eager" in name)
        for step in range(5):  # the fifth runs on into the next epoch
            batch = source.get_batch(SIZE)
            assert equal(source.get_batch_at((step) * SIZE, SIZE), batch) or step == 4
            assert equal(next(looped), batch)
            assert equal(next(prefetched), batch)
            if eager:
                assert equal(in_program(stepped), batch)
                assert stepped.cursor == source.cursor
            for row in range(4 if step < 4 else 0):
                record = next(singly)
                if step == 0:
                    assert equal(record, jax.tree.map(lambda x, n=row: np.asarray(x)[n], batch))
        if eager:
            at = jax.jit(lambda start: mixture(name).get_batch_at(start, SIZE))
            assert ids(at(90)) == expected(90 + SIZE)[90:]
            scanned = Pipeline(source=mixture(name), batch_size=SIZE)
            found = scanned.scan(lambda batch: batch["id"], length=6)
            assert np.asarray(found).ravel().tolist() == expected(6 * SIZE)
        else:
            with refused(NotImplementedError, "within a compiled function"):
                jax.jit(lambda start: source.get_batch_at(start, SIZE))(0)

    @pytest.mark.parametrize("prefetch", [None, 2])
    @pytest.mark.parametrize("kind", ["eager", "streams, replicas", "both, 8 devices"])
    def test_a_pipeline_resumes_after_every_batch(self, mixture, kind, prefetch):
        def make():
            source = mixture(kind)
            source.set_weights({"web": 1, "code": 3}, at=Cursor(0, 50))  # within a batch
            return Pipeline(source=source, batch_size=SIZE, remainder="pad", record_numbers=True)

        contract.check_resume_after_every_batch(make, prefetch)

    def test_records_by_number_by_key_and_all_at_once(self, mixture, name):
        source = mixture(name)
        check_records(source.get_records(np.arange(8) * 12))
        assert int(source[-1]["id"]) == N - 1
        everything = source.collect_to_array()
        check_records(jax.tree.map(lambda column: np.asarray(column)[:N], everything))
        one = source.get_batch(SIZE, key=jax.random.key(0))
        assert equal(one, source.get_batch(SIZE, key=jax.random.key(0)))
        assert ids(one) != ids(source.get_batch(SIZE, key=jax.random.key(1)))
        web = sum(number < 60 for number in ids(source.get_batch_at(0, 96, jax.random.key(0))))
        assert abs(web - 96 * 0.7) < 3  # a key keeps the shares, too
        assert source.cursor == Cursor()

    @pytest.mark.parametrize("kind", ["eager", "both, 8 devices"])
    def test_the_audit_proves_a_history_with_other_weights(self, mixture, kind, tmp_path):
        pipeline = Pipeline(source=mixture(kind), batch_size=SIZE, record_numbers=True)
        path = tmp_path / "log"
        log = CursorLog(path, pipeline)
        for step in range(9):
            if step == 3:
                pipeline.source.set_weights({"web": 1, "code": 1})
            if step == 6:
                state = pipeline.get_state()
            log.note(pipeline.step()["record_number"])
        pipeline.set_state(state)  # takes the last three batches back
        log = CursorLog(path, pipeline)
        for _ in range(2):
            log.note(pipeline.step()["record_number"])
        found = audited(path)
        assert found.sound
        assert (found.runs, found.reached) == (3, Cursor(1, 8 * SIZE - N))
        lines = path.read_text().splitlines(keepends=True)
        lines[3] = lines[3].replace('"rows":[[0,[', '"rows":[[0,[1')
        path.write_text("".join(lines))
        assert not audited(path).sound


class TestWeights:
    @pytest.mark.parametrize("kind", ["eager", "both"])
    def test_new_weights_hold_from_exactly_the_next_record_on(self, mixture, kind):
        """Also for batches that were prefetched with the old ones."""
        pipeline = Pipeline(source=mixture(kind), batch_size=SIZE)
        served = []
        for step, batch in enumerate(prefetch_to_device(pipeline, 3)):
            served += ids(batch)
            if step == 1:
                pipeline.source.set_weights({"web": 0, "code": 1})
        stages = [*STAGES, (2 * SIZE, {"web": 0, "code": 1})]
        assert served == expected(5 * SIZE, stages)
        assert pipeline.source.weights == {"web": 0, "code": 1}

    def test_any_batch_size_meets_a_change_at_the_same_record(self, mixture):
        stages = [*STAGES, (50, {"web": 1, "code": 3})]
        for size in (8, 24, 40):
            source = mixture("both")
            source.set_weights({"web": 1, "code": 3}, at=Cursor(0, 50))
            served = [number for _ in range(120 // size) for number in ids(source.get_batch(size))]
            assert served == expected(120, stages)

    def test_a_restored_source_has_the_changes_of_the_saved_one(self, mixture):
        source, other = mixture("eager"), mixture("streams")
        source.get_batch(8)
        source.set_weights({"web": 1, "code": 2})
        source.set_weights({"web": 5, "code": 1}, at=Cursor(2, 1))
        source.get_batch(8)
        other.set_state(json.loads(json.dumps(source.get_state())))
        assert other.get_state() == source.get_state()
        other.set_weights(WEIGHTS, at=Cursor(0, 3))  # as they were
        other.set_weights({"web": 1, "code": 2}, at=Cursor(0, 8))  # as the program did before
        assert other.get_state() == source.get_state()
        assert equal(other.get_batch(SIZE), source.get_batch(SIZE))
        with refused(ValueError, "already delivered"):
            other.set_weights({"web": 1, "code": 3}, at=Cursor(0, 8))

    def test_compiled_functions_that_get_the_source_see_new_weights(self, mixture):
        source = mixture("eager")
        step = nnx.jit(lambda source: source.get_batch(SIZE))
        served = ids(step(source))
        source.set_weights({"web": 0, "code": 1})
        assert served + ids(step(source)) == expected(
            2 * SIZE, [*STAGES, (SIZE, {"web": 0, "code": 1})]
        )

    def test_the_state_bounds_the_number_of_changes(self, mixture):
        source = mixture("eager")
        changes = 0
        with refused(ValueError, "do not fit a state of 2 KB"):
            while True:
                changes += 1
                source.set_weights({"web": changes, "code": 1009}, at=Cursor(changes, 0))
        assert changes > 30
        assert len(json.dumps(source.get_state())) < 2048

    @pytest.mark.parametrize("at", [Cursor(0, N), Cursor(-1, 0), (0, 1), Cursor(2**31, 0)])
    def test_a_change_at_no_record_of_an_epoch_is_refused(self, mixture, at):
        with refused(ValueError if isinstance(at, Cursor) else TypeError, "at must be a Cursor"):
            mixture("eager").set_weights(WEIGHTS, at=at)


class TestParts:
    def test_one_part_is_the_source_alone(self, part):
        alone = part(WEB, True)
        source = MixtureSource({"web": alone}, weights={"web": 3.5})
        assert equal(source.get_batch(72), alone.get_batch_at(0, 72))

    def test_a_part_of_weight_zero_is_left_out(self, part):
        parts = {"web": part(WEB, True), "code": part(CODE, False)}
        source = MixtureSource(parts, weights={"web": 1, "code": 0})
        assert len(source) == 60
        assert ids(source.get_batch(60)) == ids(parts["web"].get_batch_at(0, 60))

    def test_a_hundred_parts(self, part):
        parts = {f"part_{n:02}": part(f"train[{n % 90}:{n % 90 + 5}]", True) for n in range(100)}
        weights = {name: n % 7 + 1 for n, name in enumerate(parts)}
        source = MixtureSource(parts, weights, part_column="part")
        source.set_weights(dict.fromkeys(parts, 1), at=Cursor(0, 250))
        state = source.get_state()
        assert len(json.dumps(state)) < 2048
        batch = source.get_batch(100)
        counts = np.bincount(np.asarray(batch["part"]), minlength=100)
        shares = 100 * np.array(list(weights.values())) / sum(weights.values())
        assert np.abs(counts - shares).max() < 2
        other = MixtureSource(parts, weights, part_column="part")
        other.set_state(state)
        assert equal(other.get_batch(100), batch)

    def test_a_part_may_come_and_another_one_go_at_a_resume(self, part):
        web, code, late = part(WEB, False), part(CODE, True), part("test", True)
        before = MixtureSource({"web": web, "code": code}, WEIGHTS)
        before.get_batch(40)
        state = before.get_state()
        parts = {"late": late, "web": web, "code": None}
        weights = {"web": 0.7, "code": 0.3, "late": 0}
        after = MixtureSource(parts, weights, epoch_records=state["records"])
        after.set_state(state)
        with refused(ValueError, "was removed, but has a weight"):
            after.get_batch(8)
        after.set_weights({"web": 1, "late": 1})
        served = ids(after.get_batch(40))
        web_ids = [number for number in expected(200) if number < 60]
        begun = sum(number < 60 for number in expected(40))
        assert [n for n in served if n < 60] == web_ids[begun : begun + 20]
        assert [n for n in served if n >= 60] == ids(late.get_batch_at(0, 20))
        again = MixtureSource(parts, weights, epoch_records=state["records"])
        again.set_state(after.get_state())
        assert equal(again.get_batch(40), after.get_batch(40))

    @pytest.mark.parametrize(("epoch_records", "length"), [
        ("total", 97), ("shortest", 86), ("longest", 122), (50, 50),
    ])  # fmt: skip
    def test_an_epoch_is_as_long_as_was_said(self, part, epoch_records, length):
        parts = {"web": part(WEB, True), "code": part(CODE, False)}
        source = MixtureSource(parts, WEIGHTS, epoch_records=epoch_records)
        assert len(source) == length
        assert len(Pipeline(source=source, batch_size=25)) == -(-length // 25)
        first = expected(length)
        if epoch_records == "shortest":
            assert len(set(first)) == length
            assert len(set(expected(length + 1))) == length
        if epoch_records == "longest":
            assert len(set(first)) == 97
            assert len(set(first[:-1])) < 97

    def test_random_map_fn_and_features_on_the_host(self, part):
        def noisy(record, seed):
            import tensorflow as tf

            noise = tf.random.stateless_uniform([], seed, 0, 1000, tf.int32)
            return {"id": record["id"], "noise": noise, "label": record["label"]}

        fields = {"map_fn": noisy, "host_keys": {"label"}}
        one, other = part(WEB, True, **fields), part(CODE, True, **fields)
        source = MixtureSource({"web": one, "code": other}, WEIGHTS)
        batches = [source.get_batch(8) for _ in range(12)]
        assert isinstance(batches[0]["label"], np.ndarray)
        again = MixtureSource({"code": other, "web": one}, WEIGHTS)  # in another order
        again.set_weights(WEIGHTS)
        assert equal([again.get_batch(8) for _ in range(12)], batches)
        by_id = {}
        for batch in batches:
            for number, noise in zip(ids(batch), np.asarray(batch["noise"]).tolist(), strict=True):
                by_id.setdefault(number, []).append(noise)
        twice = [noises for noises in by_id.values() if len(noises) > 1]
        assert twice
        assert any(len(set(noises)) > 1 for noises in twice)  # another epoch of its part

    def test_features_on_the_host_of_both_kinds_are_in_their_rows(self, part):
        parts = {
            "web": part(WEB, True, host_keys={"id"}),
            "code": part(CODE, False, host_keys={"id"}),
        }
        batch = MixtureSource(parts, WEIGHTS).get_batch(SIZE)
        assert batch["id"].tolist() == expected(SIZE)
        check_records(batch)

    def test_random_stages_depend_on_the_record_and_not_on_the_batch(self, mixture):
        def noise(batch, keys):
            return batch | {"noise": jax.vmap(lambda key: jax.random.bits(key))(keys)}

        served = []
        for kind, size in (("eager", 8), ("both", 24)):
            pipeline = Pipeline(source=mixture(kind), stages=[noise], batch_size=size)
            noises = [np.asarray(pipeline.step()["noise"]) for _ in range(48 // size)]
            served.append(np.concatenate(noises))
        assert np.array_equal(*served)
        scanned = Pipeline(source=mixture("eager"), stages=[noise], batch_size=8)
        found = scanned.scan(lambda batch: batch["noise"], length=6)
        assert np.array_equal(np.asarray(found).ravel(), served[0])

    def test_order_and_seed_can_be_changed(self, mixture):
        source = mixture("eager")
        source.set_random_order(False)
        assert not source.is_random_order
        assert ids(source.get_batch_at(0, 8)) == [0, 60, 1, 2, 61, 3, 4, 5]
        source.set_random_order(True)
        assert ids(source.get_batch_at(0, 8)) == expected(8)
        source.reset(seed=6)
        assert ids(source.get_batch_at(0, 8)) != expected(8)
        source.reset(seed=42)
        assert ids(source.get_batch_at(0, 8)) == expected(8)

    def test_the_cursors_of_the_parts_stay_where_they_are(self, mixture):
        source = mixture("both")
        source.get_batch(SIZE)
        assert {each.cursor for each in source.parts.values()} == {Cursor()}
        assert source.get_operation_stats()["applied_count"] == SIZE
        assert set(source.get_dataset_info()) == {"web", "code"}
        assert source.corrupt_records == {}
        assert "web" in repr(source.copy(name="web and code"))


class TestRefusals:
    @pytest.mark.parametrize(("change", "says"), [
        ({"weights": {"web": 0.6, "code": 0.4}}, "began with other weights"),
        ({"epoch_records": 96}, "another number of records"),
        ({"web": {"seed": 6}}, "'web' .* differ in order"),
        ({"code": {"split": "train[61:]"}, "epoch_records": 97}, "'code' .* differ in split"),
        ({"code": {"name": "tiny_array"}}, "'code' .* differ in dataset"),
        ({"parts": ["web"], "epoch_records": 97}, "parts that this one has not: code"),
        ({"seed": 7}, "differ in .*seed"),
    ])  # fmt: skip
    def test_a_state_of_another_mixture_is_refused(self, part, mixture, change, says):
        state = mixture("eager").get_state()
        change = dict(change)
        parts = {
            name: part(**({"split": split, "stream": False} | change.pop(name, {})))
            for name, split in (("web", WEB), ("code", CODE))
        }
        wanted = change.pop("parts", list(parts))
        weights = {name: WEIGHTS[name] for name in wanted}
        chosen = {name: parts[name] for name in wanted}
        source = MixtureSource(chosen, **({"weights": weights} | change))
        with refused(StateMismatchError, says):
            source.set_state(state)

    def test_states_of_mixtures_and_of_splits_are_told_apart(self, part, mixture):
        source, alone = mixture("eager"), part(WEB, False)
        with refused(StateMismatchError, "dataset"):
            source.set_state(alone.get_state())
        with refused(StateMismatchError, "dataset"):
            alone.set_state(source.get_state())

    def test_specs_that_differ_are_named_feature_by_feature(self, part):
        parts = {"web": part(WEB, True), "code": part("train", True, name="pair")}
        with refused(ValueError, "differ in .* features"):
            MixtureSource(parts, WEIGHTS)
        parts["code"] = part(CODE, True, exclude_keys={"image"})
        with refused(ValueError, r"image: web uint8\[5, 4, 3\], code none"):
            MixtureSource(parts, WEIGHTS)

    @pytest.mark.parametrize(("arguments", "error", "says"), [
        ({"parts": {}}, ValueError, "at least one part"),
        ({"parts": {"web": None}}, ValueError, "at least one part"),
        ({"parts": []}, TypeError, "must be a dict of sources"),
        ({"parts": {"web": "tiny"}}, TypeError, "must be an eager source"),
        ({"parts": {"a, b": None}}, ValueError, "name of a part"),
        ({"part_column": "image"}, ValueError, "name of a new column"),
        ({"epoch_records": "all"}, ValueError, "epoch_records must be"),
        ({"epoch_records": 0}, ValueError, "epoch_records must be"),
        ({"seed": -1}, ValueError, "seed"),
    ])  # fmt: skip
    def test_wrong_arguments_are_refused(self, part, arguments, error, says):
        parts = {"web": part(WEB, False)}
        with refused(error, says):
            MixtureSource(**({"parts": parts, "weights": {"web": 1}} | arguments))

    def test_parts_of_different_shardings_are_refused(self, part):
        assert len(shardings()) > 1
        parts = {"web": part(WEB, False), "code": part(CODE, False, mesh="8 devices")}
        with refused(ValueError, "the same sharding"):
            MixtureSource(parts, WEIGHTS)

    def test_a_removed_part_needs_the_length_of_an_epoch(self, part):
        with refused(ValueError, "with a removed part"):
            MixtureSource({"web": part(WEB, False), "code": None}, WEIGHTS)

    def test_a_mixture_is_no_part_of_another_one(self, mixture):
        with refused(TypeError, "must be an eager source"):
            MixtureSource({"all": mixture("eager")}, {"all": 1})


def test_a_compiled_program_with_x64_gives_the_same_records(mixture):
    with jax.enable_x64(True):
        source = mixture("eager")
        at = jax.jit(lambda start: source.get_batch_at(start, SIZE))
        assert ids(at(jnp.int32(90))) == expected(90 + SIZE)[90:]
