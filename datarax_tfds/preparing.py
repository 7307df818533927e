"""A dataset as TFDS prepared it: found, prepared by one process while others wait, or refused."""

import dataclasses
import fcntl
import logging
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datarax_tfds.config import AnyConfig
from datarax_tfds.errors import DatasetNotFoundError
from datarax_tfds.trust import require_inside, require_known_features
from sharding import WaitTimeoutError, busy, done_by_others
from sharding.messages import explain

_log = logging.getLogger(__name__)

# What may name a dataset: no path leads out of data_dir, no builder argument comes in.
_NAME = re.compile(r"\w+(/[\w.+-]*\w[\w.+-]*)?(:[\d*]+[.][\d*]+[.][\d*]+)?", re.ASCII)


def prepared_builder(config: AnyConfig) -> Any:
    """The TFDS builder of a prepared dataset, from its files where they are there.

    TensorFlow is not imported unless the dataset has to be prepared.

    Raises:
        DatasetNotFoundError: The dataset is not prepared, and `local_files_only` is set, TFDS does
            not know it, or nothing can be written there.
        WaitTimeoutError: Another process is preparing it for very long.
        TrustError: It asks for code, or for files elsewhere.
        ValueError: The name is that of no dataset.
    """
    subject = f"{config.name}:{config.split}"
    if not _NAME.fullmatch(str(config.name)):
        raise ValueError(
            explain(
                "name",
                "this is not the name of a dataset.",
                name=repr(config.name),
                fix="use 'name', 'name/config' or 'name:1.2.3', and data_dir for a directory",
            )
        )
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.utils import error_utils

    data_dir = None if config.data_dir is None else os.path.expanduser(config.data_dir)
    # Not `builder_from_files`, which opens what it finds before anybody can look at it.
    with error_utils.record_error_context():
        prepared = read_only_builder._find_builder_dir(str(config.name), data_dir=data_dir)
    if prepared is not None:
        return _opened(Path(prepared))
    known = tfds.list_builders(with_community_datasets=False)
    name = re.split("[/:]", str(config.name))[0]
    if config.local_files_only or name not in known:
        reason = "local_files_only is set" if name in known else "TFDS knows none of that name"
        raise DatasetNotFoundError(
            explain(
                subject,
                f"the dataset is not prepared, and {reason}.",
                searched=data_dir or "the default data_dir of TFDS",
                fix="check name and data_dir, or prepare it where it can be downloaded:"
                f" tfds build {name}",
            )
        )
    builder = tfds.builder(str(config.name), data_dir=data_dir)
    with busy(f"{subject} to be prepared"), only_preparer(Path(builder.data_dir), subject):
        waited_for = Path(builder.data_dir).exists()
        builder.download_and_prepare(**prepare_options(config))
    others = [] if waited_for else done_by_others(f"preparing {config.name}")
    if others:
        _log.warning(
            "%s: %s prepared it, too: the processes share no file system, or were given several"
            " data_dirs. Each host then needs room for it, and the network for all.",
            subject,
            ", ".join(others),
        )
    # Opened anew: a builder that found the work done by another knows nothing of its splits.
    return _opened(Path(builder.data_dir))


def _opened(prepared: Path) -> Any:
    """The builder of a prepared version, once it is known to name no code and no other files."""
    import tensorflow_datasets as tfds

    require_inside(prepared, ())
    require_known_features(prepared)
    builder = tfds.builder_from_directory(prepared)
    for split in builder.info.splits.values():
        require_inside(prepared, map(Path, split.filepaths))
    return builder


def prepare_options(config: AnyConfig) -> dict[str, Any]:
    """The arguments of `download_and_prepare`, the bucket and Beam's workers among them."""
    import tensorflow_datasets as tfds

    options = dict(config.download_and_prepare_kwargs or {})
    download = options.get("download_config")
    if download is None or config.try_gcs:
        download = dataclasses.replace(
            download or tfds.download.DownloadConfig(), try_download_gcs=config.try_gcs
        )
    if config.beam_num_workers is not None:
        beam = _beam_options(config.beam_num_workers, f"{config.name}:{config.split}")
        download = dataclasses.replace(download, beam_options=beam)
    return options | {"download_config": download}


def _beam_options(workers: int, subject: str) -> Any:
    try:
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore
    except ImportError as error:
        raise ImportError(
            explain(
                subject,
                "beam_num_workers is set, and Apache Beam is not installed.",
                beam_num_workers=workers,
                fix="pip install 'datarax-tfds[beam]', or leave beam_num_workers out",
            )
        ) from error
    return PipelineOptions(direct_num_workers=workers, direct_running_mode="multi_processing")


@contextmanager
def only_preparer(prepared: Path, subject: str, timeout_s: float = 24 * 3600) -> Iterator[None]:
    """Lets one process at a time prepare a dataset; the others find it prepared afterwards.

    A lock on a file, so that it holds between jobs too and ends with the process that holds it.
    """
    lock = prepared.parent / f".{prepared.name}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o664)
    except OSError as error:
        raise DatasetNotFoundError(
            explain(
                subject,
                "the dataset is not prepared, and cannot be: nothing can be written there.",
                directory=lock.parent,
                error=error,
                fix="set data_dir to a directory that can be written, or prepare the dataset where"
                " it can be: tfds build",
            )
        ) from error
    deadline = time.monotonic() + timeout_s
    with open(descriptor, "r+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise WaitTimeoutError(
                        explain(
                            subject,
                            "another process is still preparing the dataset.",
                            waited_s=timeout_s,
                            lock=lock,
                            holder=file.read(200).strip() or "unknown",
                            fix="look after that process, then start again",
                        )
                    ) from None
                time.sleep(0.2)
        # Only who holds the lock prepares: what others left is of processes that have died.
        for left in sorted(prepared.parent.glob(f"incomplete.*_{prepared.name}")):
            _log.warning("%s: %s was left half prepared; it can be removed", subject, left)
        file.truncate()
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
        file.truncate(0)
