"""Trains a plain detector on images with boxes, on any number of processes and devices.

    python scripts/train_detection.py configs/coco2017.yaml

Any TFDS dataset with `image` and `objects` (`bbox` and `label`) will do. A run that was killed
continues from its last checkpoint when it is started again, also on another number of processes.
"""

import sys
from typing import Any

import config_file
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from networks import Detector, ResNet
from train import Config, train_and_test
from training import Nodes, on_mesh

from datarax_tfds import Pipeline, initialize

Batch = dict[str, Any]


def cells_of(batch: Batch, rows: int, columns: int) -> tuple[jax.Array, ...]:
    """For each object its image and the cell of its centre; and whether it is one, not padding."""
    boxes = batch["objects"]["bbox"]
    real = jnp.arange(boxes.shape[1])[None] < batch["objects_length"][:, None]
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    grid = jnp.array([rows, columns])
    cells = jnp.clip((centres * grid).astype(jnp.int32), 0, grid - 1)
    image = jnp.broadcast_to(jnp.arange(len(boxes))[:, None], real.shape)
    return image, cells[..., 0], cells[..., 1], real


def losses(model: Detector, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Of the classes of all cells, and of the boxes of the objects: a sum for each image."""
    logits, boxes = model(batch["image"])
    image, row, column, real = cells_of(batch, *logits.shape[1:3])
    labels = batch["objects"]["label"]
    wanted = jnp.zeros_like(logits).at[image, row, column, labels].max(real.astype(jnp.float32))
    focal = optax.sigmoid_focal_loss(logits, wanted, alpha=0.25, gamma=2.0).sum((1, 2, 3))
    away = jnp.abs(boxes[image, row, column] - batch["objects"]["bbox"]).sum(-1)
    return focal, jnp.where(real, away, 0.0).sum(1)


@nnx.jit
def train_step(model: Detector, optimizer: nnx.Optimizer, batch: Batch) -> dict[str, jax.Array]:
    def loss_of(model: Detector) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        objects = jnp.maximum(batch["objects_length"].sum(), 1)
        classes, boxes = (each.sum() / objects for each in losses(model, batch))
        return classes + boxes, (classes, boxes)

    (_, parts), gradients = nnx.value_and_grad(loss_of, has_aux=True)(model)
    optimizer.update(model, gradients)
    return {"classes": parts[0], "boxes": parts[1]}


def overlap(boxes: jax.Array, others: jax.Array) -> jax.Array:
    """The intersection of two boxes over their union."""
    begin = jnp.maximum(boxes[..., :2], others[..., :2])
    end = jnp.minimum(boxes[..., 2:], others[..., 2:])
    area = lambda low, high: jnp.maximum(high - low, 0).prod(-1)  # noqa: E731
    both = area(begin, end)
    either = area(boxes[..., :2], boxes[..., 2:]) + area(others[..., :2], others[..., 2:]) - both
    return both / jnp.maximum(either, 1e-9)


def found(model: Detector, batch: Batch) -> dict[str, jax.Array]:
    """How many objects each image has, and for how many the cell of the centre has the right class
    first and a box that overlaps by half. Boxes where no object is are not counted.
    """
    logits, boxes = model(batch["image"])
    image, row, column, real = cells_of(batch, *logits.shape[1:3])
    right = logits.argmax(-1)[image, row, column] == batch["objects"]["label"]
    near = overlap(boxes[image, row, column], batch["objects"]["bbox"]) >= 0.5
    return {"found": (real & right & near).sum(1), "objects": real.sum(1)}


def new_nodes(config: Config, data: Pipeline, mesh: Mesh, total_steps: int) -> Nodes:
    shape = data.source.element_spec()["image"].shape
    classes = data.source.get_dataset_info().features["objects"]["label"].num_classes

    def create() -> Nodes:
        rngs = nnx.Rngs(config.seed)
        given = {"shape": shape, "classes": None, "rngs": rngs}
        backbone = config_file.made(ResNet, config.model, "model", **given)
        model = Detector(backbone, classes=classes, rngs=rngs)
        chain = config.optimizer.transformation(total_steps)
        return model, nnx.Optimizer(model, chain, wrt=nnx.Param)

    return on_mesh(create, mesh)


def train(config: Config) -> None:
    tested, step = train_and_test(config, new_nodes, train_step, found)
    sums = tested.sums
    if jax.process_index() == 0:
        print(f"found {sums['found']:,} of {sums['objects']:,} objects, step {step}")


if __name__ == "__main__":
    arguments = config_file.config_from_args(Config, sys.argv[1:])
    initialize()
    train(arguments)
