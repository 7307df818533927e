"""What the training scripts share: the optimizer, a model on the mesh, checkpoints and the loop."""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax
import orbax.checkpoint as ocp
from first_words import doing
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from datarax_tfds import Pipeline, Preemption, prefetch_to_device
from datarax_tfds.checkpoint import DataRestore, DataSave, latest_valid_step

Nodes = tuple[nnx.Module, nnx.Optimizer]


@dataclass(frozen=True)
class Optimizer:
    """The optimizer and its learning rate.

    Args:
        name: Adam, with decoupled weight decay, or gradient descent with momentum.
        learning_rate: The highest one.
        warmup: The part of the run in which it rises from 0; then it falls along a cosine, to 0 at
            the last step. By default, it stays the same.
        weight_decay: Of matrices and kernels; not of biases and norms.
        momentum: Of sgd.
    """

    name: Literal["adam", "sgd"]
    learning_rate: float
    warmup: float | None = None
    weight_decay: float = 0.0
    momentum: float = 0.9

    def transformation(self, total_steps: int) -> optax.GradientTransformation:
        rate: Any = self.learning_rate
        if self.warmup is not None:
            rising = int(self.warmup * total_steps)
            rate = optax.warmup_cosine_decay_schedule(0.0, rate, rising, total_steps)
        decay = optax.add_decayed_weights(self.weight_decay, _kernels)
        if self.name == "sgd":
            return optax.chain(decay, optax.sgd(rate, self.momentum, nesterov=True))
        return optax.chain(optax.scale_by_adam(), decay, optax.scale_by_learning_rate(rate))


def _kernels(parameters: Any) -> Any:
    return jax.tree.map(lambda parameter: parameter.ndim > 1, parameters)


def on_mesh(create: Callable[[], Nodes], mesh: Mesh) -> Nodes:
    """Creates a model and its optimizer, replicated on all devices."""
    doing("creating the model")
    # Made by one program on all devices, so that every device holds the same parameters.
    replicated = NamedSharding(mesh, PartitionSpec())
    state = jax.jit(lambda: nnx.state(create()), out_shardings=replicated)()
    return nnx.merge(nnx.graphdef(nnx.eval_shape(create)), state)


class Checkpoints:
    """Saves and restores the model, the optimizer and the position in the data together."""

    def __init__(self, directory: str, nodes: Nodes, data: Pipeline):
        self.nodes, self.data = nodes, data
        self.manager = ocp.CheckpointManager(
            directory if "://" in directory else os.path.abspath(directory),
            # Orbax renames an old step before it deletes it, so no half-deleted step is ever seen.
            options=ocp.CheckpointManagerOptions(max_to_keep=2, todelete_subdir="deleted"),
        )

    def save(self, step: int) -> None:
        state = ocp.args.StandardSave(nnx.state(self.nodes))  # pyright: ignore
        args = ocp.args.Composite(model=state, data=DataSave(self.data))
        self.manager.save(step, args=args)

    def restore(self) -> int:
        """Restores the newest valid step and returns its number, or 0 if there is none."""
        step = latest_valid_step(self.manager) or 0
        for damaged in [newer for newer in self.manager.all_steps() if newer > step]:
            self.manager.delete(damaged)
        if step:
            state = ocp.args.StandardRestore(nnx.state(self.nodes))  # pyright: ignore
            args = ocp.args.Composite(model=state, data=DataRestore(self.data))
            nnx.update(self.nodes, self.manager.restore(step, args=args)["model"])
        return step

    def close(self, step: int) -> None:
        """Saves the last step if it is not saved yet, and waits until it is written."""
        if self.manager.latest_step() != step:
            self.save(step)
        self.manager.close()


def train_to_end(
    checkpoints: Checkpoints,
    train_step: Callable[..., Any],
    *,
    total_steps: int,
    save_every: int,
    log_every: int,
) -> int:
    """Trains from the newest checkpoint on, and returns the last step.

    After a SIGTERM to any process, all of them save the same step and end.

    Args:
        checkpoints: Of the model, the optimizer and the data.
        train_step: `train_step(model, optimizer, batch)` returns a dict of numbers to print.
        total_steps: Of the whole run.
        save_every: A checkpoint is saved after so many steps, and after the last one.
        log_every: What `train_step` returns is printed after so many steps.
    """
    data, step = checkpoints.data, checkpoints.restore()
    leader, stopping = jax.process_index() == 0, False
    if step < total_steps:
        doing("compiling the training step")
    progress = tqdm(
        total=total_steps,
        initial=step,
        unit=" steps",
        desc=f"from step {step}",
        disable=not leader,
    )
    with Preemption() as preemption, progress:
        for batch in prefetch_to_device(data.steps(max(total_steps - step, 0))):
            found = train_step(*checkpoints.nodes, batch)
            step += 1
            progress.update()
            if step % log_every == 0 and leader:
                values = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
                progress.write(f"step {step}: {values}")
            stopping = preemption.reached(step)
            if stopping:
                break
            if step % save_every == 0:
                checkpoints.save(step)
        checkpoints.close(step)
    if stopping:
        logging.warning("stopped by SIGTERM; saved at step %d", step)
        sys.exit(os.EX_TEMPFAIL)  # otherwise a launcher takes the job for finished
    return step
