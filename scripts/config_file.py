"""Reads a YAML file into a dataclass, and applies command-line overrides."""

import dataclasses
import difflib
import sys
from pathlib import Path
from typing import TypeVar

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
