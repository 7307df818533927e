"""Describes a reader, so that a worker can build the same one from its own code and files."""

import dataclasses
import functools
import importlib
import pickle
import sys
from collections.abc import Mapping
from typing import Any

import jax

from datarax_tfds.config.config import TFDSStreamingConfig
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.files.split import open_split
from sharding.checks import refused

_FUNCTIONS = ("map_fn", "transform", "decoders")
_PLAIN = (str, bytes, int, float, bool, type(None))


@dataclasses.dataclass(frozen=True)
class Imported:
    """A function or class by its import path."""

    module: str
    name: str

    def found(self) -> Any:
        value = importlib.import_module(self.module)
        for part in self.name.split("."):
            value = getattr(value, part)
        return value


@dataclasses.dataclass(frozen=True)
class Called:
    """What a function or class returns, or its partial application, with plain arguments."""

    function: Imported
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    partial: bool

    def found(self) -> Any:
        function = self.function.found()
        if self.partial:
            return functools.partial(function, *self.args, **self.kwargs)
        return function(*self.args, **self.kwargs)


@dataclasses.dataclass(frozen=True)
class Pickled:
    """An object that is sent by pickle, because the user allows it."""

    content: bytes

    def found(self) -> Any:
        return pickle.loads(self.content)  # noqa: S301  # the user has allowed it by name


@dataclasses.dataclass(frozen=True)
class Description:
    """All that makes a reader of records what it is, in plain values and import paths.

    Args:
        fields: Those of a `TFDSStreamingConfig`.
        functions: The fields that are functions, or hold objects.
        x64: Whether `jax_enable_x64` is on.
        path: Where Python looks for modules.
    """

    fields: dict[str, Any]
    functions: dict[str, Any]
    x64: bool
    path: tuple[str, ...]

    @classmethod
    def of(cls, reader: RecordReader, config: Any, *, pickle_functions: bool) -> "Description":
        """Describes the reader of a config.

        The worker reads the files that this process reads, by the same numbers as are stored:
        without a filter, in no order, and without a policy for corrupt records.

        Raises:
            ValueError: A function has no import path, and must not be pickled.
        """
        split = reader.split
        fields = {
            "name": config.name,
            "split": split.ranges,
            "data_dir": str(split.files.paths[0].parent),
            "include_keys": config.include_keys,
            "exclude_keys": config.exclude_keys,
            "pad_to": config.pad_to,
            "truncate": config.truncate,
            "allow_stateful_map_fn": config.allow_stateful_map_fn,
            "host_keys": config.host_keys,
            "as_supervised": config.as_supervised,
            "local_files_only": True,
            "access": "random",
        }
        functions = {}
        for name in _FUNCTIONS:
            value = getattr(config, name)
            if value is None:
                continue
            functions[name] = described(
                name, value, reader.subject, pickle_functions=pickle_functions
            )
        path = tuple(each for each in sys.path if each)
        return cls(fields, functions, jax.config.read("jax_enable_x64"), path)

    def opened(self) -> RecordReader:
        """Builds the reader. Workers call it."""
        jax.config.update("jax_enable_x64", self.x64)
        # Last, so that what is installed there comes first.
        sys.path += [each for each in self.path if each not in sys.path]
        functions = {name: found(value) for name, value in self.functions.items()}
        config = TFDSStreamingConfig(**self.fields, **functions)
        return RecordReader(open_split(config), config, f"worker({config.name})")


def described(name: str, value: Any, subject: str, *, pickle_functions: bool) -> Any:
    """A function, or an object, so that a worker can find it with `found`.

    Args:
        name: That of the argument whose value it is, for messages.
        value: The function.
        subject: The source that it belongs to, for messages.
        pickle_functions: Whether it may be sent by pickle if it has no import path.

    Raises:
        ValueError: It has no import path, and must not be pickled.
    """
    parts = _described(value)
    if parts is not None:
        return parts
    if not pickle_functions:
        raise _no_path(subject, name, value)
    from ray import cloudpickle

    return Pickled(cloudpickle.dumps(value))  # pyright: ignore  # it is its own


def found(value: Any) -> Any:
    """What was `described`, in another process."""
    if isinstance(value, dict):
        return {key: found(each) for key, each in value.items()}
    return value.found()


def _described(value: Any) -> Any:
    """A value in plain values and import paths; None if it has none."""
    if isinstance(value, Mapping):
        parts = {key: _described(each) for key, each in value.items()}
        return None if None in parts.values() else parts
    if isinstance(value, functools.partial):
        function = _described(value.func)
        plain = all(map(_is_plain, [*value.args, *value.keywords.values()]))
        if not isinstance(function, Imported) or not plain:
            return None
        return Called(function, value.args, value.keywords, partial=True)
    for name in (getattr(value, "__qualname__", None), getattr(value, "__name__", None)):
        module = getattr(value, "__module__", None)
        if isinstance(name, str) and isinstance(module, str) and module != "__main__":
            path = Imported(module, name)
            try:
                if path.found() is value:
                    return path
            except (ImportError, AttributeError):  # a function within a function, or a lambda
                continue
    kind = type(value)
    # `SkipDecoding` is told its feature when it is used, and has no state otherwise.
    skips = kind.__name__ == "SkipDecoding" and kind.__module__.startswith("tensorflow_datasets.")
    if skips or getattr(value, "__dict__", None) == {}:
        path = None if isinstance(value, type) else _described(kind)
        return path and Called(path, (), {}, partial=False)
    return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    return isinstance(value, _PLAIN)


def _no_path(subject: str, name: str, value: Any) -> Exception:
    return refused(
        ValueError,
        subject,
        f"{name} has no import path, by which workers could find it.",
        **{name: getattr(value, "__qualname__", repr(value))},
        module=getattr(value, "__module__", None),
        fix="define it as a function of a module beside your program, and import it from there; or"
        " let it be pickled, with service=RayService(pickle_functions=True)",
    )
