"""The fixes of messages about calls: of sources, states, pipelines and their stages."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from advice import Row
from flax import nnx

from datarax_tfds import (
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    evaluate,
    from_tfds,
    join_words,
    prefetch_to_device,
)
from datarax_tfds.order.order import Order


def plain(batch):
    return batch


GROWING = [(0, 8), (20, 16)]


class Odd(nnx.Module):
    def __call__(self, batch):
        return {"odd": batch["id"] % 2}


def odd(module, batch):
    return module(batch)


def evaluated(step_fn, modules=()):
    return lambda u: evaluate(u.pipeline(), step_fn, modules=modules)


def label_sum(batch):
    return batch["label"].sum()


def at(start, size=4, key=None):
    return lambda u: u.loaded.record_indices_at(start, size, key)


def drawn(u, rngs, **fields):
    fields = {"stochastic": True, "stream_name": "order", "shuffle": True} | fields
    config = TFDSEagerConfig(name="tiny", split="train", data_dir=u.data_dir, **fields)
    return TFDSEagerSource(config, rngs=rngs)


def built_in_jit(u):
    return jax.jit(lambda: u.stream().get_batch_at(0, 4))()


def passed_to_jit(u):
    return nnx.jit(lambda source: source.get_batch(8))(u.loaded)


def closed_over(source):
    return jax.jit(lambda: source.get_batch(8))()


def passed_in(source):
    """The batch is taken outside of the function."""
    return jax.jit(label_sum)(source.get_batch(8))


def sequential(u):
    return u.stream(shuffle=True, access="sequential")


def of_streams(names):
    return lambda u: drawn(u, nnx.Rngs(order=0)).ensure_rng_streams(names)


def with_made_streams(u):
    rngs = nnx.Rngs(params=0, order=0)
    return drawn(u, rngs).ensure_rng_streams(list(rngs))


SOURCES = [
    Row(
        "it does not have an argument 'shuffle'.",
        "pass shuffle to the config of the source",
        lambda u: Pipeline(source=u.loaded, batch_size=8, shuffle=True),
        lambda u: u.pipeline(source=u.stream(shuffle=True)),
    ),
    Row(
        "it does not have an argument 'shardin'.",
        "use sharding",
        lambda u: TFDSEagerSource(u.loaded.config, shardin=None),
        lambda u: TFDSEagerSource(u.loaded.config, sharding=None),
    ),
    Row(
        "config must be a TFDSEagerConfig, got str.",
        "pass a config such as TFDSEagerConfig(name='mnist', split='train')",
        lambda u: TFDSEagerSource("tiny"),
        lambda u: u.eager(),
    ),
    Row(
        "config must be a TFDSEagerConfig, got TFDSStreamingConfig.",
        "pass a config such as TFDSEagerConfig(name='mnist', split='train'); or build a"
        " TFDSStreamingSource with this config",
        lambda u: TFDSEagerSource(TFDSStreamingConfig(name="tiny", split="train")),
        lambda u: u.eager(),
        lambda u: u.stream(),
    ),
    Row(
        "rngs must be an nnx.Rngs, or left out.",
        "pass rngs=nnx.Rngs(0), or leave it out",
        lambda u: u.pipeline(rngs=7),
        lambda u: u.pipeline(rngs=nnx.Rngs(0)),
        lambda u: u.pipeline(),
    ),
    Row(
        "there is no stream 'order' of rngs to draw the seed from.",
        "pass rngs=nnx.Rngs(order=0), or use stochastic=False",
        lambda u: drawn(u, nnx.Rngs(params=0)),
        lambda u: drawn(u, nnx.Rngs(order=0)),
        lambda u: drawn(u, nnx.Rngs(params=0), stochastic=False, stream_name=None),
    ),
    Row(
        "streams must be a list of names.",
        "pass a list, as ['order']",
        of_streams(7),
        of_streams(["order"]),
    ),
    Row(
        "the RNG stream 'order' is missing.",
        "use rngs=nnx.Rngs(params=0, order=0), and pass the names of its streams, list(rngs)",
        of_streams(["params"]),
        with_made_streams,
    ),
    Row(
        "enabled must be True or False.",
        "use enabled=True",
        lambda u: u.loaded.set_random_order("yes"),
        lambda u: u.loaded.set_random_order(enabled=True),
    ),
    Row(
        "number must be one integer.",
        "pass one integer, as source[0]; several with source.get_records(np.arange(8))",
        lambda u: u.loaded["3"],
        lambda u: u.loaded[0],
        lambda u: u.loaded.get_records(np.arange(8)),
    ),
    Row(
        "there is no such record.",
        "use a number from -97 to 96",
        lambda u: u.loaded[97],
        lambda u: u.loaded[-97],
        lambda u: u.loaded[96],
    ),
    Row(
        "indices must be a list of at least one integer.",
        "pass integers [n], as np.arange(8)",
        lambda u: u.loaded.get_records([0.5]),
        lambda u: u.loaded.get_records(np.arange(8)),
    ),
    Row(
        "process takes record numbers, and nothing else.",
        "pass an integer or an array of integers",
        lambda u: u.loaded.process(3, True),
        lambda u: u.loaded.process(3),
        lambda u: u.loaded.process(np.arange(8)),
    ),
    Row("start must be an integer.", "use start=3", at(3.0), at(3)),
    Row(
        "start must be an integer of at least 0.",
        "use start=0",
        at(-1),
        at(0),
    ),
    Row(
        "size must be an integer of at least 1.",
        "use size=1",
        at(0, size=0),
        at(0, size=1),
    ),
    Row(
        "key must be one PRNG key.",
        "pass key=jax.random.key(0)",
        at(0, key=7),
        at(0, key=jax.random.key(0)),
    ),
    Row(
        "it must be an integer in [0, 2**32).",
        "use seed=7",
        lambda u: u.loaded.reset("7"),
        lambda u: u.loaded.reset(seed=7),
    ),
    Row(
        "length must be at least 1: there are no records to order.",
        "use length=1 or more",
        lambda u: Order(length=0),
        lambda u: Order(length=1),
    ),
    Row(
        "length must be at most 2**61: larger numbers belong to other random keys.",
        f"use a slice of the split, of at most {2**61} records",
        lambda u: Order(length=2**61 + 1),
        lambda u: Order(length=2**61),
    ),
    Row(
        "words must be uint32 [..., 2], or integers.",
        "pass batch['record_number']",
        lambda u: join_words(jnp.zeros(8)),
        lambda u: join_words(u.pipeline(record_numbers=True).step()["record_number"]),
    ),
    Row(
        "a source cannot be built inside a function that is being traced by JAX.",
        "build the source outside, and pass it to nnx.jit as an argument",
        built_in_jit,
        passed_to_jit,
    ),
    Row(
        "it cannot be copied or pickled.",
        "use source.clone() or nnx.clone(module), which share the records; in another process,"
        " build it from its config and pass get_state() to set_state()",
        lambda u: u.loaded.__reduce_ex__(2),
        lambda u: u.loaded.clone(),
        lambda u: nnx.clone(u.pipeline()).step(),
        lambda u: u.eager(shuffle=True).set_state(json.loads(json.dumps(u.loaded.get_state()))),
    ),
    Row(
        "a stream cannot be read within a compiled function.",
        "take the batch outside and pass it in, or use a TFDSEagerSource",
        lambda u: (lambda stream: jax.jit(lambda start: stream.get_batch_at(start, 4))(0))(
            u.stream()
        ),
        lambda u: jax.jit(label_sum)(u.stream().get_batch_at(0, 4)),
        lambda u: (lambda source: jax.jit(lambda start: source.get_batch_at(start, 4))(0))(
            u.loaded
        ),
    ),
    Row(
        "it must be a multiple of 8, because each batch takes as many records of each of the"
        " strata.",
        "use 8 or 16",
        lambda u: u.stream(strata=8).get_batch(12),
        lambda u: u.stream(strata=8).get_batch(8),
        lambda u: u.stream(strata=8).get_batch(16),
    ),
    Row(
        "it must be at most the number of records, 97, and a part must have fewer than 2**31"
        " records.",
        "use strata=97",
        lambda u: u.stream(strata=98),
        lambda u: u.stream(strata=97),
    ),
    Row(
        "the order of blocks cannot be computed within a compiled function.",
        "take the batch outside and pass it in, or use a TFDSEagerSource",
        lambda u: (lambda stream: jax.jit(lambda start: stream.get_batch_at(start, 4))(0))(
            sequential(u)
        ),
        lambda u: jax.jit(label_sum)(sequential(u).get_batch_at(0, 4)),
        lambda u: (lambda source: jax.jit(lambda start: source.get_batch_at(start, 4))(0))(
            u.loaded
        ),
    ),
    Row(
        "a function that is being traced by JAX only closes over this cursor, which belongs to"
        " another trace level: it would not move when the compiled function runs.",
        "take the batch outside of the function, and pass it in; or pass the pipeline or source as"
        " an argument of nnx.jit",
        lambda u: closed_over(u.loaded),
        lambda u: passed_in(u.loaded),
        lambda u: nnx.jit(lambda pipeline: pipeline.step())(u.pipeline()),
        passed_to_jit,
    ),
    Row(
        "a function that is being traced by JAX only closes over this cursor, which belongs to"
        " another trace level: it would not move when the compiled function runs.",
        "take the batch outside of the function, and pass it in",
        lambda u: closed_over(u.stream()),
        lambda u: passed_in(u.stream()),
    ),
    Row(
        "a function that is being traced by JAX got a copy of this source, and the cursor of the"
        " copy is lost: the next call would take the same batch again.",
        "use nnx.jit, nnx.scan or nnx.grad in place of the one of jax; or take the batch outside"
        " of the function, and pass it in",
        lambda u: jax.jit(lambda pipeline: pipeline.step())(u.pipeline()),
        lambda u: nnx.jit(lambda pipeline: pipeline.step())(u.pipeline()),
        lambda u: jax.jit(label_sum)(u.pipeline().step()),
    ),
    Row(
        "a function that is being traced by JAX got a copy of this source, and the cursor of the"
        " copy is lost: the next call would take the same batch again.",
        "take the batch outside of the function, and pass it in",
        lambda u: jax.jit(lambda stream: stream.get_batch(4))(u.stream()),
        lambda u: passed_in(u.stream()),
    ),
]


def state_of(u, **fields):
    return u.stream(**{"shuffle": True} | fields).get_state()


def in_64_bits(call, *arguments):
    with jax.enable_x64(True):
        return call(*arguments)


def resumed(u, state, **fields):
    """A run that goes on from a state, in a stream of its own."""
    stream = u.stream(**{"shuffle": True} | fields)
    stream.set_state(state)
    return stream.get_batch(4)


STATES = [
    Row(
        "the saved state and this run differ in shuffle, seed.",
        "build the source and the pipeline as they were, with shuffle=True, seed=7; or start"
        " afresh with reset()",
        lambda u: resumed(u, state_of(u, seed=7), shuffle=False),
        lambda u: resumed(u, state_of(u, seed=7), shuffle=True, seed=7),
        lambda u: u.stream().reset(),
    ),
    Row(
        "the saved state and this run differ in remainder.",
        "build the source and the pipeline as they were, with remainder='pad'; or start afresh"
        " with reset()",
        lambda u: u.pipeline().set_state(u.pipeline(remainder="pad").get_state()),
        lambda u: u.pipeline(remainder="pad").set_state(u.pipeline(remainder="pad").get_state()),
        lambda u: u.pipeline().reset(),
    ),
    Row(
        "the saved state and this run differ in features.",
        "build the source and the pipeline as they were, and under the same jax_enable_x64; or"
        " start afresh with reset()",
        lambda u: resumed(u, state_of(u, include_keys={"id"})),
        lambda u: resumed(u, state_of(u, include_keys={"id"}), include_keys={"id"}),
        lambda u: u.stream().reset(),
    ),
    Row(
        "the saved state and this run differ in features.",
        "build the source and the pipeline as they were, and under the same jax_enable_x64; or"
        " start afresh with reset()",
        lambda u: resumed(u, in_64_bits(state_of, u)),
        lambda u: in_64_bits(resumed, u, in_64_bits(state_of, u)),
        lambda u: u.stream().reset(),
    ),
    Row(
        "the state must be a dict.",
        "pass what get_state() returned",
        lambda u: resumed(u, json.dumps(state_of(u))),
        lambda u: resumed(u, state_of(u)),
    ),
    Row(
        "this is not a state of datarax_tfds.",
        "pass what get_state() returned, or the 'data' item of the checkpoint",
        lambda u: resumed(u, {"model": {}, "data": state_of(u)}),
        lambda u: resumed(u, state_of(u)),
        lambda u: resumed(u, {"model": {}, "data": state_of(u)}["data"]),
    ),
]


def scaled_by(factor):
    """A function whose factor was drawn when its module was imported."""
    return lambda record: {"x": factor * tf.cast(record["label"], tf.float32)}


def resumed_with_factors(u, saved, now):
    state = state_of(u, map_fn=scaled_by(saved))
    u.logged(lambda: resumed(u, state, map_fn=scaled_by(now)))


STATES += [
    Row(
        "map_fn, transform or a decoder computes something else than in the run that was saved, so"
        " that the records differ from here on.",
        "if you did not change that code on purpose, look for a value that differs from run to run"
        " (a random number or a time taken when a module is imported, or the order of a set), and"
        " make it the same in every run, for example by a fixed seed",
        lambda u: resumed_with_factors(u, random.random(), random.random()),
        lambda u: resumed_with_factors(u, random.Random(7).random(), random.Random(7).random()),
    ),
]


class Counting(nnx.Module):
    """A random stage that also counts, which all records would share."""

    def __init__(self):
        self.rngs = nnx.Rngs(noise=0)
        self.count = nnx.Variable(jnp.int32(0))

    def __call__(self, batch):
        self.count.set_value(self.count.get_value() + 1)
        return batch | {"noise": jax.random.uniform(self.rngs.noise(), (1,))}


class CountingByKeys(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.int32(0))

    def __call__(self, batch, keys):
        self.count.set_value(self.count.get_value() + 1)
        return batch | {"noise": jax.vmap(lambda key: jax.random.uniform(key))(keys)}


class Noise(nnx.Module):
    def __init__(self, shape):
        self.rngs = nnx.Rngs(noise=0)
        self.shape = shape

    def __call__(self, batch):
        return batch | {"noise": jax.random.uniform(self.rngs.noise(), self.shape)}


class Counter(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.int32(0))

    def __call__(self, batch):
        self.count.set_value(self.count.get_value() + 1)
        return batch


def stepped(*stages, **arguments):
    return lambda u: u.pipeline(stages=list(stages), **arguments).step()


def masked(u, map_fn=None, **arguments):
    """A pipeline of records with a feature that is named mask."""
    return Pipeline(source=u.stream(name="mask", map_fn=map_fn), batch_size=3, **arguments).step()


def numbered(u, **fields):
    """Records with a feature that is named as the pipeline names numbers."""

    def renamed(record):
        return {"record_number": record["id"], "label": record["label"]}

    source = u.stream(map_fn=renamed, **fields)
    return Pipeline(source=source, batch_size=4, record_numbers=True)


def kept_on_host(u, stage, host_keys=frozenset({"label"})):
    source = u.stream(host_keys=host_keys or None)
    return Pipeline(source=source, stages=[stage], batch_size=4).step()


def larger_than_the_split(u, batch_size=98, **arguments):
    """Steps of a pipeline, whose warning of repeats is told again."""
    from datarax_tfds.order.cursor import warn_of_repeats

    warn_of_repeats.cache_clear()
    u.logged(lambda: u.pipeline(batch_size=batch_size, **arguments).step())


PIPELINES = [
    Row(
        "source must be a datarax_tfds source, got str.",
        "pass a source, as source=from_tfds('mnist', 'train')",
        lambda u: u.pipeline(source="tiny"),
        lambda u: u.pipeline(source=from_tfds("tiny", "train", data_dir=u.data_dir)),
    ),
    Row(
        "it must be an integer of at least 1, got '32'.",
        "use 32",
        lambda u: u.pipeline(batch_size="32"),
        lambda u: u.pipeline(batch_size=32),
    ),
    Row(
        "it must be a multiple of 4 (the mesh has 4 row shards), got 26.",
        "use 24 or 28",
        lambda u: u.eager("4 x 2, replicas").get_batch(26),
        lambda u: u.eager("4 x 2, replicas").get_batch(24),
        lambda u: u.eager("4 x 2, replicas").get_batch(28),
    ),
    Row(
        "it must be 'wrap', 'drop' or 'pad', got 'keep'.",
        "use remainder='wrap'",
        lambda u: u.pipeline(remainder="keep"),
        lambda u: u.pipeline(remainder="wrap"),
    ),
    Row(
        "'drop' would leave out every record, because a batch is larger than an epoch.",
        "use remainder='pad' or remainder='wrap', or a batch_size of at most 97",
        lambda u: u.pipeline(batch_size=98, remainder="drop"),
        lambda u: u.pipeline(batch_size=98, remainder="pad"),
        lambda u: u.pipeline(batch_size=98, remainder="wrap"),
        lambda u: u.pipeline(batch_size=97, remainder="drop"),
    ),
    Row(
        "a batch is larger than the split, so records repeat within it.",
        "use a batch_size of at most 97, or a Pipeline with remainder='pad', which fills the batch"
        " up with zeros and adds a mask",
        larger_than_the_split,
        lambda u: larger_than_the_split(u, batch_size=97),
        lambda u: larger_than_the_split(u, remainder="pad"),
    ),
    Row(
        "'mask' would be added to a batch, but the records have a feature of that name.",
        "leave that feature out with exclude_keys={'mask'}, or do without remainder='pad' and"
        " record_numbers",
        lambda u: masked(u, remainder="pad"),
        lambda u: masked(u),
    ),
    Row(
        "'record_number' would be added to a batch, but the records have a feature of that name.",
        "let map_fn name that feature otherwise, or do without remainder='pad' and record_numbers",
        lambda u: numbered(u),
        lambda u: Pipeline(
            source=u.stream(map_fn=lambda record: {"number": record["id"]}),
            batch_size=4,
            record_numbers=True,
        ).step(),
        lambda u: Pipeline(source=u.stream(), batch_size=4).step(),
    ),
    Row(
        "a stage must not return 'label', which host_keys keep on the host.",
        "give the result of the stage another name, or leave 'label' out of host_keys",
        lambda u: kept_on_host(u, lambda batch: batch | {"label": batch["id"]}),
        lambda u: kept_on_host(u, lambda batch: batch | {"other": batch["id"]}),
        lambda u: kept_on_host(u, lambda batch: batch | {"label": batch["id"]}, host_keys=None),
    ),
    Row(
        "step_fn must be a function, and modules a list of its other arguments.",
        "call scan(step_fn, length=len(pipeline), modules=(model, optimizer))",
        lambda u: u.pipeline().scan(
            label_sum, length=2, modules=nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        ),
        lambda u: (
            lambda pipeline: pipeline.scan(
                lambda model, optimizer, batch: label_sum(batch),
                length=len(pipeline),
                modules=(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), Counter()),
            )
        )(u.pipeline()),
    ),
    Row(
        "pipeline must be a Pipeline, got TFDSEagerSource.",
        "pass the pipeline; for a source, Pipeline(source=source, batch_size=...)",
        lambda u: evaluate(u.loaded, Odd.__call__, modules=(Odd(),)),
        lambda u: evaluate(u.pipeline(), odd, modules=(Odd(),)),
    ),
    Row(
        "step_fn must be a function, and modules a list of its other arguments.",
        "call evaluate(pipeline, step_fn, modules=(model,))",
        evaluated(odd, modules=Odd()),
        evaluated(odd, modules=(Odd(),)),
    ),
    Row(
        "step_fn must get modules as arguments: those that it closes over are compiled in, and the"
        " next evaluation would not see how they changed.",
        "let it take the module as its first argument, and pass modules=(module,)",
        evaluated(Odd()),
        evaluated(odd, modules=(Odd(),)),
    ),
    Row(
        "step_fn must return a dict of values for each row.",
        "return a dict such as {'loss': losses}, of arrays [batch_size]",
        evaluated(lambda batch: batch["label"]),
        evaluated(lambda batch: {"label": batch["label"]}),
    ),
    Row(
        "'label' must have a value for each row, so that padding can be left out.",
        "return an array [8, ...]: leave out the sum or mean over the batch",
        evaluated(lambda batch: {"label": batch["label"].sum()}),
        evaluated(lambda batch: {"label": batch["label"]}),
    ),
    Row(
        "n must be an integer of at least 0.",
        "use n=0",
        lambda u: u.pipeline().steps(3 - 5),
        lambda u: list(u.pipeline().steps(n=0)),
    ),
    Row(
        "it must be pairs of a record and a size, and the records must ascend from 0.",
        "use pairs of a record and a size, such as [(0, 256), (1_000_000, 512)]",
        lambda u: u.pipeline(batch_size=[(8, 8)]),
        lambda u: u.pipeline(batch_size=[(0, 256), (1_000_000, 512)]),
    ),
    Row(
        "a compiled function has one batch size, and here it depends on the cursor.",
        "take the batch outside of the function and pass it in, or use scan",
        lambda u: nnx.jit(Pipeline.step)(u.pipeline(batch_size=GROWING)),
        lambda u: jax.jit(label_sum)(u.pipeline(batch_size=GROWING).step()),
        lambda u: u.pipeline(batch_size=GROWING).scan(label_sum, length=3),
    ),
    Row(
        "length must be at most 3: then the batch size changes, and a program has one.",
        "use length=3, and call scan again for the steps after these",
        lambda u: u.pipeline(batch_size=GROWING).scan(label_sum, length=4),
        lambda u: (lambda pipeline: [pipeline.scan(label_sum, length=length) for length in (3, 1)])(
            u.pipeline(batch_size=GROWING)
        ),
    ),
    Row(
        "length must be a number of steps: an integer of at least 1.",
        "use length=len(pipeline) for the rest of the epoch",
        lambda u: u.pipeline().scan(label_sum, length=0),
        lambda u: (lambda pipeline: pipeline.scan(label_sum, length=len(pipeline)))(u.pipeline()),
    ),
    Row(
        "donate_argnames may name modules and init_carry only.",
        "use ('modules',), ('modules', 'init_carry'), or () to donate nothing",
        lambda u: u.pipeline().scan(label_sum, length=2, donate_argnames="carry"),
        lambda u: u.pipeline().scan(label_sum, length=2, donate_argnames=("modules",)),
        lambda u: u.pipeline().scan(label_sum, length=2, donate_argnames=("modules", "init_carry")),
        lambda u: u.pipeline().scan(label_sum, length=2, donate_argnames=()),
    ),
    Row(
        "size must be an integer of at least 0.",
        "use size=2",
        lambda u: prefetch_to_device(u.loaded, size="2"),
        lambda u: prefetch_to_device(u.loaded, size=2),
    ),
    Row(
        "iterable cannot be iterated over.",
        "pass a pipeline, a source, or an iterable of batches",
        lambda u: prefetch_to_device(7),
        lambda u: next(prefetch_to_device(u.pipeline())),
        lambda u: next(prefetch_to_device(u.loaded)),
        lambda u: next(prefetch_to_device([{"x": np.zeros(3)}])),
    ),
]

STAGES = [
    Row(
        "stages must be a list, got function.",
        "use stages=[stage], or Pipeline.from_dag for stages by name",
        lambda u: u.pipeline(stages=plain),
        lambda u: u.pipeline(stages=[plain]),
        lambda u: graph(u),
    ),
    Row(
        "the stage must be a function of a batch.",
        "pass a function that takes a batch and returns one, or an NNX module that is called so",
        lambda u: u.pipeline(stages=["normalize"]),
        stepped(plain),
        stepped(Counter()),
    ),
    Row(
        "the stage must be a function of a batch.",
        "pass a function that takes a batch and returns one, or an NNX module that is called so",
        lambda u: u.pipeline(stages=[lambda one, other: one]),
        stepped(plain),
        stepped(Counter()),
    ),
    Row(
        "stage 0 (<lambda>) must return a dict of arrays, it returned one array.",
        "return a dict, as {'image': batch['image']}",
        stepped(lambda batch: batch["image"]),
        stepped(lambda batch: {"image": batch["image"]}),
    ),
    Row(
        "stage 0 (<lambda>) must return a dict of arrays, but its 'split' is not an array.",
        "return numbers as 'split', or leave it out",
        stepped(lambda batch: batch | {"split": "train"}),
        stepped(lambda batch: batch | {"split": 0}),
        stepped(lambda batch: batch),
    ),
    Row(
        "the stage asks for 'imag', which its batch does not have.",
        "use 'image'",
        stepped(lambda batch: {"x": batch["imag"]}),
        stepped(lambda batch: {"x": batch["image"]}),
    ),
    Row(
        "the stage asks for 'weights', which its batch does not have.",
        "use one of these keys, or add it in a stage before",
        stepped(lambda batch: {"x": batch["weights"]}),
        stepped(lambda batch: {"x": batch["label"]}),
        stepped(
            lambda batch: batch | {"weights": batch["label"]}, lambda batch: {"x": batch["weights"]}
        ),
    ),
    Row(
        "a stage with random streams sees each record alone, and must not change state that all"
        " records share.",
        "draw from a parameter in place of the streams, as __call__(batch, keys), or keep the state"
        " in another stage",
        stepped(Counting()),
        stepped(CountingByKeys()),
        stepped(Noise((1,)), Counter()),
    ),
    Row(
        "a stage with random streams sees a batch of one record, and must return such a batch.",
        "keep the first axis, of length 1, in every value",
        stepped(Noise(())),
        stepped(Noise((1,))),
    ),
]


def graph(u, **changed):
    """A step of a pipeline of two stages, of which `b` takes the result of `a`."""
    parts = {"nodes": {"a": plain, "b": plain}, "edges": {"a": [], "b": ["a"]}, "sink": "b"}
    return Pipeline.from_dag(source=u.loaded, batch_size=8, **parts | changed).step()


def edges(**changed):
    return lambda u: graph(u, edges={"a": [], "b": ["a"]} | changed)


GRAPHS = [
    Row(
        "nodes and edges must be dicts by name, and sink a name.",
        "pass nodes={'a': stage}, edges={'a': []}, sink='a'",
        lambda u: graph(u, nodes=[plain]),
        lambda u: graph(u, nodes={"a": plain}, edges={"a": []}, sink="a"),
    ),
    Row(
        "the edges of 'b' must be a list of names.",
        "use 'b': [] for the batch of the source, or a list of nodes",
        edges(b=None),
        lambda u: graph(u, nodes={"b": plain}, edges={"b": []}),
        edges(b=["a"]),
    ),
    Row(
        "the edges of 'b' must be a list of names.",
        "use 'b': ['a'] in edges",
        edges(b="a"),
        edges(b=["a"]),
    ),
    Row(
        "no node is named 'aa'.",
        "use 'a' in place of 'aa' in edges and as sink, or add 'aa' to nodes",
        edges(b=["aa"]),
        edges(b=["a"]),
        lambda u: graph(u, nodes={"aa": plain, "b": plain}, edges={"aa": [], "b": ["aa"]}),
    ),
    Row(
        "no node is named 'a', 'b'.",
        "add 'a' to nodes",
        lambda u: graph(u, nodes={}),
        lambda u: graph(u, nodes={"a": plain, "b": plain}),
    ),
    Row(
        "edges do not say what 'b' takes.",
        "add 'b': [] to edges, for the batch of the source, or a list of nodes",
        lambda u: graph(u, edges={"a": []}),
        lambda u: graph(u, nodes={"b": plain}, edges={"b": []}),
        lambda u: graph(u, edges={"a": [], "b": ["a"]}),
    ),
    Row(
        "there is a cycle: ... -> ... -> ....",
        "leave '...' out of the edges of '...'",
        edges(a=["b"]),
        edges(a=[]),
    ),
    Row(
        "nothing takes the result of 'b'.",
        "leave 'b' out of nodes and edges, or add it to the edges of 'a'",
        lambda u: graph(u, sink="a"),
        lambda u: graph(u, nodes={"a": plain}, edges={"a": []}, sink="a"),
        lambda u: graph(u, edges={"a": ["b"], "b": []}, sink="a"),
    ),
]

ROWS = SOURCES + STATES + PIPELINES + STAGES + GRAPHS


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_fix_of_a_message_works_when_it_is_followed(user, row):
    row.follow(user)
