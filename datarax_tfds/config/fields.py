"""Checks the value of each field of a config, and says what was probably meant."""

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, get_args, get_origin, runtime_checkable

import numpy as np
from flax import nnx

from datarax_tfds.config.ray_service import RayService, service_of
from datarax_tfds.order.order import check_seed
from datarax_tfds.stores.object_path import SCHEMES, ObjectPath
from sharding.checks import is_integer, nearest, refused, whole_number

_Config = TypeVar("_Config")

# Arguments that may be mistaken for fields of a config, and where they belong.
_ELSEWHERE = {
    **dict.fromkeys(("batch_size", "remainder", "stages", "record_numbers"), "Pipeline(...)"),
    **dict.fromkeys(("rngs", "sharding"), "the source, not to its config"),
}
_NO = {"no", "false", "off", "0", "none", ""}


class SplitExpression(Protocol):
    """A split as an object of TFDS: a `ReadInstruction`, one of `even_splits`, or a sum of them."""

    def to_absolute(self, split_infos: Any) -> Any:
        """The absolute ranges of the split in a dataset."""
        ...


@runtime_checkable
class PartialDecoding(Protocol):
    """A `tfds.decode.PartialDecoding`: the parts of features to decode, and their decoders."""

    decoders: Any

    def extract_features(self, features: Any) -> Any:
        """These parts of a dataset's features."""
        ...


def require_known(given: Iterable[str], known: Iterable[str], subject: str, nobody: str) -> None:
    """Raises a `TypeError` for a field that does not exist, with the name that was probably meant.

    Args:
        given: The names of the fields that are set.
        known: The names of the fields that exist.
        subject: The function or class that raises.
        nobody: The beginning of the message, as "neither config has".
    """
    for unknown in sorted(set(given) - set(known)):
        near = nearest(unknown, known)
        fix = f"use {near}" if near else f"leave {unknown} out"
        if unknown in _ELSEWHERE:
            fix = f"pass {unknown} to {_ELSEWHERE[unknown]}"
        problem = f"{nobody} a field {unknown!r}."
        raise refused(TypeError, subject, problem, fields=", ".join(sorted(known)), fix=fix)


def refuses_unknown_fields(cls: type[_Config]) -> type[_Config]:
    """A decorator of dataclasses, which refuses unknown fields by `require_known`."""
    made = cls.__init__
    known = list(inspect.signature(cls).parameters)

    @functools.wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        require_known(kwargs, known, cls.__name__, "the config does not have")
        made(self, *args, **kwargs)

    cls.__init__ = init
    return cls


@dataclass(frozen=True)
class Field:
    """A field of a config, or an argument, and the value that it was given.

    Args:
        subject: The class of the config, or the source or function with the argument.
        name: The name of the field.
        value: Its value.
        kind: The annotation of the field, which decides its check unless its name does.
        error: The class of the error if the value is invalid.
    """

    subject: str
    name: str
    value: Any
    kind: Any = None
    error: type[Exception] = ValueError

    def checked(self) -> Any:
        """The value as the config keeps it.

        Raises:
            ValueError: The value is invalid.
        """
        kind = Literal if get_origin(self.kind) is Literal else self.kind
        return (_BY_NAME.get(self.name) or _BY_TYPE[kind])(self)

    def refusal(self, problem: str, *, fix: str) -> Exception:
        return refused(self.error, self.subject, problem, fix=fix, **{self.name: repr(self.value)})


def _dataset_name(field: Field) -> str:
    """A name, which is parsed only when the dataset is looked up."""
    value = field.value
    fix = "pass name='mnist'"
    if value is None or value == "":
        raise field.refusal("name is required.", fix=fix)
    if isinstance(value, os.PathLike):
        fix = f"use {field.subject}.from_directory({os.fspath(value)!r}, split='train')"
    if not isinstance(value, str):
        raise field.refusal(f"name must be a string, got {type(value).__name__}.", fix=fix)
    return value


