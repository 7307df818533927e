"""Names a dataset on the command line, in the same words for every command."""

import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from datarax_tfds.stores.object_path import ObjectPath

if TYPE_CHECKING:
    from datarax_tfds.config.config import TFDSStreamingConfig


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset.

    Args:
        dataset: Its name, as mnist, coco/2017 or mnist:3.0.1; or the directory of the dataset or of
            a version, as DATA_DIR/mnist/3.0.1 or gs://bucket/mnist/3.0.1.
        data_dir: Where it is prepared, also in gs:// and s3://. By default, the directories of
            TFDS.
    """

    dataset: Annotated[Positional[str], arg(metavar="DATASET")]
    data_dir: Annotated[str | None, arg(metavar="DIR")] = None

    @property
    def is_directory(self) -> bool:
        """Whether a directory is named, and not a dataset by its name."""
        if self.data_dir is not None:
            return False
        if "://" in self.dataset or self.dataset.startswith(("/", ".", "~")):
            return True
        path = Path(self.dataset)
        return path.is_dir() and (os.sep in self.dataset or (path / "features.json").exists())

    def config(self, split: str = "all", **fields: Any) -> "TFDSStreamingConfig":
        """The config that reads a split of it; nothing is downloaded or prepared."""
        from datarax_tfds.config.config import TFDSStreamingConfig

        fields |= {"split": split, "local_files_only": True}
        if self.is_directory:
            return TFDSStreamingConfig.from_directory(self.dataset, **fields)
        return TFDSStreamingConfig(name=self.dataset, data_dir=self.data_dir, **fields)

    def directory(self) -> PurePath:
        """The directory of the version. One that is named need not hold a dataset."""
        if self.is_directory:
            if (remote := ObjectPath.parse(self.dataset)) is not None:
                return remote
            if "://" not in self.dataset:
                return Path(self.dataset).expanduser()
        from datarax_tfds.files.preparing import prepared_dataset

        return prepared_dataset(self.config()).directory
