"""Evaluates a model on every record of a pipeline once."""

import functools
import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from datarax_tfds.pipeline import Pipeline
from datarax_tfds.sources.arguments import require_step_fn
from sharding.checks import refused
from sharding.hosts.job import job
from sharding.jax_context import users_context
from sharding.placement import Placement, Uncommitted, mesh_of, on_mesh

_IN_FLIGHT = 2  # batches whose results are not fetched yet, so that the devices do not wait


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns: the same on every process.

    Args:
        records: How many records were evaluated.
        sums: For each value, its sum over the records: a Python number, or a NumPy array if
            `step_fn` returned an array for each row.
    """

    records: int
    sums: dict[str, Any]

    @property
    def means(self) -> dict[str, Any]:
        """The sums, divided by the number of records."""
        return jax.tree.map(lambda total: total / self.records, self.sums)


def evaluate(
    pipeline: Pipeline, step_fn: Callable[..., Mapping[str, Any]], *, modules: Sequence[Any] = ()
) -> Evaluation:
    """Sums the values that a function returns for each record, over every record once.

        def metrics(model, batch):
            logits = model(batch["image"])
            return {"correct": logits.argmax(-1) == batch["label"]}  # bool[batch_size]

        accuracy = evaluate(pipeline, metrics, modules=(model,)).means["correct"]

    It reads epoch 0 in batches of the pipeline. If the last one is not full, it is filled with
    zeros, whatever `remainder` the pipeline has, and the values of these rows do not count. The
    cursor of the pipeline, its stages and the modules do not change, also if an error ends the
    evaluation. So the pipeline may be the one that you train with. Of a mixture, the records are
    those of its first epoch, some of which may come more than once, as its weights say.

    The values are summed on the host in float64, or as integers, in the order of the records: they
    are rounded alike on any number of devices and processes. Every process must call it.

    Args:
        pipeline: Where batches come from. If `batch_size` grows, they have its first size.
        step_fn: `step_fn(*modules, batch)` returns a dict of arrays `[batch_size, ...]`: a value
            for each row, not a sum or mean of the batch. It is compiled once; pass the same
            function each time. The batch lacks the `host_keys`.
        modules: NNX modules, or other pytrees of arrays.

    Raises:
        TypeError: `pipeline` is not a Pipeline, `step_fn` is not a function or does not return a
            dict, or `modules` is not a list.
        ValueError: A value has not one row for each row of the batch; or `step_fn` refers to a
            module that is not an argument, so that later changes of it would not be seen.
    """
    _require_evaluable(pipeline, step_fn, modules)
    source = pipeline.source
    source.agree("evaluate", {"batch_size": pipeline.batch_size, "records": len(source)})
    program = _program(source.sharding)
    graphdef, state = nnx.split(tuple(modules))
    state = on_mesh(state, source.sharding)
    on_host = source.config.host_keys or ()
    in_flight = deque[tuple[int, Any]]()
    records, sums = 0, None
    for batch, rows in pipeline.padded_epoch():
        columns = {name: column for name, column in batch.items() if name not in on_host}
        with users_context(mesh_of(source.sharding)):
            in_flight.append((rows, program(state, columns, graphdef, step_fn)))
        job.progress.steps += 1
        records += rows
        if len(in_flight) > _IN_FLIGHT:
            sums = _added(sums, *in_flight.popleft())
    for rows, values in in_flight:
        sums = _added(sums, rows, values)
    assert isinstance(sums, dict)
    scalars = jax.tree.map(lambda total: total if total.shape else total.item(), sums)
    return Evaluation(records, scalars)


@functools.lru_cache(maxsize=8)
def _program(placement: Placement) -> Callable[..., dict[str, Any]]:
    """The program of one batch. All devices get all of its results, so that each process has them.

    It is kept, so that the next evaluation compiles nothing.
    """
    replicated = None
    if not isinstance(placement, Uncommitted):
        replicated = NamedSharding(placement.mesh, PartitionSpec())

    @functools.partial(jax.jit, static_argnums=(2, 3), out_shardings=replicated)
    def values_of_rows(state: nnx.State, batch: dict[str, Any], graphdef: Any, step_fn: Any) -> Any:
        values = step_fn(*nnx.merge(graphdef, state), batch)
        return _checked(values, jax.tree.leaves(batch)[0].shape[0])

    return values_of_rows


def _added(sums: dict[str, Any] | None, rows: int, values: dict[str, Any]) -> dict[str, Any]:
    """The sums, with those of the first rows of a batch."""
    # In one call, which waits once for all of them.
    added = jax.tree.map(lambda column: _sum(column[:rows]), jax.device_get(values))
    return added if sums is None else jax.tree.map(np.add, sums, added)


def _sum(column: np.ndarray) -> np.ndarray:
    if column.dtype.kind in "biu":
        return np.asarray(column.sum(0))
    wide = np.complex128 if column.dtype.kind == "c" else np.float64
    return np.asarray(column.astype(wide).sum(0))


def _checked(values: Any, rows: int) -> dict[str, Any]:
    if not isinstance(values, Mapping) or not jax.tree.leaves(values):
        raise refused(
            TypeError,
            "evaluate",
            "step_fn must return a dict of values for each row.",
            returned=type(values).__name__,
            fix="return a dict such as {'loss': losses}, of arrays [batch_size]",
        )
    for name, value in values.items():
        if any(np.shape(leaf)[:1] != (rows,) for leaf in jax.tree.leaves(value)):
            raise refused(
                ValueError,
                "evaluate",
                f"{name!r} must have a value for each row, so that padding can be left out.",
                returned=", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(value)),
                batch_size=rows,
                fix=f"return an array [{rows}, ...]: leave out the sum or mean over the batch",
            )
    return dict(values)


def _require_evaluable(pipeline: Any, step_fn: Any, modules: Any) -> None:
    if not isinstance(pipeline, Pipeline):
        raise refused(
            TypeError,
            "evaluate",
            f"pipeline must be a Pipeline, got {type(pipeline).__name__}.",
            pipeline=type(pipeline).__name__,
            fix="pass the pipeline; for a source, Pipeline(source=source, batch_size=...)",
        )
    call = "evaluate(pipeline, step_fn, modules=(model,))"
    require_step_fn("evaluate", step_fn, modules, call=call)
    if closed_over := _closed_over_by(step_fn):
        raise refused(
            ValueError,
            "evaluate",
            "step_fn must get modules as arguments: those that it closes over are compiled in, and"
            " the next evaluation would not see how they changed.",
            closed_over=", ".join(closed_over),
            fix="let it take the module as its first argument, and pass modules=(module,)",
        )


def _closed_over_by(function: Any) -> list[str]:
    """The names of the NNX modules that a function refers to without getting them as arguments."""
    inner = inspect.unwrap(function)
    owner = getattr(inner, "__self__", inner)
    if isinstance(owner, nnx.Module):
        return [type(owner).__name__]
    if not inspect.isfunction(inner):
        return []
    variables = inspect.getclosurevars(inner)
    named = {**variables.globals, **variables.nonlocals}
    return sorted(name for name, value in named.items() if isinstance(value, nnx.Module))