def _split(field: Field) -> "str | SplitExpression":
    value = field.value
    if value is None or value == "":
        raise field.refusal("split is required.", fix="pass split='train'")
    if isinstance(value, str):
        return str(value)  # not tfds.Split, whose repr would differ
    if callable(getattr(value, "to_absolute", None)) and not isinstance(value, type):
        return value
    fix = "use split='train', or split='train[:10%]+test'"
    if isinstance(value, list | tuple | Set):
        if value and all(isinstance(each, str) for each in value):
            more = ", or build a source for each of them" if len(value) > 1 else ""
            fix = f"use split={'+'.join(value)!r}{more}"
        raise field.refusal("split must be one split, got several.", fix=fix)
    if isinstance(name := getattr(value, "name", None), str):  # one of info.splits
        fix = f"use split={name!r}"
    raise field.refusal("split must be a string, or a split expression of TFDS.", fix=fix)


def _directory(field: Field) -> str:
    """A directory in a file system or a store: `data_dir`, or that of one dataset."""
    name, value = field.name, field.value
    if name == "data_dir" and isinstance(value, list | tuple | Set) and value:
        fix = (
            f"use data_dir={str(next(iter(value)))!r}; to search several, register each with"
            " tfds.core.add_data_dir(...), and leave data_dir out"
        )
        raise field.refusal("data_dir must be a string or a path, got several.", fix=fix)
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(value, str) or not value:
        fix = "use data_dir='data', or leave it out for TFDS's own"
        if name == "directory":
            fix = "pass the directory of the dataset, as 'data/mnist/3.0.1'"
        raise field.refusal(f"{name} must be a string or a path, and not empty.", fix=fix)
    scheme, separator, rest = value.partition(":/")
    if separator and scheme in SCHEMES and not rest.startswith("/"):
        raise field.refusal(
            f"{name} lacks a slash, which pathlib.Path takes away.",
            fix=f"pass a string, {name}='{scheme}://{rest}'",
        )
    if "://" in value and ObjectPath.parse(value) is None:
        problem = f"{name} must be in a file system, or in a store that is read: gs:// or s3://."
        fix = f"mount the store, or copy the dataset, and set {name} to that directory"
        if value.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
            problem = f"{name} must name a bucket, and no directory '', '.' or '..'."
            fix = f"use {name}='gs://bucket/datasets'"
        raise field.refusal(problem, fix=fix)
    return value


def _local_directory(field: Field) -> str:
    """A directory of the local disk, which need not exist."""
    value = os.fspath(field.value) if isinstance(field.value, os.PathLike) else field.value
    if isinstance(value, str) and value and "://" not in value:
        return os.path.abspath(os.path.expanduser(value))
    problem = f"{field.name} must be a directory of the local disk."
    raise field.refusal(problem, fix=f"use {field.name}='~/blocks', or leave it out")


def flag(field: Field) -> bool:
    """Checks that a value is True or False, also of NumPy."""
    if isinstance(field.value, bool | np.bool_):
        return bool(field.value)
    meant = str(field.value).lower() not in _NO
    raise field.refusal(f"{field.name} must be True or False.", fix=f"use {field.name}={meant}")


def integer(least: int) -> Callable[[Field], int]:
    """A check for an integer of at least this size."""

    def check(field: Field) -> int:
        if is_integer(field.value, least):
            return int(field.value)
        meant = whole_number(field.value)
        use = least if meant is None or meant < least else meant
        problem = f"{field.name} must be an integer of at least {least}."
        raise field.refusal(problem, fix=f"use {field.name}={use}")

    return check


def source_name(name: Any, default: str) -> str:
    """The name of a source, as messages show it: `default` if none is given."""
    return default if name is None else _text(Field(default, "name", name, error=TypeError))


def _choice(field: Field) -> str:
    choices, value = get_args(field.kind), field.value
    if isinstance(value, str) and value in choices:
        return value
    near = nearest(value, choices) if isinstance(value, str) else None
    problem = f"{field.name} must be one of {', '.join(map(repr, choices))}."
    raise field.refusal(problem, fix=f"use {field.name}={(near or choices[0])!r}")


