"""How we compare: ours and the peer in turn, in one process, as ratios with their spread."""

import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

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
            time.sleep(0.2)  # for what the run before has left in the background
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
    """Prints a row for each comparison as it is made, then the table and the notes.

    Args:
        title: Of the table.
        comparisons: One a row.
        notes: One a line, below the table.
        save_as: Where to keep it all: as text, JSON and a drawing, by their endings.
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
    """Ratios with their spread, beside their targets."""
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
    """A size of this process, as Linux knows it."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
