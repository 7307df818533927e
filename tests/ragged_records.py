"""Records of which some parts vary in length, and what batches of them must be."""

from pathlib import Path

import numpy as np
import tfds_datasets

LENGTHS = (4, 8, 20)

# None, exactly a length, one more, and the longest.
_chance = np.random.default_rng(3)
SIZES = [0, 4, 5, 8, 9, 20, 1, *_chance.integers(0, 21, 90).tolist()]
N = len(SIZES)


def record(number):
    """One record, with tokens, pairs that are as many, and words of which there are others."""
    size = SIZES[number]
    return {
        "id": number,
        "tokens": np.arange(size, dtype=np.int32) + 1000 * (number + 1),
        "pairs": {
            "left": np.arange(size, dtype=np.float32) + number,
            "right": np.arange(2 * size, dtype=np.float32).reshape(size, 2) - number,
        },
        "target": np.arange(3 * number % 11, dtype=np.int32) + 1,
    }


def bucket(number, lengths=LENGTHS):
    return next(place for place, length in enumerate(lengths) if SIZES[number] <= length)


def padded(number, length):
    """The columns `tokens` and `pairs` of a record, padded, worked out by NumPy."""
    whole = record(number)
    pad = lambda x: np.pad(x, [(0, length - len(x)), *[(0, 0)] * (x.ndim - 1)])
    return {"tokens": pad(whole["tokens"])} | {
        name: pad(value) for name, value in whole["pairs"].items()
    }


def write(directory: Path) -> None:
    """Writes them as `ragged`, in three files."""
    import tensorflow_datasets as tfds

    of = tfds.features
    pair = of.Tensor(shape=(2,), dtype=np.float32)
    features = {
        "id": np.int32,
        "tokens": of.Sequence(np.int32),
        "pairs": of.Sequence({"left": np.float32, "right": pair}),
        "target": of.Sequence(np.int32),
    }
    download = tfds.download.DownloadConfig(num_shards=3, try_download_gcs=False)
    records = list(map(record, range(N)))
    tfds_datasets.store(directory, "ragged", features, records, download_config=download)
