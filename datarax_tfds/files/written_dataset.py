"""Writes the records of a program as a prepared dataset, in TFDS's format."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_dataset(
    features: Any,
    splits: Mapping[str, Iterable[tuple[Any, Any]]],
    data_dir: Path,
    *,
    name: str,
    version: str,
    description: str,
    config_name: str | None = None,
    supervised_keys: Any = None,
    file_format: Any = None,
    **options: Any,
) -> Path:
    """Writes a prepared dataset, as TFDS does.

    Args:
        features: A `tfds.features.FeaturesDict`.
        splits: The records of each split, each with a key. TFDS stores them in an order that
            depends on the keys only.
        data_dir: The `data_dir` of the dataset.
        name: Its name.
        version: Its version, as "1.0.0".
        description: A sentence on what it is.
        config_name: The name of its config, if it has one.
        supervised_keys: The names of the input and the target, if it has any.
        file_format: That of the files. By default, that of TFDS.
        **options: For the `tfds.download.DownloadConfig`, as `num_shards`.

    Returns:
        The directory of the version. If it was prepared before, nothing is written.
    """
    import tensorflow_datasets as tfds

    class Written(tfds.dataset_builders.AdhocBuilder, skip_registration=True):
        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=description,
                features=features,
                supervised_keys=supervised_keys,
            )

    builder = Written(
        name=name,
        config=config_name,
        version=version,
        features=features,
        split_datasets=dict(splits),
        data_dir=str(data_dir),
        file_format=file_format,
    )
    download = tfds.download.DownloadConfig(try_download_gcs=False, **options)
    builder.download_and_prepare(download_config=download)
    return Path(builder.data_dir)
