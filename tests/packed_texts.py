"""Texts that are packed, and the rows of their tokens, worked out apart from the library."""

from pathlib import Path

import numpy as np
import tfds_datasets
from oracle import best_fitted, concatenated

LENGTH = 16

# No token, one, exactly a row, one more, and several rows; and letters of two and three bytes.
_chance = np.random.default_rng(1)
TEXTS = ["", "a", "b" * 16, "c" * 17, "d" * 70, "naïve 漢字", ""] + [
    "".join(map(chr, _chance.integers(97, 123, size))) for size in _chance.integers(0, 30, 60)
]


def encode(text):
    """Byte n is token n + 4."""
    return [byte + 4 for byte in text.encode()]


DOCUMENTS = [encode(text) for text in TEXTS]


def write(directory: Path) -> None:
    """Writes the texts as `docs`, in three files; `odd` is not all UTF-8, `empty` has no tokens."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    download = tfds.download.DownloadConfig(num_shards=3, try_download_gcs=False)
    tfds_datasets.store(
        directory,
        "docs",
        {"text": text, "id": np.int32, "nested": {"text": text}},
        [{"text": x, "id": n, "nested": {"text": x.upper()}} for n, x in enumerate(TEXTS)],
        download_config=download,
    )
    odd = [b"sound", b"\xff\xfe not", b"caf\xe9", b"sound too"]
    tfds_datasets.store(directory, "odd", {"text": text}, [{"text": x} for x in odd])
    tfds_datasets.store(directory, "empty", {"text": text}, [{"text": ""} for _ in range(3)])


def rows_of(documents, packing, length=LENGTH):
    """The columns of all rows, worked out apart from the library."""
    if packing == "concat":
        rows = concatenated(documents, length)
    else:
        rows = [
            [
                (token, segment, position)
                for segment, (number, start, count) in enumerate(row, 1)
                for position, token in enumerate(documents[number][start : start + count])
            ]
            for row in best_fitted(list(map(len, documents)), length)
        ]
    padded = np.zeros((len(rows), length, 3), np.int32)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return dict(zip(("tokens", "segment_ids", "positions"), np.moveaxis(padded, 2, 0), strict=True))
