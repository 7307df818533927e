"""Trains an Equinox model: python scripts/example_equinox.py"""

from typing import Any

import first_words  # noqa: F401  (says what takes so long)
import digits  # noqa: F401  (registers the dataset)
import equinox as eqx
import jax
import optax

import datarax_tfds as dt


def to_float(batch: dict[str, Any]) -> dict[str, Any]:
    return batch | {"image": batch["image"].astype("float32").reshape(-1, 64) / 255}


def pipeline_of(data_dir: str, split: str) -> dt.Pipeline:
    shuffle = split == "train"
    config = dt.TFDSEagerConfig(name="digits", split=split, data_dir=data_dir, shuffle=shuffle)
    source = dt.TFDSEagerSource(config, sharding=dt.batch_sharding(dt.make_mesh({"data": -1})))
    return dt.Pipeline(source=source, stages=[to_float], batch_size=64)


optimizer = optax.adam(3e-3)


@eqx.filter_value_and_grad
def loss_of(model: eqx.nn.MLP, batch: dict[str, Any]) -> jax.Array:
    logits = jax.vmap(model)(batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


@eqx.filter_jit
def train_step(model: eqx.nn.MLP, moments: Any, batch: dict[str, Any]) -> tuple[Any, Any, Any]:
    loss, gradients = loss_of(model, batch)
    updates, moments = optimizer.update(gradients, moments)
    return eqx.apply_updates(model, updates), moments, loss


def main(data_dir: str = "data", epochs: int = 10) -> float:
    train, test = pipeline_of(data_dir, "train"), pipeline_of(data_dir, "test")
    model = eqx.nn.MLP(64, 10, width_size=128, depth=1, key=jax.random.key(0))
    moments, loss = optimizer.init(eqx.filter(model, eqx.is_array)), None
    for epoch in range(epochs):
        for batch in dt.prefetch_to_device(train):
            model, moments, loss = train_step(model, moments, batch)
        print(f"epoch {epoch}: loss {loss:.3f}")

    # Arrays are arguments of a program; what else is in the model is compiled in.
    arrays, rest = eqx.partition(model, eqx.is_array)

    def correct(arrays: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
        logits = jax.vmap(eqx.combine(arrays, rest))(batch["image"])
        return {"correct": logits.argmax(-1) == batch["label"]}

    return dt.evaluate(test, correct, modules=(arrays,)).means["correct"]


if __name__ == "__main__":
    print(f"test accuracy: {main():.1%}")