def _names(field: Field) -> frozenset[str]:
    listed = isinstance(field.value, Iterable) and not isinstance(field.value, str | bytes)
    given: list[Any] = list(field.value) if listed else [field.value]
    names = [name for name in given if isinstance(name, str) and name]
    if listed and len(names) == len(given):
        return frozenset(names)
    meant = sorted(set(names)) or ["label"]
    fix = f"use {field.name}={{{', '.join(map(repr, meant))}}}"
    raise field.refusal(f"{field.name} must be a set of names.", fix=fix)


def instance(types: Any, words: str, *, fix: str) -> Callable[[Field], Any]:
    """A check for an instance of `types`; `words` names them, and {} in `fix` is the field."""

    def check(field: Field, fix: str = fix) -> Any:
        # The class PartialDecoding has all attributes that its instances have.
        a_class = isinstance(field.value, type) and types is not Callable
        if a_class or not isinstance(field.value, types) or field.value == "":
            fix = fix.replace("{}", field.name)
            raise field.refusal(f"{field.name} must be {words}.", fix=fix)
        return field.value

    return check


def _transform(field: Field) -> Any:
    """A function of a record, or an object with the method of a transform of Grain."""
    value = field.value
    methods = [getattr(value, name, None) for name in ("random_map", "map")]
    if not isinstance(value, type) and any(map(callable, [value, *methods])):
        return value
    fix = "pass a function, as transform=function"
    if isinstance(value, type):
        fix = f"pass an object of the class, as transform={value.__name__}()"
    problem = "transform must be a function of a record, or an object with a method `map`."
    raise field.refusal(problem, fix=fix)


def _sizes(field: Field) -> dict[str, int | tuple[int | None, ...]]:
    """A length or a shape for each feature."""
    good: dict[str, Any] = {}
    given = dict(field.value) if isinstance(field.value, Mapping) else {}
    for name, size in given.items():
        if is_integer(size, 1):
            good[name] = int(size)
        elif isinstance(size, list | tuple) and any(size):
            axes = [None if axis is None else is_integer(axis, 1) and int(axis) for axis in size]
            good |= {name: tuple(axes)} if False not in axes else {}
    if given and good.keys() == given.keys() and all(isinstance(name, str) for name in given):
        return good
    raise field.refusal(
        "pad_to must have a length, or a shape, for each name.",
        fix="use pad_to={'objects': 100} for a length, or pad_to={'image': (640, 640, 3)}",
    )


def _service(field: Field) -> RayService:
    service = service_of(field.value)
    if service is not None:
        return service
    raise field.refusal(
        "service must be 'ray', 'ray:HOST:PORT', 'ray:auto' or a RayService.",
        fix="use service='ray', or service='ray:10.0.0.5:6379' for a cluster that runs",
    )


_function = instance(Callable, "a function", fix="pass the function itself, as {}=function")
_text = instance(str, "a string that is not empty", fix="use {}='...', or leave it out")
_dict = instance(Mapping, "a dict", fix="pass a value for each feature, as {}={'image': ...}")
_BY_NAME: dict[str, Callable[[Field], Any]] = {
    "name": _dataset_name,
    "split": _split,
    "data_dir": _directory,
    "directory": _directory,
    "cache_dir": _local_directory,
    "seed": lambda field: check_seed(field.value),
    "prefetch_buffer": integer(0),
    "max_corrupt_records": integer(0),
    "transform": _transform,
    "pad_to": _sizes,
    "service": _service,
}
_BY_TYPE: dict[Any, Callable[[Field], Any]] = {
    bool: flag,
    int: integer(1),
    int | None: integer(1),
    Literal: _choice,
    Set[str] | None: _names,
    str | None: _text,
    Callable[..., Any] | None: _function,
    Callable[..., Any] | nnx.Module | None: _function,
    dict[str, Any] | None: _dict,
    Mapping[str, Any] | None: _dict,
    Mapping[str, Any] | PartialDecoding | None: instance(
        (Mapping, PartialDecoding),
        "a dict, or a tfds.decode.PartialDecoding",
        fix="pass a decoder for each feature, as {}={'image': tfds.decode.SkipDecoding()}",
    ),
}
