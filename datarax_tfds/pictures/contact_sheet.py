"""Draws the rows of a batch side by side: images with labels and boxes, and texts."""

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from datarax_tfds.decoding.device_dtypes import path_name
from datarax_tfds.order.wide_numbers import join_words
from datarax_tfds.pictures.picture import Picture, new_figure
from datarax_tfds.stages.programs import MASK, NUMBER  # what a pipeline adds to a batch
from sharding.checks import refused

_TEXT_CHARACTERS, _TEXT_WIDTH = 240, 32
_VALUES = 64
_CELL_INCHES = 2.0

Row = dict[str, np.ndarray]  # the parts of a record by path, as `objects/label`


def show(
    batch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    source: Any = None,
    *,
    most: int = 16,
    decode: Callable[[list[int]], str] | None = None,
) -> Picture:
    """Draws the rows of a batch, or records: a contact sheet.

        pipeline = dt.Pipeline(source=source, batch_size=16, record_numbers=True)
        dt.show(next(iter(pipeline)), source)

    An image has its label above it, by name if the dataset has names of classes, and the number of
    the record if the batch has `record_number`. Boxes of a detection set are drawn in the image,
    those that pad a record are not. Records without images are shown as text. Of a batch over
    several processes, it shows the rows of this process. Rows that are padding are left out.

    Args:
        batch: A batch, or a list of records as `for record in source` gives them.
        source: The source or the pipeline, for the names of classes.
        most: How many rows to draw.
        decode: Turns token ids into text, as the method `decode` of a tokenizer. Without it, the
            ids are shown.

    Returns:
        A picture, which a notebook shows; `save(path)` writes it.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `batch` is neither a dict of arrays nor a list of such records.
    """
    _require_batch(batch)
    rows = _rows(batch)[:most]
    features = _features_of(source)
    columns = min(4, max(len(rows), 1))
    lines = max(1, math.ceil(len(rows) / columns))
    figure = new_figure(_CELL_INCHES * columns, (_CELL_INCHES + 0.3) * lines, "show")
    cells = figure.subplots(lines, columns, squeeze=False).ravel()
    for cell in cells:
        cell.set_axis_off()
    for cell, row in zip(cells, rows, strict=False):
        image = _image_in(row)
        cell.set_title(_title(row, features), fontsize=8, loc="left")
        if image is None:
            cell.text(0, 1, _text(row, features, decode), fontsize=6, va="top", family="monospace")
            continue
        pixels = _pixels(row[image], row.get(f"{image}_shape"))
        cell.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for box, name in _boxes(row, features):
            _draw_box(cell, box, name, pixels.shape)
    return Picture(figure)


def _require_batch(batch: object) -> None:
    records = batch if isinstance(batch, list | tuple) else [batch]
    if not all(isinstance(each, Mapping) for each in records):
        raise refused(
            TypeError,
            "show",
            "batch must be a batch of a pipeline, or a list of records.",
            batch=type(batch).__name__,
            fix="pass a batch, as next(pipeline.batches())",
        )


