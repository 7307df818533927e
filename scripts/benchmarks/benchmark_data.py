"""Writes the datasets that the benchmarks read, once, into a data directory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np


class InMemory:
    """Stands in for the reader of a split: columns `[N, ...]` in memory, at most 32 bits wide."""

    stochastic = maps = False
    subject = "records in memory"

    def __init__(self, **columns: np.ndarray):
        self._columns = columns
        self.spec = {
            name: jax.ShapeDtypeStruct(column.shape[1:], column.dtype)
            for name, column in columns.items()
        }
        self.host_spec = {}
        self.length = len(next(iter(columns.values())))
        self.files = self

    def slowest(self) -> str:
        """Returns what a wait names in place of a file."""
        return self.subject

    def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        return {name: column[numbers] for name, column in self._columns.items()}


def png_28(data_dir: Path, file_format: str = "tfrecord") -> str:
    """Writes 60,000 grey PNG images of 28x28, and 1,000 more to test with; returns the name."""
    sizes = {"train": 60_000, "test": 1_000}
    return _written(data_dir, "bench_png28", file_format, sizes, (28, 28, 1))


def png_32(data_dir: Path, file_format: str = "tfrecord") -> str:
    """Writes 50,000 PNG images of 32x32x3; returns the name."""
    return _written(data_dir, "bench_png32", file_format, {"train": 50_000}, (32, 32, 3))


def jpeg_224(data_dir: Path, file_format: str = "tfrecord") -> str:
    """Writes 3,000 JPEG images of 224x224x3, cut out of two photographs; returns the name."""
    return _written(data_dir, "bench_jpeg224", file_format, {"train": 3_000}, (224, 224, 3))


def million(data_dir: Path) -> Path:
    """Writes a TFRecord file of 1,000,000 records of 50 bytes; returns its path."""
    import tensorflow as tf

    path = data_dir / "bench_million" / "million.tfrecord"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        with tf.io.TFRecordWriter(str(draft)) as writer:
            for _ in range(1_000_000):
                writer.write(bytes(50))
        draft.rename(path)
    return path


def _written(
    data_dir: Path,
    name: str,
    file_format: str,
    sizes: dict[str, int],
    shape: tuple[int, int, int],
) -> str:
    import tensorflow_datasets as tfds

    full_name = f"{name}_{file_format}"
    if (data_dir / full_name / "1.0.0" / "dataset_info.json").exists():
        return full_name
    photographs = "jpeg" in name
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(
                shape=shape, encoding_format="jpeg" if photographs else "png"
            ),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    examples = _cuttings if photographs else _digits
    tfds.dataset_builders.store_as_tfds_dataset(
        name=full_name,
        version="1.0.0",
        features=features,
        split_datasets={split: examples(count, shape) for split, count in sizes.items()},
        data_dir=data_dir,
        file_format=file_format,
        disable_shuffling=True,
    )
    return full_name


def _digits(count: int, shape: tuple[int, int, int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields enlarged handwritten digits, with noise so that they compress like photographs."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    scale = -(-max(shape[:2]) // 8)
    for number in range(count):
        image = np.kron(images[number % len(images)].reshape(8, 8), np.ones((scale, scale)))
        image = 14 * image[: shape[0], : shape[1], None] + rng.integers(0, 16, shape)
        yield number, {"image": image.astype(np.uint8), "label": int(labels[number % len(labels)])}


def _cuttings(count: int, shape: tuple[int, int, int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields pieces of the photographs that scikit-learn ships, labelled by the photograph."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    rng = np.random.default_rng(0)
    height, width, _ = shape
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        top = rng.integers(photograph.shape[0] - height)
        left = rng.integers(photograph.shape[1] - width)
        image = photograph[top : top + height, left : left + width]
        yield number, {"image": image, "label": number % len(photographs)}
