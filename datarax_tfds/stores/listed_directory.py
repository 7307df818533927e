"""A directory of a store, all of whose names are known from one listing."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, Self

from datarax_tfds.errors import RESTORE
from datarax_tfds.stores.object_path import ObjectPath
from datarax_tfds.stores.object_store import PendingRanges, names, ocdbt_description, read_object
from sharding.checks import refused


class ListedDirectory:
    """A directory or an object below a directory that was listed; as a `Path` that only reads.

        for step in ListedDirectory.of(ObjectPath.parse("gs://bucket/checkpoints")).iterdir(): ...

    It asks the store only for content. A store that does not answer is a `ConnectionError`, and one
    that denies it is a `PermissionError`; a name that is not in the listing is a
    `FileNotFoundError`.

    Args:
        path: The path.
        below: The directory that was listed.
        listing: The names of the objects below that directory, sorted.
    """

    def __init__(self, path: ObjectPath, below: ObjectPath, listing: list[str]):
        self.path = path
        self._below = below
        self._listing = listing

    @classmethod
    def of(cls, directory: ObjectPath) -> Self:
        """Lists a directory."""
        return cls(directory, directory, names(directory))

    def __truediv__(self, name: str) -> Self:
        return type(self)(self.path / name, self._below, self._listing)

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__

    def __hash__(self) -> int:
        return hash(self.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ListedDirectory) and self.path == other.path

    @property
    def name(self) -> str:
        return self.path.name

    def is_file(self) -> bool:
        place = bisect_left(self._listing, self._name)
        return self._listing[place : place + 1] == [self._name]

    def is_dir(self) -> bool:
        return next(self._names(), None) is not None

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator[Self]:
        # A name that ends with a slash is what some clients write to make a directory.
        found = dict.fromkeys(name.partition("/")[0] for name in self._names())
        return (self / name for name in found if name)

    def read_bytes(self) -> bytes:
        found = read_object(self.path) if self.is_file() else None
        if found is None:
            raise refused(
                FileNotFoundError,
                str(self),
                "there is no such object in the store.",
                bucket=self.path.bucket,
                fix=RESTORE,
            )
        return found.content

    def describe_ocdbt(self, *node: str) -> Any:
        """What `tensorstore.ocdbt.dump` says of the database in this directory."""
        return ocdbt_description(self.path, *node)

    @property
    def _name(self) -> str:
        return "/".join(self.path.relative_to(self._below).parts)

    def _names(self) -> Iterator[str]:
        """The names of the objects below this directory."""
        prefix = f"{self._name}/" if self.path != self._below else ""
        for place in range(bisect_left(self._listing, prefix), len(self._listing)):
            if not self._listing[place].startswith(prefix):
                return
            yield self._listing[place][len(prefix) :]


def first_too_short(sizes: Mapping[ListedDirectory, int]) -> ListedDirectory | None:
    """The first of some objects that has fewer bytes than it should; None if all have them.

    A store does not say how long an object is. So the last of these bytes is read, of all at once.
    """
    for file in sizes:
        if not file.is_file():
            return file
    ends = {file: PendingRanges(file.path, [(size - 1, size)]) for file, size in sizes.items()}
    return next((file for file, end in ends.items() if not end.result()[0].content), None)
