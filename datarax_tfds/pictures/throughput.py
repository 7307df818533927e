"""Draws how many records a stream delivers, and how long steps wait for them."""

from collections.abc import Sequence

from datarax_tfds.pictures.picture import Picture, new_figure


def draw_throughput(
    cores: Sequence[int], records_per_s: Sequence[float], waiting: Sequence[float] | None
) -> Picture:
    """Draws throughput over cores and, if steps were measured, the share for which they wait."""
    figure = new_figure(7.0, 4.0, "draw_throughput")
    axes = figure.add_subplot()
    axes.plot(cores, records_per_s, marker="o", label="records a second")
    ideal = [records_per_s[0] * count / cores[0] for count in cores]
    axes.plot(cores, ideal, linestyle=":", color="grey", label="in proportion to the cores")
    axes.set_xlabel("cores")
    axes.set_ylabel("records a second")
    axes.set_xticks(list(cores))
    axes.set_ylim(bottom=0)
    lines = axes.get_lines()
    if waiting is not None:
        right = axes.twinx()
        share = [100 * each for each in waiting]
        lines += right.plot(cores, share, marker="s", color="tab:red", label="waiting, %")
        right.set_ylabel("share of the time in which steps wait, %")
        right.set_ylim(0, 100)
    axes.legend(handles=lines, loc="upper left")
    return Picture(figure)
