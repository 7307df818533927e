"""Finds images in a folder, and what TFDS has to know of them to store them as records.

The folder says what the images show, and to which split they belong:

    photos/cat/1.jpg            the label
    photos/train/cat/1.jpg      the split and the label
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharding.checks import refused

_ENDINGS = (".jpg", ".jpeg", ".png")
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "eval"}

Shape = tuple[int | None, int | None, int]


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder.

    Args:
        folder: The folder.
        splits: The images of each split, with the name of their label; None if they have none.
        ignored: How many files of each ending are neither JPEG nor PNG.
    """

    folder: Path
    splits: dict[str, list[tuple[Path, str | None]]]
    ignored: Counter[str]

    @classmethod
    def find(cls, folder: Path) -> "ImageFolder":
        """Finds the images. Hidden files and folders do not count.

        Raises:
            ValueError: There is no image, or the images lie at several depths.
        """
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        inside = [path.relative_to(folder).parts for path in files]
        seen = [parts for parts in inside if not any(part.startswith(".") for part in parts)]
        images = [parts for parts in seen if _is_image(parts[-1])]
        ignored = Counter(
            Path(parts[-1]).suffix or parts[-1] for parts in seen if not _is_image(parts[-1])
        )
        # Depths beyond SPLIT/LABEL/NAME have no meaning, so the message names them last.
        depths = sorted({len(parts) for parts in images}, key=lambda depth: (depth > 3, depth))
        if len(depths) != 1 or depths[0] > 3:
            examples = [next(p for p in images if len(p) == depth) for depth in depths]
            raise refused(
                ValueError,
                str(folder),
                "its images must lie in one folder for each label, and these may lie in one for"
                " each split.",
                images=", ".join("/".join(parts) for parts in examples) or "none (.jpg or .png)",
                fix="arrange the images as LABEL/NAME.jpg, or as SPLIT/LABEL/NAME.jpg",
            )
        return cls(folder, _arranged(folder, images), ignored)

    @property
    def labels(self) -> list[str]:
        return sorted({label for images in self.splits.values() for _, label in images if label})

    @property
    def paths(self) -> list[Path]:
        return [path for images in self.splits.values() for path, _ in images]

    def features(self, shape: Shape) -> Any:
        """The `tfds.features.FeaturesDict` of the records, for images of that shape."""
        import tensorflow_datasets as tfds

        features: dict[str, Any] = {"image": tfds.features.Image(shape=shape)}
        if self.labels:
            features["label"] = tfds.features.ClassLabel(names=self.labels)
        return tfds.features.FeaturesDict(features)

    def records(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for path, label in self.splits[split]:
            record = {"image": str(path)} | ({} if label is None else {"label": label})
            # TFDS orders records by this key, so it must not say where the folder lies.
            yield path.relative_to(self.folder).as_posix(), record


def has_images(folder: Path) -> bool:
    """Whether there is an image in a folder, or in one below it."""
    return any(_is_image(path.name) for path in folder.rglob("*"))


def _is_image(name: str) -> bool:
    return name.lower().endswith(_ENDINGS)


def _arranged(
    folder: Path, images: Sequence[tuple[str, ...]]
) -> dict[str, list[tuple[Path, str | None]]]:
    of_splits = {parts[0] for parts in images} <= _SPLITS
    splits: dict[str, list[tuple[Path, str | None]]] = {}
    for parts in images:
        *above, _ = parts
        split = above.pop(0) if len(above) == 2 or (above and of_splits) else "train"
        found = folder.joinpath(*parts), above[0] if above else None
        splits.setdefault(split, []).append(found)
    return splits


def image_shapes(paths: Sequence[Path]) -> Iterator[Shape]:
    """Decodes images, with all cores, and passes on the height, width and channels of each.

    Raises:
        ValueError: A file is no JPEG or PNG image of 8 bits, or is damaged.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        yield from threads.map(_shape_of, paths)


def common_shape(shapes: Iterable[Shape]) -> Shape:
    """The shape of all images: None stands for a height and a width that vary."""
    different = set(shapes)
    sizes = {shape[:2] for shape in different}
    channels = max(shape[2] for shape in different)
    return (*sizes.pop(), channels) if len(sizes) == 1 else (None, None, channels)


def _shape_of(path: Path) -> Shape:
    from PIL import Image

    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise _undecodable(path, error) from error
    if image.mode.startswith(("I", "F")):
        raise _undecodable(path, f"its pixels have the mode {image.mode}")
    width, height = image.size
    return height, width, 1 if image.mode in ("1", "L") else 3


def _undecodable(path: Path, error: Exception | str) -> ValueError:
    return refused(
        ValueError,
        str(path),
        "this cannot be decoded as a JPEG or PNG image with 8 bits for each channel.",
        error=error,
        fix="save the image again as JPEG or PNG, or remove the file",
    )
