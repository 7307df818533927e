"""Trains with plain JAX and Optax, and resumes after a kill: python scripts/example_optax.py"""

import os
from typing import Any

import first_words  # noqa: F401  (says what takes so long)
import digits  # noqa: F401  (registers the dataset)
import jax
import optax
import orbax.checkpoint as ocp

import datarax_tfds as dt
from datarax_tfds.checkpoint import DataRestore, DataSave, latest_valid_step


def to_float(batch: dict[str, Any]) -> dict[str, Any]:
    return batch | {"image": batch["image"].astype("float32").reshape(-1, 64) / 255}


def pipeline_of(data_dir: str, split: str) -> dt.Pipeline:
    shuffle = split == "train"
    config = dt.TFDSEagerConfig(name="digits", split=split, data_dir=data_dir, shuffle=shuffle)
    source = dt.TFDSEagerSource(config, sharding=dt.batch_sharding(dt.make_mesh({"data": -1})))
    return dt.Pipeline(source=source, stages=[to_float], batch_size=64)


def new_model() -> dict[str, jax.Array]:
    first, second = jax.random.split(jax.random.key(0))
    make = jax.nn.initializers.he_normal()
    zeros = jax.numpy.zeros
    layers = {"w1": make(first, (64, 128)), "w2": make(second, (128, 10))}
    return layers | {"b1": zeros(128), "b2": zeros(10)}


def logits_of(model: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    return jax.nn.relu(images @ model["w1"] + model["b1"]) @ model["w2"] + model["b2"]


optimizer = optax.adam(3e-3)


@jax.jit
def train_step(state: tuple[Any, Any], batch: dict[str, Any]) -> tuple[Any, jax.Array]:
    def loss_of(model: Any) -> jax.Array:
        logits = logits_of(model, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    model, moments = state
    loss, gradients = jax.value_and_grad(loss_of)(model)
    updates, moments = optimizer.update(gradients, moments)
    return (optax.apply_updates(model, updates), moments), loss


def correct(model: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
    return {"correct": logits_of(model, batch["image"]).argmax(-1) == batch["label"]}


def main(data_dir: str = "data", directory: str = "runs/optax", epochs: int = 10) -> float:
    train, test = pipeline_of(data_dir, "train"), pipeline_of(data_dir, "test")
    state = new_model(), optimizer.init(new_model())
    with ocp.CheckpointManager(os.path.abspath(directory)) as manager:
        if (step := latest_valid_step(manager)) is not None:
            model, data = ocp.args.StandardRestore(state), DataRestore(train)
            restored = manager.restore(step, args=ocp.args.Composite(model=model, data=data))
            state = tuple(restored["model"])
        # The number of epochs is that of the run, so that a resumed one ends where it would have.
        for batch in dt.prefetch_to_device(train.batches(num_epochs=epochs)):
            state, loss = train_step(state, batch)
            step = train.step_at(train.cursor)
            if step % 50 == 0:
                print(f"step {step}: loss {loss:.3f}")
                model, data = ocp.args.StandardSave(state), DataSave(train)
                manager.save(step, args=ocp.args.Composite(model=model, data=data))
    return dt.evaluate(test, correct, modules=(state[0],)).means["correct"]


if __name__ == "__main__":
    print(f"test accuracy: {main():.1%}")
