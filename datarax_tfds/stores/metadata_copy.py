"""Copies the files that describe a dataset from a store, so that they are read as on a disk.

TFDS reads stores with TensorFlow, which takes 10 s to import and knows only `gs://`.
"""

import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from datarax_tfds.stores.object_path import ObjectPath
from datarax_tfds.stores.object_store import Patience, names, read_objects

_DESCRIBES_A_VERSION = "features.json"
_KINDS = (".json", ".txt")


class MetadataCopy:
    """A private directory with the metadata of the versions below some directories of a bucket.

    It is removed when nothing refers to this object any more.

    Args:
        path: Any path in the bucket.
        patience: For a store that may be out of reach.
    """

    def __init__(self, path: ObjectPath, patience: Patience | None = None):
        self._scheme = path.scheme
        self._patience = patience
        self._listed: dict[PurePath, set[str]] = {}
        self._folder = tempfile.mkdtemp(prefix="datarax_tfds_")
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def add(self, directory: ObjectPath) -> bool:
        """Copies what describes the versions below a directory; returns whether there are any.

        Raises:
            PermissionError: The store does not let this process read.
            ConnectionError: The store does not answer.
        """
        # The name of an object may hold `..`, which would lead out of the private directory.
        there = [name for name in names(directory, self._patience) if _is_plain(name)]
        listed: dict[str, set[str]] = {}
        for name in there:
            listed.setdefault(_folder(name), set()).add(name.rpartition("/")[2])
        self._listed |= {directory / folder: held for folder, held in listed.items()}
        versions = {_folder(name) for name in there if Path(name).name == _DESCRIBES_A_VERSION}
        wanted = [
            directory / name
            for name in there
            if (name.endswith(_KINDS) and _folder(name) in versions)
            or name.endswith(".config/metadata.json")
        ]
        for path, found in zip(wanted, read_objects(wanted), strict=True):
            if found is not None:
                local = self.local(path)
                local.parent.mkdir(parents=True, exist_ok=True)
                local.write_bytes(found.content)
        return bool(versions)

    def names_in(self, directory: PurePath) -> set[str]:
        """The names of the objects in a directory, when `add` listed what is below one above it."""
        return self._listed.get(directory, set())

    def local(self, path: ObjectPath) -> Path:
        """Where the copy of an object is, or would be."""
        return Path(self._folder, *path.parts[1:])

    def remote(self, path: Path) -> PurePath:
        """What a path in the private directory is a copy of; a path elsewhere is unchanged."""
        if not path.is_relative_to(self._folder):
            return path
        return ObjectPath(f"{self._scheme}:", *path.relative_to(self._folder).parts)

    @contextmanager
    def named_as_in_the_store(self) -> Iterator[None]:
        """Lets errors name the objects in place of their copies."""
        try:
            yield
        except Exception as error:
            copies = re.compile(re.escape(f"{self._folder}/"))
            error.args = tuple(
                copies.sub(f"{self._scheme}://", said) if isinstance(said, str) else said
                for said in error.args
            )
            raise


def _is_plain(name: str) -> bool:
    return not {"", ".", ".."} & set(name.split("/"))


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
