"""Times our code and a peer in turn, and reports their ratios with the spread."""

import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmark_words import doing
from rich.console import Console
from rich.table import Table


@dataclass
class Comparison:
    """How many times as fast as the peer our code is, for each pair of runs.

    Args:
        name: What was measured.
        target: The lowest ratio that we promise.
        ours_s: Seconds of each of our runs.
        peer_s: Seconds of the run of the peer that followed it.
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
    """Runs each once to warm up, then `rounds` times in turn.

    Args:
        name: What is measured.
        ours: Does the work, and returns when the result is ready.
        peer: Does the same work in the way we compare with.
        target: The lowest ratio that we promise.
        rounds: The number of pairs of runs that count.
        units: The number of steps in a run; reported times are per step.
    """
    comparison = Comparison(name, target)
    doing(f"measuring {name}")
    ours()
    peer()
    for _ in range(rounds):
        for run, seconds in ((ours, comparison.ours_s), (peer, comparison.peer_s)):
            time.sleep(0.2)  # lets background work of the run before finish
            start = time.perf_counter()
            run()
            seconds.append((time.perf_counter() - start) / units)
    return comparison


def show(
    title: str,
    comparisons: Iterable[Comparison],
    notes: Iterable[str] = (),
    save_as: Path | None = None,
) -> None:
    """Prints a line for each comparison when it is done, then the table and the notes.

    Args:
        title: The title of the table.
        comparisons: The rows of the table.
        notes: Lines to print below the table.
        save_as: A path without suffix, to which `.txt`, `.json` and `.png` files are written.
    """
    console = Console(width=130, record=True)
    table = Table(title=title, title_justify="left")
    for heading in ("", "ours", "peer", "peer / ours", "min to max", "target"):
        table.add_column(heading, justify="left" if not heading else "right")
    made = []
    for comparison in comparisons:
        made.append(comparison)
        ratios = comparison.ratios
        table.add_row(
            comparison.name,
            duration(statistics.median(comparison.ours_s)),
            duration(statistics.median(comparison.peer_s)),
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{comparison.target:.2f}",
        )
        print(f"measured: {comparison.name}", flush=True)
    console.print(table)
    lines = []
    for note in notes:
        lines.append(note)
        console.print(note, highlight=False)
    if save_as is not None:
        save_as.parent.mkdir(parents=True, exist_ok=True)
        save_as.with_suffix(".txt").write_text(console.export_text())
        result = {"title": title, "comparisons": [asdict(row) for row in made], "notes": lines}
        save_as.with_suffix(".json").write_text(json.dumps(result, indent=1))
        _draw(title, made, save_as.with_suffix(".png"))


def _draw(title: str, comparisons: list[Comparison], path: Path) -> None:
    """Draws the ratios with their spread beside their targets."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 0.4 * len(comparisons)), layout="constrained")
    axes = figure.subplots()
    for place, comparison in enumerate(reversed(comparisons)):
        ratios = comparison.ratios
        axes.barh(place, statistics.median(ratios), color="tab:blue")
        axes.plot([min(ratios), max(ratios)], [place, place], color="black")
        axes.plot([comparison.target] * 2, [place - 0.4, place + 0.4], color="tab:red")
    axes.set_yticks(range(len(comparisons)), [row.name for row in reversed(comparisons)])
    axes.set_xscale("log")
    axes.axvline(1, color="grey", linewidth=0.5)
    axes.set_xlabel("times as fast as the peer: median, min to max (black), target (red)")
    axes.set_title(title)
    figure.savefig(path, dpi=120)


def resident_bytes(field: str = "VmRSS") -> int:
    """Returns a size of this process from `/proc/self/status`."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def duration(seconds: float) -> str:
    """Formats a time in seconds, milliseconds or microseconds."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
