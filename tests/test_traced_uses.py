"""A source keeps nothing that was made under a JAX transformation, whichever use comes first."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shardings
from contract import equal
from jax import lax
from jax.sharding import AxisType

from datarax_tfds import TFDSEagerConfig, TFDSEagerSource

SIZE = 8


def label_sum(source):
    def function(weight, start):
        return (weight * source.get_batch_at(start, SIZE)["label"].astype(jnp.float32)).sum()

    return function


def labels(source, start):
    return source.get_batch_at(start, SIZE)["label"]


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))

FIRST_USES = {
    "vmap": lambda s: jax.vmap(lambda i: labels(s, i))(jnp.arange(3)),
    "jit of vmap": lambda s: jax.jit(jax.vmap(lambda i: labels(s, i)))(jnp.arange(3)),
    "vmap of jit": lambda s: jax.vmap(jax.jit(lambda i: labels(s, i)))(jnp.arange(3)),
    "grad": lambda s: jax.grad(label_sum(s))(2.0, jnp.int32(3)),
    "jit of grad": lambda s: jax.jit(jax.grad(label_sum(s)))(2.0, jnp.int32(3)),
    "value_and_grad": lambda s: jax.value_and_grad(label_sum(s))(2.0, jnp.int32(3)),
    "vmap of grad": lambda s: jax.vmap(jax.grad(label_sum(s)), (None, 0))(2.0, jnp.arange(3)),
    "hessian": lambda s: jax.hessian(label_sum(s))(2.0, jnp.int32(3)),
    "jvp": lambda s: jax.jvp(lambda w: label_sum(s)(w, jnp.int32(3)), (2.0,), (1.0,)),
    "linearize": lambda s: jax.linearize(lambda w: label_sum(s)(w, jnp.int32(3)), 2.0)[0],
    "checkpoint": lambda s: jax.grad(jax.checkpoint(lambda w: label_sum(s)(w, jnp.int32(3))))(2.0),
    "custom_vjp": lambda s: jax.grad(lambda w: doubled(label_sum(s)(w, jnp.int32(3))))(2.0),
    "scan": lambda s: lax.scan(lambda c, i: (c, labels(s, i)), 0, jnp.arange(3)),
    "fori_loop": lambda s: lax.fori_loop(
        0, 3, lambda i, total: total + labels(s, i).sum(), jnp.int32(0)
    ),
    "map": lambda s: lax.map(lambda i: labels(s, i), jnp.arange(3)),
    "eval_shape": lambda s: jax.eval_shape(lambda i: labels(s, i), jnp.int32(1)),
    "make_jaxpr": lambda s: jax.make_jaxpr(lambda i: labels(s, i))(jnp.int32(1)),
    "single records": lambda s: jax.jit(lambda i: s.get_records(jnp.full(8, i)))(1),
    "numbers only": lambda s: jax.vmap(lambda i: s.record_indices_at(i, SIZE))(jnp.arange(3)),
    "all records": lambda s: jax.jit(lambda: s.collect_to_array()["label"].sum())(),
    "all records, under vmap": lambda s: jax.vmap(lambda i: s.data["label"][i])(jnp.arange(3)),
}


# All uses on one device; on a mesh, where each takes seconds to compile, one of each kind.
LAYOUTS = {"one device": "auto", "8 devices": "replicated", "8 devices, explicit axes": "sharded"}
ON_A_MESH = ["vmap", "jit of grad", "scan", "all records"]
PLACES = [("one device", use) for use in FIRST_USES] + [
    (place, use) for place in list(LAYOUTS)[1:] for use in ON_A_MESH
]


def built(data_dir, place):
    config = TFDSEagerConfig(
        name="tiny",
        split="train",
        data_dir=data_dir,
        shuffle=True,
        layout=LAYOUTS[place],
        cacheable=True,
    )
    return TFDSEagerSource(config, sharding=shardings()[place])


@pytest.mark.parametrize(("place", "use"), PLACES)
def test_any_use_may_be_the_first(data_dir, place, use):
    source, first = built(str(data_dir), place), FIRST_USES[use]
    kept = first(source)
    assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(kept))
    expected = source.get_batch_at(3, SIZE)
    assert equal(jax.jit(lambda i: source.get_batch_at(i, SIZE))(3), expected)
    assert equal(np.asarray(source.data["label"])[:8], source.get_records(range(8))["label"])


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("use", ["vmap", "jit of vmap", "grad", "jit of grad", "scan"])
def test_a_source_without_a_sharding_may_be_used_first_under_any_mesh(data_dir, use, axis_type):
    source = TFDSEagerSource(
        TFDSEagerConfig(name="tiny", split="train", data_dir=str(data_dir), shuffle=True)
    )
    meshes = [jax.make_mesh((8,), ("data",), axis_types=(axis_type,)), None]
    found = []
    for mesh in meshes:
        with nullcontext() if mesh is None else jax.set_mesh(mesh):
            found.append(jax.tree.map(np.asarray, FIRST_USES[use](source)))
    assert equal(*found)


def test_a_source_cannot_be_built_under_a_transformation(data_dir):
    config = TFDSEagerConfig(name="tiny", split="train", data_dir=str(data_dir))
    for trace in (jax.jit, jax.vmap, jax.grad):
        with pytest.raises(RuntimeError, match=r"traced by JAX(.|\n)*fix:(.|\n)*outside"):
            trace(lambda x: TFDSEagerSource(config).get_batch(1)["label"].sum() * x)(
                np.ones(1, np.float32) if trace is jax.vmap else 1.0
            )
