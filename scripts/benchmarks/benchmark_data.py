"""Writes the datasets that the benchmarks read, once, into a data directory."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from datarax_tfds import TFDSStreamingConfig, TFDSStreamingSource
from datarax_tfds.files.record_index import index_content
from datarax_tfds.files.stored_file import FileVersion
from datarax_tfds.runtime.timings import Timings

DOCSTRINGS, TOKEN_LISTS = "bench_docstrings", "bench_token_lists"


class InMemory:
    """Stands in for the reader of a split: columns `[N, ...]` in memory, at most 32 bits wide."""

    stochastic = False
    mapped_by = random_by = None
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
        self.timings = Timings()

    def slowest(self) -> str:
        """Returns what a wait names in place of a file."""
        return self.subject

    def records_ahead(self, *, shuffled: bool) -> int:  # noqa: ARG002
        """Nothing has to be fetched before it is read."""
        return 0

    def prefetch(self, numbers: np.ndarray) -> None:
        """Does nothing."""

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


@dataclass(frozen=True)
class SparseSplit:
    """A split of any size, whose files are sparse: only the records that are needed are there.

    The indexes are names of one file, since all files have the same size and time.

    Args:
        data_dir: Where it is written.
        files: The number of files.
        file_records: The number of records in each file.
    """

    data_dir: Path
    files: int
    file_records: int
    floats: ClassVar[int] = 2000  # in a record
    name: ClassVar[str] = "bench_sparse"
    modified_ns: ClassVar[int] = 10**18

    @property
    def directory(self) -> Path:
        return self.data_dir / self.name / "1.0.0"

    def __len__(self) -> int:
        return self.files * self.file_records

    @property
    def frame_bytes(self) -> int:
        """How many bytes of a file a record takes."""
        return len(_frame([0.0] * self.floats))

    def path(self, file: int) -> Path:
        return self.directory / f"{self.name}-train.tfrecord-{file:05}-of-{self.files:05}"

    def write(self, numbers: Iterable[int]) -> None:
        """Writes the split, with the records of these numbers. A record holds its own number, as
        the number of its file and the place there.
        """
        frame_bytes = self.frame_bytes
        shutil.rmtree(self.directory, ignore_errors=True)
        indexes = self.directory / ".record_index"
        indexes.mkdir(parents=True)
        self._write_metadata(frame_bytes)
        for file in range(self.files):
            self.path(file).touch()
            os.truncate(self.path(file), frame_bytes * self.file_records)
        for number in numbers:
            file, place = divmod(int(number), self.file_records)
            with self.path(file).open("r+b") as content:
                content.seek(place * frame_bytes)
                content.write(_frame([file, place, *[0.0] * (self.floats - 2)]))
        starts = np.arange(self.file_records + 1) * frame_bytes
        version = FileVersion(int(starts[-1]), self.modified_ns, 0, 0)
        first = indexes / self.path(0).name
        for file in range(self.files):
            os.utime(self.path(file), ns=(self.modified_ns, self.modified_ns))
            index = indexes / self.path(file).name
            if file % 1000:  # a file may have about so many names
                index.hardlink_to(first)
            else:
                first = index
                index.write_bytes(index_content(starts, version))

    def _write_metadata(self, frame_bytes: int) -> None:
        tensor = {"dtype": "float32", "encoding": "none", "shape": {"dimensions": [self.floats]}}
        package = "tensorflow_datasets.core.features"
        features = {
            "pythonClassName": f"{package}.features_dict.FeaturesDict",
            "featuresDict": {
                "features": {
                    "x": {"pythonClassName": f"{package}.tensor_feature.Tensor", "tensor": tensor}
                }
            },
        }
        split = {
            "name": "train",
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "numBytes": str(frame_bytes * len(self)),
            "shardLengths": [str(self.file_records)] * self.files,
        }
        info = {"name": self.name, "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
        (self.directory / "features.json").write_text(json.dumps(features))
        (self.directory / "dataset_info.json").write_text(json.dumps(info))


def _frame(values: list[float]) -> bytes:
    """The bytes of a TFRecord file of one example."""
    import tensorflow as tf

    x = tf.train.Feature(float_list=tf.train.FloatList(value=values))
    example = tf.train.Example(features=tf.train.Features(feature={"x": x}))
    with tempfile.NamedTemporaryFile() as file:
        with tf.io.TFRecordWriter(file.name) as writer:
            writer.write(example.SerializeToString())
        return Path(file.name).read_bytes()


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


def docstrings(data_dir: Path) -> str:
    """Writes 20,000 docstrings of installed packages, in random order; returns the name."""
    import ast
    import importlib.util

    import tensorflow_datasets as tfds

    def of(path: Path) -> Iterator[str]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""

    if not (data_dir / DOCSTRINGS).exists():
        found: list[str] = []
        for package in ("numpy", "jax", "flax", "sklearn", "scipy", "tensorflow"):
            spec = importlib.util.find_spec(package)
            assert spec is not None
            assert spec.origin is not None
            for path in sorted(Path(spec.origin).parent.rglob("*.py")):
                found += filter(None, of(path))
        chosen = np.random.default_rng(0).permutation(len(found))[:20_000]
        tfds.dataset_builders.store_as_tfds_dataset(
            name=DOCSTRINGS,
            version="1.0.0",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            split_datasets={"train": ((int(n), {"text": found[n]}) for n in chosen)},
            data_dir=data_dir,
            disable_shuffling=True,
        )
    return DOCSTRINGS


def token_lists(data_dir: Path) -> str:
    """Writes the bytes of those docstrings, up to 2,048 of each; returns the name."""
    import tensorflow_datasets as tfds

    if not (data_dir / TOKEN_LISTS).exists():
        config = TFDSStreamingConfig(
            name=docstrings(data_dir), split="train", data_dir=str(data_dir)
        )
        texts = TFDSStreamingSource(config)
        tokens = tfds.features.Tensor(shape=(None,), dtype=np.uint8)  # a Sequence takes 15 ms each
        tfds.dataset_builders.store_as_tfds_dataset(
            name=TOKEN_LISTS,
            version="1.0.0",
            features=tfds.features.FeaturesDict({"tokens": tokens}),
            split_datasets={
                "train": (
                    (number, {"tokens": np.frombuffer(record["text"][:2048], np.uint8)})
                    for number, record in enumerate(texts)
                )
            },
            data_dir=data_dir,
            disable_shuffling=True,
        )
    return TOKEN_LISTS
