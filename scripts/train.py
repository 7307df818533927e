"""Trains a network to classify the images of a dataset, on any number of processes and devices.

    python scripts/train.py configs/digits.yaml --epochs 10
    datarax-tfds launch 4 -- python scripts/train.py configs/digits.yaml

A run that was killed continues from its last checkpoint when it is started again. After a SIGTERM
to any process, all processes save the same step and stop.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import config_file
import digits  # noqa: F401  (registers the dataset)
import images
import jax
import optax
from first_words import doing
from flax import nnx
from jax.sharding import Mesh
from networks import NETWORKS
from training import Checkpoints, Nodes, Optimizer, on_mesh, train_to_end

from datarax_tfds import (
    Cursor,
    Evaluation,
    Pipeline,
    batch_sharding,
    config_fields,
    evaluate,
    from_tfds,
    initialize,
    make_mesh,
)


@dataclass(frozen=True)
class Config:
    """A run.

    Args:
        source: What is read: arguments of `from_tfds`, with a `map_fn` of images.py.
        stages: Functions of images.py, which the devices apply to each batch.
        test_source: What differs from `source` in testing.
        test_stages: The stages for testing.
        mesh: The axes of the mesh, and their sizes; one may be -1. Batches are split along the
            first one.
        batch_size: Records of a step, over all processes.
        epochs: Of the whole run.
        seed: Of the initial network.
        model: The name of a network of networks.py, and its arguments.
        optimizer: See `Optimizer`.
        label_smoothing: The part of each target that is spread over all classes.
        checkpoint_dir: Where checkpoints are.
        checkpoint_every: Steps from one to the next.
        log_every: Steps between two lines of the log.
    """

    source: dict[str, Any]
    stages: list[str]
    test_source: dict[str, Any]
    test_stages: list[str]
    mesh: dict[str, int]
    batch_size: int
    epochs: int
    model: dict[str, Any]
    optimizer: Optimizer
    checkpoint_dir: str
    checkpoint_every: int
    log_every: int
    seed: int = 0
    label_smoothing: float = 0.0


def pipeline(config: Config, mesh: Mesh, source: dict[str, Any], stages: list[str]) -> Pipeline:
    functions = vars(images)
    return Pipeline(
        source=from_tfds(
            **config_fields(source, functions),
            sharding=batch_sharding(mesh, next(iter(config.mesh))),
        ),
        stages=[config_file.chosen(stage, functions, "stages") for stage in stages],
        batch_size=config.batch_size,
    )


def new_nodes(config: Config, data: Pipeline, mesh: Mesh, total_steps: int) -> Nodes:
    options = dict(config.model)
    network = config_file.chosen(options.pop("name"), NETWORKS, "model")
    shape = data.source.element_spec()["image"].shape
    classes = data.source.get_dataset_info().features["label"].num_classes

    def create() -> Nodes:
        rngs = nnx.Rngs(config.seed)
        model = config_file.made(network, options, "model", shape=shape, classes=classes, rngs=rngs)
        chain = config.optimizer.transformation(total_steps)
        return model, nnx.Optimizer(model, chain, wrt=nnx.Param)

    return on_mesh(create, mesh)


def train_step_of(config: Config) -> Any:
    @nnx.jit
    def train_step(model: Any, optimizer: nnx.Optimizer, batch: dict[str, Any]) -> Any:
        def loss_of(model: Any) -> tuple[jax.Array, jax.Array]:
            logits = model(batch["image"])
            targets = jax.nn.one_hot(batch["label"], logits.shape[-1])
            targets = optax.smooth_labels(targets, config.label_smoothing)
            right = logits.argmax(-1) == batch["label"]
            return optax.softmax_cross_entropy(logits, targets).mean(), right.mean()

        (loss, accuracy), gradients = nnx.value_and_grad(loss_of, has_aux=True)(model)
        optimizer.update(model, gradients)
        return {"loss": loss, "accuracy": accuracy}

    return train_step


def correct(model: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
    return {"correct": model(batch["image"]).argmax(-1) == batch["label"]}


def train_and_test(
    config: Config, new_nodes: Callable[..., Nodes], train_step: Any, measured: Any
) -> tuple[Evaluation, int]:
    """Trains a network; returns what `measured` finds on the test set, and the last step."""
    mesh = make_mesh(config.mesh)
    doing("opening the dataset")
    data = pipeline(config, mesh, config.source, config.stages)
    test = pipeline(config, mesh, config.source | config.test_source, config.test_stages)
    total_steps = data.step_at(Cursor(config.epochs, 0))
    model, optimizer = new_nodes(config, data, mesh, total_steps)
    checkpoints = Checkpoints(config.checkpoint_dir, (model, optimizer), data)
    step = train_to_end(
        checkpoints,
        train_step,
        total_steps=total_steps,
        save_every=config.checkpoint_every,
        log_every=config.log_every,
    )
    model.eval()  # batch statistics are then those of the training
    return evaluate(test, measured, modules=(model,)), step


def train(config: Config) -> None:
    found, step = train_and_test(config, new_nodes, train_step_of(config), correct)
    if jax.process_index() == 0:
        accuracy, right = found.means["correct"], found.sums["correct"]
        print(f"test accuracy: {accuracy:.2%} ({right} of {found.records} records), step {step}")


if __name__ == "__main__":
    arguments = config_file.config_from_args(Config, sys.argv[1:])
    initialize()
    train(arguments)
