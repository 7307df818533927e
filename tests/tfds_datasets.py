"""Small real TFDS datasets, written to disk in about a second each."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

TINY_TRAIN = 97  # a prime: no batch size and no number of devices divides it
TINY_TEST = 13
MOST_OBJECTS = 4
EQUAL = 40
LARGE = 80


def tiny_record(number: int) -> dict[str, Any]:
    """An image that any two records differ in, and the record's own number."""
    pixels = np.random.default_rng(number).integers(0, 256, (5, 4, 3), np.uint8)
    return {"id": number, "image": pixels, "label": number % 7}


def every_dtype(number: int) -> dict[str, Any]:
    """A value of every dtype and rank that TFDS can store, at its limits or odd in its bits."""
    rng = np.random.default_rng(number)
    odd = np.array([-0.0, np.inf, np.nan, 1e-45], np.float32)
    odd.view(np.uint32)[2] = 0x7FC12345  # a NaN with a payload
    limits = {
        kind: np.array([np.iinfo(kind).min, np.iinfo(kind).max, number], kind)
        for kind in ("int8", "uint8", "int16", "uint16", "int32", "uint32")
    }
    return {
        **limits,
        "bool": rng.integers(0, 2, (2, 3)).astype(bool),
        "int64": np.int64(-(2**31) + number),
        "float32": np.roll(odd, number),
        "float64": np.float64(number) / 3,
        "nested": {"a": np.float32(number), "deep": {"b": np.full((1, 1, 2, 1), number, np.int32)}},
        "sequence": rng.integers(0, 9, 3),
        "zlib": rng.integers(0, 256, (2, 2)).astype(np.uint8),
        "empty": np.zeros((0,), np.float32),
    }


def detection_record(number: int) -> dict[str, Any]:
    """An image of any size, with any number of objects, as in COCO."""
    rng = np.random.default_rng(number)
    objects = [
        {
            "bbox": np.float32([*rng.uniform(0, 0.4, 2), *rng.uniform(0.5, 1, 2)]),
            "label": int(rng.integers(80)),
            "is_crowd": bool(rng.integers(2)),
        }
        for _ in range(number % (MOST_OBJECTS + 1))
    ]
    image = rng.integers(1, 256, (3 + number % 7, 9 - number % 5, 3), np.uint8)
    return {"id": number, "image": image, "objects": objects}


def detection_features(of: Any) -> dict[str, Any]:
    """The features of `detection_record`; `of` is `tfds.features`."""
    objects = {"bbox": of.BBoxFeature(), "label": of.ClassLabel(num_classes=80)}
    return {
        "id": np.int64,
        "image": of.Image(shape=(None, None, 3)),
        "objects": of.Sequence(objects | {"is_crowd": np.bool_}),
    }


def store(
    data_dir: Path, name: str, features: dict[str, Any], records: Iterable[Any], **options: Any
) -> None:
    """Writes records as the training split of a dataset, in their order."""
    import tensorflow_datasets as tfds

    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": list(enumerate(records))},
        data_dir=data_dir,
        disable_shuffling=True,
        **options,
    )


def write(data_dir: Path, name: str, *, file_format: str = "tfrecord", shards: int = 1) -> None:
    """Writes one of the datasets below under a name."""
    import tensorflow_datasets as tfds

    kind = name.split("_")[0]
    features, splits = _KINDS[kind](tfds)
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=features,
        split_datasets={
            split: ((number, example) for number, example in enumerate(examples))
            for split, examples in splits.items()
        },
        data_dir=data_dir,
        file_format=file_format,
        disable_shuffling=True,
        download_config=tfds.download.DownloadConfig(num_shards=shards, try_download_gcs=False),
    )


def write_all(data_dir: Path) -> None:
    write(data_dir, "tiny", shards=4)
    write(data_dir, "tiny_array", file_format="array_record", shards=4)
    write(data_dir, "tiny_one")
    write_uneven(data_dir)
    write(data_dir, "dtypes")
    write(data_dir, "text")
    write(data_dir, "mask")
    write_pair(data_dir)


