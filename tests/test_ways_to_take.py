"""Each way of taking a batch moves the cursor exactly once, or raises and says what to do."""

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shardings
from contract import ids
from flax import nnx
from jax import lax

from datarax_tfds import (
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    prefetch_to_device,
)

SIZE = 8

CONFIGS = {"eager": TFDSEagerConfig, "streaming": TFDSStreamingConfig}
SOURCES = {"eager": TFDSEagerSource, "streaming": TFDSStreamingSource}


@functools.cache
def loaded(data_dir, kind, place):
    config = CONFIGS[kind](name="tiny", split="train", data_dir=data_dir, shuffle=True)
    return SOURCES[kind](config, sharding=shardings()[place])


class Holder(NamedTuple):
    pipeline: Pipeline


def taken(pipeline):
    return pipeline.step()["id"]


def summed(pipeline, weight=1.0):
    return weight * taken(pipeline).sum().astype(jnp.float32)


@nnx.jit
def nnx_jitted(pipeline):
    return taken(pipeline)


@functools.partial(nnx.jit, graph=False)
def nnx_jitted_as_tree(pipeline):
    return taken(pipeline)


@nnx.scan(in_axes=nnx.Carry, out_axes=(nnx.Carry, 0), length=1)
def nnx_scanned(pipeline):
    return pipeline, taken(pipeline)


def in_nnx_grad(pipeline, graph):
    found = []

    def loss(weight, pipeline):
        batch = taken(pipeline)
        return weight * batch.sum().astype(jnp.float32), batch

    transformed = nnx.value_and_grad(loss, has_aux=True, graph=graph)
    (_, batch), _ = transformed(jnp.float32(1), pipeline)
    found.append(batch)
    return batch


def in_functional_jit(pipeline):
    """As the Flax guide to performance does it: state in, state out."""
    graphdef, state = nnx.split(pipeline)

    @jax.jit
    def step(state):
        merged = nnx.merge(graphdef, state)
        batch = taken(merged)
        return batch, nnx.state(merged)

    batch, state = step(state)
    nnx.update(pipeline, state)
    return batch


def within_disable_jit(pipeline):
    with jax.disable_jit():
        return jax.jit(taken)(pipeline)


def within_debug_nans(pipeline):
    with jax.debug_nans(True):
        return taken(pipeline)


def within_compile_time_eval(pipeline):
    with jax.ensure_compile_time_eval():
        return taken(pipeline)


async def one_of_two_tasks(pipeline):
    async def task():
        await asyncio.sleep(0)
        return taken(pipeline)

    return await task()


