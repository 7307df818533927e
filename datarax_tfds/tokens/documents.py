"""Reads documents, which are the texts of one feature, and encodes them as tokens."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from datarax_tfds.decoding.device_dtypes import path_name
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.decoding.record_spec import Unbatched
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.timings import ENCODING
from datarax_tfds.tokens.encoder import Encoder
from sharding.checks import nearest, refused

DecodeErrors = Literal["strict", "replace", "ignore"]
Encoded = Callable[[np.ndarray], list[np.ndarray]]  # the tokens of documents, by record number

_LAST_TOKENS = 1 << 24  # 64 MiB: those of the last documents, of which the next rows may take more


@not_copied
class Documents:
    """The documents of a split by record number. Several threads may read at once.

    Args:
        reader: Reads the records.
        feature: The path of the feature with the text, as `text` or `article/body`.
        errors: What to do about bytes that are not UTF-8, as in `bytes.decode`.
        encoder: Makes tokens of the texts.
        subject: The source that reads, for messages.
        cached_tokens: How many tokens stay in memory for later epochs: those of the documents that
            are read first. None caches those that were read last, for the next rows.
    """

    def __init__(
        self,
        reader: RecordReader,
        feature: str,
        errors: DecodeErrors,
        encoder: Encoder,
        subject: str,
        *,
        cached_tokens: int | None = None,
    ):
        self.reader = reader
        self._errors = errors
        self._encoder = encoder
        self._subject = subject
        _require_text(reader, feature, subject)
        self._path = feature.split("/")
        self._cached: OrderedDict[int, np.ndarray] = OrderedDict()
        self._room = _LAST_TOKENS if cached_tokens is None else cached_tokens
        self._evicts = cached_tokens is None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.reader.length

    @property
    def max_calls(self) -> int:
        """The most threads that ask for tokens at once."""
        return self.reader.max_calls

    @property
    def parallel(self) -> int:
        """How many calls to have under way at once."""
        return self.reader.parallel

    def where(self, number: int) -> str:
        """Describes a record, for a message."""
        return f"{number}: {self.reader.files.where(number)}"

    def encoded(self, numbers: np.ndarray, *, intact: bool = False) -> list[np.ndarray]:
        """The tokens of the documents with these numbers, each an int32 array.

        Args:
            numbers: Those of the records.
            intact: Whether a corrupt record is an error although the config would replace it.

        Raises:
            ValueError: Bytes are not UTF-8, and `errors` is `strict`.
        """
        contents = self._contents(numbers, intact)
        texts = [
            self._decoded(number, content)
            for number, content in zip(numbers.tolist(), contents, strict=True)
        ]
        with self.reader.timings.timed(ENCODING):
            return self._encoder(texts, lambda row: self.where(int(numbers[row])))

    def tokens(self, numbers: np.ndarray, encoded: Encoded) -> list[np.ndarray]:
        """The tokens that `encoded` returns, without asking it for those that are cached."""
        with self._lock:
            found = {n: self._cached[n] for n in numbers.tolist() if n in self._cached}
        missing = np.array([n for n in numbers.tolist() if n not in found], np.int64)
        if len(missing):
            made = dict(zip(missing.tolist(), encoded(missing), strict=True))
            self._cache(made)
            found |= made
        return [found[number] for number in numbers.tolist()]

    def _cache(self, encoded: dict[int, np.ndarray]) -> None:
        with self._lock:
            for number, ids in encoded.items():
                if number not in self._cached and (self._evicts or len(ids) <= self._room):
                    # A copy, as a view would keep the memory of all documents of a call to a
                    # worker, and an open file there.
                    self._cached[number] = ids.copy()
                    self._room -= len(ids)
            while self._room < 0:
                _, dropped = self._cached.popitem(last=False)
                self._room += len(dropped)

    def forget(self) -> None:
        """Drops the tokens that are cached."""
        with self._lock:
            self._room += sum(map(len, self._cached.values()))
            self._cached.clear()

    def _contents(self, numbers: np.ndarray, intact: bool) -> list[bytes]:
        read = self.reader.read_intact if intact else self.reader.read
        size = max(len(numbers), 1) if self.reader.takes_many else 1
        contents: list[bytes] = []
        for start in range(0, len(numbers), size):
            column: Any = read(numbers[start : start + size])
            for name in self._path:
                column = column[name]
            contents += column.tolist()
        return contents

    def _decoded(self, number: int, content: bytes) -> str:
        try:
            return content.decode("utf-8", self._errors)
        except UnicodeDecodeError as error:
            raise refused(
                ValueError,
                self._subject,
                "the text of a record is not UTF-8.",
                record=self.where(number),
                at=f"byte {error.start} of {len(content)}",
                fix="use errors='replace', which puts U+FFFD in the place of such bytes, or"
                " errors='ignore', which leaves them out",
            ) from None


def _require_text(reader: RecordReader, feature: str, subject: str) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(reader.spec)
    texts = [
        path_name(path)
        for path, leaf in leaves
        if isinstance(leaf, Unbatched) and leaf.dtype == object and leaf.shape == ()
    ]
    if feature not in texts:
        raise refused(
            ValueError,
            subject,
            f"feature {feature!r} must be one text in each record.",
            texts=", ".join(texts) or "none",
            spec=", ".join(f"{path_name(path)} {leaf.dtype}{leaf.shape}" for path, leaf in leaves),
            fix=f"use feature={nearest(feature, texts) or (texts or ['text'])[0]!r}, or let map_fn"
            " return a text under this name",
        )
