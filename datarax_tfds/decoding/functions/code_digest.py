"""Digests of Python functions, which tell whether two runs use the same code and values."""

import dis
import functools
import hashlib
import inspect
import re
import site
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np

_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, type(...), re.Pattern)
# Of these, only the names of functions and classes are part of a digest, not their objects.
_OPAQUE = sys.stdlib_module_names | {"numpy", "jax", "jaxlib", "flax", "tensorflow", "keras"}
_FOLDERS = ("stdlib", "platstdlib", "purelib", "platlib")
_INSTALLED = tuple({*map(sysconfig.get_path, _FOLDERS), *site.getsitepackages()})


def code_digest(function: Any) -> str:
    """A short digest of a function: its code, and the values and functions that it refers to.

    With one version of Python, it is equal in all processes for the same code and values. Of
    installed packages it has the names of functions, and the attributes of objects, but not the
    code; of the standard library, NumPy, JAX and TensorFlow it has names alone.
    """
    return _Digest().of(function).hex()[:16]


class _Digest:
    """Digests of values, each made once. A value within itself counts as its class."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[bytes, Any]] = {}  # with the value, so that its id stays taken

    def of(self, value: Any) -> bytes:
        if isinstance(value, _CONSTANTS):
            return _hash(type(value).__name__, repr(value))
        if id(value) not in self._known:
            self._known[id(value)] = _hash(_name_of(type(value))), value
            self._known[id(value)] = _hash(_name_of(type(value)), *self._parts(value)), value
        return self._known[id(value)][0]

    def _parts(self, value: Any) -> Iterator[bytes | str]:
        """What a value consists of, in an order that is the same in every process."""
        if isinstance(value, np.ndarray | np.generic):
            yield f"{value.dtype} {value.shape}"
            yield repr(value.tolist()) if value.dtype.hasobject else value.tobytes()
        elif isinstance(value, Mapping):
            for key, part in value.items():
                yield self.of(key) + self.of(part)
        elif isinstance(value, Set):
            yield from sorted(map(self.of, value))
        elif isinstance(value, list | tuple):
            yield from map(self.of, value)
        elif isinstance(value, types.CodeType):
            yield value.co_code
            yield from map(self.of, (value.co_consts, value.co_names, value.co_freevars))
        elif isinstance(value, functools.partial):
            yield from map(self.of, (value.func, value.args, value.keywords))
        elif inspect.ismethod(value):
            yield from map(self.of, (value.__func__, value.__self__))
        elif inspect.isfunction(value):
            yield _name_of(value)
            if _is_own(value):
                yield from map(self.of, (value.__code__, value.__defaults__, value.__kwdefaults__))
                yield from map(self.of, _outer(value))
        elif isinstance(value, type):
            yield _name_of(value)
            if _is_own(value):
                named = sorted(vars(value).items())
                yield from map(self.of, (each for each in named if _is_code(each[1])))
                yield from map(self.of, value.__bases__)
        elif isinstance(value, types.ModuleType | types.BuiltinFunctionType):
            yield _name_of(value)
        elif _root(type(value)) not in _OPAQUE:
            yield self.of(type(value))
            yield from map(self.of, sorted(getattr(value, "__dict__", {}).items()))


def _is_code(value: Any) -> bool:
    """Whether an attribute of a class is a function or a constant, and not made by Python."""
    return inspect.isfunction(value) or isinstance(
        value, (staticmethod, classmethod, property, int, float, str, tuple)
    )


def _outer(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The names that a function takes from outside of it, with their values."""
    outer = dict(function.__globals__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            outer[name] = cell.cell_contents
        except ValueError:  # it is not filled yet
            outer.pop(name, None)
    names, waiting = set(function.__code__.co_freevars), [function.__code__]
    while waiting:
        code = waiting.pop()
        waiting += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        loads = dis.get_instructions(code)
        names |= {step.argval for step in loads if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return ((name, outer[name]) for name in sorted(names) if name in outer)


def _name_of(value: Any) -> str:
    """The name of a function, a class or a module."""
    own = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
    return f"{getattr(value, '__module__', '')}.{own}"


def _root(value: Any) -> str:
    return str(getattr(value, "__module__", None) or "").partition(".")[0]


def _is_own(value: Any) -> bool:
    """Whether a function or a class is the user's, and not of an installed package."""
    if _root(value) in _OPAQUE | {"builtins"}:
        return False
    module = sys.modules.get(value.__module__ or "")
    return not str(getattr(module, "__file__", None) or "").startswith(_INSTALLED)


def _hash(*parts: str | bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode() if isinstance(part, str) else part
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()
