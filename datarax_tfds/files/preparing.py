"""Finds a prepared dataset, or has TFDS prepare it in one process while the others wait."""

import dataclasses
import fcntl
import logging
import os
import platform
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TextIO
from urllib.parse import urlsplit
from urllib.request import getproxies

from datarax_tfds.config.config import AnyConfig
from datarax_tfds.config.dataset_lookup import (
    DatasetName,
    Found,
    data_dirs,
    find,
    held_by,
    prepared_names,
    suggestion,
)
from datarax_tfds.errors import DatasetNotFoundError
from datarax_tfds.files.formats import FORMATS
from datarax_tfds.files.metadata_checks import require_known_features, require_own_metadata
from datarax_tfds.files.remote_dataset import PUBLIC, find_in_store, refuse_absent
from datarax_tfds.runtime.threads import bounded
from datarax_tfds.stores.metadata_copy import MetadataCopy
from datarax_tfds.stores.object_path import ObjectPath
from sharding import WaitTimeoutError
from sharding.checks import nearest, refused
from sharding.hosts.agreement import also_done_by, extend_deadlines
from sharding.hosts.job import job

_log = logging.getLogger(__name__)

_SOON_S = 2.0  # a longer wait for another process is logged


class Prepared(NamedTuple):
    """A prepared version.

    Args:
        info: Its `tfds.core.DatasetInfo`.
        directory: Where its files are.
        copy: The copy of its metadata, if they are in a store.
    """

    info: Any
    directory: PurePath
    copy: MetadataCopy | None = None

    def stored(self, path: str) -> PurePath:
        """Where a file is that the info names."""
        return Path(path) if self.copy is None else self.copy.remote(Path(path))


def prepared_dataset(config: AnyConfig) -> Prepared:
    """Finds a prepared dataset, which is prepared first if that is needed and allowed.

    TensorFlow is imported only to prepare a dataset.

    Raises:
        PermissionError: A store does not let this process read it.
        ConnectionError: A store does not answer.
        DatasetNotFoundError: The dataset is not prepared, and `local_files_only` is set, TFDS does
            not know it, it cannot be downloaded, or its directory cannot be written.
        WaitTimeoutError: Another process is still preparing it after a day or `stall_timeout_s`, or
            reading its metadata takes longer than `stall_timeout_s`.
        TrustError: The dataset needs code that is not imported, or files elsewhere.
        ValueError: The name is not that of a dataset, or several directories hold it.
    """
    import tensorflow_datasets  # noqa: F401  # before the bounded wait: it may take 20 s

    subject = f"{config.name}:{config.split}"
    searched = None if config.data_dir is None else ObjectPath.parse(config.data_dir)
    if searched is not None:
        opened = _from_store(config, searched, subject)
        return opened or refuse_absent(str(config.name), searched, subject)
    found = bounded(
        lambda: find(str(config.name), config.data_dir),
        subject,
        lambda: f"looking for the dataset in {config.data_dir or 'the default data_dir of TFDS'}",
    )
    if found is not None:
        return _opened(found, subject)
    if config.try_gcs and (public := _from_store(config, PUBLIC, subject)) is not None:
        return public
    builder = _builder_of_code(config, subject)
    directory = Path(builder.data_dir)
    prepared = Found(directory, directory.parents[2 if builder.builder_config else 1])
    with extend_deadlines(f"preparing {subject}"), only_preparer(prepared.directory, subject):
        waited_for = prepared.directory.exists()
        if not waited_for:
            _require_network(builder, prepared.root, config, subject)
        builder.download_and_prepare(**prepare_options(config))
    other = None if waited_for else also_done_by(f"preparing {config.name}")
    if other is not None:
        _log.warning(
            "%s: %s prepared it, too: the processes share no file system, or were given several"
            " data_dirs. Each host then needs room for it, and the network for all.",
            subject,
            other,
        )
    # A new builder, because the old one has no splits if another process prepared the dataset.
    return _opened(prepared, subject)


