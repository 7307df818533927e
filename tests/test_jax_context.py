"""What is set around our code changes no batch: meshes, transfer guards, devices, checks, types."""

import contextlib
import functools
import json

import jax
import numpy as np
import pytest
from checkout import run
from conftest import shardings
from flax import nnx
from jax.sharding import AxisType
from pairs import all_pairs

from datarax_tfds import (
    CursorLog,
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    global_batch,
    prefetch_to_device,
)

SIZE = 16


def other_mesh(*kinds):
    names = ("data", "model", "third")[: len(kinds)]
    sizes = {1: (8,), 2: (2, 4), 3: (2, 2, 2)}[len(kinds)]
    return jax.make_mesh(sizes, names, kinds)


def set_mesh(*kinds):
    return lambda: jax.set_mesh(other_mesh(*kinds))


@contextlib.contextmanager
def legacy_mesh():
    with pytest.warns(DeprecationWarning, match="with mesh"), other_mesh(AxisType.Auto):
        yield


@contextlib.contextmanager
def configured(**values):
    before = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@contextlib.contextmanager
def numerics():
    """All at once, since each compiles every program anew."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_matmul_precision("float32"),
        jax.default_prng_impl("rbg"),
        jax.threefry_partitionable(False),
        jax.checking_leaks(),
        jax.enable_x64(True),
        jax.named_scope("mine"),
        configured(jax_array_garbage_collection_guard="log", jax_explain_cache_misses=True),
    ):
        yield


@contextlib.contextmanager
def checks():
    with jax.debug_nans(True), jax.debug_infs(True), jax.default_device("cpu"):
        yield


CONTEXTS = {
    "set_mesh, Auto": set_mesh(AxisType.Auto, AxisType.Auto),
    "set_mesh, Explicit": set_mesh(AxisType.Explicit, AxisType.Explicit),
    "set_mesh, mixed": set_mesh(AxisType.Auto, AxisType.Explicit, AxisType.Auto),
    "set_mesh, the name of our axis": set_mesh(AxisType.Explicit),
    "set_mesh, one device": lambda: jax.set_mesh(
        jax.make_mesh((1,), ("x",), (AxisType.Auto,), devices=jax.devices()[3:4])
    ),
    "use_abstract_mesh": lambda: jax.sharding.use_abstract_mesh(
        other_mesh(AxisType.Explicit, AxisType.Explicit).abstract_mesh
    ),
    "with mesh": legacy_mesh,
    "transfer_guard": lambda: jax.transfer_guard("disallow"),  # in each direction
    "default_device": lambda: jax.default_device(jax.devices()[5]),
    "disable_jit": lambda: jax.disable_jit(),
    "checks": checks,
    "numerics": numerics,
}
MESHES = [None, "4 x 2, replicas"]


@pytest.fixture(scope="module")
def eager_step(data_dir):
    """A pipeline over an eager source, and its first batch outside of other programs."""

    @functools.cache
    def made(mesh):
        pipeline = Pipeline(
            source=build("eager", mesh, data_dir),
            stages=[noisy],
            batch_size=SIZE,
            remainder="pad",
            record_numbers=True,
        )
        return pipeline, jax.tree.map(bits, pipeline.step())

    return made


def build(kind, mesh, data_dir):
    fields = {
        "name": "dtypes",  # with NaNs and infinities
        "split": "train",
        "data_dir": str(data_dir),
        "shuffle": True,
        "exclude_keys": {"nested"},
        "batch_stats_fn": lambda batch: {"first": batch["int32"]},
    }
    sharding = None if mesh is None else shardings()[mesh]
    if kind == "eager":
        return TFDSEagerSource(TFDSEagerConfig(**fields), sharding=sharding)
    return TFDSStreamingSource(TFDSStreamingConfig(**fields), sharding=sharding)


def noisy(batch, keys):
    # What jax.random draws from a key is up to jax_threefry_partitionable; the key is up to us.
    return batch | {"noise": jax.random.key_data(keys)}


@pytest.fixture(scope="module")
def takes(data_dir, tmp_path_factory):
    """For a kind and a mesh, all ways of taking records, and what they give outside of contexts."""

    @functools.cache
    def of(kind, mesh):
        made = build(kind, mesh, data_dir)
        taken = ways_to_take(made, tmp_path_factory.mktemp("log") / "cursors")
        return taken, taken()

    return of


def ways_to_take(made, log):
    """A function that takes records in all ways, one after the other, from the beginning."""
    # One pipeline for each way in which a batch is put together; they share the records.
    plain = Pipeline(source=made.clone(), batch_size=SIZE)
    staged = Pipeline(
        source=made.clone(),
        stages=[noisy],
        batch_size=SIZE,
        remainder="pad",
        record_numbers=True,
    )

    def first(batch):
        return batch["int32"][0]

    def ways():
        source = made.clone()
        for pipeline in (plain, staged):
            pipeline.reset()
        yield "step", plain.step()
        yield "for", list(plain)
        yield "step with stages", staged.step()
        notes = CursorLog(log, staged)
        for batch in prefetch_to_device(staged, 1):
            notes.note(batch["record_number"])
            yield "prefetched", batch
        yield "state", plain.get_state()
        plain.set_state(plain.get_state())
        yield "get_batch", source.get_batch(SIZE)
        yield "single record", source[3]
        yield "records", list(source)
        yield "get_batch_at", source.get_batch_at(5, SIZE)
        yield "get_batch_at, by key", source.get_batch_at(5, SIZE, KEY)
        yield "get_records", source.get_records(np.arange(8))
        yield "get_records on a device", source.get_records(NUMBERS)
        yield "record_indices_at", source.record_indices_at(5, SIZE)
        yield "arrays", source.collect_to_array()
        yield "statistics", source.compute_statistics(source.get_batch(SIZE))
        source.reset(seed=7)
        source.set_random_order(False)
        yield "after a reset", source.get_batch(SIZE)
        yield "counts", source.get_operation_stats()
        source.reset_operation_stats()
        yield "another", source.copy(name="another").get_batch(SIZE)
        yield "global_batch", global_batch(lambda rows: ROWS[rows], SIZE, shardings()["8 devices"])
        # Without jit, a scan is the caller's own loop.
        if isinstance(source, TFDSEagerSource) and not jax.config.jax_disable_jit:
            yield "scan", plain.scan(first, length=2)
            yield "scan with a carry", plain.scan(carried, length=2, init_carry=np.int32(3))

    def carried(carry, batch):
        return carry + batch["int32"][0, 0], batch["int8"]

    return lambda: [(name, jax.tree.map(bits, values)) for name, values in ways()]


ROWS = np.arange(SIZE, dtype=np.int32)
KEY = jax.random.key(3)
NUMBERS = jax.device_put(np.arange(8))


def bits(value):
    """A value on the host, as nothing but its bytes."""
    if not isinstance(value, jax.Array):
        return value
    return str(value.dtype), value.shape, np.asarray(jax.device_get(value)).tobytes()


@pytest.mark.parametrize(
    ("kind", "mesh", "context"),
    all_pairs(["eager", "streaming"], MESHES, CONTEXTS),
)
def test_records_are_the_same_whatever_is_set_around_our_code(kind, mesh, context, takes):
    taken, expected = takes(kind, mesh)
    with CONTEXTS[context]():
        found = taken()
    for (name, one), (same_name, other) in zip(found, expected, strict=False):
        assert name == same_name
        assert one == other, name


# A program of the caller's cannot run on a mesh without devices. It compiles anew in each of them.
AROUND_PROGRAMS = [
    (context, MESHES[number % 2])
    for number, context in enumerate(CONTEXTS)
    if context.startswith(("set_mesh", "with", "transfer"))
] + [("set_mesh, one device", MESHES[1])]


@pytest.mark.parametrize(("context", "mesh"), AROUND_PROGRAMS)
def test_a_step_in_the_callers_program_is_the_same_under_any_mesh(context, mesh, eager_step):
    pipeline, expected = eager_step(mesh)
    step = nnx.jit(lambda pipeline: pipeline.step())
    with CONTEXTS[context]():
        pipeline.reset()
        if "one device" in context and mesh is not None:
            with pytest.raises(ValueError, match=r"incompatible devices|size of the mesh"):
                step(pipeline)
            return
        found = step(pipeline)
        assert jax.tree.map(bits, found) == expected


def test_contexts_change_no_batch_of_two_processes(data_dir, tmp_path):
    """The sources are built in the context, too."""
    run(2, "contexts.py", data_dir, tmp_path, logs=tmp_path)
    for process in (0, 1):
        found = json.loads((tmp_path / f"{process}.json").read_text())
        for kind in ("eager", "streaming"):
            expected = found[f"{kind}, none"]
            assert found[f"{kind}, another mesh"] == expected
            assert found[f"{kind}, transfer guard"] == expected
        scans = {way: found["eager, none"].pop(way) for way in ("scanned", "trained")}
        assert found["eager, none"] == expected
        assert scans["trained"][0] == scans["scanned"]
        assert expected["eaten"][0] == expected["step"]
