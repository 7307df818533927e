"""Trains a small network on images of a TFDS dataset, on any number of processes and devices.

    python scripts/train.py configs/digits.yaml --epochs 10
    datarax-tfds launch 4 -- python scripts/train.py configs/digits.yaml

A run that was killed continues from its last checkpoint when it is started again. After a SIGTERM
to any process, all processes save the same step and stop.
"""

import logging
import os
import sys
from dataclasses import dataclass
from typing import Any

import config_file
import digits  # noqa: F401  (registers the dataset)
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from datarax_tfds import (
    Pipeline,
    Preemption,
    TFDSEagerConfig,
    TFDSEagerSource,
    batch_sharding,
    evaluate,
    initialize,
    make_mesh,
    prefetch_to_device,
)
from datarax_tfds.checkpoint import DataRestore, DataSave, latest_valid_step


@dataclass(frozen=True)
class Config:
    dataset: str
    data_dir: str
    seed: int
    mesh: dict[str, int]
    batch_size: int
    epochs: int
    learning_rate: float
    checkpoint_dir: str
    checkpoint_every: int


class Network(nnx.Module):
    """Two convolutions and two dense layers."""

    def __init__(self, shape: tuple[int, int, int], classes: int, rngs: nnx.Rngs):
        height, width, channels = shape
        self.conv1 = nnx.Conv(channels, 32, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs)
        self.dense = nnx.Linear(-(-height // 2) * -(-width // 2) * 64, 128, rngs=rngs)
        self.head = nnx.Linear(128, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(images))
        x = nnx.relu(self.conv2(x))
        return self.head(nnx.relu(self.dense(x.reshape(len(x), -1))))


def to_float(batch: dict[str, Any]) -> dict[str, Any]:
    return batch | {"image": batch["image"].astype(jnp.float32) / 255}


@nnx.jit
def train_step(model: Network, optimizer: nnx.Optimizer, batch: dict[str, Any]) -> Any:
    def loss_of(model: Network) -> tuple[jax.Array, jax.Array]:
        logits = model(batch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), (logits.argmax(-1) == batch["label"]).mean()

    (loss, accuracy), gradients = nnx.value_and_grad(loss_of, has_aux=True)(model)
    optimizer.update(model, gradients)
    return loss, accuracy


def correct(model: Network, batch: dict[str, Any]) -> dict[str, jax.Array]:
    return {"correct": model(batch["image"]).argmax(-1) == batch["label"]}


def pipelines(config: Config, mesh: Mesh) -> tuple[Pipeline, Pipeline]:
    """Returns the pipelines for training and for testing."""
    rows = batch_sharding(mesh, next(iter(config.mesh)))

    def source(split: str, shuffle: bool) -> TFDSEagerSource:
        data = TFDSEagerConfig(
            name=config.dataset,
            split=split,
            data_dir=config.data_dir,
            shuffle=shuffle,
            seed=config.seed,
        )
        return TFDSEagerSource(data, sharding=rows)

    stages = [to_float]
    train = Pipeline(source=source("train", True), stages=stages, batch_size=config.batch_size)
    test = Pipeline(source=source("test", False), stages=stages, batch_size=config.batch_size)
    return train, test


def new_model(config: Config, features: Any, mesh: Mesh) -> tuple[Network, nnx.Optimizer]:
    """Creates the model and its optimizer, replicated on all devices."""

    def create() -> tuple[Network, nnx.Optimizer]:
        rngs = nnx.Rngs(config.seed)
        model = Network(features["image"].shape, features["label"].num_classes, rngs)
        return model, nnx.Optimizer(model, optax.adam(config.learning_rate), wrt=nnx.Param)

    # Made by one program on all devices, so that every device holds the same parameters.
    replicated = NamedSharding(mesh, PartitionSpec())
    state = jax.jit(lambda: nnx.state(create()), out_shardings=replicated)()
    return nnx.merge(nnx.graphdef(nnx.eval_shape(create)), state)


class Checkpoints:
    """Saves and restores the model, the optimizer and the position in the data together."""

    def __init__(self, directory: str, nodes: tuple[Network, nnx.Optimizer], data: Pipeline):
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


def train_to_end(config: Config, checkpoints: Checkpoints) -> tuple[int, bool]:
    """Trains from the newest checkpoint on. Returns the last step, and whether a SIGTERM came."""
    train, step = checkpoints.data, checkpoints.restore()
    preemption, stopping = Preemption(), False
    leader = jax.process_index() == 0
    records = len(train.source)
    with tqdm(
        total=config.epochs * records,
        initial=train.cursor.epoch * records + train.cursor.index,
        unit=" records",
        desc=f"from step {step}",
        disable=not leader,
    ) as progress:
        while train.cursor.epoch < config.epochs and not stopping:
            for batch in prefetch_to_device(train):
                loss, accuracy = train_step(*checkpoints.nodes, batch)
                step += 1
                progress.update(config.batch_size)
                if step % 20 == 0 and leader:
                    progress.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.3f}")
                stopping = preemption.reached(step)
                if stopping:
                    break
                if step % config.checkpoint_every == 0:
                    checkpoints.save(step)
    checkpoints.close(step)
    return step, stopping


def main(config: Config) -> None:
    initialize()
    mesh = make_mesh(config.mesh)
    train, test = pipelines(config, mesh)
    model, optimizer = new_model(config, train.source.get_dataset_info().features, mesh)
    checkpoints = Checkpoints(config.checkpoint_dir, (model, optimizer), train)
    step, stopped = train_to_end(config, checkpoints)
    if stopped:
        logging.warning("stopped by SIGTERM; saved at step %d", step)
        sys.exit(os.EX_TEMPFAIL)  # otherwise a launcher takes the job for finished
    found = evaluate(test, correct, modules=(model,))
    if jax.process_index() == 0:
        accuracy, right = found.means["correct"], found.sums["correct"]
        print(f"test accuracy: {accuracy:.2%} ({right} of {found.records} records), step {step}")


if __name__ == "__main__":
    main(config_file.config_from_args(Config, sys.argv[1:]))
