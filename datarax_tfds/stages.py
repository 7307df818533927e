"""How stages are applied to a batch: which one to whose result, and with which random keys."""

import graphlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax import lax
from jax import numpy as jnp

from sharding.messages import explain

Batch = dict[str, Any]
Stage = Callable[..., Batch]

_KEYS = "keys"  # the parameter by which a stage asks for a key for each record
_BATCHES = inspect.Parameter("batches", inspect.Parameter.VAR_POSITIONAL)


@dataclass(frozen=True)
class StageGraph:
    """Which stage takes what, for stages in an order in which each comes after what it takes.

    Args:
        names: Of the stages, for messages.
        takes: For each stage, the places of those whose results it takes; none for the batch
            itself.
        sink: The place of the stage whose result is handed out; absent without stages.
    """

    names: tuple[str, ...]
    takes: tuple[tuple[int, ...], ...]
    sink: int | None

    def apply(self, stages: Sequence[Stage], batch: Batch, keys: jax.Array | None) -> Batch:
        """A batch through all stages; traceable.

        Args:
            stages: In the order of `names`.
            batch: Arrays `[n, ...]`.
            keys: `[n, 2]` int32, two words for each record; absent if no stage is random.
        """
        results: list[Batch] = []
        for place, (stage, takes) in enumerate(zip(stages, self.takes, strict=True)):
            inputs = [results[taken] for taken in takes] or [batch]
            result = _applied(stage, self.names[place], place, inputs, keys)
            if not isinstance(result, Mapping):
                raise TypeError(
                    explain(
                        self.names[place],
                        "a stage returns a batch.",
                        returned=type(result).__name__,
                        fix="return a dict of arrays by name",
                    )
                )
            results.append(result)
        return batch if self.sink is None else results[self.sink]


def chain(stages: Sequence[Stage]) -> StageGraph:
    """Each stage takes the result of the one before.

    Raises:
        TypeError: No list, or not of functions of one batch.
    """
    if not isinstance(stages, list | tuple | nnx.List):
        raise TypeError(
            explain(
                "Pipeline",
                "stages are a list.",
                stages=type(stages).__name__,
                fix="use stages=[stage]; from_dag takes a dict",
            )
        )
    for place, stage in enumerate(stages):
        _require_stage(stage, f"stages[{place}]", 1)
    places = range(len(stages))
    return StageGraph(
        names=tuple(f"stages[{place}]" for place in places),
        takes=tuple((place - 1,) if place else () for place in places),
        sink=len(stages) - 1 if stages else None,
    )


def graph_of(
    nodes: Mapping[str, Stage], edges: Mapping[str, Sequence[str]], sink: str
) -> tuple[StageGraph, list[Stage]]:
    """The graph of named stages, and the stages in its order.

    Args:
        nodes: Stages by name.
        edges: For each name, those whose results it takes, in the order of its parameters; none
            for the batch itself.
        sink: Whose result is handed out.

    Raises:
        TypeError: No dicts and a name, or not of functions of as many batches.
        ValueError: A name without a stage, a stage without edges, a cycle, or a stage that the sink
            does not depend on.
    """
    dicts = isinstance(nodes, Mapping) and isinstance(edges, Mapping)
    if not dicts or not all(isinstance(name, str) for name in (sink, *nodes, *edges)):
        raise TypeError(
            explain(
                "Pipeline.from_dag",
                "nodes and edges are dicts by name, and sink is a name.",
                nodes=type(nodes).__name__,
                edges=type(edges).__name__,
                sink=repr(sink),
                fix="pass nodes={'a': stage}, edges={'a': []}, sink='a'",
            )
        )
    for name, takes in edges.items():
        listed = isinstance(takes, list | tuple | str)
        if not listed or not all(isinstance(taken, str) for taken in takes):
            raise TypeError(
                explain(
                    "Pipeline.from_dag",
                    f"the edges of {name!r} are a list of names.",
                    edges=repr(takes),
                    fix=f"use {name!r}: [], for the batch itself, or names of nodes",
                )
            )
        if isinstance(takes, str):
            problem = f"the edges of {name!r} are a list of names."
            raise _refused(problem, nodes, f"use {name!r}: [{takes!r}]")
    named = {sink, *edges, *(name for names in edges.values() for name in names)}
    unknown, loose = sorted(named - set(nodes)), sorted(set(nodes) - set(edges))
    if unknown:
        problem = f"no node is named {', '.join(map(repr, unknown))}."
        raise _refused(problem, nodes, "use names of nodes in edges and as sink")
    if loose:
        problem = f"edges do not say what {', '.join(map(repr, loose))} takes."
        raise _refused(
            problem,
            nodes,
            f"add {loose[0]!r}: [] to edges, for the batch itself, or names of nodes",
        )
    try:
        order = list(graphlib.TopologicalSorter(edges).static_order())
    except graphlib.CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise _refused(f"a cycle: {cycle}.", nodes, "take one of these edges out") from None
    needed = {sink}
    for name in reversed(order):
        needed |= set(edges[name]) if name in needed else set()
    idle = [name for name in order if name not in needed]
    if idle:
        problem = f"nothing takes the result of {', '.join(map(repr, idle))}."
        raise _refused(problem, nodes, f"leave it out, or connect it with {sink!r}")
    for name in order:
        _require_stage(nodes[name], name, max(1, len(edges[name])))
    places = {name: place for place, name in enumerate(order)}
    takes = tuple(tuple(places[taken] for taken in edges[name]) for name in order)
    return StageGraph(tuple(order), takes, places[sink]), [nodes[name] for name in order]


