"""Draws the pictures of docs/concepts.md, with the record numbers that the library computes.

    python scripts/drawings.py [DIRECTORY]    # docs/assets by default

They are SVG files with colours for light and for dark pages.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from datarax_tfds.order.order import Order

RECORDS, SEED, BATCH = 12, 7, 4
CELL = 36  # of a record, with the space after it
WIDTH = 356  # fits a phone without scrolling
FONT = "-apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
STYLE = f"""<style>
svg {{ --ink:#1e293b; --dim:#475569; --line:#94a3b8; --page:#ffffff; --card:#f8fafc;
  --blue:#dbe7f5; --blue-line:#5b7fa6; --gold:#fde2b3; --gold-line:#b45309; --green:#0f766e; }}
@media (prefers-color-scheme: dark) {{ svg {{ --ink:#e2e8f0; --dim:#a8b3c4; --line:#64748b;
  --page:#1b2130; --card:#232b3d; --blue:#2b4163; --blue-line:#7ea6d8; --gold:#6b4a12;
  --gold-line:#f0b454; --green:#5eead4; }} }}
text {{ font-family: {FONT}; font-size: 14px; fill: var(--ink); }}
.h {{ font-size: 15px; font-weight: 600; }}
.s {{ font-size: 13px; fill: var(--dim); }}
.g {{ font-size: 13px; fill: var(--green); }}
</style>
<defs><marker id="a" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7"
 orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="var(--line)"/></marker></defs>"""


def picture(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" role="img" aria-labelledby="t">\n<title id="t">{title}</title>'
    )
    page = box(1, 1, width - 2, height - 2, fill="page", radius=10)
    return "\n".join([head, STYLE, page, *parts, "</svg>\n"])


def box(x: float, y: float, width: float, height: float, fill: str, radius: int = 4) -> str:
    edge = {"blue": "blue-line", "gold": "gold-line"}.get(fill, "line")
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}"'
        f' fill="var(--{fill})" stroke="var(--{edge})" stroke-width="1.2"/>'
    )


def text(x: float, y: float, said: object, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{said}</text>'


def record(x: float, y: float, number: object, fill: str, cell: int = CELL) -> list[str]:
    middle, size = x + cell / 2 - 2, cell - 4
    return [box(x, y, size, size, fill), text(middle, y + size / 2 + 5, number, "n", "middle")]


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return (
        f'<path d="M{x} {y} L{to_x} {to_y}" stroke="var(--line)" stroke-width="1.6"'
        ' fill="none" marker-end="url(#a)"/>'
    )


def order_picture() -> str:
    parts, left, cell, gap, index = [], 16, 26, 9, 8
    for epoch, y in ((0, 84), (1, 178)):
        parts += [text(left, y - 34, f"epoch {epoch}", "h"), text(84, y - 34, f"seed {SEED}", "s")]
        numbers = Order(RECORDS, seed=SEED).host_numbers(epoch, 0, RECORDS).tolist()
        for position, number in enumerate(numbers):
            x = left + position * cell + position // BATCH * gap
            fill = "gold" if (epoch, position) < (0, index) else "blue"
            parts += record(x, y, number, fill, cell)
            if position % BATCH == 0:
                step = (epoch * RECORDS + position) // BATCH
                parts.append(text(x, y - 10, f"batch {step}", "s"))
    x = left + index * cell + (index // BATCH - 1) * gap + 2
    parts += [
        arrow(x, 30, x, 80),
        text(x, 22, "cursor: epoch 0, index 8", "g", "middle"),
        box(x - 1, 84, 2, cell - 4, "green", 0),
        text(left, 232, "Gold records were handed out. A cursor is all", "s"),
        text(left, 250, "that a job has to remember: every number to", "s"),
        text(left, 268, "the right of it is computed again when needed.", "s"),
    ]
    title = "The orders of two epochs of 12 records, cut into batches, and a cursor between batches"
    return picture(WIDTH, 286, title, parts)


def rows_picture() -> str:
    parts = [text(16, 28, "a batch", "h"), text(104, 28, 'a mesh {"data": 4, "model": 2}', "h")]
    for host in range(2):
        y = 42 + host * 172
        parts += [box(96, y, 244, 164, "card", 8), text(108, y + 22, f"host {host}", "h")]
        for shard in range(2):
            first = host * 4 + shard * 2
            fill, top = "gold" if shard else "blue", y + 32 + shard * 66
            for row in range(2):
                parts += record(24, top - 1 + row * 33, first + row, fill, 32)
            parts.append(arrow(60, top + 28, 92, top + 28))
            for model in range(2):
                x = 104 + model * 116
                parts += [box(x, top, 112, 60, "page", 6)]
                parts += [text(x + 8, top + 16, f"device {first + model}", "s")]
                parts += record(x + 8, top + 23, first, fill)
                parts += record(x + 48, top + 23, first + 1, fill)
    parts += [
        text(16, 406, "Host 0 reads rows 0 to 3, and host 1 rows 4 to 7.", "s"),
        text(16, 424, "Devices along the axis model hold the same", "s"),
        text(16, 442, "rows, and a host reads these only once.", "s"),
    ]
    title = "A batch of 8 rows on 8 devices of 2 hosts: each host reads the rows of its own devices"
    return picture(WIDTH, 460, title, parts)


def checkpoint_picture() -> str:
    parts = [
        text(16, 28, "the checkpoint of step 200", "h"),
        box(16, 40, WIDTH - 32, 58, "blue", 6),
        text(32, 64, "model", "h"),
        text(32, 86, "parameters and optimizer: gigabytes", "s"),
        box(16, 106, WIDTH - 32, 144, "gold", 6),
        text(32, 130, "data", "h"),
        text(32, 154, "epoch 3, index 640", "n"),
        text(32, 178, "valid for: the dataset and its files,", "s"),
        text(32, 196, "the split, the seed, the features", "s"),
        text(32, 220, "a few hundred bytes, the same", "s"),
        text(32, 238, "on every host, with a checksum", "s"),
        arrow(WIDTH / 2, 254, WIDTH / 2, 280),
        text(16, 452, "Not in it: records, shuffle buffers,", "s"),
        text(16, 470, "states of random numbers, numbers of hosts.", "s"),
    ]
    for row, (hosts, size) in enumerate([("2 hosts", 32), ("1 host", 32), ("4 hosts", 64)]):
        y = 286 + row * 50
        parts += [
            box(16, y, WIDTH - 32, 42, "card", 6),
            text(32, y + 27, hosts, "h"),
            text(100, y + 27, f"from record 640, batch size {size}", "s"),
        ]
    title = (
        "A checkpoint holds the model and the position in the data, which fits any number of hosts"
    )
    return picture(WIDTH, 488, title, parts)


PICTURES = {"order": order_picture, "rows": rows_picture, "checkpoint": checkpoint_picture}


def main(directory: Path) -> None:
    for name, draw in PICTURES.items():
        (directory / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    assets = Path(__file__).parents[1] / "docs" / "assets"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else assets)
