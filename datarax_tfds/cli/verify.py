"""`datarax-tfds verify`: verifies every checksum of every record of a dataset."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from datarax_tfds.cli.dataset import Dataset
from datarax_tfds.cli.terminal import doing, print_json, progress, wrong_usage

if TYPE_CHECKING:
    from datarax_tfds.files.verification import Damage

# A process takes seconds to start, in which one reads hundreds of megabytes.
_BYTES_A_PROCESS = 1 << 28


@dataclass(frozen=True)
class Command:
    """Verifies every checksum of every record of every file, and names the damaged records.

    After it was stopped, it goes on with the files that it has not verified yet. Ends with 1 if a
    record is damaged, or if a file is missing or has another number of records than the metadata
    say.

    Args:
        processes: How many processes read; by default, one for each core, or fewer for few data.
        json: Print JSON.
    """

    dataset: Dataset
    processes: Annotated[int | None, arg(metavar="N")] = None
    json: bool = False

    def run(self) -> int:
        if self.processes is not None and self.processes < 1:
            problem = f"--processes must be at least 1, got {self.processes}"
            return wrong_usage("verify", problem)
        doing("importing JAX and TFDS")
        from datarax_tfds.files.preparing import prepared_dataset
        from datarax_tfds.files.verification import Damage, files_of

        prepared = prepared_dataset(self.dataset.config())
        files = files_of(prepared)
        log = _Log.of(prepared.directory)
        done = log.found(files)
        if done:
            said = f"{len(done):,} of {len(files):,} files were verified before\n"
            sys.stderr.write(f"datarax-tfds verify: {said}")
        work = [
            (path, length, prepared.info.file_format.value)
            for path, length in files.items()
            if str(path) not in done
        ]
        stored = sum(split.num_bytes for split in prepared.info.splits.values())
        most = 1 + stored // _BYTES_A_PROCESS
        processes = min(self.processes or min(os.cpu_count() or 1, most), len(work))
        for file, version, damage in progress(_verified(work, processes), len(work), "verifying"):
            done[file] = damage
            log.add(file, version, damage)
        log.remove()
        damaged = [Damage(**each) for path in files for each in done[str(path)]]
        _print(len(files), sum(files.values()), damaged, as_json=self.json)
        return 1 if damaged else 0


def _print(files: int, records: int, damaged: "list[Damage]", *, as_json: bool) -> None:
    if as_json:
        print_json({"files": files, "records": records, "damaged": [*map(asdict, damaged)]})
        return
    sys.stdout.writelines(f"{each}\n" for each in damaged)
    found = f"{len(damaged):,} faults were found" if damaged else "all are sound"
    sys.stdout.write(f"{records:,} records in {files:,} files: {found}\n")


_Verified = tuple[str, str | None, list[dict[str, Any]]]


def _verified(work: list[tuple[PurePath, int, str]], processes: int) -> Iterator[_Verified]:
    """Verifies files, and yields each as soon as it is done: its name, version and damage."""
    if processes <= 1:
        yield from map(_verify, work)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    # Processes, because a thread that follows the lengths of records holds up the others.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for each in as_completed([pool.submit(_verify, item) for item in work]):
            yield each.result()


def _verify(item: tuple[PurePath, int, str]) -> _Verified:
    from datarax_tfds.files.verification import damage_in, missing, version_of_file

    path, length, file_format = item
    version = version_of_file(path)
    found = [missing(path)] if version is None else damage_in(path, length, file_format)
    return str(path), version, [asdict(each) for each in found]


class _Log:
    """Which files were verified before this process was stopped; a line of JSON for each.

    A file that was written since then is verified again.
    """

    def __init__(self, path: Path | None):
        self._path = path

    @classmethod
    def of(cls, directory: PurePath) -> "_Log":
        """The log of a dataset in the user's cache directory."""
        from datarax_tfds.runtime.small_files import cache_directory, name_in_cache

        cache = cache_directory("verify")
        return cls(None if cache is None else cache / f"{name_in_cache(directory)}.jsonl")

    def found(self, files: dict[PurePath, int]) -> dict[str, list[dict[str, Any]]]:
        """The damage in each of these files that was verified, and has not changed since then."""
        from datarax_tfds.files.verification import version_of_file

        names = {str(path): path for path in files}
        return {
            file: damage
            for file, version, damage in self._lines()
            if file in names and version == version_of_file(names[file])
        }

    def _lines(self) -> Iterator[_Verified]:
        if self._path is None:
            return
        with suppress(FileNotFoundError):
            for line in self._path.read_text().splitlines():
                with suppress(ValueError):  # cut short by a kill
                    file, version, damage = json.loads(line)
                    yield file, version, damage

    def add(self, file: str, version: str | None, damage: list[dict[str, Any]]) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as log:
            log.write(f"{json.dumps([file, version, damage])}\n")

    def remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
