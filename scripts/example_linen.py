"""Trains a Flax Linen model with a `TrainState`: python scripts/example_linen.py"""

from typing import Any

import first_words  # noqa: F401  (says what takes so long)
import digits  # noqa: F401  (registers the dataset)
import jax
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import datarax_tfds as dt


def to_float(batch: dict[str, Any]) -> dict[str, Any]:
    return batch | {"image": batch["image"].astype("float32").reshape(-1, 64) / 255}


def pipeline_of(data_dir: str, split: str) -> dt.Pipeline:
    shuffle = split == "train"
    config = dt.TFDSEagerConfig(name="digits", split=split, data_dir=data_dir, shuffle=shuffle)
    source = dt.TFDSEagerSource(config, sharding=dt.batch_sharding(dt.make_mesh({"data": -1})))
    return dt.Pipeline(source=source, stages=[to_float], batch_size=64)


class Model(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dense(10)(nn.relu(nn.Dense(128)(images)))


@jax.jit
def train_step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, jax.Array]:
    def loss_of(params: Any) -> jax.Array:
        logits = state.apply_fn(params, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    loss, gradients = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=gradients), loss


def correct(params: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
    logits: Any = Model().apply(params, batch["image"])
    return {"correct": logits.argmax(-1) == batch["label"]}


def main(data_dir: str = "data", epochs: int = 10) -> float:
    train, test = pipeline_of(data_dir, "train"), pipeline_of(data_dir, "test")
    model = Model()
    params = model.init(jax.random.key(0), jax.numpy.zeros((1, 64)))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(3e-3))
    loss = None
    for epoch in range(epochs):
        for batch in dt.prefetch_to_device(train):
            state, loss = train_step(state, batch)
        print(f"epoch {epoch}: loss {loss:.3f}")
    return dt.evaluate(test, correct, modules=(state.params,)).means["correct"]


if __name__ == "__main__":
    print(f"test accuracy: {main():.1%}")
