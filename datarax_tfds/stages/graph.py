"""Builds the graph of a pipeline's stages, and refuses one that cannot work."""

import graphlib
from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx

from datarax_tfds.stages.stages import Stage, StageGraph, require_stage
from sharding.checks import nearest, refused

Nodes = Mapping[str, Stage]
Edges = Mapping[str, Sequence[str]]


def chain(stages: Sequence[Stage]) -> StageGraph:
    """Builds the graph of a list of stages, each of which takes the result of the one before.

    Raises:
        TypeError: `stages` is not a list of functions of one batch.
    """
    if not isinstance(stages, list | tuple | nnx.List):
        raise refused(
            TypeError,
            "Pipeline",
            f"stages must be a list, got {type(stages).__name__}.",
            stages=type(stages).__name__,
            fix="use stages=[stage], or Pipeline.from_dag for stages by name",
        )
    for place, stage in enumerate(stages):
        require_stage(stage, f"stages[{place}]", 1)
    places = range(len(stages))
    return StageGraph(
        names=tuple(f"stages[{place}]" for place in places),
        takes=tuple((place - 1,) if place else () for place in places),
        sink=len(stages) - 1 if stages else None,
    )


def graph_of(nodes: Nodes, edges: Edges, sink: str) -> tuple[StageGraph, list[Stage]]:
    """Builds the graph of named stages, and returns it with the stages in its order.

    Args:
        nodes: Stages by name.
        edges: For each name, the nodes whose results it takes, in the order of its parameters. An
            empty list stands for the batch of the source.
        sink: The node whose result is the batch of the pipeline.

    Raises:
        TypeError: `nodes` or `edges` is not a dict, `sink` is not a name, or a stage is not a
            function of as many batches as it has edges.
        ValueError: A name has no stage, a stage has no edges, there is a cycle, or the sink does
            not need one of the stages.
    """
    _require_names(nodes, edges, sink)
    _require_all_connected(nodes, edges, sink)
    order = _sorted(nodes, edges)
    _require_all_used(nodes, edges, sink, order)
    for name in order:
        require_stage(nodes[name], name, max(1, len(edges[name])))
    places = {name: place for place, name in enumerate(order)}
    takes = tuple(tuple(places[taken] for taken in edges[name]) for name in order)
    return StageGraph(tuple(order), takes, places[sink]), [nodes[name] for name in order]


def _require_names(nodes: Any, edges: Any, sink: Any) -> None:
    dicts = isinstance(nodes, Mapping) and isinstance(edges, Mapping)
    if not dicts or not all(isinstance(name, str) for name in (sink, *nodes, *edges)):
        raise refused(
            TypeError,
            "Pipeline.from_dag",
            "nodes and edges must be dicts by name, and sink a name.",
            nodes=type(nodes).__name__,
            edges=type(edges).__name__,
            sink=repr(sink),
            fix="pass nodes={'a': stage}, edges={'a': []}, sink='a'",
        )
    for name, takes in edges.items():
        problem = f"the edges of {name!r} must be a list of names."
        if isinstance(takes, str):
            raise _refused(problem, nodes, fix=f"use {name!r}: [{takes!r}] in edges")
        listed = isinstance(takes, list | tuple)
        if not listed or not all(isinstance(taken, str) for taken in takes):
            raise refused(
                TypeError,
                "Pipeline.from_dag",
                problem,
                edges=repr(takes),
                fix=f"use {name!r}: [] for the batch of the source, or a list of nodes",
            )


def _require_all_connected(nodes: Nodes, edges: Edges, sink: str) -> None:
    """Raises if a name has no stage, or a stage has no edges."""
    named = {sink, *edges, *(name for names in edges.values() for name in names)}
    if unknown := sorted(named - set(nodes)):
        problem = f"no node is named {', '.join(map(repr, unknown))}."
        near = nearest(unknown[0], nodes) or next(iter(nodes), None)
        fix = f"add {unknown[0]!r} to nodes"
        if near:
            fix = f"use {near!r} in place of {unknown[0]!r} in edges and as sink, or {fix}"
        raise _refused(problem, nodes, fix=fix)
    if loose := sorted(set(nodes) - set(edges)):
        problem = f"edges do not say what {', '.join(map(repr, loose))} takes."
        fix = f"add {loose[0]!r}: [] to edges, for the batch of the source, or a list of nodes"
        raise _refused(problem, nodes, fix=fix)


def _sorted(nodes: Nodes, edges: Edges) -> list[str]:
    """Sorts the nodes so that each comes after those whose results it takes."""
    try:
        return list(graphlib.TopologicalSorter(edges).static_order())
    except graphlib.CycleError as error:
        cycle = error.args[1][::-1]  # each takes the result of the next
        fix = f"leave {cycle[1]!r} out of the edges of {cycle[0]!r}"
        raise _refused(f"there is a cycle: {' -> '.join(cycle)}.", nodes, fix=fix) from None


def _require_all_used(nodes: Nodes, edges: Edges, sink: str, order: Sequence[str]) -> None:
    needed = {sink}
    for name in reversed(order):
        needed |= set(edges[name]) if name in needed else set()
    idle = [name for name in order if name not in needed]
    if idle:
        problem = f"nothing takes the result of {', '.join(map(repr, idle))}."
        fix = f"leave {idle[0]!r} out of nodes and edges, or add it to the edges of {sink!r}"
        raise _refused(problem, nodes, fix=fix)


def _refused(problem: str, nodes: Nodes, *, fix: str) -> ValueError:
    return refused(
        ValueError, "Pipeline.from_dag", problem, nodes=", ".join(nodes) or "none", fix=fix
    )
