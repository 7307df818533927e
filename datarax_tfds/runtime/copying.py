"""Refuses to copy or pickle objects that hold files, threads or devices of this process."""

from typing import Any, NoReturn, TypeVar

from sharding.checks import refused

Class = TypeVar("Class", bound=type)


def not_copied(cls: Class) -> Class:
    """A class decorator: `copy`, `deepcopy` and `pickle` raise a `TypeError` for its instances.

    They raise before anything is copied. A partial copy of an object that owns a file descriptor
    would close it when it is collected. The next file to be opened would then get its number, and
    be read in its place.
    """

    def refuse_to_copy(self: Any, *_: Any) -> NoReturn:
        raise refused(
            TypeError,
            str(getattr(self, "name", cls.__name__)),
            "it cannot be copied or pickled.",
            holds="files, threads or devices of this process",
            fix="use source.clone() or nnx.clone(module), which share the records; in another"
            " process, build it from its config and pass get_state() to set_state()",
        )

    for method in ("__copy__", "__deepcopy__", "__reduce_ex__"):
        setattr(cls, method, refuse_to_copy)
    return cls
