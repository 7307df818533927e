"""Trains a small language model on packed text, on any number of processes and devices.

    python scripts/train_lm.py configs/docstrings.yaml --steps 600
    datarax-tfds launch 2 -- python scripts/train_lm.py configs/docstrings.yaml

A run that was killed continues from its last checkpoint when it is started again, also on another
number of processes. After a SIGTERM to any process, all processes save the same step and stop.
"""

import sys
from dataclasses import dataclass
from typing import Any

import config_file
import docstrings  # noqa: F401  (registers the dataset)
import jax
import jax.numpy as jnp
import optax
import texts
from first_words import doing
from flax import nnx
from jax.sharding import Mesh
from training import Checkpoints, Nodes, Optimizer, on_mesh, train_to_end

from datarax_tfds import (
    PackedSource,
    Pipeline,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    config_fields,
    initialize,
    make_mesh,
)


@dataclass(frozen=True)
class Config:
    """A run.

    Args:
        source: The texts: fields of `TFDSStreamingConfig`.
        rows: How they are packed: arguments of `PackedSource`, with an `encode` of texts.py.
        mesh: The axes of the mesh, and their sizes; one may be -1. Batches are split along the
            first one.
        batch_size: Rows of a step, over all processes.
        steps: Of the whole run.
        model: Arguments of `LanguageModel`.
        optimizer: See `Optimizer`.
        checkpoint_dir: Where checkpoints are.
        checkpoint_every: Steps from one to the next.
        log_every: Steps between two lines of the log.
        seed: Of the initial model.
    """

    source: dict[str, Any]
    rows: dict[str, Any]
    mesh: dict[str, int]
    batch_size: int
    steps: int
    model: dict[str, Any]
    optimizer: Optimizer
    checkpoint_dir: str
    checkpoint_every: int
    log_every: int
    seed: int = 0


class Block(nnx.Module):
    """Attention and two dense layers, each added to its input."""

    def __init__(self, width: int, heads: int, dtype: str, rngs: nnx.Rngs):
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "rngs": rngs}
        self.norms = nnx.List([nnx.RMSNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, **how)
        self.wide = nnx.Linear(width, 4 * width, **how)
        self.narrow = nnx.Linear(4 * width, width, **how)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x += self.attention(self.norms[0](x), mask=mask).astype(x.dtype)
        return x + self.narrow(nnx.gelu(self.wide(self.norms[1](x)))).astype(x.dtype)


class LanguageModel(nnx.Module):
    """A decoder-only transformer over the tokens of packed rows."""

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        width: int,
        layers: int,
        heads: int,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.places = nnx.Embed(length, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, dtype, rngs) for _ in range(layers)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)

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
def train_step(model: LanguageModel, optimizer: nnx.Optimizer, batch: Any) -> dict[str, jax.Array]:
    def loss_of(model: LanguageModel) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(model(batch), batch["targets"])
        return (losses * batch["weights"]).sum() / batch["weights"].sum()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return {"loss": loss}


def pipeline(config: Config, mesh: Mesh) -> Pipeline:
    rows = batch_sharding(mesh, next(iter(config.mesh)))
    text = TFDSStreamingSource(TFDSStreamingConfig(**config.source), sharding=rows)
    packed = PackedSource(text, **config_fields(config.rows, vars(texts)))
    return Pipeline(source=packed, stages=[with_targets], batch_size=config.batch_size)


def new_nodes(config: Config, mesh: Mesh) -> Nodes:
    def create() -> Nodes:
        given = {"length": config.rows["length"], "vocabulary": config.rows["eos_id"] + 1}
        given["rngs"] = nnx.Rngs(config.seed)
        model = config_file.made(LanguageModel, config.model, "model", **given)
        chain = config.optimizer.transformation(config.steps)
        return model, nnx.Optimizer(model, chain, wrt=nnx.Param)

    return on_mesh(create, mesh)


def train(config: Config) -> None:
    mesh = make_mesh(config.mesh)
    doing("opening the dataset")
    data = pipeline(config, mesh)
    if jax.process_index() == 0:
        print(data.source, flush=True)
    checkpoints = Checkpoints(config.checkpoint_dir, new_nodes(config, mesh), data)
    train_to_end(
        checkpoints,
        train_step,
        total_steps=config.steps,
        save_every=config.checkpoint_every,
        log_every=config.log_every,
    )


if __name__ == "__main__":
    arguments = config_file.config_from_args(Config, sys.argv[1:])
    initialize()
    train(arguments)
