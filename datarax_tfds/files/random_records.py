"""Writes a dataset of random records that has the features of a real one."""

import math
import string
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datarax_tfds.files.written_dataset import write_dataset

_MAX_INTEGER = 100
_LETTERS = np.array(list(string.ascii_lowercase))

Draw = Callable[[], Any]


@dataclass(frozen=True)
class Bounds:
    """The largest sizes where the features leave a size open.

    Args:
        length: Of sequences, and of the axes of tensors; also the most words of a text.
        image_size: Of the height and the width of an image, which are at least half of it.
    """

    length: int = 16
    image_size: int = 64


def random_records(
    features: Any, count: int, seed: int, bounds: Bounds
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Draws records, each with its number. Record n depends only on the features, n and the seed.

    Args:
        features: A `tfds.features.FeaturesDict`.
        count: How many records.
        seed: The seed.
        bounds: The largest sizes where the features leave a size open.
    """
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        yield number, _drawer(features, rng, bounds)()


def write_random_dataset(
    info: Any, data_dir: Path, splits: Mapping[str, int], seed: int, bounds: Bounds, **options: Any
) -> Path:
    """Writes a prepared dataset, as TFDS does, with random records.

    Args:
        info: The `tfds.core.DatasetInfo` of the real one: its name, version, features and so on.
        data_dir: The `data_dir` for the random one.
        splits: The number of records of each split.
        seed: The seed of the records.
        bounds: The largest sizes where the features leave a size open.
        **options: For the `tfds.download.DownloadConfig`, as `num_shards`.

    Returns:
        The directory of the version. If it was prepared before, nothing is written.
    """
    return write_dataset(
        info.features,
        {
            # Another seed for each split, or all would begin with the same records.
            name: random_records(info.features, count, zlib.crc32(name.encode()) ^ seed, bounds)
            for name, count in splits.items()
        },
        data_dir,
        name=info.name,
        version=str(info.version),
        description=f"Random records with the features of {info.full_name}.",
        config_name=info.config_name or None,
        supervised_keys=info.supervised_keys,
        file_format=info.file_format if info.file_format else None,
        **options,
    )


def _drawer(feature: Any, rng: np.random.Generator, bounds: Bounds) -> Draw:
    """A function that draws values of a feature, all of the same sizes."""
    import tensorflow_datasets as tfds

    of = tfds.features
    again = partial(_drawer, rng=rng, bounds=bounds)
    if isinstance(feature, of.TranslationVariableLanguages):
        languages = sorted(feature.languages or ["de", "en"])
        return lambda: {language: _words(rng, bounds) for language in languages}
    if isinstance(feature, of.FeaturesDict):
        parts = {name: again(part) for name, part in feature.items()}
        return lambda: {name: draw() for name, draw in parts.items()}
    if isinstance(feature, of.Sequence | of.Dataset):
        draw, length = again(feature.feature), _length(feature, rng, bounds)
        return lambda: [draw() for _ in range(length)]
    if isinstance(feature, of.ClassLabel):
        return lambda: int(rng.integers(feature.num_classes or 1))
    if isinstance(feature, of.Image):
        return _image_drawer(feature, rng, bounds)
    if isinstance(feature, of.BBoxFeature):
        return lambda: _box(rng)
    if isinstance(feature, of.Text):
        return lambda: _words(rng, bounds)
    shape = [_size(size, rng, 1, bounds.length) for size in feature.shape]
    return lambda: _numbers(np.dtype(feature.np_dtype), shape, rng)


def _size(size: int | None, rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1)) if size is None else size


def _length(feature: Any, rng: np.random.Generator, bounds: Bounds) -> int:
    """The length of a sequence, if it is fixed; else a random one."""
    import jax

    fixed = None
    if type(feature).__name__ != "Dataset":  # of which the steps have no such axis
        leaves = jax.tree.leaves(feature.get_tensor_info())
        fixed = leaves[0].shape[0] if leaves else None
    return _size(fixed, rng, 1, bounds.length)


def _image_drawer(feature: Any, rng: np.random.Generator, bounds: Bounds) -> Draw:
    *sizes, channels = feature.shape
    low = math.ceil(bounds.image_size / 2)
    shape = [*(_size(size, rng, low, bounds.image_size) for size in sizes), channels or 3]
    dtype = np.dtype(feature.np_dtype)
    most = getattr(feature, "num_classes", None) or 256  # of a LabeledImage

    def draw() -> np.ndarray:
        if dtype.kind == "f":
            return rng.random(shape, dtype)
        return rng.integers(0, min(most, np.iinfo(dtype).max + 1), shape, dtype)

    return draw


def _box(rng: np.random.Generator) -> np.ndarray:
    """Edges that are in order, whatever the format: of a size, it is at most half of the image."""
    return np.concatenate([rng.uniform(0, 0.4, 2), rng.uniform(0.4, 0.6, 2)]).astype(np.float32)


def _words(rng: np.random.Generator, bounds: Bounds) -> str:
    lengths = rng.integers(1, 9, int(rng.integers(1, bounds.length + 1)))
    return " ".join("".join(rng.choice(_LETTERS, length)) for length in lengths)


def _numbers(dtype: np.dtype, shape: list[int], rng: np.random.Generator) -> Any:
    if dtype.kind in "OSU":
        texts = [_words(rng, Bounds(length=1)).encode() for _ in range(math.prod(shape))]
        return np.array(texts, object).reshape(shape) if shape else texts[0]
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if dtype.kind in "iu":
        return rng.integers(0, _MAX_INTEGER, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
