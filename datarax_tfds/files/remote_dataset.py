"""Finds a prepared dataset in an object store, and copies its metadata."""

from typing import NoReturn

from datarax_tfds.config.dataset_lookup import DatasetName, Found, find, suggestion
from datarax_tfds.errors import DatasetNotFoundError
from datarax_tfds.stores.metadata_copy import MetadataCopy
from datarax_tfds.stores.object_path import ObjectPath
from datarax_tfds.stores.object_store import BRIEF, read_object
from sharding.checks import refused

# What TFDS publishes, for `try_gcs`.
PUBLIC = ObjectPath("gs:", "tfds-data", "datasets")


def find_in_store(name: str, data_dir: ObjectPath) -> tuple[Found, MetadataCopy] | None:
    """As `find`, but in a store: the newest prepared version that matches a name.

    Returns:
        Where the copy of its metadata is, and what keeps the copy.

    Raises:
        ValueError: `name` is not the name of a dataset.
        PermissionError: The store does not let this process read.
        ConnectionError: The store does not answer.
    """
    copy = MetadataCopy(data_dir, BRIEF if data_dir == PUBLIC else None)
    if not copy.add(data_dir / DatasetName.parse(name).name) and _is_dataset(data_dir, name):
        copy.add(data_dir)
    with copy.named_as_in_the_store():
        found = find(name, str(copy.local(data_dir)))
        return None if found is None else (found, copy)


def refuse_absent(name: str, data_dir: ObjectPath, subject: str) -> NoReturn:
    """Raises a `DatasetNotFoundError` for a dataset that is not prepared in a store."""
    wanted = DatasetName.parse(name)
    copy = MetadataCopy(data_dir)
    copy.add(data_dir / wanted.name)
    if (found := suggestion(wanted, [copy.local(data_dir)])) is not None:
        problem, fix = found
    else:
        # TensorStore takes a listing of `gs://` that is denied for an empty one.
        problem = "the store holds no prepared dataset of that name."
        fix = (
            f"prepare it where TFDS can write (tfds build {wanted}), and copy its directory there;"
            " or set data_dir to the directory that holds the dataset; or, if it is there, let the"
            " account of this process list the bucket (Storage Object Viewer, s3:ListBucket)"
        )
    raise refused(DatasetNotFoundError, subject, problem, searched=data_dir / wanted.name, fix=fix)


def _is_dataset(directory: ObjectPath, name: str) -> bool:
    """Whether a directory may be that of the dataset itself, of a config, or of a version."""
    above = directory.parts[2:][-3:]
    return DatasetName.parse(name).name in above or bool(read_object(directory / "features.json"))
