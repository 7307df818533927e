"""Paths of objects in a store, as `gs://bucket/directory/name`."""

from pathlib import PurePosixPath
from typing import Self

SCHEMES = ("gs", "s3")


class ObjectPath(PurePosixPath):
    """The path of an object, or of a directory of objects; it says nothing of whether they exist.

    ObjectPath.parse("gs://bucket/mnist/3.0.1") / "features.json"
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The path that a text names; None if it names none, or leads out of a directory."""
        scheme, separator, rest = text.partition("://")
        names = rest.rstrip("/").split("/")
        if scheme not in SCHEMES or not separator or {"", ".", ".."} & set(names):
            return None
        return cls(f"{scheme}:", *names)

    @property
    def scheme(self) -> str:
        return self.parts[0].removesuffix(":")

    @property
    def bucket(self) -> str:
        return self.parts[1]

    @property
    def key(self) -> str:
        """The name of the object in its bucket."""
        return "/".join(self.parts[2:])

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def __fspath__(self) -> str:
        return str(self)
