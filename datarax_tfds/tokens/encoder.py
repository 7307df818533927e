"""Calls the user's tokenizer, and checks what it returns."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from datarax_tfds.runtime.copying import not_copied
from sharding.checks import refused

MAX_TOKEN = 2**31 - 1

Where = Callable[[int], str]  # describes the document in a row of a call, for messages


@not_copied
class Encoder:
    """Encodes texts as arrays of token ids. Several threads may call it at once.

    Args:
        encode: Takes a text and returns its ids, or has a method `encode_batch` for a list of
            texts. Ids are integers in a list or an array, or the attribute `ids` of what is
            returned, as in the package `tokenizers`.
        eos_id: A token that is added at the end of every text; None for no such token.
        subject: The source that encodes, for messages.
    """

    def __init__(self, encode: Any, eos_id: int | None, subject: str):
        batch: Any = getattr(encode, "encode_batch", None)
        if not callable(encode) and not callable(batch):
            raise refused(
                TypeError,
                subject,
                "encode must be a function of a text, or have a method encode_batch.",
                got=type(encode).__name__,
                fix="pass a function such as encode=lambda text: list(text.encode()), or a"
                " tokenizer with encode_batch",
            )
        self._encode: Any = encode
        self._encode_batch: Any = batch
        self._end = [] if eos_id is None else [eos_id]
        self._subject = subject

    def __call__(self, texts: list[str], where: Where) -> list[np.ndarray]:
        """The ids of each text: int32 arrays.

        Raises:
            RuntimeError: `encode` fails on a text; the message names the record.
            TypeError: `encode` does not return integers in `[0, 2**31)`.
        """
        try:
            encoded = self._of_many(texts)
        except Exception:
            for row, text in enumerate(texts):  # one by one, so that the error names the record
                self._encoded_alone(text, where, row)
            raise
        if len(encoded) != len(texts):
            raise refused(
                TypeError,
                self._subject,
                "encode_batch must return the ids of each text that it gets.",
                texts=len(texts),
                returned=len(encoded),
                fix="let encode_batch return a list as long as that of the texts",
            )
        return [self._checked(ids, where, row) for row, ids in enumerate(encoded)]

    def _of_many(self, texts: list[str]) -> list[Any]:
        if self._encode_batch is not None:
            return list(self._encode_batch(texts))
        return list(map(self._encode, texts))

    def _encoded_alone(self, text: str, where: Where, row: int) -> None:
        try:
            self._of_many([text])
        except Exception as error:
            raise refused(
                RuntimeError,
                self._subject,
                "encode fails on the text of a record.",
                record=where(row),
                error=type(error).__name__,  # its text may quote the document
                fix="let encode take this text, too, and return [] for a text that is to be left"
                " out",
            ) from error

    def _checked(self, encoded: Any, where: Where, row: int) -> np.ndarray:
        ids = np.asarray(getattr(encoded, "ids", encoded))
        sound = ids.ndim == 1 and (ids.dtype.kind in "iu" or not ids.size)
        if not sound or (ids.size and not 0 <= ids.min() <= ids.max() <= MAX_TOKEN):
            array = f"{type(encoded).__name__}, as an array {ids.dtype}{list(ids.shape)}"
            raise refused(
                TypeError,
                self._subject,
                "encode must return a list of integers in [0, 2**31).",
                record=where(row),
                got=f"{array}, from {ids.min()} to {ids.max()}" if sound else array,
                fix="return only such ids, as [17, 4, 256]",
            )
        return np.append(ids, self._end).astype(np.int32, copy=False)


def fingerprint(tokens: Sequence[np.ndarray]) -> str:
    """Identifies a tokenizer by what it made of a sample of the documents."""
    digest = hashlib.sha256()
    for ids in tokens:
        digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def require_equal(
    one: Sequence[np.ndarray], other: Sequence[np.ndarray], where: Where, subject: str
) -> None:
    """Raises unless a tokenizer made the same of the same documents in two calls."""
    for row, (first, second) in enumerate(zip(one, other, strict=True)):
        if not np.array_equal(first, second):
            raise refused(
                ValueError,
                subject,
                "encode gives other tokens when it is called again with the same text.",
                record=where(row),
                tokens=f"{len(first)}, then {len(second)}",
                fix="let encode return the same ids in each call: switch off its dropout or"
                " sampling",
            )
