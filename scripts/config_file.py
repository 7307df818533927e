"""Reads a YAML file into a dataclass, and command-line overrides on top of it."""

import dataclasses
import difflib
import sys
from pathlib import Path
from typing import TypeVar

import tyro
import yaml

T = TypeVar("T")


def config_from_args(config_class: type[T], args: list[str]) -> T:
    """The config of `FILE [--overrides]`.

    Args:
        config_class: A dataclass. Its fields are the keys of the file and the flags.
        args: A command line, without the name of the program. `FILE --help` lists the flags.

    Returns:
        The dataclass: values of the file, then of the flags; of the types that it declares.
    """
    if not args or args[0].startswith("-"):
        sys.exit("usage: train.py CONFIG.yaml [--overrides]     (CONFIG.yaml --help lists them)")
    path, overrides = Path(args[0]), args[1:]
    values = yaml.safe_load(path.read_text()) or {}
    names = [field.name for field in dataclasses.fields(config_class)]  # pyright: ignore
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"keys: {', '.join(names)}"
            sys.exit(f"{path}: there is no key {key!r}.\n  fix: {hint}")
    return tyro.cli(config_class, default=config_class(**values), args=overrides)