# What takes one batch, of a stream too.
PLAIN = {
    "step": taken,
    "for": lambda p: next(iter(p))["id"],
    "prefetched": lambda p: next(prefetch_to_device(p, 2))["id"],
    "a generator left half way": lambda p: next(batch["id"] for batch in p),
    "zip": lambda p: next(zip(p, [0], strict=False))[0]["id"],
    "partial": lambda p: functools.partial(taken, p)(),
    "disable_jit": within_disable_jit,
    "debug_nans": within_debug_nans,
    "ensure_compile_time_eval": within_compile_time_eval,
    "a task": lambda p: asyncio.run(one_of_two_tasks(p)),
    "an executor": lambda p: ThreadPoolExecutor(1).submit(taken, p).result(),
    "get_batch": lambda p: p.source.get_batch(SIZE)["id"],
}
# What takes one of an eager source, in a compiled function.
COMPILED = {
    "nnx.jit": nnx_jitted,
    "nnx.jit, graph=False": nnx_jitted_as_tree,
    "nnx.jit of a dict": lambda p: nnx.jit(lambda d: taken(d["p"]))({"p": p}),
    "nnx.jit of a method": lambda p: nnx.jit(Pipeline.step)(p)["id"],
    "nnx.jit in nnx.jit": lambda p: nnx.jit(nnx_jitted)(p),
    "nnx.scan": lambda p: nnx_scanned(p)[1][0],
    "nnx.grad": lambda p: in_nnx_grad(p, True),
    "nnx.grad, graph=False": lambda p: in_nnx_grad(p, False),
    "jax.jit of split and merge": in_functional_jit,
    "scan": lambda p: p.scan(lambda batch: batch["id"], length=1)[0],
    "nnx.jit of the source": lambda p: nnx.jit(lambda s: s.get_batch(SIZE)["id"])(p.source),
}
ON_ONE_DEVICE = [
    "ensure_compile_time_eval",
    "nnx.jit of a dict",
    "nnx.jit of a method",
    "nnx.jit in nnx.jit",
]
ONES = jnp.ones(2)
# What would give the same batch for ever.
REFUSED = {
    "jax.jit": lambda p: jax.jit(taken)(p),
    "jax.jit of a dict": lambda p: jax.jit(lambda d: taken(d["p"]))({"p": p}),
    "jax.jit of a list": lambda p: jax.jit(lambda d: taken(d[0]))([p]),
    "jax.jit of a NamedTuple": lambda p: jax.jit(lambda d: taken(d.pipeline))(Holder(p)),
    "jax.jit of the source": lambda p: jax.jit(lambda s: s.get_batch(SIZE))(p.source),
    "jax.jit in nnx.jit": lambda p: nnx.jit(lambda p: jax.jit(taken)(p))(p),
    "jax.jit that returns it": lambda p: jax.jit(lambda p: (taken(p), p))(p),
    "closure": lambda p: jax.jit(lambda: taken(p))(),
    "closure over the source": lambda p: jax.jit(lambda: p.source.get_batch(SIZE))(),
    "closure of a partial": lambda p: jax.jit(functools.partial(taken, p))(),
    "closure of nnx.jit": lambda p: nnx.jit(lambda: taken(p))(),
    "closure of an iterator": lambda p: jax.jit(lambda: next(iter(p))["id"])(),
    "closure that prefetches": lambda p: jax.jit(lambda: next(prefetch_to_device(p))["id"])(),
    "closure, at compile time": lambda p: jax.jit(lambda: within_compile_time_eval(p))(),
    "vmap": lambda p: jax.vmap(lambda p, x: summed(p, x), in_axes=(None, 0))(p, ONES),
    "closure of vmap": lambda p: jax.vmap(lambda x: summed(p, x))(ONES),
    "closure of grad": lambda p: jax.grad(lambda w: summed(p, w))(1.0),
    "grad": lambda p: jax.grad(lambda w, p: summed(p, w))(1.0, p),
    "value_and_grad": lambda p: jax.value_and_grad(lambda w, p: summed(p, w))(1.0, p),
    "checkpoint": lambda p: jax.checkpoint(taken)(p),
    "closure of checkpoint": lambda p: jax.checkpoint(lambda w: summed(p, w))(1.0),
    "lax.scan": lambda p: lax.scan(lambda p, _: (p, taken(p)), p, length=2),
    "closure of lax.scan": lambda p: lax.scan(lambda c, _: (c, taken(p)), 0, length=2),
    "fori_loop": lambda p: lax.fori_loop(0, 2, lambda _, p: (taken(p), p)[1], p),
    "closure of fori_loop": lambda p: lax.fori_loop(0, 2, lambda _, x: x + summed(p), 0.0),
    "while_loop": lambda p: lax.while_loop(lambda p: True, lambda p: (taken(p), p)[1], p),
    "cond": lambda p: lax.cond(jnp.bool_(True), taken, lambda p: jnp.zeros(SIZE, int), p),
    "closure of cond": lambda p: lax.cond(
        jnp.bool_(True), lambda: taken(p), lambda: jnp.zeros(SIZE, int)
    ),
    "eval_shape": lambda p: jax.eval_shape(taken, p),
    "closure of eval_shape": lambda p: jax.eval_shape(lambda: taken(p)),
    "make_jaxpr": lambda p: jax.make_jaxpr(taken)(p),
    "closure of make_jaxpr": lambda p: jax.make_jaxpr(lambda: taken(p))(),
    "closure in nnx.grad": lambda p: nnx.grad(lambda w: summed(p, w))(jnp.float32(1)),
    "scan that takes from itself": lambda p: p.scan(lambda batch: p.step(), length=1),
    "reset": lambda p: jax.jit(lambda p: p.reset())(p),
}
PLACES = ["one device", "8 devices"]
KINDS = [("eager", place) for place in PLACES] + [("streaming", place) for place in PLACES]


@pytest.fixture
def pipeline(data_dir, kind, place):
    return Pipeline(source=loaded(str(data_dir), kind, place).clone(), batch_size=SIZE)


def expected_of(pipeline, batches):
    source = pipeline.source.clone()
    return [ids(source.get_batch(SIZE)) for _ in range(batches)]


@pytest.mark.parametrize(("kind", "place"), KINDS)
def test_each_way_takes_one_batch(pipeline, kind, place):
    ways = PLAIN | (COMPILED if kind == "eager" else {})
    if place != "one device":
        # JAX cannot trace a shard_map under ensure_compile_time_eval; the others compile for long.
        ways = {name: take for name, take in ways.items() if name not in ON_ONE_DEVICE}
    expected = iter(expected_of(pipeline, 2 * len(ways)))
    for name, take in ways.items():
        for _ in range(2):
            assert np.asarray(take(pipeline)).tolist() == next(expected), name


@pytest.mark.parametrize(("kind", "place"), KINDS)
def test_what_would_repeat_a_batch_is_refused_and_moves_nothing(pipeline, kind):
    pipeline.step()
    state, expected = pipeline.get_state(), expected_of(pipeline, 1)[0]
    for name, take in REFUSED.items():
        errors = (NotImplementedError,) if kind == "streaming" else ()
        errors += (flax.errors.TraceContextError,)
        with pytest.raises(errors, match=r"(traced by JAX|compiled function)(.|\n)*fix:.*outside"):
            take(pipeline)
        assert pipeline.get_state() == state, name
    assert ids(pipeline.step()) == expected