def are_random(stages: Sequence[Stage]) -> bool:
    """Whether a stage asks for keys, or draws from streams of its own."""
    return any(_takes_keys(stage) or _has_streams(stage) for stage in stages)


def values_of(state: nnx.State) -> list[Any]:
    """The values of a state: of its variables, and of arrays that are attributes as they are."""
    return [
        leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf
        for _, leaf in nnx.to_flat_state(state)
    ]


def _refused(problem: str, nodes: Mapping[str, Stage], fix: str) -> ValueError:
    return ValueError(
        explain("Pipeline.from_dag", problem, nodes=", ".join(nodes) or "none", fix=fix)
    )


def _require_stage(stage: Stage, name: str, batches: int) -> None:
    """Refuses what cannot be called with so many batches."""
    problem = f"a stage is a function of {'a batch' if batches == 1 else f'{batches} batches'}"
    fix = "pass a function, or an NNX module with __call__, from batch to batch"
    if not callable(stage):
        raise TypeError(explain(name, f"{problem}.", stage=type(stage).__name__, fix=fix))
    signature = _signature(stage)
    keys = {_KEYS: None} if _takes_keys(stage) else {}
    try:
        signature.bind(*[None] * batches, **keys)
    except TypeError as error:
        raise TypeError(
            explain(name, f"{problem}, and this one is not.", takes=signature, error=error, fix=fix)
        ) from None


def _applied(
    stage: Stage, name: str, place: int, inputs: Sequence[Batch], keys: jax.Array | None
) -> Batch:
    if keys is None or not (_takes_keys(stage) or _has_streams(stage)):
        return stage(*inputs)
    words = lax.bitcast_convert_type(keys, jnp.uint32)
    own = jax.vmap(lambda word: jax.random.fold_in(_key(word), place))(words)
    if _takes_keys(stage):
        return stage(*inputs, keys=own)
    return _record_by_record(stage, name, inputs, own)


def _record_by_record(stage: Stage, name: str, inputs: Sequence[Batch], keys: jax.Array) -> Batch:
    """A stage with streams of its own, on each record alone, with streams keyed by the record."""
    graphdef, streams, others = nnx.split(stage, nnx.RngState, ...)

    # The state is an argument: a stage may change only what was made at its own trace level.
    def one(record: Sequence[Batch], key: jax.Array, streams: nnx.State, others: Any) -> Batch:
        def keyed(variable: nnx.Variable) -> nnx.Variable:
            value = variable.get_value()
            if not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
                return variable.replace(jnp.zeros_like(value))
            for word in jax.random.key_data(value).ravel():
                nonlocal key
                key = jax.random.fold_in(key, word)
            return variable.replace(key)

        fresh = jax.tree.map(keyed, streams, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
        alone = nnx.merge(graphdef, fresh, others)
        before = values_of(nnx.state(alone, nnx.Not(nnx.RngState)))
        batch = alone(*jax.tree.map(lambda column: column[None], record))
        after = values_of(nnx.state(alone, nnx.Not(nnx.RngState)))
        if any(new is not old for new, old in zip(after, before, strict=True)):
            raise ValueError(
                explain(
                    name,
                    "a stage with random streams sees each record alone, and cannot change state"
                    " that all records share.",
                    stage=type(stage).__name__,
                    fix="take a parameter keys in place of the streams, or split the stage in two",
                )
            )
        if any(jnp.ndim(column) == 0 for column in jax.tree.leaves(batch)):
            raise ValueError(
                explain(
                    name,
                    "a stage with random streams sees a batch of one record, and must return one.",
                    stage=type(stage).__name__,
                    got=jax.tree.map(jnp.shape, batch),
                    fix="keep the first axis, of length 1, in every value",
                )
            )
        return jax.tree.map(lambda column: column[0], batch)

    return jax.vmap(one, in_axes=(0, 0, None, None))(list(inputs), keys, streams, others)


def _takes_keys(stage: Stage) -> bool:
    return _KEYS in _signature(stage).parameters


def _signature(stage: Callable[..., Any]) -> inspect.Signature:
    """Of a function; of a built-in one that does not tell, that of a stage."""
    try:
        return inspect.signature(stage)
    except ValueError:
        return inspect.Signature([_BATCHES])


def _has_streams(stage: Stage) -> bool:
    return isinstance(stage, nnx.Module) and bool(nnx.to_flat_state(nnx.state(stage, nnx.RngState)))


def _key(words: jax.Array) -> jax.Array:
    # The implementation is named, since the user may have made another one the default.
    return jax.random.wrap_key_data(words, impl="threefry2x32")
