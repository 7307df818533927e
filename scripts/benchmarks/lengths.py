"""Compares batches of a few lengths with padding everything to the longest.

    python scripts/benchmarks/lengths.py --data-dir data --out runs/benchmark

The records are the bytes of docstrings of installed packages, cut at 2,048. The peer is the same
stream with `pad_to`: to the longest length; and to so short a length that as many bytes are handed
out as in buckets. The table is also written to `lengths.txt`, `lengths.json` and `lengths.png` in
`--out`.
"""

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmark_words  # noqa: F401  (says what takes so long)
import benchmark_data
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from benchmarking import Comparison, in_turn, show

from datarax_tfds import BucketedSource, Pipeline, TFDSStreamingConfig, TFDSStreamingSource
from datarax_tfds.order.bucket_order import BucketOrder, Buckets
from datarax_tfds.order.order import Order

LENGTHS = (128, 256, 512, 1024, 2048)
BATCH = 64
POSITIONS = 1_000_000


@dataclass(frozen=True)
class Options:
    """What to run."""

    data_dir: Path = Path("data")
    out: Path = Path("runs/benchmark")
    rounds: int = 5
    records: int = 8_000


def stream(options: Options, pad_to: int | None = None) -> TFDSStreamingSource:
    sizes = {} if pad_to is None else {"pad_to": {"tokens": pad_to}, "truncate": {"tokens"}}
    config = TFDSStreamingConfig(
        name=benchmark_data.token_lists(options.data_dir),
        split=f"train[:{options.records}]",
        data_dir=str(options.data_dir),
        shuffle=True,
        **sizes,  # type: ignore[arg-type]
    )
    return TFDSStreamingSource(config)


def step(table: jax.Array, weights: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
    """A stage that computes something of each token: a layer of 64 units."""
    hidden = jax.nn.relu(table[batch["tokens"]] @ weights)
    return {"mean": hidden.mean(axis=(1, 2))}


def epoch(source: Any, *stages: Any) -> Callable[[], None]:
    """An epoch, of the same compiled stages each time."""
    pipeline = Pipeline(source=source, stages=stages, batch_size=BATCH)

    def run() -> None:
        for batch in pipeline:
            jax.block_until_ready(batch)

    return run


def order_of(buckets: Buckets | None) -> Callable[[], None]:
    """The record numbers of an epoch, each time of another one, because the last is kept."""
    epochs = iter(range(1_000_000))
    base = Order(POSITIONS, 0)
    order = base if buckets is None else BucketOrder(base, buckets, 256, 65_536, True)

    def run() -> None:
        order.host_numbers(next(epochs), 0, POSITIONS)

    return run


def main() -> None:
    options = tyro.cli(Options)
    records = stream(options)
    source = BucketedSource(records, lengths={"tokens": LENGTHS})
    sizes = np.array(source.bucket_sizes)
    same_bytes = round(float(sizes @ LENGTHS) / sizes.sum())
    longest = stream(options, LENGTHS[-1])
    shorter = stream(options, same_bytes)
    chance = np.random.default_rng(0)
    table, weights = (
        jnp.asarray(chance.normal(size=(rows, 64)), jnp.float32) for rows in (256, 64)
    )
    stage = functools.partial(step, table, weights)
    kept = options.data_dir / benchmark_data.TOKEN_LISTS / "1.0.0" / ".record_lengths"

    def counted() -> None:
        shutil.rmtree(kept)
        BucketedSource(records, lengths={"tokens": LENGTHS})

    def comparisons() -> Iterator[Comparison]:
        turns = functools.partial(in_turn, rounds=options.rounds)
        ours = epoch(source)
        yield turns("an epoch, against the longest", ours, epoch(longest), target=1)
        yield turns("an epoch, against the same bytes", ours, epoch(shorter), target=0.9)
        both = epoch(source.clone(), stage), epoch(longest, stage)
        yield turns("an epoch with a stage, against the longest", *both, target=1)
        yield turns(
            "building a source, and reading all lengths, against an epoch",
            counted,
            epoch(shorter),
            target=0.5,
        )
        buckets = Buckets(chance.integers(0, len(LENGTHS), POSITIONS))
        name = f"the order of {POSITIONS:,} positions, against that without buckets"
        yield turns(name, order_of(buckets), order_of(None), target=0.3)

    lengths = np.array([len(record["tokens"]) for record in records])
    notes = [
        f"{len(source):,} records, {lengths.mean():.0f} tokens on average,"
        f" lengths {', '.join(map(str, LENGTHS))}, batches of {BATCH}",
        f"padding {source.padding:.1%} in buckets,"
        f" {1 - lengths.mean() / LENGTHS[-1]:.1%} at the longest",
    ]
    show("Batches of a few lengths", comparisons(), notes, options.out / "lengths")


if __name__ == "__main__":
    main()
