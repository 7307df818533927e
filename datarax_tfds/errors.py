"""The errors of this package. Wrong arguments raise `ValueError` or `TypeError`."""

from typing import Self

import flax.errors

# The fixes for a damaged file of a dataset, and for a damaged record in one.
RESTORE = (
    "put back an intact copy of the file, or delete its directory and prepare the dataset again"
)
RESTORE_OR_SKIP = (
    f"{RESTORE}; or set max_corrupt_records=1 in the config, so that the next record is delivered"
    " in the place of this one"
)


class DatasetNotFoundError(FileNotFoundError):
    """The dataset is not prepared on this machine, and must not or cannot be prepared."""


class DataLossError(RuntimeError):
    """Files are damaged, or are not what the metadata of the dataset say.

    Attributes:
        record: The number of the corrupt record; None if something else is damaged.
        reason: What is wrong with that record, or with a whole file, in a few words; may be empty.
        row: The row of the record in the call that read it, if a read with another seed may
            succeed, as a crop of the intact part of an image; None if every read fails.
    """

    record: int | None = None
    reason: str = ""
    row: int | None = None

    def of_record(self, record: int, reason: str, row: int | None = None) -> Self:
        """Names the corrupt record that is the cause, and returns the error."""
        self.record, self.reason, self.row = record, reason, row
        return self

    def of_file(self, reason: str) -> Self:
        """Says what is wrong with a file as a whole, and returns the error."""
        self.reason = reason
        return self


class StateMismatchError(ValueError):
    """A saved state is damaged, or belongs to another dataset, split, seed or order."""


class TrustError(ValueError):
    """A dataset would run code that is not imported, or read files that are not part of it."""


class CursorTraceError(flax.errors.TraceContextError):
    """A batch is requested inside a function that JAX traces, where the cursor would not move."""

    def __init__(self, message: str):
        Exception.__init__(self, message)  # without the link that Flax appends
