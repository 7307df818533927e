"""Makes the tokens of documents here or on workers."""

import dataclasses
from typing import Any

import numpy as np

from datarax_tfds.config.config import TFDSStreamingConfig
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.service.admission import Admission
from datarax_tfds.service.description import Description, described, found
from datarax_tfds.service.dispatcher import MAX_CALLS, Dispatcher
from datarax_tfds.service.served_reader import facts_of
from datarax_tfds.service.serving import start_with_ray
from datarax_tfds.tokens.documents import DecodeErrors, Documents
from datarax_tfds.tokens.encoder import Encoder

_COLUMN = "tokens"


@not_copied
class ServedTokens:
    """Makes tokens with the help of workers, which read the documents themselves.

    Args:
        documents: Makes them here.
        late_s: See `Dispatcher`.
        threads: See `Dispatcher`.

    Attributes:
        dispatcher: Gives calls to threads and workers.
        max_calls: How many threads may wait for calls.
    """

    max_calls = MAX_CALLS

    def __init__(self, documents: Documents, *, late_s: float, threads: int | None = None):
        reader = documents.reader
        self.dispatcher = Dispatcher(
            lambda numbers, _: rows_of(documents.encoded(numbers)),
            misfit,
            Admission(
                lambda numbers, _: rows_of(documents.encoded(numbers, intact=True)),
                reader.length,
                stochastic=False,
                facts=facts_of(reader),
            ),
            reader.subject,
            reader.timings,
            late_s=late_s,
            threads=threads,
        )

    @property
    def parallel(self) -> int:
        """How many calls keep the threads here and the workers busy."""
        return min(self.dispatcher.team.parallel, self.max_calls)

    def encoded(self, numbers: np.ndarray) -> list[np.ndarray]:
        """The tokens of documents: see `Documents.encoded`."""
        return list(self.dispatcher.read(numbers)[_COLUMN])


@dataclasses.dataclass(frozen=True)
class DescribedTokens:
    """All that makes tokens what they are, in plain values and import paths.

    Args:
        records: The records with the texts.
        feature: See `Documents`.
        errors: See `Documents`.
        encode: The tokenizer, as `described`.
        eos_id: See `Encoder`.
    """

    records: Description
    feature: str
    errors: DecodeErrors
    encode: Any
    eos_id: int | None

    def opened(self) -> "OpenedTokens":
        """Opens the documents. Workers call it."""
        reader = self.records.opened()
        encoder = Encoder(found(self.encode), self.eos_id, reader.subject)
        documents = Documents(reader, self.feature, self.errors, encoder, reader.subject)
        return OpenedTokens(reader, documents)


class OpenedTokens:
    """Reads the tokens of documents in a worker, as a `RecordReader` reads records."""

    record_bytes = 0  # they differ

    def __init__(self, reader: RecordReader, documents: Documents):
        self.split, self.versions, self.user_code = reader.split, reader.versions, reader.user_code
        self._documents = documents

    def read(self, numbers: np.ndarray, keys: np.ndarray | None = None, /) -> dict[str, Any]:  # noqa: ARG002
        """The tokens of documents, each int32 `[n]`, in a column of objects."""
        return rows_of(self._documents.encoded(numbers))


def served_tokens(
    documents: Documents,
    reading: TFDSStreamingConfig,
    *,
    feature: str,
    errors: DecodeErrors,
    encode: Any,
    eos_id: int | None,
) -> ServedTokens | None:
    """The documents with workers; None if the config has no `service`.

    Raises:
        ValueError: The tokenizer, or another function, has no import path, and must not be pickled.
        ModuleNotFoundError: Ray is not installed.
    """
    service = reading.service
    assert not isinstance(service, str)  # the config has replaced it
    if service is None:
        return None
    reader, pickled = documents.reader, service.pickle_functions
    tokens = DescribedTokens(
        Description.of(reader, reading, pickle_functions=pickled),
        feature,
        errors,
        described("encode", encode, reader.subject, pickle_functions=pickled),
        eos_id,
    )
    with_workers = ServedTokens(documents, late_s=service.late_s)
    start_with_ray(with_workers.dispatcher, service, tokens, reader)
    return with_workers


def rows_of(tokens: list[np.ndarray]) -> dict[str, Any]:
    """Tokens in a column of objects, as arrays of several shapes are in a record."""
    column = np.empty(len(tokens), object)
    for row, ids in enumerate(tokens):
        column[row] = ids
    return {_COLUMN: column}


def misfit(rows: Any, count: int) -> str | None:
    """What is wrong with what should be the tokens of `count` documents."""
    column: Any = rows.get(_COLUMN) if isinstance(rows, dict) else None
    if not isinstance(column, np.ndarray) or column.shape != (count,):
        sent = getattr(column, "shape", type(column).__name__)
        return f"the tokens differ: it sent {sent}, not {count} arrays"
    for ids in column:
        if not isinstance(ids, np.ndarray) or ids.dtype != np.int32 or ids.ndim != 1:
            return f"the tokens differ: it sent {getattr(ids, 'dtype', type(ids).__name__)}"
    return None
