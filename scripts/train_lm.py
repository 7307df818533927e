"""Trains a small language model on packed text, on any number of processes and devices.

    python scripts/train_lm.py configs/docstrings.yaml --steps 600
    datarax-tfds launch 2 -- python scripts/train_lm.py configs/docstrings.yaml

A run that was killed continues from its last checkpoint when it is started again, also on another
number of processes.
"""

import os
import sys
from dataclasses import dataclass
from typing import Any

import config_file
import docstrings  # noqa: F401  (registers the dataset)
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from datarax_tfds import (
    PackedSource,
    Pipeline,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    initialize,
    make_mesh,
    prefetch_to_device,
)
from datarax_tfds.checkpoint import DataRestore, DataSave, latest_valid_step
from datarax_tfds.packed_source import PackingWay

EOS, VOCABULARY = 256, 257  # a token for each byte, and one for the end of a document


@dataclass(frozen=True)
class Config:
    dataset: str
    data_dir: str
    seed: int
    mesh: dict[str, int]
    length: int
    packing: PackingWay
    batch_size: int
    steps: int
    width: int
    layers: int
    heads: int
    learning_rate: float
    checkpoint_dir: str
    checkpoint_every: int


class Block(nnx.Module):
    """Attention and two dense layers, each added to its input."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        width = config.width
        self.norms = nnx.List([nnx.RMSNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(config.heads, width, rngs=rngs, decode=False)
        self.wide = nnx.Linear(width, 4 * width, rngs=rngs)
        self.narrow = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x += self.attention(self.norms[0](x), mask=mask)
        return x + self.narrow(nnx.gelu(self.wide(self.norms[1](x))))


class LanguageModel(nnx.Module):
    """A decoder-only transformer over the tokens of packed rows."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.tokens = nnx.Embed(VOCABULARY, config.width, rngs=rngs)
        self.places = nnx.Embed(config.length, config.width, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.layers)])
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)

    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        segments = batch["segment_ids"]
        # A token sees those before it in its own document.
        same = nnx.make_attention_mask(segments, segments, jnp.equal, dtype=jnp.bool_)
        mask = same & nnx.make_causal_mask(segments, dtype=jnp.bool_)
        x = self.tokens(batch["tokens"]) + self.places(batch["positions"])
        for block in self.blocks:
            x = block(x, mask)
        return self.tokens.attend(self.norm(x))


def with_targets(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Adds the token that follows each, and whether it is of the same document."""
    shifted = lambda column: jnp.pad(column[:, 1:], ((0, 0), (0, 1)))  # noqa: E731
    segments = batch["segment_ids"]
    weights = (segments == shifted(segments)) & (segments > 0)
    return batch | {"targets": shifted(batch["tokens"]), "weights": weights.astype(jnp.float32)}


@nnx.jit
def train_step(model: LanguageModel, optimizer: nnx.Optimizer, batch: Any) -> jax.Array:
    def loss_of(model: LanguageModel) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(model(batch), batch["targets"])
        return (losses * batch["weights"]).sum() / batch["weights"].sum()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


def encode(text: str) -> list[int]:
    return list(text.encode())


def pipeline_of(config: Config, mesh: Mesh) -> Pipeline:
    data = TFDSStreamingConfig(name=config.dataset, split="train", data_dir=config.data_dir)
    text = TFDSStreamingSource(data, sharding=batch_sharding(mesh, next(iter(config.mesh))))
    rows = PackedSource(
        text,
        encode=encode,
        encode_name="bytes",
        length=config.length,
        packing=config.packing,
        eos_id=EOS,
        shuffle=True,
        seed=config.seed,
    )
    return Pipeline(source=rows, stages=[with_targets], batch_size=config.batch_size)


def new_model(config: Config, mesh: Mesh) -> tuple[LanguageModel, nnx.Optimizer]:
    """Creates the model and its optimizer, replicated on all devices."""

    def create() -> tuple[LanguageModel, nnx.Optimizer]:
        model = LanguageModel(config, nnx.Rngs(config.seed))
        return model, nnx.Optimizer(model, optax.adam(config.learning_rate), wrt=nnx.Param)

    # Made by one program on all devices, so that every device holds the same parameters.
    replicated = NamedSharding(mesh, PartitionSpec())
    state = jax.jit(lambda: nnx.state(create()), out_shardings=replicated)()
    return nnx.merge(nnx.graphdef(nnx.eval_shape(create)), state)


def main(config: Config) -> None:
    initialize()
    mesh = make_mesh(config.mesh)
    data, nodes = pipeline_of(config, mesh), new_model(config, mesh)
    leader = jax.process_index() == 0
    with ocp.CheckpointManager(
        os.path.abspath(config.checkpoint_dir),
        options=ocp.CheckpointManagerOptions(max_to_keep=2, todelete_subdir="deleted"),
    ) as manager:
        step = latest_valid_step(manager) or 0
        if step:
            state = ocp.args.StandardRestore(nnx.state(nodes))  # pyright: ignore
            args = ocp.args.Composite(model=state, data=DataRestore(data))
            nnx.update(nodes, manager.restore(step, args=args)["model"])
        if leader:
            print(f"{data.source}; from step {step}", flush=True)
        loss = jnp.float32(jnp.nan)
        while step < config.steps:
            for batch in prefetch_to_device(data):
                loss = train_step(*nodes, batch)
                step += 1
                if leader and step % 10 == 0:
                    print(f"step {step}: loss {float(loss):.3f}", flush=True)
                if step % config.checkpoint_every == 0 or step == config.steps:
                    state = ocp.args.StandardSave(nnx.state(nodes))  # pyright: ignore
                    args = ocp.args.Composite(model=state, data=DataSave(data))
                    manager.save(step, args=args)
                if step == config.steps:
                    break


if __name__ == "__main__":
    main(config_file.config_from_args(Config, sys.argv[1:]))
