"""`datarax-tfds fill`: writes random records with the features of a real dataset."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from datarax_tfds.cli.dataset import Dataset
from datarax_tfds.cli.terminal import (
    doing,
    import_tensorflow,
    in_store,
    print_dataset,
    quiet_tfds,
    wrong_usage,
)

_SPLITS = "train,validation,test"


@dataclass(frozen=True)
class Command:
    """Writes a dataset of random records with the features of a real one, to try a program with.

    Only metadata are read: those of a prepared dataset, or the code of a dataset that TFDS knows.
    Nothing is downloaded. The new dataset has the same name, version and features, in another
    directory.

    Args:
        out: The data_dir for the new dataset.
        records: How many records each split has, at most as many as the real one.
        splits: The names of the splits. By default, those of the prepared dataset, or
            train,validation,test.
        seed: The seed of the records.
        shards: How many files each split has.
        max_length: The largest length where the features leave it open, of sequences and texts.
        max_image_size: The largest height and width of images where the features leave them open.
    """

    dataset: Dataset
    out: Annotated[Path, arg(metavar="DIR")]
    records: int = 1000
    splits: Annotated[str | None, arg(metavar="NAME[,NAME]")] = None
    seed: int = 0
    shards: int = 1
    max_length: int = 16
    max_image_size: int = 64

    def run(self) -> int:
        least = min(self.records, self.shards, self.max_length, self.max_image_size)
        if least < 1 or self.seed < 0 or self.shards > self.records:
            return wrong_usage(
                "fill",
                "--records, --shards, --max-length and --max-image-size must be at least 1, --seed"
                " at least 0, and --shards at most --records; got"
                f" --records {self.records} --shards {self.shards} --max-length {self.max_length}"
                f" --max-image-size {self.max_image_size} --seed {self.seed}",
            )
        if in_store(self.out):
            return wrong_usage("fill", "--out must be on a disk: copy it to the store afterwards")
        import_tensorflow()
        from datarax_tfds.files.random_records import Bounds, write_random_dataset

        info = _info_of(self.dataset)
        real = {name: split.num_examples for name, split in info.splits.items()}
        names = self.splits or ",".join(real) or _SPLITS
        counts = {
            name: min(self.records, real.get(name, self.records)) for name in names.split(",")
        }
        place = self.out.expanduser().absolute()
        version = place / info.full_name
        if version.exists():
            return wrong_usage("fill", f"{version} exists: choose another --out, or remove it")
        doing(f"writing {sum(counts.values()):,} records into {version}")
        bounds = Bounds(self.max_length, self.max_image_size)
        with quiet_tfds():
            write_random_dataset(info, place, counts, self.seed, bounds, num_shards=self.shards)
        print_dataset(info.full_name, version, counts)
        return 0


def _info_of(dataset: Dataset) -> Any:
    """The `tfds.core.DatasetInfo` of a prepared dataset, or of the code that TFDS has for it."""
    import tensorflow_datasets as tfds

    from datarax_tfds.config.dataset_lookup import DatasetName
    from datarax_tfds.errors import DatasetNotFoundError
    from datarax_tfds.files.preparing import prepared_dataset

    try:
        return prepared_dataset(dataset.config()).info
    except DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        name, _ = dataset.by_name
        if dataset.is_directory or DatasetName.parse(name).name not in known:
            raise
    with quiet_tfds():
        return tfds.builder(name).info
