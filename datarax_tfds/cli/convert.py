"""`datarax-tfds convert`: makes a dataset of a folder of images, or of CSV files."""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from datarax_tfds.cli.terminal import (
    doing,
    import_tensorflow,
    in_store,
    print_dataset,
    progress,
    quiet_tfds,
    wrong_usage,
)

_TABLES = (".csv", ".tsv")
_SPLIT = re.compile(r"[A-Za-z]\w*", re.ASCII)


@dataclass(frozen=True)
class Command:
    """Makes a dataset in TFDS's format from your own images or tables.

    A folder of images has one folder for each label, as photos/cat/1.jpg, or one for each split
    with these in it, as photos/train/cat/1.jpg. Without folders for splits, the split is train.
    A CSV file has a first line with the names of its columns; a folder of CSV files has one for
    each split, as table/train.csv. Each image is decoded once, so that no damaged one gets in.

    Args:
        path: The folder, or the CSV file.
        name: The name of the new dataset: small letters, digits and underscores.
        data_dir: The directory on a disk to write it into. By default, that of TFDS.
        version: Its version.
        labels: The columns of a CSV file that hold names of classes.
        image: The column of a CSV file that holds paths of images, relative to that file.
        file_format: The format of the files. By default, tfrecord.
    """

    path: Annotated[Positional[Path], arg(metavar="PATH")]
    name: Annotated[str, arg(metavar="NAME")]
    data_dir: Annotated[Path | None, arg(metavar="DIR")] = None
    version: str = "1.0.0"
    labels: Annotated[str | None, arg(metavar="COLUMN[,COLUMN]")] = None
    image: Annotated[str | None, arg(metavar="COLUMN")] = None
    file_format: Literal["tfrecord", "array_record"] | None = None

    def run(self) -> int:
        if in_store(self.path) or in_store(self.data_dir):
            return wrong_usage(
                "convert", "it reads and writes disks: copy PATH from a store, or DIR to it"
            )
        if not self.path.exists():
            return wrong_usage("convert", f"there is no file or folder {self.path}")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            return wrong_usage(
                "convert",
                f"--name must be small letters, digits and underscores, got {self.name!r}",
            )
        tables = _tables(self.path)
        if not tables and (self.labels or self.image):
            return wrong_usage("convert", "--labels and --image are for CSV files")
        if bad := [split for split in tables if not _SPLIT.fullmatch(split)]:
            return wrong_usage(
                "convert", f"a file is named like its split, as train.csv; got {bad}"
            )
        import_tensorflow()
        import tensorflow_datasets as tfds

        from datarax_tfds.config.dataset_lookup import data_dirs
        from datarax_tfds.files.own_images import has_images

        if tables and self.path.is_dir() and not self.image and has_images(self.path):
            files = ", ".join(file.name for file in tables.values())
            return wrong_usage(
                "convert",
                f"{self.path} has both images and tables: give --image with the column of {files}"
                " that holds the paths of the images, or move the tables to another folder",
            )

        (place, *_) = data_dirs(self.data_dir)
        version = place / self.name / self.version
        if version.exists():
            return wrong_usage(
                "convert", f"{version} exists: choose another --version, or remove it"
            )
        features, splits = self._tables(tables) if tables else self._images()
        from datarax_tfds.files.written_dataset import write_dataset

        doing(f"writing {version}")
        keys = ("image", "label")
        with quiet_tfds():
            write_dataset(
                features,
                splits,
                place,
                name=self.name,
                version=self.version,
                description=f"Made of {self.path.absolute().name} by datarax-tfds convert.",
                supervised_keys=keys if not tables and "label" in features else None,
                file_format=self.file_format,
            )
        info = tfds.builder_from_directory(version).info
        counts = {name: split.num_examples for name, split in info.splits.items()}
        print_dataset(info.full_name, version, counts)
        return 0

    def _images(self) -> tuple[Any, dict[str, Iterable[Any]]]:
        from datarax_tfds.files.own_images import ImageFolder

        found = ImageFolder.find(self.path)
        if found.ignored:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.ignored.items())
            sys.stderr.write(f"ignored what is no JPEG or PNG file: {kinds}\n")
        features = found.features(_shape(found.paths))
        return features, {split: found.records(split) for split in found.splits}

    def _tables(self, files: dict[str, Path]) -> tuple[Any, dict[str, Iterable[Any]]]:
        from datarax_tfds.files.own_table import Table

        labels = tuple(self.labels.split(",")) if self.labels else ()
        table = Table.read(files, labels, self.image)
        features = table.features(_shape(table.images) if self.image else None)
        return features, {split: table.records(split) for split in files}


def _tables(path: Path) -> dict[str, Path]:
    """The CSV files by split: one of that path, or those in that folder."""
    if path.suffix.lower() in _TABLES and path.is_file():
        return {"train": path}
    if not path.is_dir():
        return {}
    return {file.stem: file for file in sorted(path.iterdir()) if file.suffix.lower() in _TABLES}


def _shape(images: list[Path]) -> Any:
    from datarax_tfds.files.own_images import common_shape, image_shapes

    return common_shape(progress(image_shapes(images), len(images), "decoding", " images"))
