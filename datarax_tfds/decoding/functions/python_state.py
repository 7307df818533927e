"""Finds the random generators and the clocks of Python that a function refers to.

A resume does not repeat the values that the function takes from them while it is traced.
"""

import datetime
import dis
import functools
import inspect
import random
import sys
import time
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)
_GLOBAL_GENERATORS = (random.random.__self__, np.random.rand.__self__)
_CLOCKS = (time, datetime, datetime.datetime, datetime.date)
# Some of these do not read the clock if they are given a time; the message says what to do then.
_OF_TIME = frozenset({"time", "time_ns", "clock_gettime", "clock_gettime_ns"}) | {
    *("gmtime", "localtime", "ctime", "asctime", "strftime")
}
_OF_DATES = frozenset({"now", "utcnow", "today"})
# Functions of these modules are not searched.
_LIBRARIES = sys.stdlib_module_names | {"tensorflow", "keras", "numpy", "tensorflow_datasets"}
_MAX_ITEMS = 100  # the longest list to search: one of transforms, say, but not a vocabulary
_LOADS_OUTER = frozenset(
    {"LOAD_GLOBAL", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"}
)


class PythonState:
    """The random generators and clocks that users' functions refer to, before a trace.

    Attributes:
        reads_clock: Whether they refer to the time of day. Two traces may look alike because they
            read it in the same second. Clocks such as `time.perf_counter` always differ.
    """

    def __init__(self, *functions: Any):
        referred = _referred(functions)
        codes = [code for value in referred if inspect.isfunction(value) for code in _codes(value)]
        constants = {each for code in codes for each in code.co_consts if isinstance(each, str)}
        names = constants.union(*(code.co_names for code in codes))
        self.reads_clock = any(_is_clock(value, names) for value in referred)
        found = map(_generator, referred)
        self._generators = [generator for generator in found if generator is not None]
        self._before = list(map(_state, self._generators))

    def has_drawn(self) -> bool:
        """Whether one of these generators has drawn random numbers since this was built."""
        return self._before != list(map(_state, self._generators))


def global_generator_states() -> list[str]:
    """The states of the generators of `random` and `numpy.random`."""
    return list(map(_state, _GLOBAL_GENERATORS))


def _referred(functions: Iterable[Any]) -> list[Any]:
    """All objects to which functions refer by name or by attributes of their own objects.

    This includes the objects to which those refer in turn, except functions of libraries.
    """
    found: dict[int, Any] = {}
    owners = list(functions)
    waiting = list(functions)
    while waiting:
        value = waiting.pop()
        if id(value) in found:
            continue
        found[id(value)] = value
        if isinstance(value, types.ModuleType):
            continue  # to read an attribute of one may import another
        if isinstance(value, functools.partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif inspect.ismethod(value):
            owners.append(value.__self__)
            waiting += [value.__func__, value.__self__]
        elif inspect.isfunction(value):
            if (value.__module__ or "").partition(".")[0] not in _LIBRARIES:
                waiting += _named(value)
        elif hasattr(value, "python_function"):
            waiting.append(value.python_function)
        elif isinstance(value, list | tuple | set | frozenset | dict):
            items = list(value.values() if isinstance(value, dict) else value)
            if len(items) <= _MAX_ITEMS:
                owners += filter(callable, items)
                waiting += items
        elif _is_one_of(value, owners):
            waiting += [*getattr(value, "__dict__", {}).values(), type(value).__call__]
    return list(found.values())


def _named(function: types.FunctionType) -> list[Any]:
    """The objects that the names in a function's code stand for."""
    outer = dict(function.__globals__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            outer[name] = cell.cell_contents
        except ValueError:  # it is not filled yet
            outer.pop(name, None)
    named = [value for code in _codes(function) for value in _loaded(code, outer)]
    return [value for value in named if value is not None]


def _codes(function: types.FunctionType) -> Iterator[types.CodeType]:
    """The code of a function, and of the functions within it."""
    waiting = [function.__code__]
    while waiting:
        code = waiting.pop()
        waiting += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        yield code


def _loaded(code: types.CodeType, outer: Mapping[str, Any]) -> Iterator[Any]:
    """The outside objects that a code loads by name; for a module of clocks, its attribute."""
    steps = list(dis.get_instructions(code))
    imported: dict[str, Any] = {}  # within the code, by their local names
    value = module = None
    for place, step in enumerate(steps):
        following = steps[place + 1 :]
        if step.opname in _LOADS_OUTER:
            yield _attribute(outer.get(step.argval), following)
        elif step.opname in ("IMPORT_NAME", "IMPORT_FROM"):
            if step.opname == "IMPORT_NAME":
                value = module = sys.modules.get(step.argval)
            elif _is_one_of(module, _CLOCKS):
                value = getattr(module, step.argval, None)
            else:
                continue
            if following[0].opname == "STORE_FAST":
                imported[following[0].argval] = value
            elif following[0].opname != "IMPORT_FROM":
                yield value
        elif step.opname.startswith("LOAD_FAST"):
            # Python 3.13 loads two names at once; the attribute belongs to the second.
            names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
            yield from (imported.get(name) for name in names[:-1])
            yield _attribute(imported.get(names[-1]), following)


def _attribute(value: Any, following: Iterable[dis.Instruction]) -> Any:
    """The attribute that is loaded next, if the value is a module of clocks or generators."""
    for step in following:
        opened = _is_one_of(value, (*_CLOCKS, random, np, np.random))
        if step.opname not in ("LOAD_ATTR", "LOAD_METHOD") or not opened:
            break
        value = getattr(value, step.argval, None)
    return value


def _is_one_of(value: Any, known: Iterable[Any]) -> bool:
    """Whether it is the same object as one of them; `==` of arrays would not give a bool."""
    return any(value is each for each in known)


def _is_clock(value: Any, names: Iterable[str]) -> bool:
    """Whether this is a function that tells the time of day, or a module or class with such a
    function among these names.
    """
    if not inspect.isbuiltin(value):
        tells = _OF_TIME if value is time else _OF_DATES
        return _is_one_of(value, _CLOCKS) and not tells.isdisjoint(names)
    if value.__module__ == "time":
        return value.__name__ in _OF_TIME
    return _is_one_of(value.__self__, _CLOCKS) and value.__name__ in _OF_DATES


def _generator(value: Any) -> Any:
    """A value that is a random generator, or the global one that a module or function uses."""
    function = {id(random): random.random, id(np.random): np.random.rand}.get(id(value), value)
    owner = getattr(function, "__self__", None)
    if _is_one_of(owner, _GLOBAL_GENERATORS):
        return owner
    return value if isinstance(value, _GENERATORS) else None


def _state(generator: Any) -> str:
    """The state of a random generator as a string, to compare."""
    if isinstance(generator, np.random.Generator):
        return _as_text(generator.bit_generator.state)
    if isinstance(generator, random.Random):
        return repr(generator.getstate())
    return _as_text(generator.get_state(legacy=False))


def _as_text(state: Any) -> str:
    """A nested dict as a string, with its arrays in full."""
    if isinstance(state, dict):
        return repr({name: _as_text(value) for name, value in state.items()})
    return repr(state.tobytes() if isinstance(state, np.ndarray) else state)