def _builder_of_code(config: AnyConfig, subject: str) -> Any:
    """The builder that can prepare a missing dataset; raises `DatasetNotFoundError` if none can."""
    import tensorflow_datasets as tfds

    wanted, roots = DatasetName.parse(str(config.name)), data_dirs(config.data_dir)
    known = tfds.list_builders(with_community_datasets=False)
    misplaced = config.data_dir is not None and held_by(roots[0]) is not None
    if config.local_files_only or wanted.name not in known or misplaced:
        raise _not_prepared(wanted, roots, known, subject)
    data_dir = None if config.data_dir is None else str(roots[0])
    try:
        return tfds.builder(str(wanted), data_dir=data_dir)
    except (AssertionError, ValueError) as error:  # no such config, or no such version
        code: Any = tfds.builder_cls(wanted.name)
        config_name = nearest(wanted.config or "", code.builder_configs)
        there = DatasetName(wanted.name, config_name if wanted.config else None)
        raise refused(
            DatasetNotFoundError,
            subject,
            "the dataset is not prepared, and TFDS cannot prepare that config or version.",
            configs=", ".join(list(code.builder_configs)[:20]) or "none",
            error=error,
            fix=f"use name={str(there)!r}",
        ) from error


def _not_prepared(
    wanted: DatasetName, roots: list[Path], known: list[str], subject: str
) -> DatasetNotFoundError:
    prepared = prepared_names(roots)
    near = nearest(wanted.name, prepared), nearest(wanted.name, known)
    if (found := suggestion(wanted, roots)) is not None:
        problem, fix = found
    elif wanted.name in known:
        problem = "the dataset is not prepared, and local_files_only is set."
        fix = f"set local_files_only=False, or prepare it with: tfds build {wanted}"
    else:
        problem = "the dataset is not prepared, and TFDS knows none of that name."
        fix = "set data_dir to the directory in which it is prepared"
        if name := near[0] or near[1]:
            fix = f"use name={name!r}, or {fix}"
    return refused(
        DatasetNotFoundError,
        subject,
        problem,
        searched=", ".join(
            str(root) if root.is_dir() else f"{root} (no directory)" for root in roots
        ),
        prepared=", ".join(prepared[:20]) or "no dataset",
        fix=fix,
    )


def _require_network(builder: Any, data_dir: Path, config: AnyConfig, subject: str) -> None:
    """Raises at once if the network does not know the hosts of the downloads.

    TFDS would try each of them for 3 min 24 s. Nothing is checked if there is a proxy, or if files
    have been downloaded before or put there by hand.
    """
    options = config.download_and_prepare_kwargs or {}
    downloads = Path(options.get("download_dir") or data_dir / "downloads")
    by_hand = getattr(options.get("download_config"), "manual_dir", None)
    hosts = sorted({urlsplit(url).hostname or "" for url in builder.url_infos or {}} - {""})
    if not hosts or by_hand or getproxies() or (downloads.is_dir() and any(downloads.iterdir())):
        return
    failures = [_lookup_failure(host) for host in hosts[:3]]
    if None in failures:
        return
    raise refused(
        DatasetNotFoundError,
        subject,
        "the dataset is not prepared, and cannot be downloaded: the network does not know the"
        " host.",
        host=", ".join(hosts[:3]),
        error=failures[0],
        prepared_there=", ".join(prepared_names([data_dir])[:20]) or "nothing",
        fix=f"prepare it on a machine with network access (tfds build {config.name}), copy it,"
        " and set data_dir to the directory that holds the copy",
    )


def _lookup_failure(host: str) -> OSError | None:
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        return error
    return None


def _from_store(config: AnyConfig, data_dir: ObjectPath, subject: str) -> Prepared | None:
    found = bounded(
        lambda: find_in_store(str(config.name), data_dir),
        subject,
        lambda: f"looking for the dataset in {data_dir}",
    )
    if found is None:
        return None
    copied, copy = found
    with copy.named_as_in_the_store():
        info = _opened(copied, subject).info
    return Prepared(info, copy.remote(copied.directory), copy)


