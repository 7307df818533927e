"""Compares our sources with those of the released datarax, on 4,000 PNG images of 28x28.

    scripts/beside_datarax scripts/benchmarks/against_datarax.py --data-dir data

`scripts/beside_datarax` makes the environment, because datarax is not a dependency of ours. Only
4,000 records are read, because datarax takes minutes for more.
"""

import importlib
import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import benchmark_words  # noqa: F401  (says what takes so long)
import benchmark_data
import jax
import tyro
from benchmarking import Comparison, show
from flax import nnx

BATCH = 128
RECORDS = 4_000
RUNS = 3
TARGETS = {
    "construction of an eager source": 100.0,
    f"get_batch({BATCH}) of an eager source": 10.0,
    f"get_batch({BATCH}) of a stream, an epoch": 30.0,
}


@dataclass(frozen=True)
class Options:
    """What to run."""

    data_dir: Path = Path("data")
    out: Path = Path("runs/benchmark")
    rounds: int = 3
    package: str = ""  # internal: the package that a subprocess measures


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


def batches_of(source: Any, steps: int) -> None:
    batches = [source.get_batch(BATCH) for _ in range(steps)]
    jax.block_until_ready(batches[-1])


def seconds(run: Callable[[], object], units: int = 1) -> list[float]:
    """Returns the seconds of each run after a first run that is not counted."""
    times = []
    for _ in range(1 + RUNS):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) / units)
    return times[1:]


def measured(package: ModuleType, name: str, options: Options) -> list[list[float]]:
    """Returns the seconds of each run of one package, a list for each target."""
    steps = RECORDS // BATCH
    source, stream = eager(package, name, options), streaming(package, name, options)

    def epoch() -> None:
        stream.reset()
        batches_of(stream, steps)

    return [
        seconds(lambda: jax.block_until_ready(eager(package, name, options).data)),
        seconds(lambda: batches_of(source, steps), steps),
        seconds(epoch, steps),
    ]


def compared(options: Options) -> Iterator[Comparison]:
    """Runs both packages in turn, in subprocesses: leftovers of one would slow the other."""
    rows = [Comparison(name, target) for name, target in TARGETS.items()]
    for _ in range(options.rounds):
        for package in ("datarax_tfds", "datarax.sources"):
            command = [sys.executable, __file__, "--package", package]
            command += ["--data-dir", str(options.data_dir)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=900)
            times = json.loads(done.stdout.splitlines()[-1])
            for row, runs in zip(rows, times, strict=True):
                (row.ours_s if package == "datarax_tfds" else row.peer_s).extend(runs)
    yield from rows


def main(options: Options) -> None:
    name = benchmark_data.png_28(options.data_dir)
    if options.package:
        package = importlib.import_module(options.package)
        print(json.dumps(measured(package, name, options)))
        return
    version = importlib.metadata.version("datarax")
    title = f"against datarax {version}, {jax.default_backend()}, jax {jax.__version__}"
    show(title, compared(options), save_as=options.out / "datarax")


if __name__ == "__main__":
    main(tyro.cli(Options))
