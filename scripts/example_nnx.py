"""Trains a Flax NNX model, each epoch as one program: python scripts/example_nnx.py

`train.py` is the whole thing: on many hosts, with checkpoints.
"""

from typing import Any

import first_words  # noqa: F401  (says what takes so long)
import digits  # noqa: F401  (registers the dataset)
import jax
import optax
from flax import nnx

import datarax_tfds as dt


def to_float(batch: dict[str, Any]) -> dict[str, Any]:
    return batch | {"image": batch["image"].astype("float32").reshape(-1, 64) / 255}


def pipeline_of(data_dir: str, split: str) -> dt.Pipeline:
    shuffle = split == "train"
    config = dt.TFDSEagerConfig(name="digits", split=split, data_dir=data_dir, shuffle=shuffle)
    source = dt.TFDSEagerSource(config, sharding=dt.batch_sharding(dt.make_mesh({"data": -1})))
    return dt.Pipeline(source=source, stages=[to_float], batch_size=64)


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.hidden(images)))


def train_step(model: Model, optimizer: nnx.Optimizer, batch: dict[str, Any]) -> jax.Array:
    def loss_of(model: Model) -> jax.Array:
        logits = model(batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


def correct(model: Model, batch: dict[str, Any]) -> dict[str, jax.Array]:
    return {"correct": model(batch["image"]).argmax(-1) == batch["label"]}


def main(data_dir: str = "data", epochs: int = 10) -> float:
    train, test = pipeline_of(data_dir, "train"), pipeline_of(data_dir, "test")
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    for epoch in range(epochs):
        losses = train.scan(train_step, length=len(train), modules=(model, optimizer))
        print(f"epoch {epoch}: loss {losses.mean():.3f}")
    return dt.evaluate(test, correct, modules=(model,)).means["correct"]


if __name__ == "__main__":
    print(f"test accuracy: {main():.1%}")
