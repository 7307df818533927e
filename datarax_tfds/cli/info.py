"""`datarax-tfds info`: what is in a prepared dataset, and in which form a source hands it out."""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from datarax_tfds.cli.dataset import Dataset
from datarax_tfds.cli.index import tfrecord_files
from datarax_tfds.cli.terminal import import_tensorflow, print_json, print_table, wrong_usage


@dataclass(frozen=True)
class Command:
    """Prints the splits and features of a prepared dataset, as a source hands them out.

    The files of records are not read.

    Args:
        json: Print JSON.
        device_gib: The free memory of a device in GiB, to tell how many devices an eager source
            needs. By default, that of the devices here.
    """

    dataset: Dataset
    json: bool = False
    device_gib: float | None = None

    def run(self) -> int:
        if self.device_gib is not None and not 0 <= self.device_gib < math.inf:
            problem = f"--device-gib must be a number of at least 0, as 16, got {self.device_gib}"
            return wrong_usage("info", problem)
        import_tensorflow()
        device_bytes = None if self.device_gib is None else int(self.device_gib * 2**30)
        found = described(self.dataset, device_bytes)
        if self.json:
            print_json(asdict(found))
        else:
            _print(found)
        return 0


@dataclass(frozen=True)
class Split:
    """A split.

    Args:
        name: Its name.
        records: The number of its records.
        shards: The number of its files.
        stored_bytes: The size of its files.
        eager_bytes: What an eager source takes on all devices together, when no device holds a
            record twice; None if a feature cannot be batched.
        devices: The number of devices that it needs at least.
    """

    name: str
    records: int
    shards: int
    stored_bytes: int
    eager_bytes: int | None
    devices: int | None


@dataclass(frozen=True)
class Feature:
    """A part of a record as a source hands it out, without the batch axis.

    Args:
        name: Its name, or its path, as `objects/label`.
        dtype: Its dtype on the devices; `object` is text or bytes.
        shape: Its shape, with None for what varies.
        fix: What to do so that it can be in a batch; None if it can.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    fix: str | None


@dataclass(frozen=True)
class Description:
    """A prepared dataset.

    Args:
        dataset: Name, config and version, as `mnist/3.0.1`.
        directory: Where it is.
        format: Its file format.
        splits: Its splits.
        features: The parts of a record.
        files: The number of its TFRecord files.
        indexed: How many of these have an index.
    """

    dataset: str
    directory: str
    format: str
    splits: list[Split]
    features: list[Feature]
    files: int
    indexed: int


def described(dataset: Dataset, device_bytes: int | None = None) -> Description:
    """Describes a prepared dataset from its metadata."""
    from datarax_tfds.files.preparing import prepared_dataset

    config = dataset.config()
    prepared = prepared_dataset(config)
    info = prepared.info
    spec = _spec(info, config)
    files, missing = _indexes(info, prepared.directory)
    return Description(
        dataset=info.full_name,
        directory=str(prepared.directory),
        format=info.file_format.value,
        splits=list(_splits(info, spec, device_bytes)),
        features=list(_features(spec)),
        files=files,
        indexed=files - missing,
    )


def _spec(info: Any, config: Any) -> Mapping[str, Any]:
    """Shapes and dtypes of the parts of a record, without reading any."""
    from datarax_tfds.decoding.decoder import decoder_of
    from datarax_tfds.decoding.plan import DecodingPlan
    from datarax_tfds.decoding.record_spec import record_spec

    plan = DecodingPlan.of(info, config, str(config.name))
    return record_spec(decoder_of(plan).outputs, plan)[0]


def _splits(info: Any, spec: Mapping[str, Any], device_bytes: int | None) -> Iterator[Split]:
    from datarax_tfds.decoding.record_spec import holds_arrays
    from datarax_tfds.records.packing import Packing

    eager = holds_arrays(spec)
    row_bytes = Packing(spec).row_bytes if eager else 0
    if eager and device_bytes is None:
        device_bytes = _free_device_bytes()
    for name, split in info.splits.items():
        records = split.num_examples
        yield Split(
            name=name,
            records=records,
            shards=len(split.shard_lengths),
            stored_bytes=split.num_bytes,
            eager_bytes=records * row_bytes if eager else None,
            devices=_devices(records, row_bytes, device_bytes or 0) if eager else None,
        )


def _devices(records: int, row_bytes: int, device_bytes: int) -> int | None:
    """The least number of devices whose memory holds all records; None if it holds not even one."""
    rows = device_bytes // max(row_bytes, 1)
    return max(1, math.ceil(records / rows)) if rows else None


def _free_device_bytes() -> int:
    from datarax_tfds.records.memory import free_device_bytes
    from datarax_tfds.sources.default_sharding import resolved_sharding

    return free_device_bytes(resolved_sharding(None, "datarax-tfds info"))


def _features(spec: Mapping[str, Any]) -> Iterator[Feature]:
    import jax

    from datarax_tfds.decoding.array_advice import array_refused
    from datarax_tfds.decoding.device_dtypes import path_name
    from datarax_tfds.decoding.record_spec import Unbatched
    from sharding.checks import fix_of

    for path, leaf in jax.tree_util.tree_leaves_with_path(spec):
        fix = None
        if isinstance(leaf, Unbatched):
            says = path_name(path), "cannot be in a batch", leaf
            fix = fix_of(array_refused(*says, subject="info", mapped_by=None))
        yield Feature(path_name(path), str(leaf.dtype), tuple(leaf.shape), fix)


def _indexes(info: Any, directory: PurePath) -> tuple[int, int]:
    """The number of TFRecord files, and of those that have no index."""
    if info.file_format.value != "tfrecord":
        return 0, 0
    files, missing = tfrecord_files(directory)
    return len(files), len(missing)


def _print(found: Description) -> None:
    sys.stdout.write(f"{found.dataset} in {found.directory}, as {found.format}\n\n")
    columns = ("split", "records", "files", "bytes", "eager bytes", "on devices")
    print_table(columns, (tuple(asdict(split).values()) for split in found.splits))
    print_table(
        ("feature", "dtype", "shape", "in a batch"),
        [
            (each.name, each.dtype, each.shape, "no" if each.fix else "yes")
            for each in found.features
        ],
    )
    for each in found.features:
        if each.fix:
            sys.stdout.write(f"{each.name}: {each.fix}\n")
    if found.files:
        sys.stdout.write(f"{found.indexed:,} of {found.files:,} TFRecord files have an index\n")