def _opened(found: Found, subject: str) -> Prepared:
    doing = f"reading the metadata (dataset_info.json, features.json) in {found.directory}"
    info = bounded(lambda: _checked_builder(found), subject, lambda: doing).info
    return Prepared(info, Path(info.data_dir))


def _checked_builder(found: Found) -> Any:
    """Checks the metadata of a prepared version, and returns its builder."""
    import tensorflow_datasets as tfds

    require_own_metadata(found.directory, found.root)
    require_known_features(found.directory)
    builder = tfds.builder_from_directory(found.directory)
    info = builder.info.as_proto
    if info.file_format not in FORMATS:  # it may have been converted in place
        converted = FORMATS.keys() & info.alternative_file_formats
        if converted:
            builder = tfds.builder_from_directory(found.directory, file_format=min(converted))
    return builder


def prepare_options(config: AnyConfig) -> dict[str, Any]:
    """The arguments of `download_and_prepare` that the fields of a config set."""
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
        raise refused(
            ImportError,
            subject,
            "beam_num_workers is set, and Apache Beam is not installed.",
            beam_num_workers=workers,
            fix="pip install 'datarax-tfds[beam]', or leave beam_num_workers out",
        ) from error
    return PipelineOptions(direct_num_workers=workers, direct_running_mode="multi_processing")


def _created(path: str, _: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o664)


@contextmanager
def only_preparer(prepared: Path, subject: str, timeout_s: float = 24 * 3600) -> Iterator[None]:
    """Lets one process at a time prepare a dataset; the others then find it prepared.

    It locks a file, so the lock also works between jobs, and ends with its process.
    """
    lock = prepared.parent / f".{prepared.name}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "r+", opener=_created)  # noqa: SIM115  # the context below closes it
    except OSError as error:
        raise refused(
            DatasetNotFoundError,
            subject,
            "the dataset is not prepared, and cannot be: nothing can be written there.",
            directory=lock.parent,
            error=error,
            fix="set data_dir to a directory that this process can write, or prepare the"
            " dataset as another user, with tfds build",
        ) from error
    with file:
        _wait_for_lock(file, lock, subject, min(timeout_s, job.limits.stall_timeout_s or timeout_s))
        # Only the holder of the lock prepares, so these were left by processes that have died.
        for left in sorted(prepared.parent.glob(f"incomplete.*_{prepared.name}")):
            _log.warning("%s: %s was left half prepared, and can be removed", subject, left)
        file.truncate()
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
        file.truncate(0)


def _wait_for_lock(file: TextIO, lock: Path, subject: str, timeout_s: float) -> None:
    """Locks the file, and logs from time to time which process holds the lock."""
    begun = time.monotonic()
    announced = begun + min(_SOON_S, job.limits.stall_warn_s)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            now = time.monotonic()
            holder = os.pread(file.fileno(), 200, 0).decode(errors="replace").strip()
            if now > begun + timeout_s:
                raise refused(
                    WaitTimeoutError,
                    subject,
                    "another process is still preparing the dataset.",
                    waited_s=timeout_s,
                    lock=lock,
                    holder=holder or "unknown",
                    fix="check whether that process is still working, and stop it if it hangs; then"
                    " start again; if it only needs longer, set a larger stall_timeout_s in"
                    " initialize()",
                ) from None
            if now > announced:
                announced = now + job.limits.stall_warn_s
                _log.warning(
                    "%s: waiting on %s for %.0f s for %s to prepare the dataset (lock: %s)",
                    subject,
                    platform.node(),
                    now - begun,
                    holder or "another process",
                    lock,
                )
            time.sleep(0.2)
        except OSError as error:
            raise refused(
                DatasetNotFoundError,
                subject,
                "the dataset is not prepared, and cannot be: the file system has no locks, so that"
                " several processes might prepare it at once.",
                lock=lock,
                error=error,
                fix="prepare it before the job starts, with tfds build",
            ) from error
