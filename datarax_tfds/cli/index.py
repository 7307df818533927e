"""`datarax-tfds index`: builds the indexes of TFRecord files, with all cores."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from datarax_tfds.cli.dataset import Dataset
from datarax_tfds.stores.object_path import ObjectPath


@dataclass(frozen=True)
class Command:
    """Builds the indexes that the TFRecord files of a dataset lack, so that no job has to.

    Ends with 1 if a file cannot be indexed, or if there is none.
    """

    dataset: Dataset

    def run(self) -> int:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        from datarax_tfds.cli.terminal import doing, progress

        doing(f"looking for the TFRecord files of {self.dataset.dataset}")
        paths, missing = tfrecord_files(self.dataset.directory())
        failures: list[str] = []
        if missing:
            # Processes, because a thread that follows the lengths of records holds up the others.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(mp_context=context) as pool:
                done = progress(pool.map(_failure, missing, chunksize=8), len(missing), "indexing")
                failures = [failure for failure in done if failure]
        indexed = len(paths) - len(failures)
        sys.stdout.write(f"{indexed:,} of {len(paths):,} TFRecord files have an index\n")
        sys.stderr.writelines(f"{failure}\n" for failure in failures)
        return 0 if paths and not failures else 1


def tfrecord_files(directory: PurePath) -> tuple[Sequence[PurePath], Sequence[PurePath]]:
    """The TFRecord files in a directory, and those that have no index."""
    if isinstance(directory, ObjectPath):
        return _objects(directory)
    from datarax_tfds.files.tfrecord_index import TFRecordOpener

    paths = sorted(Path(directory).glob("*.tfrecord*"))
    return paths, TFRecordOpener().unindexed(paths)


def _objects(directory: ObjectPath) -> tuple[Sequence[PurePath], Sequence[PurePath]]:
    """The TFRecord objects in a directory, and those that have no index beside them.

    An index in the cache of this machine is of no use to the hosts of a job.
    """
    from datarax_tfds.files.object_formats import index_beside
    from datarax_tfds.stores.object_store import names

    there = {directory / name for name in names(directory)}
    paths = sorted(path for path in there if path.parent == directory and ".tfrecord" in path.name)
    return paths, [path for path in paths if index_beside(path) not in there]


def _failure(path: PurePath) -> str | None:
    """Builds the index of a file; returns why it cannot be built or kept."""
    from datarax_tfds.errors import DataLossError
    from datarax_tfds.files.object_formats import write_index_beside
    from datarax_tfds.files.stored_file import StoredFile
    from datarax_tfds.files.tfrecord_index import open_index

    try:
        if isinstance(path, ObjectPath):
            write_index_beside(path)
            return None
        _, kept = open_index(Path(path), StoredFile(Path(path)).version())
    except (DataLossError, OSError) as error:
        return str(error)
    return None if kept else f"{path}: its index can be written neither beside it nor in ~/.cache"
