"""Trains a Keras model on the JAX backend, on any number of processes, and resumes.

python scripts/example_keras.py
datarax-tfds launch 2 -- python scripts/example_keras.py
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")  # before TensorFlow imports Keras

import first_words  # noqa: F401  (says what takes so long)
import digits  # noqa: F401  (registers the dataset)
import jax
import keras

import datarax_tfds as dt


def pipeline_of(data_dir: str, split: str, remainder: Any) -> dt.Pipeline:
    shuffle = split == "train"
    config = dt.TFDSEagerConfig(name="digits", split=split, data_dir=data_dir, shuffle=shuffle)
    source = dt.TFDSEagerSource(config, sharding=dt.batch_sharding(dt.make_mesh({"data": -1})))
    return dt.Pipeline(source=source, batch_size=64, remainder=remainder)


class SaveAll(keras.callbacks.Callback):
    """Saves the model, and the state that the data have after the steps that were trained."""

    def __init__(self, directory: Path, train: dt.Pipeline, steps: int):
        super().__init__()
        self.directory, self.train, self.steps = directory, train, steps

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        # Not `get_state()`: Keras has read ahead of its steps.
        state = self.train.get_state_at((epoch + 1) * self.steps)
        # Every process has to save, since Keras compares arrays; one of them to where it stays.
        model: Any = self.model
        with tempfile.TemporaryDirectory() as elsewhere:
            there = self.directory if jax.process_index() == 0 else Path(elsewhere)
            model.save(there / "model.keras")
            (there / "data.json").write_text(json.dumps(state))


def main(data_dir: str = "data", directory: str = "runs/keras", epochs: int = 10) -> float:
    dt.initialize()  # joins the other processes, if there are any
    # Each process passes its own rows, so that Keras has nothing to shard.
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    train, test = pipeline_of(data_dir, "train", "drop"), pipeline_of(data_dir, "test", "pad")
    steps = train.step_at(dt.Cursor(epoch=1, index=0))  # the same in each epoch, by "drop"
    saved = Path(directory)
    saved.mkdir(parents=True, exist_ok=True)
    # Every process builds the same model. Not earlier: preparing a dataset draws numbers, too.
    keras.utils.set_random_seed(0)
    model: Any
    if (saved / "data.json").exists():
        model = keras.saving.load_model(saved / "model.keras")
        train.set_state(json.loads((saved / "data.json").read_text()))
    else:
        layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
        layers += [keras.layers.Dense(128, "relu"), keras.layers.Dense(10)]
        model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, weighted_metrics=["accuracy"])
    batches = ((batch["image"], batch["label"]) for batch in train.local_batches())
    fit = {"steps_per_epoch": steps, "initial_epoch": train.cursor.epoch, "epochs": epochs}
    fit |= {"shuffle": False, "verbose": 0 if jax.process_index() else 2}
    model.fit(batches, callbacks=[SaveAll(saved, train, steps)], **fit)
    # Rows of padding have the weight 0.
    padded = ((batch["image"], batch["label"], batch["mask"]) for batch in test.local_batches(1))
    return model.evaluate(padded, steps=len(test), verbose=0, return_dict=True)["accuracy"]


if __name__ == "__main__":
    print(f"test accuracy: {main():.1%}")
