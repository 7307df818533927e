"""Records by number, as the rows of a batch on the host."""

import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from datarax_tfds.block_files import BlockFiles
from datarax_tfds.config import AnyConfig
from datarax_tfds.decoding import Decoder, Definition, shared_decoder
from datarax_tfds.errors import DataLossError
from datarax_tfds.files import RecordFiles
from datarax_tfds.spec import element_spec, holds_arrays, narrowed, select_features
from datarax_tfds.split import Split
from sharding.messages import explain

# What TensorFlow says of bytes that are no example.
_QUOTED = re.compile(r", value: .*", re.DOTALL)


class RecordReader:
    """Reads records of a split from its files and decodes them.

    Safe to use from several threads, each of which keeps one core busy.

    Args:
        split: Where the records are.
        config: Which features of them are wanted, and how they are decoded.
        subject: Who reads, for messages.

    Attributes:
        length: Number of records N.
        reach: How many consecutive positions may be read at a time, so that nothing is read twice.
        spec: One record, as `element_spec` says.
        holds_arrays: Whether several records can be read in one go, to be rows of arrays.
        stochastic: Whether records are read with keys.
        versions: Of the libraries that decode them.

    Raises:
        ValueError: A key that the dataset does not have, a `map_fn` that is none, or a feature that
            is no array even in one record.
    """

    def __init__(self, split: Split, config: AnyConfig, subject: str):
        self.length = self.reach = len(split)
        self.subject = subject
        self.files = split.files
        self._bytes: RecordFiles | BlockFiles = split.files
        selected = select_features(split.info, config, subject)
        if config.decoders is None and config.map_fn is None:
            text = (Path(split.info.data_dir) / "features.json").read_text()
            definition = Definition(text, split.info.features)
            self._decoder = shared_decoder(definition, tuple(selected.items()))
        else:
            self._decoder = Decoder(
                split.info.features,
                selected,
                decoders=config.decoders,
                map_fn=config.map_fn,
                subject=subject,
            )
        # What the bytes of a batch depend on beside the records.
        self.versions = {
            "jax": jax.__version__,
            "tensorflow": self._decoder.tensorflow_version,
            "numpy": np.__version__,
        }
        self._maps = config.map_fn is not None
        self.stochastic = self._decoder.stochastic
        self.spec = element_spec(self._decoder.outputs, subject)
        self.holds_arrays = holds_arrays(self.spec)

    def read_blocks(self, block_size: int, window: int) -> None:
        """From now on fetches whole blocks of records, and keeps those of two windows: of the one
        in use, and of the next, which is read ahead.

        Args:
            block_size: Records of a block.
            window: Among how many positions the records of a block are spread.
        """
        self._bytes = BlockFiles(self.files, block_size, kept=2 * math.ceil(window / block_size))
        self.reach = window

    def read(self, numbers: np.ndarray, keys: np.ndarray | None = None) -> dict[str, Any]:
        """The records of these numbers.

        Args:
            numbers: `[n]`, in `[0, N)`; one alone, unless records hold arrays.
            keys: `[n, 2]` int32, for a stochastic `map_fn`.

        Returns:
            NumPy arrays `[n, ...]` of the dtypes of `spec`, not to be written to.

        Raises:
            DataLossError: Bytes that are not what was written, or that do not decode.
            OverflowError: A value that the dtype on the device cannot hold.
            RuntimeError: `map_fn` fails on a record.
        """
        columns = self._decoded(numbers, self._bytes.read(numbers), keys)
        return jax.tree_util.tree_map_with_path(
            lambda path, spec, column: narrowed(
                column,
                np.dtype(spec.dtype),
                lambda row: (
                    f"{self.subject}: {self.files.where(numbers[row])}, feature"
                    f" {jax.tree_util.keystr(path, simple=True, separator='/')!r}"
                ),
            ),
            self.spec,
            columns,
        )

    def _decoded(
        self, numbers: np.ndarray, serialized: list[bytes], keys: np.ndarray | None
    ) -> dict[str, Any]:
        try:
            return self._decoder(serialized, keys)
        except self._decoder.Error as error:
            if len(numbers) > 1:
                # One of them cannot be decoded: one by one, the error names it.
                for row in range(len(numbers)):
                    alone = slice(row, row + 1)
                    self._decoded(
                        numbers[alone], serialized[alone], None if keys is None else keys[alone]
                    )
                raise RuntimeError(
                    explain(
                        self.subject,
                        "records that decode one by one do not decode together.",
                        records=len(numbers),
                        error=_reason(error),
                        fix="let map_fn return the same shapes for all records, or free memory",
                    )
                ) from error
            # With what it quotes, the record would be in the traceback.
            quoted = _QUOTED.search(str(error))
            raise self._failure(int(numbers[0]), error) from None if quoted else error

    def _failure(self, number: int, error: Exception) -> RuntimeError:
        # Checksums have told apart what is damaged on disk: with a map_fn, that is what fails.
        failed, fix = DataLossError, "prepare the dataset again"
        problem = "a record cannot be decoded."
        if self._maps:
            failed, fix = RuntimeError, "mend map_fn, or leave the record out with a sub-split"
            problem = "map_fn fails on a record."
        return failed(
            explain(
                self.subject,
                problem,
                where=self.files.where(number),
                error=_reason(error),
                fix=fix,
            )
        )


def _reason(error: Exception) -> str:
    """What went wrong, of all that TensorFlow says: the last line, without the name of the node and
    what it quotes of a record.
    """
    lines = [line.strip() for line in _QUOTED.sub("", str(error)).splitlines()]
    return [line for line in lines if line and not line.startswith("[[")][-1]
