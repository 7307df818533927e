"""Our sources against those of the released datarax, on 4,000 PNG images of 28x28.

    scripts/beside_datarax scripts/benchmark_datarax.py --data-dir data --out runs/benchmark

Runs in the environment that `scripts/beside_datarax` makes, since datarax is no dependency. It
reads 4,000 records only, since datarax takes minutes for more.
"""

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import benchmark_data
import datarax.sources  # pyright: ignore[reportMissingImports]: in an environment of its own
import jax
import tyro
from benchmarking import Comparison, in_turn, show
from flax import nnx

import datarax_tfds

BATCH = 128
RECORDS = 4_000


@dataclass(frozen=True)
class Options:
    """What to run."""

    data_dir: Path = Path("data")
    out: Path = Path("runs/benchmark")
    rounds: int = 3


def eager(package: ModuleType, name: str, options: Options) -> Any:
    config = package.TFDSEagerConfig(
        name=name, split=f"train[:{RECORDS}]", data_dir=str(options.data_dir), shuffle=True
    )
    return package.TFDSEagerSource(config, rngs=nnx.Rngs(0))


def streaming(package: ModuleType, name: str, options: Options) -> Any:
    config = package.TFDSStreamingConfig(
        name=name, split=f"train[:{RECORDS}]", data_dir=str(options.data_dir), shuffle=True
    )
    return package.TFDSStreamingSource(config, rngs=nnx.Rngs(0))


def building(package: ModuleType, name: str, options: Options) -> Callable[[], None]:
    return lambda: jax.block_until_ready(eager(package, name, options).data)


def batches_of(source: Any, steps: int) -> Callable[[], None]:
    def run() -> None:
        batches = [source.get_batch(BATCH) for _ in range(steps)]
        jax.block_until_ready(batches[-1])

    return run


def epoch_of(source: Any) -> Callable[[], None]:
    """An epoch from its beginning, batch by batch."""

    def run() -> None:
        source.reset()
        batches_of(source, RECORDS // BATCH)()

    return run


def rows(name: str, options: Options) -> Iterator[Comparison]:
    packages = datarax_tfds, datarax.sources
    yield in_turn(
        "construction of an eager source",
        *(building(package, name, options) for package in packages),
        target=100.0,
        rounds=options.rounds,
    )
    yield in_turn(
        f"get_batch({BATCH}) of an eager source",
        *(batches_of(eager(package, name, options), 30) for package in packages),
        target=10.0,
        rounds=options.rounds,
        units=30,
    )
    yield in_turn(
        f"get_batch({BATCH}) of a stream, an epoch",
        *(epoch_of(streaming(package, name, options)) for package in packages),
        target=30.0,
        rounds=options.rounds,
        units=RECORDS // BATCH,
    )


def main(options: Options) -> None:
    name = benchmark_data.png_28(options.data_dir)
    version = importlib.metadata.version("datarax")
    title = f"against datarax {version}, {jax.default_backend()}, jax {jax.__version__}"
    show(title, rows(name, options), save_as=options.out / "datarax")


if __name__ == "__main__":
    main(tyro.cli(Options))
