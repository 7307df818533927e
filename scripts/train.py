"""Trains a small network on images of a TFDS dataset, on any number of processes and devices.

    python scripts/train.py configs/digits.yaml --epochs 10
    scripts/launch_local.py 4 -- python scripts/train.py configs/digits.yaml

Killed at any moment and started again, it goes on from its last checkpoint. A SIGTERM to any of its
processes makes all of them save the same step, and stop.
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
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from datarax_tfds import (
    Pipeline,
    Preemption,
    TFDSEagerConfig,
    TFDSEagerSource,
    batch_sharding,
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


@nnx.jit
def correct(model: Network, batch: dict[str, Any]) -> jax.Array:
    return jnp.sum((model(batch["image"]).argmax(-1) == batch["label"]) & batch["mask"])


def main(config: Config) -> None:
    initialize()
    mesh = make_mesh(config.mesh)
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
    test = Pipeline(
        source=source("test", False),
        stages=stages,
        batch_size=config.batch_size,
        remainder="pad",
    )

    features = train.source.get_dataset_info().features

    def create() -> tuple[Network, nnx.Optimizer]:
        rngs = nnx.Rngs(config.seed)
        model = Network(features["image"].shape, features["label"].num_classes, rngs)
        return model, nnx.Optimizer(model, optax.adam(config.learning_rate), wrt=nnx.Param)

    # Made by one program on all devices, so that every device holds the same parameters.
    replicated = NamedSharding(mesh, PartitionSpec())
    state = jax.jit(lambda: nnx.state(create()), out_shardings=replicated)()
    model, optimizer = nnx.merge(nnx.graphdef(nnx.eval_shape(create)), state)

    directory = config.checkpoint_dir
    manager = ocp.CheckpointManager(
        directory if "://" in directory else os.path.abspath(directory),
        # Renamed before it is removed, an old step is there as a whole, or not at all.
        options=ocp.CheckpointManagerOptions(max_to_keep=2, todelete_subdir="deleted"),
    )

    def save(step: int) -> None:
        state = ocp.args.StandardSave(nnx.state((model, optimizer)))  # pyright: ignore
        manager.save(step, args=ocp.args.Composite(model=state, data=DataSave(train)))

    step = latest_valid_step(manager) or 0
    for damaged in [newer for newer in manager.all_steps() if newer > step]:
        manager.delete(damaged)
    if step:
        state = ocp.args.StandardRestore(nnx.state((model, optimizer)))  # pyright: ignore
        args = ocp.args.Composite(model=state, data=DataRestore(train))
        nnx.update((model, optimizer), manager.restore(step, args=args)["model"])

    preemption, stopping = Preemption(), False  # a SIGTERM to any process stops all, saved
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
                loss, accuracy = train_step(model, optimizer, batch)
                step += 1
                progress.update(config.batch_size)
                if step % 20 == 0 and leader:
                    progress.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.3f}")
                stopping = preemption.reached(step)
                if stopping:
                    break
                if step % config.checkpoint_every == 0:
                    save(step)
    if manager.latest_step() != step:
        save(step)
    manager.close()
    if stopping:
        logging.warning("stopped by SIGTERM; saved at step %d", step)
        return

    right = int(sum(correct(model, batch) for batch in test))
    if leader:
        total = len(test.source)
        print(f"test accuracy: {right / total:.2%} ({right} of {total} records), step {step}")


if __name__ == "__main__":
    main(config_file.config_from_args(Config, sys.argv[1:]))
