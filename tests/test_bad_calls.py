"""Arguments that cannot be: of meshes, sources, pipelines and prefetching."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tfds_datasets
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from refusals import refused

from datarax_tfds import (
    BucketedSource,
    MixtureSource,
    PackedSource,
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    from_tfds,
    global_batch,
    make_mesh,
    prefetch_to_device,
)

N = tfds_datasets.TINY_TRAIN
NAN = float("nan")


def devices(count):
    return batch_sharding(make_mesh({"data": count}, devices=jax.devices()[:count]))


AXES = [
    *[(axes, ValueError, "do not multiply to the number of devices") for axes in
      ({}, {"data": 3}, {"data": 0}, {"data": -2}, {"data": -1, "model": -1}, {"data": 16},
       {"data": 4, "model": 4}, {"data": -1, "model": 3}, {"data": -1, "model": 0})],
    *[(axes, TypeError, "must be a dict of sizes by name") for axes in
      (None, 8, "data", ["data"], [("data", 8)], {"data": 8.0}, {"data": "8"}, {"data": True},
       {"data": None}, {1: 8}, {"": 8}, {None: 8})],
]  # fmt: skip

DEVICES = [([], "devices: +0"), (7, "devices: +int"), (["cpu"] * 8, "devices: +str"),
           ("cpu", "devices: +str")]  # fmt: skip

MESHES = [None, "data", {"data": 8}, np.arange(8)]

MESH_AXES = [("dta", "'dta'"), (["data", "dta"], "'dta'"), (5, "axes"), ([5], "5"),
             ("", "''"), (None, "axes"), (["data", "data"], "twice"),
             (("data", ("model",)), "model")]  # fmt: skip

SHARDINGS = [
    (lambda mesh: mesh, TypeError, "got: +Mesh"),
    (lambda mesh: "data", TypeError, "got: +str"),
    (lambda mesh: PartitionSpec("data"), TypeError, "got: +P"),
    (lambda mesh: jax.devices()[0], TypeError, "got: +"),
    (lambda mesh: jax.sharding.SingleDeviceSharding(jax.devices()[0]), TypeError, "got: +Single"),
    (lambda mesh: NamedSharding(mesh, PartitionSpec(None, "data")), ValueError, "axis 0 only"),
    (lambda mesh: NamedSharding(mesh, PartitionSpec("data", "model")), ValueError, "axis 0 only"),
]

# Row shards and the batch size.
BATCH_SIZES = [
    *[(1, size) for size in (0, -1, -8, 2.0, 8.5, "8", True, False, None, [8], (8,), np.float64(8),
                             np.int64(-4), NAN, float("inf"), b"8", np.array([8]))],
    *[(shards, size) for shards, size in
      ((8, 7), (8, 9), (8, 1), (8, 100), (4, 6), (4, 2), (3, 8), (3, 1), (2, 97), (8, 2**31 + 1))],
]  # fmt: skip

READS = [
    (None, TypeError, "read"),
    (np.arange(8), TypeError, "read"),
    (lambda rows: None, ValueError, "read"),
    (lambda rows: {}, ValueError, "read"),
    (lambda rows: np.zeros(3), ValueError, "rows"),
    (lambda rows: {"a": np.zeros(2), "b": np.zeros(9)}, ValueError, "rows"),
    (lambda rows: np.float32(1), ValueError, "rows"),
    (lambda rows: {"a": np.zeros(8)}, ValueError, "rows"),
]

NUMBERS = [
    *[(number, TypeError, f"number: +{re.escape(repr(number))}") for number in
      (1.0, "3", None, slice(0, 3), [1], (0, 1), True, np.float32(1), b"1", Ellipsis,
       np.array([1]), NAN)],
    *[(number, IndexError, "no such record") for number in
      (N, -N - 1, 10**6, 2**31, -2**63, 10**30, np.int64(N))],
]  # fmt: skip

INDICES = [
    *[(indices, TypeError, "indices must be a list of at least one integer") for indices in
      (np.arange(8.0), [1.5] * 8, ["1"] * 8, np.zeros((2, 4), int), 5, None, [], [None], "01234567",
       [True] * 8, [[0, 1], [2]], {"a": 1}, {1, 2}, [b"1"], jnp.zeros(8), np.zeros(8, "M8[s]"),
       np.int64(3), [0, 1.0])],
    (np.zeros((8, 2), int), TypeError, r"got: +int64\[8, 2\]"),
    *[(indices, IndexError, "no such record.*fix: +use a number from 0 to 96") for indices in
      ([0] * 7 + [N], [0] * 7 + [-1], [2**40] * 8, [-(2**40)] * 8)],
    *[(indices, ValueError, "row shards") for indices in ([0] * 7, [1], np.zeros(0, int))],
]  # fmt: skip

PROCESSED = [(1.5, TypeError), ("7", TypeError), (None, TypeError), ({}, TypeError),
             (N, IndexError),
             ([0.5] * 8, TypeError), ([[0, 1], [2]], TypeError), (True, TypeError)]  # fmt: skip

STARTS = [
    *[(start, TypeError, "start") for start in
      (1.5, 0.0, "3", None, [0], NAN, np.float64(3), True, b"1", np.arange(2))],
    *[(start, ValueError, "start") for start in (-1, -N, -(2**40), np.int64(-3))],
]  # fmt: skip

SIZES = [0, -1, 1.5, "8", None, True, NAN, [8], np.float32(8)]

ORDER_KEYS = [7, "key", 1.5, [1, 2], np.zeros(2, np.float32), jnp.zeros(2), True]

FLAGS = ["no", 1, 0, None, [], "False"]

SEEDS = [-1, 2**32, 1.5, "7", True, [7], np.float64(1), jnp.int32(7), b"7"]

STREAMS = [("order", "streams"), (5, "streams"), (None, "streams"), ([5], "streams")]

SOURCES = [None, "tiny", 7, [1, 2], {"source": 1}, np.arange(97), TFDSEagerSource, iter([])]


def plain(batch):
    return batch


STAGES = [
    *[(stages, TypeError, r"stages\[0\]") for stages in
      ([5], [None], ["normalize"], [{"a": plain}], [[plain]], [np.zeros(3)])],
    *[(stages, TypeError, "stages must be a list") for stages in
      (plain, 5, "normalize", None, {"a": plain})],
    *[([stage], TypeError, r"stages\[0\].*takes") for stage in
      (lambda: None, lambda one, other: one, lambda *, batch: batch, lambda batch, *, scale: batch,
       lambda keys: {})],
    ([plain, 5], TypeError, r"stages\[1\]"),
    ([plain, plain, lambda: None], TypeError, r"stages\[2\]"),
]  # fmt: skip

# What a stage returns in place of a dict of arrays.
RETURNED = [
    *[(stage, TypeError) for stage in
      (lambda batch: None, lambda batch: batch["id"], lambda batch: list(batch.values()),
       lambda batch: (batch,), lambda batch: 5, lambda batch: "batch",
       lambda batch: {"split": "train"}, lambda batch: {"x": {"y": object()}})],
]  # fmt: skip

REMAINDERS = ["keep", "", None, True, 0, "Wrap", ["wrap"], "drop_remainder"]

NODES = {"a": plain, "b": plain}
EDGES = {"a": [], "b": ["a"]}

DAGS = [
    *[({"nodes": nodes}, TypeError) for nodes in (None, [plain], plain, 5, "a")],
    *[({"edges": edges}, TypeError) for edges in (None, [("a", "b")], 5, "ab")],
    *[({"edges": EDGES | {"b": takes}}, TypeError) for takes in (None, 5, [5], [None], {"a": 1})],
    *[({"edges": EDGES | {"b": takes}}, ValueError) for takes in
      ("a", ["c"], ["b"], ["a", "a", "c"])],
    *[({"sink": sink}, TypeError) for sink in (None, 5, ["b"])],
    *[({"sink": sink}, ValueError) for sink in ("", "c", "a", "B")],
    ({"nodes": NODES | {"b": 5}}, TypeError),
    ({"nodes": NODES | {"b": lambda: None}}, TypeError),
    ({"edges": EDGES | {"b": ["a", "a"]}}, TypeError),
    ({"nodes": {}}, ValueError),
    ({"nodes": {}, "edges": {}}, ValueError),
    ({"edges": {}}, ValueError),
    ({"edges": {"a": ["b"], "b": ["a"]}}, ValueError),
    ({"nodes": NODES | {"c": plain}}, ValueError),
]  # fmt: skip

SCANS = [
    *[({"length": length}, ValueError, "length") for length in
      (0, -1, 1.0, "2", True, None, NAN, [2], np.float64(2))],
    *[({"step_fn": step_fn}, TypeError, "step_fn") for step_fn in (None, 5, "step", {}, [len])],
    *[({"modules": modules}, TypeError, "modules") for modules in (5, None, plain, "model")],
]  # fmt: skip

STEPS = [-1, 1.0, "2", True, None, NAN, [2], np.float64(2)]

PREFETCHED = [
    *[([], size, ValueError, "size must be an integer of at least 0") for size in
      (-1, 1.5, 2.0, True, "2", None, [2], NAN, np.float64(2), -np.int64(1))],
    *[(iterable, 2, TypeError, "iterable cannot be iterated over") for iterable in
      (None, 5, plain, 1.5, True)],
]  # fmt: skip


@pytest.fixture(scope="module")
def eager(data_dir):
    """A source that no case moves."""
    config = TFDSEagerConfig(name="tiny", split="train", data_dir=data_dir, shuffle=True)
    source = TFDSEagerSource(config, sharding=devices(8))
    before = source.get_state()
    yield source
    assert source.get_state() == before


@pytest.fixture(scope="module")
def streaming(data_dir):
    config = TFDSStreamingConfig(name="tiny", split="train", data_dir=data_dir, shuffle=True)
    source = TFDSStreamingSource(config, sharding=devices(8))
    before = source.get_state()
    yield source
    assert source.get_state() == before


@pytest.fixture(params=["eager", "streaming"])
def source(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(("axes", "kind", "message"), AXES)
def test_axes_that_do_not_fit_the_devices_are_refused(axes, kind, message):
    with refused(kind, f"^make_mesh: .*{message}.*axes:"):
        make_mesh(axes)


@pytest.mark.parametrize(("given", "message"), DEVICES)
def test_invalid_devices_of_a_mesh_are_refused(given, message):
    with refused(ValueError if given == [] else TypeError, f"^make_mesh: .*{message}"):
        make_mesh({"data": 8}, devices=given)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_batch_lies_on_a_mesh(mesh):
    with refused(TypeError, f"^batch_sharding: .*mesh: +{type(mesh).__name__}"):
        batch_sharding(mesh)


@pytest.mark.parametrize(("axes", "message"), MESH_AXES)
def test_a_batch_is_split_over_axes_of_the_mesh(axes, message):
    with refused(ValueError, f"^batch_sharding: .*{message}.*fix:"):
        batch_sharding(make_mesh({"data": 4, "model": 2}), axes)


@pytest.mark.parametrize(("sharding", "kind", "message"), SHARDINGS)
def test_a_sharding_that_batches_cannot_have_is_refused(data_dir, sharding, kind, message):
    config = TFDSEagerConfig(name="tiny", split="train", data_dir=data_dir)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    with refused(kind, f"^sharding: .*{message}"):
        TFDSEagerSource(config, sharding=sharding(mesh))


@pytest.mark.parametrize(("shards", "size"), BATCH_SIZES)
def test_a_batch_size_that_does_not_divide_is_refused_with_the_nearest_that_do(shards, size):
    with refused(ValueError, f"^batch_size: .*row_shards: +{shards}.*fix: +use [0-9]+"):
        global_batch(lambda rows: np.zeros(rows.stop - rows.start), size, devices(shards))


def test_every_source_refuses_a_name_that_is_no_text(source, data_dir):
    text = from_tfds("text", "train", eager=False, data_dir=data_dir)
    for named in (
        lambda name: type(source)(source.config, name=name),
        lambda name: source.copy(name=name),
        lambda name: MixtureSource({"one": source}, {"one": 1}, name=name),
        lambda name: MixtureSource({"one": source}, {"one": 1}).copy(name=name),
        lambda name: PackedSource(
            text, encode=lambda text: list(text.encode()), length=8, name=name
        ),
        lambda name: BucketedSource(text, {"tokens": (2, 4)}, name=name),
    ):
        for name in (5, b"train", ""):
            with refused(TypeError, "name must be a string that is not empty.*fix: +use name="):
                named(name)


@pytest.mark.parametrize("size", [size for shards, size in BATCH_SIZES if shards in (1, 8)])
def test_every_way_of_taking_a_batch_refuses_its_size(source, size):
    for take in (
        source.get_batch,
        lambda size: source.get_batch_at(0, size),
        lambda size: source.get_batch(size, jax.random.key(0)),
        lambda size: Pipeline(source=source, batch_size=size),
        lambda size: Pipeline(source=source, batch_size=[(0, 8), (10, size)]),
    ):
        with refused(ValueError, "^batch_size: .*row_shards: +8"):
            take(size)


@pytest.mark.parametrize(("read", "kind", "message"), READS)
def test_a_read_that_does_not_return_its_rows_is_refused(read, kind, message):
    with refused(kind, f"^global_batch: .*{message}.*fix:"):
        global_batch(read, 8, devices(2))


@pytest.mark.parametrize(("number", "kind", "message"), NUMBERS)
def test_a_number_that_no_record_has_is_refused(source, number, kind, message):
    with refused(kind, message):
        source[number]


@pytest.mark.parametrize(("indices", "kind", "message"), INDICES)
def test_numbers_that_no_records_have_are_refused(source, indices, kind, message):
    with refused(kind, message):
        source.get_records(indices)


@pytest.mark.parametrize(("given", "kind"), PROCESSED)
def test_nothing_to_process(source, given, kind):
    with refused(kind, rf"^{re.escape(source.name)}: "):
        source.process(given)


@pytest.mark.parametrize(("start", "kind", "message"), STARTS)
def test_an_invalid_start_is_refused(source, start, kind, message):
    for take in (source.get_batch_at, source.record_indices_at):
        with refused(kind, rf"^{re.escape(source.name)}: .*{message}"):
            take(start, 8)


@pytest.mark.parametrize("size", SIZES)
def test_an_invalid_number_of_positions_is_refused(source, size):
    with refused(ValueError, rf"^{re.escape(source.name)}: .*size:"):
        source.record_indices_at(0, size)


@pytest.mark.parametrize("key", ORDER_KEYS)
def test_what_is_not_a_prng_key_is_refused(source, key):
    for take in (
        lambda: source.get_batch(8, key),
        lambda: source.get_batch_at(0, 8, key),
        lambda: source.record_indices_at(0, 8, key),
    ):
        with refused(TypeError, rf"^{re.escape(source.name)}: .*key: "):
            take()


@pytest.mark.parametrize("flag", FLAGS)
def test_an_order_is_random_or_is_not(source, flag):
    with refused(TypeError, rf"^{re.escape(source.name)}: .*enabled: "):
        source.set_random_order(flag)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_invalid_seed_is_refused(source, seed):
    with refused(ValueError, "^seed: .*seed: "):
        source.reset(seed)


def test_options_of_calls_are_true_or_false(source, data_dir):
    options = {
        "record_numbers": lambda: Pipeline(source=source, batch_size=8, record_numbers="no"),
        "as_numpy": lambda: Pipeline(source=source, batch_size=8).batches(as_numpy="no"),
        "eager": lambda: from_tfds("tiny", "train", data_dir=str(data_dir), eager="no"),
    }
    for name, call in options.items():
        with refused(ValueError, f"{name} must be True or False"):
            call()


@pytest.mark.parametrize(("streams", "message"), STREAMS)
def test_streams_are_a_list_of_names(source, streams, message):
    with refused(TypeError, rf"^{re.escape(source.name)}: .*{message}"):
        source.ensure_rng_streams(streams)


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_not_a_source_is_refused(source):
    with refused(TypeError, "^Pipeline: .*source: "):
        Pipeline(source=source, batch_size=8)


@pytest.mark.parametrize(("stages", "kind", "message"), STAGES)
def test_invalid_stages_are_refused(source, stages, kind, message):
    with refused(kind, f"^(Pipeline: )?{message}"):
        Pipeline(source=source, stages=stages, batch_size=8)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            lambda batch: {"x": batch["imgae"]},
            r"'imgae'(.|\n)*keys: id, image, label(.|\n)*'image'",
        ),
        (lambda batch: {"x": batch["zzz"]}, r"'zzz'(.|\n)*use one of these keys, or add it"),
    ],
)
def test_a_key_that_a_batch_lacks_is_named_with_the_stage_and_the_keys(eager, stage, message):
    pipeline = Pipeline(source=eager, stages=[plain, stage], batch_size=8)
    with pytest.raises(KeyError, match=rf"^stages\[1\]: the stage asks for {message}"):
        pipeline.step()


def test_other_errors_of_a_stage_stay_as_they_are(eager):
    def own_table(batch):
        return {"x": {7: 1}[batch["id"].shape[0]]}

    with pytest.raises(KeyError, match=r"^8"):
        Pipeline(source=eager, stages=[own_table], batch_size=8).step()


@pytest.mark.parametrize(("stage", "kind"), RETURNED)
def test_a_stage_returns_a_dict(eager, stage, kind):
    pipeline = Pipeline(source=eager, stages=[plain, stage], batch_size=8)
    with refused(kind, r"^Pipeline: stage 1 \(<lambda>\) must return a dict .*returned: "):
        pipeline.step()
    with refused(kind, r"^Pipeline: stage 1 \(<lambda>\) must return a dict .*returned: "):
        pipeline.scan(lambda batch: batch["id"], length=2)


@pytest.mark.parametrize("remainder", REMAINDERS)
def test_an_unknown_remainder_is_refused(source, remainder):
    with refused(ValueError, "^remainder: .*'wrap', 'drop' or 'pad', got .*fix: +use remainder='"):
        Pipeline(source=source, batch_size=8, remainder=remainder)


def test_drop_would_leave_nothing(source):
    with refused(ValueError, "^remainder: .*batch_size: +104.*records: +97"):
        Pipeline(source=source, batch_size=104, remainder="drop")


@pytest.mark.parametrize(("fields", "kind"), DAGS)
def test_an_invalid_graph_of_stages_is_refused(eager, fields, kind):
    with refused(kind, r"^(Pipeline\.from_dag|a|b): "):
        Pipeline.from_dag(
            **{"source": eager, "nodes": NODES, "edges": EDGES, "sink": "b", "batch_size": 8}
            | fields
        )


@pytest.mark.parametrize(("fields", "kind", "message"), SCANS)
def test_an_invalid_step_function_or_length_is_refused(eager, fields, kind, message):
    pipeline = Pipeline(source=eager, batch_size=8)
    with refused(kind, rf"^Pipeline\.scan: .*{message}"):
        pipeline.scan(**{"step_fn": lambda batch: batch["id"], "length": 2} | fields)


@pytest.mark.parametrize("rngs", [7, "params", {"params": 0}, jnp.zeros(2)])
def test_streams_of_a_pipeline(source, rngs):
    with refused(TypeError, r"^Pipeline: .*rngs: .*nnx\.Rngs"):
        Pipeline(source=source, batch_size=8, rngs=rngs)
    assert Pipeline(source=source, batch_size=8, rngs=nnx.Rngs(0)).rngs is not None


@pytest.mark.parametrize("n", STEPS)
def test_what_is_no_number_of_steps(eager, n):
    pipeline = Pipeline(source=eager, batch_size=8)
    with refused(ValueError, "^Pipeline.steps: n must be an integer of at least 0"):
        pipeline.steps(n)
    with refused(ValueError, "^Pipeline.cursor_at: step must be an integer of at least 0"):
        pipeline.cursor_at(n)


@pytest.mark.parametrize(("iterable", "size", "kind", "message"), PREFETCHED)
def test_what_cannot_be_prefetched(iterable, size, kind, message):
    with refused(kind, f"^prefetch_to_device: {message}"):
        prefetch_to_device(iterable, size)
