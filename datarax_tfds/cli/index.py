"""`datarax-tfds index`: builds the indexes of TFRecord files, with all cores."""

import argparse
import sys
from pathlib import Path

HELP = "build the indexes that the TFRecord files in a directory lack, so that no job has to"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", type=Path, help="the directory of a version, as DATA_DIR/mnist/3.0.1"
    )


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 if each TFRecord file has an index now, else 1."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from datarax_tfds.files.tfrecord_index import TFRecordOpener

    paths = sorted(arguments.directory.glob("*.tfrecord*"))
    missing = TFRecordOpener().unindexed(paths)
    failures: list[str] = []
    if missing:
        # Processes, because a thread that follows the lengths of records holds up the others.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(mp_context=context) as pool:
            failures = [failure for failure in pool.map(_failure, missing, chunksize=8) if failure]
    indexed = len(paths) - len(failures)
    sys.stdout.write(f"{indexed:,} of {len(paths):,} TFRecord files have an index\n")
    sys.stderr.writelines(f"{failure}\n" for failure in failures)
    return 0 if paths and not failures else 1


def _failure(path: Path) -> str | None:
    """Builds the index of a file; returns why it cannot be built or kept."""
    from datarax_tfds.errors import DataLossError
    from datarax_tfds.files.stored_file import StoredFile
    from datarax_tfds.files.tfrecord_index import open_index

    try:
        _, kept = open_index(path, StoredFile(path).version())
    except (DataLossError, OSError) as error:
        return str(error)
    return None if kept else f"{path}: its index can be written neither beside it nor in ~/.cache"
