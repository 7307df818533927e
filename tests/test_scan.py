"""The three ways to drive a pipeline: a loop, `step` in a program of one's own, `scan`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import shardings
from contract import N, check_records, equal, ids
from flax import nnx

from datarax_tfds import (
    Cursor,
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
)
from datarax_tfds.stages.donation import Donation
from datarax_tfds.stages.graph import chain
from datarax_tfds.stages.programs import BatchExtras, scan_program

SIZE = 24
STEPS = 11  # over two epochs' ends

MESHES = {"one device": "auto", "8 devices": "sharded", "8 devices, explicit axes": "replicated"}


class Noise(nnx.Module):
    """Random for each record, and with a parameter."""

    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.int32(3))
        self.offset = jnp.int32(1)
        self.rngs = rngs

    def __call__(self, batch):
        drawn = jax.random.randint(self.rngs.noise(), batch["image"].shape, 0, 50, jnp.int32)
        return batch | {
            "noisy": batch["image"].astype(jnp.int32) + drawn * self.scale[...] + self.offset
        }


def flipped(batch, keys):
    flip = jax.vmap(jax.random.bernoulli)(keys)
    image = batch["image"]
    return batch | {"flipped": jnp.where(flip[:, None, None, None], image[:, ::-1], image)}


class Seen(nnx.Module):
    """Counts the batches that it saw."""

    def __init__(self):
        self.batches = nnx.Variable(jnp.int32(0))
        self.table = jnp.zeros(3)  # no Variable: part of the state all the same

    def __call__(self, batch):
        self.batches.set_value(self.batches.get_value() + 1)
        return batch


@functools.cache
def loaded(data_dir, mesh):
    config = TFDSEagerConfig(
        name="tiny", split="train", data_dir=data_dir, shuffle=True, seed=5, layout=MESHES[mesh]
    )
    return TFDSEagerSource(config, sharding=shardings()[mesh])


# Each mesh, and each remainder, without all their pairs: to compile takes seconds.
PLACES = [("one device", "wrap"), ("8 devices", "pad"), ("8 devices, explicit axes", "drop")]
WRAPPED = [("one device", "wrap"), ("8 devices, explicit axes", "wrap")]


@pytest.fixture
def mesh():
    return "one device"


@pytest.fixture
def make(data_dir, mesh, remainder):
    def make(size=SIZE):
        stages = [Noise(nnx.Rngs(noise=1)), flipped, Seen()]
        return Pipeline(
            source=loaded(str(data_dir), mesh).clone(),
            stages=stages,
            batch_size=size,
            remainder=remainder,
        )

    return make


def looped(pipeline, steps=STEPS):
    batches = []
    while len(batches) < steps:
        batches += [jax.tree.map(np.asarray, batch) for batch in pipeline]
    return batches[:steps]


def stacked(batches):
    return jax.tree.map(lambda *columns: np.stack(columns), *batches)


class TestThreeSpeeds:
    @pytest.mark.parametrize(("mesh", "remainder"), PLACES)
    def test_they_give_the_same_batches_and_end_alike(self, make):
        expected = looped(make())
        stepped, own, scanned = make(), make(), make()
        step = nnx.jit(lambda pipeline: pipeline.step())
        for batch in expected:
            assert equal(stepped.step(), batch)
            assert equal(step(own), batch)
        assert equal(scanned.scan(lambda batch: batch, length=STEPS), stacked(expected))
        assert scanned.get_state() == stepped.get_state() == own.get_state()
        for pipeline in (stepped, own, scanned):
            assert pipeline.stages[2].batches.get_value() == STEPS
            assert pipeline.source.get_operation_stats() == stepped.source.get_operation_stats()

    # Each of the three alone is compared on every mesh by the test above.
    @pytest.mark.parametrize(("mesh", "remainder"), PLACES[:1])
    def test_they_follow_on_each_other(self, make):
        expected, pipeline = looped(make()), make()
        step = nnx.jit(lambda pipeline: pipeline.step())
        batches = [next(iter(pipeline)), step(pipeline)]
        three = pipeline.scan(lambda batch: batch, length=3)
        batches += [jax.tree.map(lambda c, i=i: np.asarray(c)[i], three) for i in range(3)]
        batches += [pipeline.step(), step(pipeline), pipeline.step()]
        for batch, same in zip(batches, expected, strict=False):
            assert equal(batch, same)

    @pytest.mark.parametrize(("mesh", "remainder"), PLACES)
    def test_an_error_within_a_program_moves_nothing(self, make):
        def failing(batch):
            raise RuntimeError("the user's own")

        pipeline = make()
        with pytest.raises(RuntimeError, match="the user's own"):
            pipeline.scan(failing, length=2)
        assert pipeline.cursor == Cursor()
        assert equal(pipeline.step(), looped(make(), 1)[0])


class TestRandomStages:
    @pytest.mark.parametrize(("mesh", "remainder"), WRAPPED)
    def test_a_record_is_augmented_alike_in_a_batch_of_any_size_and_place(self, make):
        """As of an epoch: in the next it is not."""

        def augmented(size):
            found = {}
            for batch in looped(make(size), 2 * N // size + 1):
                for row, number in enumerate(ids(batch)):
                    found.setdefault(number, []).append(
                        (batch["noisy"][row], batch["flipped"][row])
                    )
            return found

        one, other = augmented(24), augmented(72)
        for number in range(N):
            assert equal(one[number][:2], other[number][:2])
        assert any(not equal(each[0], each[1]) for each in one.values())

    @pytest.mark.parametrize(("mesh", "remainder"), PLACES)
    def test_a_resume_draws_again_what_would_have_been_drawn(self, make):
        expected, pipeline, restored = looped(make()), make(), make()
        for _ in range(3):
            pipeline.step()
        restored.set_state(pipeline.get_state())
        assert equal(restored.step(), expected[3])

    def test_two_stages_draw_apart(self, data_dir, mesh):
        def drawn(name):
            return lambda batch, keys: batch | {name: jax.vmap(jax.random.bits)(keys)}

        pipeline = Pipeline(
            source=loaded(str(data_dir), mesh).clone(),
            stages=[drawn("one"), drawn("other")],
            batch_size=SIZE,
        )
        batch = pipeline.step()
        values = np.asarray(batch["one"]).tolist() + np.asarray(batch["other"]).tolist()
        assert len(set(values)) == 2 * SIZE

    def test_a_stage_with_streams_cannot_change_what_records_share(self, data_dir, mesh):
        class Both(nnx.Module):
            def __init__(self):
                self.rngs = nnx.Rngs(0)
                self.seen = nnx.Variable(jnp.int32(0))

            def __call__(self, batch):
                self.seen.set_value(self.seen.get_value() + 1)
                return batch

        source = loaded(str(data_dir), mesh).clone()
        pipeline = Pipeline(source=source, stages=[Both()], batch_size=SIZE)
        with pytest.raises(ValueError, match=r"stages\[0\](.|\n)*share(.|\n)*Both(.|\n)*fix:"):
            pipeline.step()

    def test_a_stage_with_streams_returns_a_batch_of_one(self, data_dir, mesh):
        class Mean(nnx.Module):
            def __init__(self):
                self.rngs = nnx.Rngs(0)

            def __call__(self, batch):
                return batch | {"mean": batch["label"].mean()}

        source = loaded(str(data_dir), mesh).clone()
        pipeline = Pipeline(source=source, stages=[Mean()], batch_size=SIZE)
        with pytest.raises(ValueError, match=r"stages\[0\](.|\n)*'mean': \(\)(.|\n)*fix:"):
            pipeline.step()


def train_step(model, optimizer, batch):
    def loss_of(model):
        flat = batch["image"].reshape(len(batch["label"]), -1).astype(jnp.float32) / 255
        logits = model(flat)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    return loss


class TestTraining:
    def modules(self):
        model = nnx.Linear(60, 10, rngs=nnx.Rngs(0))
        return model, nnx.Optimizer(model, optax.sgd(1e-2, momentum=0.9), wrt=nnx.Param)

    def test_scan_trains_as_the_loop_does(self, data_dir, mesh):
        pipelines = [
            Pipeline(source=loaded(str(data_dir), mesh).clone(), batch_size=SIZE) for _ in range(2)
        ]
        (model, optimizer), (same, same_optimizer) = self.modules(), self.modules()
        step = nnx.jit(train_step)
        losses = []
        for _ in range(2):
            losses += [float(step(model, optimizer, batch)) for batch in pipelines[0]]
        scanned = [
            pipelines[1].scan(train_step, length=length, modules=(same, same_optimizer))
            for length in (5, 4)
        ]
        assert np.allclose(np.concatenate(scanned), losses, rtol=1e-5)
        assert np.allclose(model.kernel.get_value(), same.kernel.get_value(), atol=1e-6)
        assert int(same_optimizer.step.get_value()) == 9

    def test_a_carry_goes_from_step_to_step(self, data_dir, mesh):
        source = loaded(str(data_dir), mesh).clone()
        pipeline = Pipeline(source=source, batch_size=SIZE)
        total, sums = pipeline.scan(
            lambda total, batch: (total + batch["id"].sum(), batch["id"].sum()),
            length=3,
            init_carry=jnp.int32(0),
        )
        assert total == sums.sum()

    def test_the_second_epoch_compiles_nothing(self, data_dir, mesh):
        traced = []

        def step(model, optimizer, batch):
            traced.append(1)
            return train_step(model, optimizer, batch)

        modules = self.modules()
        pipeline = Pipeline(source=loaded(str(data_dir), mesh).clone(), batch_size=SIZE)
        pipeline.scan(step, length=5, modules=modules)
        once = len(traced)
        for _ in range(3):
            pipeline.scan(step, length=5, modules=modules)
        assert len(traced) == once

    def test_a_step_in_a_program_is_compiled_once(self, data_dir, mesh):
        traced = []

        @nnx.jit
        def step(pipeline):
            traced.append(1)
            return pipeline.step()["id"]

        pipeline = Pipeline(source=loaded(str(data_dir), mesh).clone(), batch_size=SIZE)
        state = pipeline.get_state()
        for _ in range(2):
            for _ in range(3):
                step(pipeline)
            pipeline.set_state(state)
        assert len(traced) == 1

    @pytest.mark.parametrize("mesh", ["one device", "8 devices"])
    def test_scan_copies_no_rows(self, data_dir, mesh):
        source = loaded(str(data_dir), mesh).clone()
        pipeline = Pipeline(source=source, batch_size=SIZE)
        pipeline.scan(lambda batch: batch["id"], length=5)
        shared, numbers = source.records.scan_inputs(np.zeros((5, SIZE), np.int32))
        graphdef, state = nnx.split((pipeline.stages, ()))
        start = state, None
        donation = Donation.of(start, (False, False), ())
        steps = numbers, BatchExtras(real=None, keys=None, numbers=None)
        split = donation.split(start)
        program = scan_program(source.records, chain([]), source.sharding)
        lowered = program.lower(*split, shared, steps, donation, graphdef, len)
        memory = lowered.compile().memory_analysis()
        mesh_size = source.sharding.num_devices
        per_device = sum(leaf.nbytes for leaf in jax.tree.leaves(shared)) / mesh_size
        assert memory.temp_size_in_bytes < per_device / 2


class TestDonation:
    def scanned(self, data_dir, mesh, modules, **donation):
        pipeline = Pipeline(source=loaded(str(data_dir), mesh).clone(), batch_size=SIZE)

        def step(*modules_and_batch):
            return train_step(*modules_and_batch[-3:]), None

        carry = jnp.zeros(3)
        pipeline.scan(
            lambda c, *rest: (c + 1, step(*rest)[0]),
            length=2,
            modules=modules,
            init_carry=carry,
            **donation,
        )
        return carry

    # Not on explicit axes: there jax 0.12 leaves the gradient of integer labels to the caller.
    @pytest.mark.parametrize("mesh", ["one device", "8 devices"])
    def test_modules_are_not_held_twice_and_what_the_caller_passed_stays(self, data_dir, mesh):
        modules = TestTraining().modules()
        for _ in range(2):  # first from where a user made them, then from where scan left them
            kernel = modules[0].kernel.get_value()
            momentum = jax.tree.leaves(nnx.state(modules[1]))
            carry = self.scanned(data_dir, mesh, modules)
            assert kernel.is_deleted()
            assert all(leaf.is_deleted() for leaf in momentum if leaf.ndim)
            assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(nnx.state(modules)))
            assert np.array_equal(carry, np.zeros(3))

    def test_what_is_donated_can_be_chosen(self, data_dir, mesh):
        model, optimizer = TestTraining().modules()
        kernel = model.kernel.get_value()
        carry = self.scanned(data_dir, mesh, (model, optimizer), donate_argnames=())
        assert not kernel.is_deleted()
        carry = self.scanned(
            data_dir, mesh, (model, optimizer), donate_argnames=("modules", "init_carry")
        )
        assert carry.is_deleted()
        with pytest.raises(ValueError, match=r"may name modules and init_carry(.|\n)*fix:"):
            self.scanned(data_dir, mesh, (model, optimizer), donate_argnames="model")

    def test_an_array_in_two_places_is_kept(self, data_dir, mesh):
        class Tied(nnx.Module):
            def __init__(self):
                self.one = nnx.Variable(jnp.zeros(4))
                self.other = nnx.Variable(self.one.get_value())

        def step(tied, batch):
            tied.one.set_value(tied.one.get_value() + 1)

        tied = Tied()
        shared = tied.other.get_value()
        pipeline = Pipeline(source=loaded(str(data_dir), mesh).clone(), batch_size=SIZE)
        pipeline.scan(step, length=3, modules=[tied])
        assert not shared.is_deleted()
        assert np.array_equal(tied.one.get_value(), np.full(4, 3))
        assert np.array_equal(tied.other.get_value(), np.zeros(4))

    def test_an_error_in_a_step_leaves_the_modules_as_they_were(self, data_dir, mesh):
        def failing(model, optimizer, batch):
            train_step(model, optimizer, batch)
            raise RuntimeError("the user's own")

        modules = TestTraining().modules()
        before = jax.tree.map(np.asarray, nnx.state(modules))
        pipeline = Pipeline(source=loaded(str(data_dir), mesh).clone(), batch_size=SIZE)
        with pytest.raises(RuntimeError, match="the user's own"):
            pipeline.scan(failing, length=2, modules=modules)
        assert equal(jax.tree.leaves(nnx.state(modules)), jax.tree.leaves(before))


class TestRefusals:
    @pytest.mark.parametrize("access", ["random", "sequential"])
    def test_a_stream_within_a_program(self, data_dir, access):
        config = TFDSStreamingConfig(
            name="tiny", split="train", data_dir=str(data_dir), shuffle=True, access=access
        )
        pipeline = Pipeline(source=TFDSStreamingSource(config), batch_size=SIZE)
        with pytest.raises(NotImplementedError, match=rf"compiled(.|\n)*batch_size: {SIZE}\n"):
            pipeline.scan(len, length=2)
        with pytest.raises(NotImplementedError, match=r"compiled function(.|\n)*fix:"):
            nnx.jit(lambda pipeline: pipeline.step())(pipeline)
        check_records(pipeline.step())


NODES = {
    "both": lambda one, other: one | {"sum": one["twice"] + other["next"]},
    "twice": lambda batch: batch | {"twice": batch["id"] * 2},
    "next": lambda batch: {"next": batch["twice"] + 1},
}
EDGES = {"twice": [], "next": ["twice"], "both": ["twice", "next"]}


class TestGraphs:
    def make(self, data_dir, nodes, edges, sink="both", **fields):
        source = loaded(str(data_dir), "one device").clone()
        return Pipeline.from_dag(
            source=source, nodes=nodes, edges=edges, sink=sink, batch_size=SIZE, **fields
        )

    def test_branches_and_merges(self, data_dir):
        pipeline = self.make(data_dir, NODES, EDGES, remainder="drop", rngs=nnx.Rngs(0))
        assert len(pipeline) == 4
        for batch in pipeline:
            assert np.array_equal(batch["sum"], np.asarray(batch["id"]) * 4 + 1)
        assert self.make(data_dir, NODES, EDGES).scan(
            lambda batch: batch["sum"], length=3
        ).shape == (3, SIZE)

    def test_a_node_may_take_the_batch_itself_beside_others(self, data_dir):
        nodes = NODES | {"next": lambda batch: {"next": batch["id"]}}
        pipeline = self.make(data_dir, nodes, EDGES | {"next": []})
        batch = pipeline.step()
        assert np.array_equal(batch["sum"], np.asarray(batch["id"]) * 3)

    def test_a_random_node_is_keyed_by_record(self, data_dir):
        nodes = NODES | {"twice": lambda batch, keys: batch | {"twice": keys}}
        nodes["both"] = lambda one, other: one | {"twice": jax.random.key_data(one["twice"])}
        nodes["next"] = lambda batch: batch
        one, other = (self.make(data_dir, nodes, EDGES).step() for _ in range(2))
        assert equal(one, other)
        assert len(np.unique(np.asarray(one["twice"]), axis=0)) == SIZE

    @pytest.mark.parametrize(
        ("edges", "sink", "problem"),
        [
            (
                {"twice": ["next"]},
                "both",
                r"there is a cycle: (twice -> next -> twice|next -> twice -> next)",
            ),
            ({"both": "next"}, "both", "the edges of 'both' must be a list"),
            ({"twice": ["twice"]}, "both", "there is a cycle: twice -> twice"),
            ({"twice": ["source"]}, "both", "no node is named 'source'"),
            ({"other": []}, "both", "no node is named 'other'"),
            ({}, "end", "no node is named 'end'"),
            ({"both": ["twice", "twice"]}, "both", "nothing takes the result of 'next'"),
            ({"both": None}, "both", "edges do not say what 'both' takes"),
        ],
    )
    def test_what_is_not_a_graph_is_refused(self, data_dir, edges, sink, problem):
        edges = {name: names for name, names in (EDGES | edges).items() if names is not None}
        with pytest.raises(ValueError, match=rf"from_dag: {problem}(.|\n)*nodes:(.|\n)*fix:"):
            self.make(data_dir, NODES, edges, sink)