def write_uneven(data_dir: Path) -> None:
    """The tiny dataset again, in files of very different length."""
    import tensorflow as tf

    source, target = data_dir / "tiny_one" / "1.0.0", data_dir / "tiny_uneven" / "1.0.0"
    target.mkdir(parents=True)
    shutil.copy(source / "features.json", target)
    lengths = {"train": [1, 0, 90, 6], "test": [TINY_TEST]}
    info = json.loads((source / "dataset_info.json").read_text().replace("tiny_one", "tiny_uneven"))
    for split in info["splits"]:
        split["shardLengths"] = [str(length) for length in lengths[split["name"]]]
        path = source / f"tiny_one-{split['name']}.tfrecord-00000-of-00001"
        records = iter(tf.data.TFRecordDataset(str(path)))
        count = len(lengths[split["name"]])
        for shard, length in enumerate(lengths[split["name"]]):
            name = f"tiny_uneven-{split['name']}.tfrecord-{shard:05}-of-{count:05}"
            with tf.io.TFRecordWriter(str(target / name)) as writer:
                for _ in range(length):
                    writer.write(next(records).numpy())
    (target / "dataset_info.json").write_text(json.dumps(info))


def write_pair(data_dir: Path) -> None:
    """A dataset with supervised keys that are not named image and label."""
    import tensorflow_datasets as tfds

    class Pair(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict({"input": np.int32, "target": np.int32})
            return tfds.core.DatasetInfo(
                builder=self,
                features=features,
                supervised_keys=("input", "target"),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for number in range(6):
                yield number, {"input": number, "target": 10 * number}

    Pair(data_dir=data_dir).download_and_prepare()


def _tiny(tfds: Any) -> tuple[Any, dict[str, Iterator[Any]]]:
    features = tfds.features.FeaturesDict(
        {
            "id": np.int64,
            "image": tfds.features.Image(shape=(5, 4, 3)),
            "label": tfds.features.ClassLabel(num_classes=7),
        }
    )
    train = (tiny_record(number) for number in range(TINY_TRAIN))
    test = (tiny_record(1000 + number) for number in range(TINY_TEST))
    return features, {"train": train, "test": test}


def _dtypes(tfds: Any) -> tuple[Any, dict[str, Iterator[Any]]]:
    def tensor(dtype: str, *shape: int, **options: Any) -> Any:
        return tfds.features.Tensor(shape=shape, dtype=np.dtype(dtype), **options)

    names = ("int8", "uint8", "int16", "uint16", "int32", "uint32")
    features = tfds.features.FeaturesDict(
        {
            **{name: tensor(name, 3) for name in names},
            "bool": tensor("bool", 2, 3),
            "int64": tensor("int64"),
            "float32": tensor("float32", 4),
            "float64": tensor("float64"),
            "nested": {"a": np.float32, "deep": {"b": tensor("int32", 1, 1, 2, 1)}},
            "sequence": tfds.features.Sequence(np.int64, length=3),
            "zlib": tensor("uint8", 2, 2, encoding="zlib"),
            "empty": tensor("float32", 0),
        }
    )
    return features, {"train": (every_dtype(number) for number in range(10))}


def _text(tfds: Any) -> tuple[Any, dict[str, Iterator[Any]]]:
    features = tfds.features.FeaturesDict(
        {
            "text": tfds.features.Text(),
            "tokens": tfds.features.Sequence(np.int32),
            "photo": tfds.features.Image(shape=(None, None, 3)),
            "wide": np.int64,
            "label": np.int64,
        }
    )
    examples = (
        {
            "text": f"number {number}",
            "tokens": list(range(number)),
            "photo": np.zeros((number + 1, 2, 3), np.uint8),
            "wide": 2**40 + number,
            "label": number,
        }
        for number in range(5)
    )
    return features, {"train": examples}


def _mask(tfds: Any) -> tuple[Any, dict[str, Iterator[Any]]]:
    features = tfds.features.FeaturesDict({"mask": np.int32})
    return features, {"train": ({"mask": number} for number in range(4))}


def _equal(tfds: Any) -> tuple[Any, dict[str, Iterator[Any]]]:
    """Records of one size, whose splits differ in their values alone."""
    features = tfds.features.FeaturesDict({"id": tfds.features.Tensor(shape=(4,), dtype=np.int32)})
    train = ({"id": np.full(4, number, np.int32)} for number in range(EQUAL))
    test = ({"id": np.full(4, 1000 + number, np.int32)} for number in range(EQUAL))
    return features, {"train": train, "test": test}


def _large(tfds: Any) -> tuple[Any, dict[str, Iterator[Any]]]:
    """Records so large that the header of each is read by itself when a file is indexed."""
    tensor = tfds.features.Tensor(shape=(5000,), dtype=np.float32)
    features = tfds.features.FeaturesDict({"x": tensor})
    train = ({"x": np.full(5000, number, np.float32)} for number in range(LARGE))
    return features, {"train": train}


_KINDS = {
    "tiny": _tiny,
    "dtypes": _dtypes,
    "text": _text,
    "mask": _mask,
    "equal": _equal,
    "large": _large,
}
