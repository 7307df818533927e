"""Reads a YAML file into a dataclass, and applies command-line overrides."""

import dataclasses
import difflib
import inspect
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import first_words  # noqa: F401  (here, because training scripts import this before JAX)
import tyro
import yaml

T = TypeVar("T")


def config_from_args(config_class: type[T], args: list[str]) -> T:
    """Returns the config of a command line `FILE [--overrides]`.

    Args:
        config_class: A dataclass whose fields are the keys of the file and the flags.
        args: The command line without the name of the program. `FILE --help` lists the flags.

    Returns:
        The dataclass with the values of the file, replaced by those of the flags.
    """
    if not args or args[0].startswith("-"):
        script = Path(sys.argv[0]).name
        sys.exit(f"usage: {script} CONFIG.yaml [--overrides]     (CONFIG.yaml --help lists them)")
    path, overrides = Path(args[0]), args[1:]
    values = yaml.safe_load(path.read_text()) or {}
    default = _dataclass_of(config_class, values, str(path))
    return tyro.cli(config_class, default=default, args=overrides)


def made(function: Callable[..., T], options: Mapping[str, Any], where: str, **others: Any) -> T:
    """Calls a class or function with the options of a section, whose names are checked."""
    # The signature of a Flax class takes anything, but that of its constructor does not.
    called = function.__init__ if isinstance(function, type) else function
    parameters = inspect.signature(called).parameters
    known = [name for name in parameters if name not in {"self", *others}]
    require_known(options, known, where)
    return function(**options, **others)


def chosen(name: str, choices: Mapping[str, T], where: str) -> T:
    """Returns an entry of a table by its name; ends the program if there is none."""
    require_known([name], choices, where)
    return choices[name]


def require_known(given: Iterable[str], known: Collection[str], where: str) -> None:
    """Ends the program if a key is unknown, and suggests the nearest one."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"keys: {', '.join(known)}"
            sys.exit(f"{where}: there is no key {key!r}.\n  fix: {hint}")


def _dataclass_of(cls: type[T], values: Any, where: str) -> T:
    """Builds a dataclass from the values of a file. Its fields may be dataclasses, too."""
    if not isinstance(values, dict):
        sys.exit(f"{where}: there must be keys with values, got {values!r}.")
    fields = dataclasses.fields(cls)  # pyright: ignore
    require_known(values, [field.name for field in fields], where)
    types = typing.get_type_hints(cls)
    for field in fields:
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            sys.exit(f"{where}: the key {field.name!r} is missing.")
    sections = {
        name: _dataclass_of(types[name], value, f"{where}, {name}")
        for name, value in values.items()
        if dataclasses.is_dataclass(types[name])
    }
    return cls(**values | sections)