def _rows(batch: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows of a batch that this process holds and that are not padding, or the records."""
    if not isinstance(batch, Mapping):
        return [{path: np.asarray(leaf) for path, leaf in _by_path(each)} for each in batch]
    # A stage may add numbers that are not rows.
    columns = {path: _held(leaf) for path, leaf in _by_path(batch) if np.ndim(leaf)}
    if NUMBER in columns:
        columns[NUMBER] = join_words(columns[NUMBER])
    size = min((len(column) for column in columns.values()), default=0)
    real = columns.get(MASK)
    if real is None or real.ndim != 1 or real.dtype != np.bool_:  # a feature of that name
        real = np.ones(size, np.bool_)
    return [
        {path: column[row, ...] for path, column in columns.items()}
        for row in range(size)
        if real[row]
    ]


def _by_path(nest: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(nest):
        yield path_name(path), leaf


def _held(column: Any) -> np.ndarray:
    """The rows of an array that this process holds, in their order."""
    if not isinstance(column, jax.Array) or column.is_fully_addressable:
        return np.asarray(column)
    parts = {shard.index[0].start or 0: shard.data for shard in column.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def _features_of(source: Any) -> dict[str, Any]:
    """The features of a dataset by path, also under the names that `as_supervised` gives them."""
    source = getattr(source, "source", source)  # of a pipeline
    if not hasattr(source, "get_dataset_info"):
        return {}
    info = source.get_dataset_info()
    found = dict(_features_in(info.features))
    for name, feature in zip(("image", "label"), info.supervised_keys or (), strict=False):
        if isinstance(feature, str) and feature in found:
            found.setdefault(name, found[feature])
    return found


def _features_in(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, feature in features.items():
        feature = getattr(feature, "feature", feature)  # of a sequence
        if hasattr(feature, "items"):
            yield from _features_in(feature, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", feature


def _is_image(path: str, value: np.ndarray) -> bool:
    return value.ndim == 3 and value.shape[-1] in (1, 3, 4) and value.size > 0 and path != NUMBER


def _image_in(row: Row) -> str | None:
    """The path of the image in a row: `image` if there is one, else the first."""
    found = [path for path, value in row.items() if _is_image(path, value)]
    return "image" if "image" in found else next(iter(found), None)


def _pixels(image: np.ndarray, shape: np.ndarray | None) -> np.ndarray:
    """Floats in [0, 1], without what pads the image, `[height, width]` or `[..., 3 or 4]`."""
    if shape is not None:
        image = image[: int(shape[0]), : int(shape[1])]
    if image.dtype.kind in "ui":
        low, high = 0.0, float(np.iinfo(image.dtype).max)
    else:
        image = image.astype(np.float32)
        low, high = min(0.0, float(image.min())), max(1.0, float(image.max()))
    scaled = (image.astype(np.float32) - low) / (high - low)
    return scaled[..., 0] if image.shape[-1] == 1 else scaled


def _title(row: Row, features: Mapping[str, Any]) -> str:
    number = [f"#{int(row[NUMBER])}"] if NUMBER in row else []
    labels = [
        _class_name(features.get(path), value)
        for path, value in row.items()
        if value.ndim == 0 and (path == "label" or _names(features.get(path)))
    ]
    return " ".join(number + labels)


def _names(feature: Any) -> list[str]:
    """The names of the classes of a feature; empty if it has none."""
    return list(getattr(feature, "names", None) or [])


def _class_name(feature: Any, value: np.ndarray) -> str:
    names = _names(feature)
    at = int(value) if value.dtype.kind in "ui" else -1
    return names[at] if 0 <= at < len(names) else _short(value)


def _boxes(row: Row, features: Mapping[str, Any]) -> Iterator[tuple[np.ndarray, str]]:
    """The boxes of a row, `[ymin, xmin, ymax, xmax]` in [0, 1], each with the name of its class."""
    for path, value in row.items():
        parent, _, name = path.rpartition("/")
        is_box = name in ("bbox", "bboxes") or type(features.get(path)).__name__ == "BBoxFeature"
        if not is_box or value.shape[-1:] != (4,):
            continue
        boxes = value.reshape(-1, 4)
        length = row.get(f"{parent}_length", row.get(f"{path}_length"))
        labels = row.get(f"{parent}/label", np.zeros(0))
        feature = features.get(f"{parent}/label")
        names = [_class_name(feature, label) for label in labels.reshape(-1)]
        for at, box in enumerate(boxes if length is None else boxes[: int(length)]):
            yield box, names[at] if at < len(names) else ""


def _draw_box(cell: Any, box: np.ndarray, name: str, shape: tuple[int, ...]) -> None:
    height, width = shape[:2]
    top, left, bottom, right = (float(edge) for edge in box * [height, width, height, width])
    corners = [left, right, right, left, left], [top, top, bottom, bottom, top]
    # The middle of the first pixel is at 0.
    cell.plot(*(np.subtract(each, 0.5) for each in corners), color="C1", linewidth=1)
    cell.text(left - 0.5, top - 0.5, name, fontsize=6, color="white", backgroundcolor="C1")


def _text(row: Row, features: Mapping[str, Any], decode: Callable[[list[int]], str] | None) -> str:
    """The parts of a row as a few lines."""
    lines: list[str] = []
    for path, value in row.items():
        if path in (NUMBER, MASK):
            continue
        if decode is not None and value.ndim == 1 and path.split("/")[-1] == "tokens":
            said = decode([int(token) for token in value])
        else:
            said = _class_name(features.get(path), value) if value.ndim == 0 else _short(value)
        lines += textwrap.wrap(f"{path}: {said[:_TEXT_CHARACTERS]}", _TEXT_WIDTH)
    return "\n".join(lines)


def _short(value: np.ndarray) -> str:
    if value.dtype.kind in "OSU":
        return " ".join(
            each.decode(errors="replace") if isinstance(each, bytes) else str(each)
            for each in value.flat
        )
    form = ".4g" if value.dtype.kind == "f" else ""
    return " ".join(f"{each:{form}}" for each in value.flat[:_VALUES])
