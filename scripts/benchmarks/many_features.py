"""Compares tables of hundreds of scalar features with plain gathers of the same columns.

python scripts/benchmarks/many_features.py --features 400
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import benchmark_words  # noqa: F401  (says what takes so long)
import jax
import numpy as np
import tyro
from benchmark_data import InMemory
from benchmarking import Comparison, in_turn, show

from datarax_tfds import batch_sharding, make_mesh
from datarax_tfds.records.eager import EagerRecords
from datarax_tfds.records.packing import Packed

ROWS = 4096


@dataclass(frozen=True)
class Options:
    """What to run."""

    features: int = 400
    rounds: int = 5


def comparisons(options: Options) -> Iterator[Comparison]:
    """Times the first batch of a new size, which compiles, and later batches of that size."""
    rng = np.random.default_rng(0)
    names = [f"f{number}" for number in range(options.features)]
    columns = {name: rng.random(ROWS, np.float32) for name in names}
    one = batch_sharding(make_mesh({"data": 1}, devices=jax.devices()[:1]))
    reader: Any = InMemory(**columns)
    records = EagerRecords(reader, batch=one, layout="replicated")
    placed = jax.device_put(columns)

    def peer(columns: dict[str, jax.Array], rows: jax.Array) -> dict[str, jax.Array]:
        return {name: column[rows] for name, column in columns.items()}

    def ours(packed: Packed, rows: jax.Array) -> dict[str, jax.Array]:
        return records.assemble((packed, rows))

    packed, _ = records.scan_inputs(np.zeros(1, np.int32))
    for program, held, label in ((ours, packed, "ours"), (peer, placed, "peer")):
        compiled = jax.jit(program).lower(held, np.arange(128, dtype=np.int32)).compile()
        print(f"{label}: {len((compiled.as_text() or '').splitlines()):,} lines of compiled HLO")
    sizes = itertools.count(128)  # each size is new, so that it compiles

    def first(program: Callable[..., Any], held: Any) -> Callable[[], object]:
        return lambda: jax.block_until_ready(
            jax.jit(program)(held, np.arange(next(sizes), dtype=np.int32))
        )

    yield in_turn(
        f"{options.features} features, first batch of a size, against jitted gathers",
        first(ours, packed),
        first(peer, placed),
        target=1.0,
        rounds=options.rounds,
    )

    def later(program: Callable[..., Any], held: Any) -> Callable[[], object]:
        compiled, rows = jax.jit(program), rng.integers(0, ROWS, 128, np.int32)
        return lambda: [jax.block_until_ready(compiled(held, rows)) for _ in range(20)]

    yield in_turn(
        f"{options.features} features, later batches of 128, against jitted gathers",
        later(ours, packed),
        later(peer, placed),
        target=1.0,
        rounds=options.rounds,
        units=20,
    )


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    show(f"wide tables, {jax.default_backend()}, jax {jax.__version__}", comparisons(options))
