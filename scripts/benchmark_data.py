"""The datasets that the benchmarks read: written once, below a data directory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PNG_28 = "bench_png28"  # 60,000 grey images of 28x28, like MNIST


def png_28(data_dir: Path, file_format: str = "tfrecord") -> str:
    """Writes 60,000 PNG images of 28x28 and 1,000 more to test with; returns the name."""
    return _written(data_dir, PNG_28, file_format, {"train": 60_000, "test": 1_000}, (28, 28, 1))


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
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape, encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name=full_name,
        version="1.0.0",
        features=features,
        split_datasets={split: _examples(count, shape) for split, count in sizes.items()},
        data_dir=data_dir,
        file_format=file_format,
        disable_shuffling=True,
    )
    return full_name


def _examples(count: int, shape: tuple[int, int, int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Handwritten digits, enlarged and with a little noise, so that they compress as photos do."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    scale = -(-max(shape[:2]) // 8)
    for number in range(count):
        image = np.kron(images[number % len(images)].reshape(8, 8), np.ones((scale, scale)))
        image = 14 * image[: shape[0], : shape[1], None] + rng.integers(0, 16, shape)
        yield number, {"image": image.astype(np.uint8), "label": int(labels[number % len(labels)])}
