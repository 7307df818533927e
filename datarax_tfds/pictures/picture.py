"""A drawing of matplotlib that notebooks show, and that can be saved; without pyplot's state."""

import io
import os
from pathlib import Path
from typing import Any

from sharding.checks import refused


class Picture:
    """A drawing. A notebook shows it, if it is the value of a cell.

    Attributes:
        figure: The `matplotlib.figure.Figure`, for further changes.
    """

    def __init__(self, figure: Any):
        self.figure = figure

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to a file, of the kind that the ending of its name says, as `rows.png`.

        Raises:
            ValueError: matplotlib writes no files of that kind.
        """
        ending = Path(path).suffix
        known = self.figure.canvas.get_supported_filetypes()
        if ending[1:].lower() not in {"", *known}:  # without one, it becomes a .png
            raise refused(
                ValueError,
                "Picture.save",
                "path must end as a file of a kind that matplotlib writes.",
                path=path,
                kinds=", ".join(sorted(known)),
                fix=f"use {Path(path).with_suffix('.png')}",
            )
        self.figure.savefig(path)

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.figure.savefig(content, format="png")
        return content.getvalue()


def new_figure(width_inches: float, height_inches: float, subject: str) -> Any:
    """An empty figure of matplotlib.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise refused(
            ImportError,
            subject,
            "pictures need matplotlib, which is not installed.",
            error=error,
            fix="pip install 'datarax-tfds[pictures]'",
        ) from error
    return Figure(figsize=(width_inches, height_inches), layout="constrained", dpi=100)
