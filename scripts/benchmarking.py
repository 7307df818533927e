"""How we compare: ours and the peer in turn, in one process, as ratios with their spread."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass
class Comparison:
    """How many times as fast ours is as the peer, pair by pair.

    Args:
        name: What was measured.
        target: The ratio that we promise, at least.
        ours_s: Seconds of each run.
        peer_s: Those of the peer's run that followed.
    """

    name: str
    target: float
    ours_s: list[float] = field(default_factory=list)
    peer_s: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [peer / ours for ours, peer in zip(self.ours_s, self.peer_s, strict=True)]


def in_turn(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    target: float,
    rounds: int,
    units: int = 1,
) -> Comparison:
    """Runs both once to warm up, then `rounds` times each, taking turns.

    Args:
        name: What is measured.
        ours: A run, which returns when its result is there.
        peer: The same work, done otherwise.
        target: The ratio that we promise, at least.
        rounds: How many pairs of runs are counted.
        units: How many steps a run holds; times are for one.
    """
    comparison = Comparison(name, target)
    ours()
    peer()
    for _ in range(rounds):
        for run, seconds in ((ours, comparison.ours_s), (peer, comparison.peer_s)):
            start = time.perf_counter()
            run()
            seconds.append((time.perf_counter() - start) / units)
    return comparison


def show(title: str, comparisons: Iterator[Comparison]) -> None:
    """Prints a row for each comparison as it is made, then the table."""
    console = Console(width=110)
    table = Table(title=title, title_justify="left")
    for heading in ("", "ours", "peer", "peer / ours", "min to max", "target"):
        table.add_column(heading, justify="left" if not heading else "right")
    for comparison in comparisons:
        ratios = comparison.ratios
        table.add_row(
            comparison.name,
            duration(statistics.median(comparison.ours_s)),
            duration(statistics.median(comparison.peer_s)),
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{comparison.target:.2f}",
        )
        console.log(comparison.name)
    console.print(table)


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
