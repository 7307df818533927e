"""Names a dataset on the command line, in the same words for every command."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from datarax_tfds.cli.config_file import ConfigFile
from datarax_tfds.stores.object_path import ObjectPath

if TYPE_CHECKING:
    from datarax_tfds.config.config import TFDSStreamingConfig


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset.

    Args:
        dataset: Its name, as mnist, coco/2017 or mnist:3.0.1; or the directory of the dataset or of
            a version, as DATA_DIR/mnist/3.0.1 or gs://bucket/mnist/3.0.1; or the config of a
            training program, as configs/mnist.yaml.
        data_dir: Where it is prepared, also in gs:// and s3://. By default, that of the config, or
            the directories of TFDS.
    """

    dataset: Annotated[Positional[str], arg(metavar="DATASET")]
    data_dir: Annotated[str | None, arg(metavar="DIR")] = None

    @property
    def is_directory(self) -> bool:
        """Whether a directory is named, and not a dataset by its name."""
        if self.data_dir is not None or ConfigFile.is_named_by(self.dataset):
            return False
        if "://" in self.dataset or self.dataset.startswith(("/", ".", "~")):
            return True
        path = Path(self.dataset)
        return path.is_dir() and (os.sep in self.dataset or (path / "features.json").exists())

    @cached_property
    def file(self) -> ConfigFile | None:
        """The config that is named, if it is one; read once."""
        if not ConfigFile.is_named_by(self.dataset):
            return None
        return ConfigFile.read(Path(self.dataset))

    @property
    def by_name(self) -> tuple[str, str | None]:
        """The name of the dataset, and its `data_dir`, unless it is named by its directory."""
        if (file := self.file) is None:
            return self.dataset, self.data_dir
        return file.source["name"], self.data_dir or file.source.get("data_dir")

    def config(self, split: str = "all", **fields: Any) -> "TFDSStreamingConfig":
        """The config that reads a split of it; nothing is downloaded or prepared."""
        from datarax_tfds.config.config import TFDSStreamingConfig

        fields |= {"split": split, "local_files_only": True}
        if self.is_directory:
            return TFDSStreamingConfig.from_directory(self.dataset, **fields)
        name, data_dir = self.by_name
        return TFDSStreamingConfig(name=name, data_dir=data_dir, **fields)

    def as_configured(
        self, split: str | None, code: Path | None, exclude: str | None = None, **fields: Any
    ) -> "TFDSStreamingConfig":
        """As `config`, with what the file says that is named, if it is one.

        Args:
            split: By default, that of the file, or else train.
            code: The Python file with the functions that the file names.
            exclude: Features to leave out of those that the file asks for, with commas between.
            **fields: Further fields, in place of those of the file.
        """
        file = self.file
        fields = ({} if file is None else file.fields(code)) | fields
        own = fields.pop("split", "train")
        if exclude is not None:
            _leave_out(set(exclude.split(",")), fields)
        return self.config(split or own, **fields)

    def directory(self) -> PurePath:
        """The directory of the version. One that is named need not hold a dataset."""
        if self.is_directory:
            if (remote := ObjectPath.parse(self.dataset)) is not None:
                return remote
            if "://" not in self.dataset:
                return Path(self.dataset).expanduser()
        from datarax_tfds.files.preparing import prepared_dataset

        return prepared_dataset(self.config()).directory


def _leave_out(names: set[str], fields: dict[str, Any]) -> None:
    """Leaves features out of the fields of a config, which may choose some already."""
    if (included := fields.get("include_keys")) is not None:
        fields["include_keys"] = set(included) - names
    else:
        fields["exclude_keys"] = {*(fields.get("exclude_keys") or ()), *names}
