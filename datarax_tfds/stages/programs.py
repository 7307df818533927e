"""The compiled programs of a pipeline: one step, and many steps at once."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from datarax_tfds.records.records import Records
from datarax_tfds.stages.donation import Donation
from datarax_tfds.stages.stages import Batch, Stage, StageGraph, values_of
from sharding import take_rows
from sharding.placement import Placement

MASK, NUMBER = "mask", "record_number"


class BatchExtras(NamedTuple):
    """What a batch needs beside its records; stacked, `[steps, ...]`, for many batches.

    A field that is not needed is None.
    """

    real: Any  # [], the number of rows that are records
    keys: Any  # [batch_size, 2], for random stages
    numbers: Any  # [batch_size], or [batch_size, 2] words: the record numbers; N for padding


def through_stages(
    graph: StageGraph, stages: Sequence[Stage], batch: Batch, rows: BatchExtras, places: Placement
) -> Batch:
    """Applies the stages to a batch, and adds the mask and the record numbers; traceable."""
    size = jax.tree.leaves(batch)[0].shape[0]
    every = jnp.arange(size, dtype=jnp.int32)

    def placed(values: Any) -> jax.Array:
        return take_rows(jnp.asarray(values), every, places, "replicated")

    if rows.real is not None:
        batch |= {MASK: placed(every < rows.real)}
    batch = graph.apply(stages, batch, None if rows.keys is None else placed(rows.keys))
    if rows.numbers is None:
        return batch
    numbers = rows.numbers
    if rows.real is not None:
        is_record = (every < rows.real).reshape(-1, *[1] * (numbers.ndim - 1))
        numbers = jnp.where(is_record, numbers, ~jnp.zeros_like(numbers))  # -1, also as two words
    return batch | {NUMBER: placed(numbers)}


def step_program(
    records: Records, graph: StageGraph, places: Placement
) -> Callable[..., tuple[Batch, nnx.State]]:
    """Builds the program of one step: it returns the batch and the changed state of the stages.

    Each pipeline has its own program, so that its records are freed with the pipeline.
    """

    @partial(jax.jit, static_argnames=("graphdef", "taken"))
    def staged(
        inputs: Any, rows: BatchExtras, state: nnx.State, graphdef: Any, taken: bool
    ) -> tuple[Batch, nnx.State]:
        before = values_of(state)
        stages = nnx.merge(graphdef, state)
        batch = through_stages(
            graph, stages, inputs if taken else records.assemble(inputs), rows, places
        )
        state_after = nnx.state(stages)
        after = nnx.to_flat_state(state_after)
        # The program returns only what changed: returning all parameters would copy them.
        changes = [
            (path, leaf)
            for (path, leaf), new, old in zip(after, values_of(state_after), before, strict=True)
            if new is not old
        ]
        return batch, nnx.from_flat_state(changes)

    return staged


def scan_program(records: Records, graph: StageGraph, places: Placement) -> Callable[..., Any]:
    """Builds the program of many steps; as with `step_program`, each pipeline has its own."""

    @partial(jax.jit, donate_argnums=0, static_argnums=(4, 5, 6))
    def scanned(
        donated: Any,
        kept: Any,
        shared: Any,
        steps: Any,
        donation: Donation,
        graphdef: Any,
        step_fn: Any,
    ) -> Any:
        def body(state_and_carry: Any, step: tuple[Any, BatchExtras]) -> Any:
            numbers, rows = step
            state, carry = state_and_carry
            stages, modules = nnx.merge(graphdef, state)
            batch = records.assemble((shared, numbers))
            batch = through_stages(graph, stages, batch, rows, places)
            if carry is None:
                output = step_fn(*modules, batch)
            else:
                carry, output = step_fn(carry, *modules, batch)
            return (nnx.state((stages, modules)), carry), output

        return lax.scan(body, donation.join(donated, kept), steps)

    return scanned
