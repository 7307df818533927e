"""Records by number, as the rows of a batch on the host."""

from typing import Any

import jax
import numpy as np

from datarax_tfds.config import TFDSEagerConfig
from datarax_tfds.decoding import Decoder
from datarax_tfds.errors import DataLossError
from datarax_tfds.spec import element_spec, narrowed, select_features
from datarax_tfds.split import Split
from sharding.messages import explain


class RecordReader:
    """Reads records of a split from its files and decodes them.

    Safe to use from several threads, each of which keeps one core busy.

    Args:
        split: Where the records are.
        config: Which features of them are wanted.
        subject: Who reads, for messages.

    Raises:
        ValueError: A feature that no array can hold, or a key that the dataset does not have.
    """

    def __init__(self, split: Split, config: TFDSEagerConfig, subject: str):
        self._subject = subject
        self._files = split.files
        selected = select_features(split.info, config, subject)
        self.spec = element_spec(split.info, selected, subject)
        self._decoder = Decoder(split.info.features, selected)

    def read(self, numbers: np.ndarray) -> dict[str, Any]:
        """The records of these numbers.

        Args:
            numbers: `[n]`, in `[0, N)`.

        Returns:
            NumPy arrays `[n, ...]` of the dtypes of `spec`.

        Raises:
            DataLossError: Bytes that are not what was written, or that do not decode.
            OverflowError: A value that the dtype on the device cannot hold.
        """
        columns = self._decoded(numbers, self._files.read(numbers))
        return jax.tree_util.tree_map_with_path(
            lambda path, spec, column: narrowed(
                column,
                np.dtype(spec.dtype),
                lambda row: (
                    f"{self._subject}: {self._files.where(numbers[row])}, feature"
                    f" {jax.tree_util.keystr(path, simple=True, separator='/')!r}"
                ),
            ),
            self.spec,
            columns,
        )

    def _decoded(self, numbers: np.ndarray, serialized: list[bytes]) -> dict[str, Any]:
        try:
            return self._decoder(serialized)
        except self._decoder.Error as error:
            if len(numbers) > 1:
                # One of them cannot be decoded: one by one, the error names it.
                for row in range(len(numbers)):
                    self._decoded(numbers[row : row + 1], serialized[row : row + 1])
            raise DataLossError(
                explain(
                    self._subject,
                    "a record cannot be decoded.",
                    where=self._files.where(numbers[0]),
                    error=str(error).splitlines()[0],
                    fix="prepare the dataset again",
                )
            ) from error
