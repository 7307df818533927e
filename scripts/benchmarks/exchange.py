"""Counts what each device receives for a batch of sharded records, at up to 4,096 devices.

The first table follows the real order and the plan of the exchange, by arithmetic. The second one
reads the bytes from the programs that XLA compiles for virtual devices. Nothing is timed.

python scripts/benchmarks/exchange.py
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import benchmark_words  # noqa: F401  (says what takes so long)
import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from datarax_tfds.order.order import Order
from sharding import batch_sharding, make_mesh, storage_sharding, take_rows
from sharding.exchange import Plan, plan

RECORDS = 10_000_000
ROW_BYTES = 784
SIZES = (
    *((8, 8), (8, 32), (16, 8), (16, 32), (32, 8), (32, 32), (64, 8), (64, 32), (128, 16)),
    *((256, 32), (512, 8), (1000, 8), (1024, 8), (2048, 8), (3000, 8), (4096, 8), (4096, 32)),
)
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


@dataclass(frozen=True)
class Options:
    """What to run."""

    batches: int = 1000  # for each row of the first table
    compiled_devices: tuple[int, ...] = (8, 64, 512)


def received(numbers: np.ndarray, sizes: Plan) -> int:
    """The rows that a device receives over all steps of the exchange of one batch.

    Args:
        numbers: `[devices, rows]`, the records that each device wants.
        sizes: The plan of the exchange.
    """
    devices, share = numbers.shape
    goals = np.repeat(np.arange(devices), share)
    at = numbers.ravel() // math.ceil(RECORDS / devices)
    if not sizes.hops:
        return devices * sizes.capacity * math.ceil(_longest(at * devices + goals) / sizes.capacity)
    rows = 0
    while True:
        if _longest(at) > sizes.queue:
            raise OverflowError(f"{_longest(at)} rows on one device, with room for {sizes.queue}")
        moved = 0
        for hop in sizes.hops:
            need = np.flatnonzero((goals - at) % devices // hop.stride % 4 == hop.digit)
            if len(need):
                moved += hop.room
                order = np.argsort(at[need], kind="stable")
                starts = np.concatenate([[True], np.diff(at[need][order]) != 0])
                first = np.maximum.accumulate(np.where(starts, np.arange(len(need)), 0))
                going = need[order[np.arange(len(need)) - first < hop.room]]
                at[going] = (at[going] + hop.stride * hop.digit) % devices
        if not moved:
            return rows
        rows += moved


def _longest(values: np.ndarray) -> int:
    return int(np.bincount(values).max())


def batches_of(devices: int, rows: int, count: int) -> Iterator[np.ndarray]:
    """The first batches of a shuffled run, `[devices, rows]`."""
    order, size = Order(RECORDS, 42), devices * rows
    for batch in range(count):
        epoch, place = divmod(batch, RECORDS // size)
        numbers = order.host_numbers(epoch, place * size, (place + 1) * size)
        yield numbers.reshape(devices, rows)


def arithmetic(options: Options) -> Table:
    table = Table(title=f"rows received per device, {options.batches} batches of random records")
    for heading in ("devices", "needed", "steps", "mean", "999 of 1,000", "most", "times needed"):
        table.add_column(heading, justify="right")
    for devices, rows in SIZES:
        sizes = plan(devices, rows)
        every = batches_of(devices, rows, options.batches)
        counts = np.sort([received(numbers, sizes) for numbers in every])
        steps = f"{len(sizes.hops)} hops" if sizes.hops else f"1 of {sizes.capacity} rows"
        high = counts[math.ceil(0.999 * len(counts)) - 1]
        figures = f"{counts.mean():.0f}", str(high), str(counts[-1]), f"{high / rows:.1f}"
        table.add_row(str(devices), str(rows), steps, *figures)
        print(f"counted: {devices} devices, {rows} rows each", flush=True)
    return table


def compiled(options: Options) -> Table:
    title = f"bytes received per device in the compiled programs, rows of {ROW_BYTES} bytes"
    table = Table(title=title)
    for heading in (
        "devices",
        "rows",
        "needed",
        "plain indexing",
        "ours",
        "of it, a pass or round",
    ):
        table.add_column(heading, justify="right")
    for devices in options.compiled_devices:
        batch = batch_sharding(make_mesh({"data": devices}, devices=jax.devices()[:devices]))
        records, share = devices * 64, 8
        storage = storage_sharding(batch, "sharded")
        rows = jax.ShapeDtypeStruct((records, ROW_BYTES), np.uint8, sharding=storage)
        numbers = jax.ShapeDtypeStruct((devices * share,), np.int32)
        plain = jax.jit(lambda rows, numbers: rows[numbers], out_shardings=batch)
        ours = jax.jit(lambda rows, numbers, to=batch: take_rows(rows, numbers, to, "sharded"))
        sizes = plan(devices, share)
        every = [received(each, sizes) for each in batches_of(devices, share, 20)]
        lowered = [program.lower(rows, numbers) for program in (plain, ours)]
        theirs, mine = (collectives(str(each.compile().as_text())) for each in lowered)
        # A pass has all hops. A round is one `all_to_all`, of which the program has several copies.
        step = sum(mine["collective-permute"]) if sizes.hops else mine["all-to-all"][0]
        received_bytes = np.mean(every) * (ROW_BYTES + 4 * bool(sizes.hops))
        figures = share * ROW_BYTES, sum(map(sum, theirs.values())), round(received_bytes), step
        table.add_row(str(devices), str(share), *(f"{figure:,}" for figure in figures))
        print(f"compiled: {devices} devices", flush=True)
    return table


def collectives(program: str) -> dict[str, list[int]]:
    """The bytes of the result of each collective in the text of a program, by their kind."""
    found: dict[str, list[int]] = {}
    for types, kind in COLLECTIVE.findall(program):
        size = 0
        for dtype, shape in re.findall(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]", types):
            width = 1 if dtype == "pred" else int(re.sub(r"\D", "", dtype)) // 8
            size += width * math.prod(int(side) for side in shape.split(",") if side)
        found.setdefault(kind, []).append(size)
    return found


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    jax.config.update("jax_num_cpu_devices", max(options.compiled_devices))
    console = Console(width=110)
    console.print(compiled(options))
    console.print(arithmetic(options))
