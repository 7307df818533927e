"""`datarax-tfds show`: draws records of a dataset."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from datarax_tfds.cli.dataset import Dataset
from datarax_tfds.cli.terminal import doing, import_tensorflow, wrong_usage

if TYPE_CHECKING:
    import numpy as np

    from datarax_tfds.decoding.reader import RecordReader


@dataclass(frozen=True)
class Command:
    """Draws records of a split side by side: images with labels and boxes, or texts.

    Args:
        split: Any split that TFDS understands, as train[:10%]. By default, that of the config, or
            train.
        code: The Python file with the map_fn and other functions that a config names. It is run.
        records: How many records to draw.
        shuffle: Draw random records, not the first.
        seed: The seed of the random order.
        picture: The file to write. By default, show.png.
    """

    dataset: Dataset
    split: str | None = None
    code: Annotated[Path | None, arg(metavar="FILE")] = None
    records: int = 16
    shuffle: bool = False
    seed: int = 42
    picture: Annotated[Path, arg(metavar="FILE")] = Path("show.png")

    def run(self) -> int:
        if self.records < 1:
            return wrong_usage("show", f"--records must be at least 1, got {self.records}")
        import_tensorflow()
        from datarax_tfds import show
        from datarax_tfds.decoding.reader import RecordReader
        from datarax_tfds.files.split import open_split
        from datarax_tfds.order.order import Order

        config = self.dataset.as_configured(self.split, self.code)
        split = open_split(config)
        doing(f"reading records of {config.name}:{config.split}")
        reader = RecordReader(split, config, f"{config.name}:{config.split}")
        count = min(self.records, len(split))
        numbers = Order(len(split), self.seed if self.shuffle else None).host_numbers(0, 0, count)
        picture = show(
            list(_records(reader, numbers, config.seed)),
            SimpleNamespace(get_dataset_info=lambda: split.info),
            most=count,
        )
        picture.save(self.picture)
        sys.stdout.write(f"{count:,} of {len(split):,} records in {self.picture}\n")
        return 0


def _records(reader: "RecordReader", numbers: "np.ndarray", seed: int) -> Iterator[dict[str, Any]]:
    """Records one by one, since those whose sizes vary are in no batch, in the dtypes of TFDS."""
    import jax

    from datarax_tfds.order.keys import record_keys

    for row in range(len(numbers)):
        chosen = numbers[row : row + 1]
        # Those of the first epoch, for a random map_fn.
        keys = record_keys(seed, 0, chosen) if reader.stochastic else None
        columns = reader.values(chosen, keys)
        yield jax.tree.map(lambda column: column[0], columns) | {"record_number": numbers[row]}
