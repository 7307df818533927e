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


def record(x: float, y: float, number: object, fill: str) -> list[str]:
    middle = x + CELL / 2 - 2
    return [box(x, y, CELL - 4, CELL - 4, fill), text(middle, y + 21, number, "n", "middle")]


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return (
        f'<path d="M{x} {y} L{to_x} {to_y}" stroke="var(--line)" stroke-width="1.6"'
        ' fill="none" marker-end="url(#a)"/>'
    )


def order_picture() -> str:
    parts, left, index = [], 150, 8
    for epoch, y in ((0, 62), (1, 150)):
        parts += [text(24, y + 14, f"epoch {epoch}", "h"), text(24, y + 32, f"seed {SEED}", "s")]
        numbers = Order(RECORDS, seed=SEED).host_numbers(epoch, 0, RECORDS).tolist()
        for position, number in enumerate(numbers):
            x = left + position * CELL + position // BATCH * 22
            fill = "gold" if (epoch, position) < (0, index) else "blue"
            parts += record(x, y, number, fill)
            if position % BATCH == 0:
                step = (epoch * RECORDS + position) // BATCH
                parts.append(text(x, y - 8, f"batch {step}", "s"))
    x = left + index * CELL + index // BATCH * 22 - 14
    parts += [
        arrow(x, 30, x, 60),
        text(x, 22, "cursor: epoch 0, index 8", "g", "middle"),
        box(x - 1, 62, 2, 34, "green", 0),
        text(
            24,
            222,
            "Gold records were handed out. A cursor is all that a job has to remember:",
            "s",
        ),
        text(24, 242, "every number to the right of it is computed again when it is needed.", "s"),
    ]
    title = "The orders of two epochs of 12 records, cut into batches, and a cursor between batches"
    return picture(656, 262, title, parts)


def rows_picture() -> str:
    parts = [text(24, 30, "one batch of 8 rows", "h")]
    for row in range(8):
        parts += record(70, 46 + row * CELL, row, "gold" if row // 2 % 2 else "blue")
        if row % 2 == 0:
            parts.append(arrow(110, 62 + row * CELL + 18, 226, 62 + row * CELL + 18))
    parts += [text(240, 30, 'a mesh {"data": 4, "model": 2}', "h")]
    for host in range(2):
        y = 42 + host * 4 * CELL
        parts += [box(232, y, 330, 4 * CELL - 8, "card", 8)]
        parts += [text(244, y + 72, f"host {host}", "h")]
        for shard in range(2):
            for model in range(2):
                first = host * 4 + shard * 2
                x, top = 318 + model * 120, y + 6 + shard * 66
                parts.append(box(x, top, 112, 60, "page", 6))
                device = first + model
                parts.append(text(x + 8, top + 16, f"device {device}", "s"))
                fill = "gold" if (first // 2) % 2 else "blue"
                parts += record(x + 8, top + 23, first, fill) + record(
                    x + 48, top + 23, first + 1, fill
                )
    parts += [
        text(
            24, 362, "Host 0 reads rows 0 to 3, and host 1 rows 4 to 7. Devices along the axis", "s"
        ),
        text(24, 382, "model hold the same rows, and a host reads these only once.", "s"),
    ]
    title = "A batch of 8 rows on 8 devices of 2 hosts: each host reads the rows of its own devices"
    return picture(584, 402, title, parts)


def checkpoint_picture() -> str:
    parts = [
        text(24, 32, "the checkpoint of step 200", "h"),
        box(24, 46, 250, 64, "blue", 6),
        text(40, 72, "model", "h"),
        text(40, 94, "parameters and optimizer: gigabytes", "s"),
        box(24, 120, 250, 150, "gold", 6),
        text(40, 146, "data", "h"),
        text(40, 170, "epoch 3, index 640", "n"),
        text(40, 194, "valid for: the dataset and its files,", "s"),
        text(40, 212, "the split, the seed, the features", "s"),
        text(40, 236, "a few hundred bytes, the same", "s"),
        text(40, 254, "on every host, with a checksum", "s"),
        text(
            24,
            298,
            "Not in it: records, shuffle buffers, states of random numbers, numbers of hosts.",
            "s",
        ),
    ]
    for row, (hosts, size) in enumerate(
        [(2, "batch size 32"), (1, "batch size 32"), (4, "batch size 64")]
    ):
        y = 70 + row * 68
        parts += [arrow(280, 158, 348, y + 24), box(356, y, 262, 48, "card", 6)]
        name = f"{hosts} host" + ("s" if hosts > 1 else "")
        parts += [
            text(372, y + 20, name, "h"),
            text(372, y + 38, f"goes on at record 640, {size}", "s"),
        ]
    title = (
        "A checkpoint holds the model and the position in the data, which fits any number of hosts"
    )
    return picture(642, 318, title, parts)


PICTURES = {"order": order_picture, "rows": rows_picture, "checkpoint": checkpoint_picture}


def main(directory: Path) -> None:
    for name, draw in PICTURES.items():
        (directory / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    assets = Path(__file__).parents[1] / "docs" / "assets"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else assets)
