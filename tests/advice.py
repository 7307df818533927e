"""What messages advise, followed: the rows of the tables, and every fix that the code writes."""

import ast
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
from checkout import MODULES, ROOT
from conftest import shardings
from refusals import SHAPE, check_message

from datarax_tfds import (
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
)

_OPEN = "\0"  # what a text of the code leaves open, as the value in an f-string


class Row:
    """A message, and that its fix works when it is followed.

    Args:
        problem: The sentence that says what is wrong; `...` stands for what differs.
        fix: The whole fix line, likewise.
        call: Raises the message. It is given the user of the fixture.
        *ways: Do what the fix line says, each in another way that it offers. They succeed.
    """

    def __init__(
        self, problem: str, fix: str, call: Callable[[Any], Any], *ways: Callable[[Any], Any]
    ):
        assert ways, f"{problem} is not followed"
        self.problem, self.fix, self.call, self.ways = problem, fix, call, ways

    def __str__(self) -> str:
        return f"{self.problem} {self.fix}"[:100]

    def follow(self, user: Any) -> None:
        with pytest.raises(Exception) as raised:  # noqa: PT011  # of any class: the shape is checked
            self.call(user)
        message = str(raised.value)
        check_message(message)
        said = SHAPE.fullmatch(message)
        assert said is not None
        # The subject of a message may itself hold a colon.
        first = message.partition("\n")[0]
        assert _matches(f"...: {self.problem}".split("..."), first), message
        assert _matches(self.fix.split("..."), " ".join(said["fix"].split())), message
        for way in self.ways:
            way(user)


class User:
    """What the calls of the rows are made with: datasets on disk, sources of them, and a directory.

    Args:
        data_dir: Where the datasets are, which no call changes.
        tmp: An empty directory, for one row.
    """

    _loaded: ClassVar[dict[str, TFDSEagerSource]] = {}

    def __init__(self, data_dir: Path, tmp: Path):
        self.data_dir, self.tmp = str(data_dir), tmp

    def place(self, name: str) -> Path:
        return Path(self.data_dir, name)

    def copy(self, name: str) -> Path:
        """The version of a dataset in a copy, to be damaged."""
        copy = self.tmp / "copy" / name
        if not copy.exists():
            shutil.copytree(self.place(name), copy)
            shutil.rmtree(copy / "1.0.0" / ".record_index", ignore_errors=True)
        return copy / "1.0.0"

    def eager(self, mesh: str = "one device", **fields: Any) -> TFDSEagerSource:
        fields = {"name": "tiny", "split": "train", "data_dir": self.data_dir} | fields
        return TFDSEagerSource(TFDSEagerConfig(**fields), sharding=shardings()[mesh])

    def stream(self, **fields: Any) -> TFDSStreamingSource:
        fields = {"name": "tiny", "split": "train", "data_dir": self.data_dir} | fields
        return TFDSStreamingSource(TFDSStreamingConfig(**fields))

    def batch(self, **fields: Any) -> dict[str, Any]:
        return self.stream(**fields).get_batch(4)

    @property
    def loaded(self) -> TFDSEagerSource:
        """An eager source, shuffled, at its first record."""
        if self.data_dir not in self._loaded:
            self._loaded[self.data_dir] = self.eager(shuffle=True)
        return self._loaded[self.data_dir].clone()

    def pipeline(self, **arguments: Any) -> Pipeline:
        return Pipeline(**{"source": self.loaded, "batch_size": 8} | arguments)

    @staticmethod
    def logged(call: Callable[[], Any]) -> None:
        """Raises what a call logs."""

        class Noting(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                said.append(record.getMessage())

        said: list[str] = []
        handler, logger = Noting(logging.WARNING), logging.getLogger("datarax_tfds")
        logger.addHandler(handler)
        try:
            call()
        finally:
            logger.removeHandler(handler)
        if said:
            raise UserWarning(said[0])


class Site(NamedTuple):
    """A place in the code that words a fix.

    Args:
        where: File and line.
        problems: What the message may say is wrong, with `\\0` for what is left open.
        fix: What it advises, likewise.
    """

    where: str
    problems: tuple[str, ...]
    fix: str

    def says(self, problem: str, fix: str) -> bool:
        """Whether these are texts of its message."""
        return _matches(self.fix.split(_OPEN), fix) and any(
            _matches(each.split(_OPEN), problem) for each in self.problems
        )

    def __str__(self) -> str:
        shown = [text.replace(_OPEN, "...") for text in (self.problems[0], self.fix)]
        return f"{self.where}\n  problem: {shown[0]}\n  fix:     {shown[1]}"


def sites() -> list[Site]:
    """Every fix of a message: what is passed as `fix=` or `fixes=`, to whatever function.

    A function that only passes on a fix, as its parameter or as an attribute of that name, is no
    place where it is worded.
    """
    trees = {path: ast.parse(path.read_text()) for path in MODULES}
    constants = dict(assigned for tree in trees.values() for assigned in _assigned(tree.body))
    return [
        Site(f"{path.relative_to(ROOT)}:{call.lineno}", problems, fix)
        for path, tree in trees.items()
        for call, parameters, before in _calls(tree)
        for problems, fix in _Words(constants, parameters, before).of(call)
    ]


class _Words:
    """The texts that a call may be given.

    Args:
        constants: Those of all modules, by name.
        parameters: Of the functions around the call.
        before: The statements before it, of each block around it, the innermost last.
    """

    def __init__(
        self,
        constants: dict[str, ast.expr],
        parameters: frozenset[str],
        before: tuple[list[ast.stmt], ...],
    ):
        self._constants = constants
        self._parameters = parameters
        self._before = before

    def of(self, call: ast.Call) -> Iterator[tuple[tuple[str, ...], str]]:
        """Its problems, and each fix that it is given."""
        for keyword in call.keywords:
            given = [keyword.value] if keyword.arg == "fix" else []
            if keyword.arg == "fixes" and isinstance(keyword.value, ast.Dict):
                given = keyword.value.values
            for value in given:
                if self._is_passed_on(value):
                    continue
                fixes = [text for text in self._texts(value) if text.strip(_OPEN)]
                assert fixes, f"write the text of the fix where it is passed: {ast.unparse(call)}"
                for fix in fixes:
                    yield self._problems(call), fix

    def _problems(self, call: ast.Call) -> tuple[str, ...]:
        place = {"error_message": 1, "refused": 2}.get(ast.unparse(call.func))
        given = [call.args[place]] if place else call.args
        texts = [text for value in given for text in self._texts(value)]
        found = [text for text in texts if place or text.endswith(".")]
        return tuple(found) or (_OPEN,)

    def _is_passed_on(self, value: ast.expr) -> bool:
        if isinstance(value, ast.Name) and value.id in self._parameters:
            return True
        return any(
            isinstance(each, ast.Attribute) and each.attr == "fix" for each in ast.walk(value)
        )

    def _texts(self, value: ast.expr) -> list[str]:
        """What a text may be, with what is left open."""
        if isinstance(value, ast.Constant):
            return [str(value.value).replace("{}", _OPEN)]
        if isinstance(value, ast.IfExp):
            return self._texts(value.body) + self._texts(value.orelse)
        if isinstance(value, ast.BoolOp):
            return [text for each in value.values for text in self._texts(each)]
        if isinstance(value, ast.JoinedStr):
            return ["".join(map(self._part, value.values))]
        if isinstance(value, ast.Name):
            return [text for given in self._values(value.id) for text in self._texts(given)] or [
                _OPEN
            ]
        return [_OPEN]

    def _values(self, name: str) -> list[ast.expr]:
        """What a name may have been assigned before the call."""
        found = []
        for block in reversed(self._before):
            for statement in reversed(block):
                given = [value for each, value in _assigned(_within(statement)) if each == name]
                found += given
                if given and isinstance(statement, ast.Assign):
                    return found  # and not under a condition
        return found or ([self._constants[name]] if name in self._constants else [])

    def _part(self, part: ast.expr) -> str:
        """A part of an f-string: its own text, or that of a constant of a module."""
        if isinstance(part, ast.FormattedValue):
            name = part.value.id if isinstance(part.value, ast.Name) else ""
            return self._texts(self._constants[name])[0] if name in self._constants else _OPEN
        return str(part.value) if isinstance(part, ast.Constant) else _OPEN


def _calls(
    node: ast.AST,
    parameters: frozenset[str] = frozenset(),
    before: tuple[list[ast.stmt], ...] = (),
) -> Iterator[tuple[ast.Call, frozenset[str], tuple[list[ast.stmt], ...]]]:
    """All calls within a node, with what `_Words` asks for."""
    if isinstance(node, ast.Call):
        yield node, parameters, before
    if isinstance(node, ast.FunctionDef):
        parameters |= {each.arg for each in (*node.args.args, *node.args.kwonlyargs)}
    for _, children in ast.iter_fields(node):
        block = children if isinstance(children, list) else [children]
        for place, child in enumerate(block):
            if isinstance(child, ast.stmt) and parameters:
                yield from _calls(child, parameters, (*before, block[:place]))
            elif isinstance(child, ast.AST):
                yield from _calls(child, parameters, before)


def _within(statement: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a statement, but not those of functions, nor of blocks that end in a raise."""
    yield statement
    for _, children in ast.iter_fields(statement):
        block = children if isinstance(children, list) else [children]
        if block and isinstance(block[-1], ast.Raise | ast.Return):
            continue
        for child in block:
            if isinstance(child, ast.AST) and not isinstance(child, ast.FunctionDef):
                yield from _within(child)


def _assigned(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    """The names that are assigned, with what they are."""
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def _matches(parts: list[str], text: str) -> bool:
    """Whether a text has these parts in this order, and whatever between them."""
    return re.fullmatch("(.*)".join(map(re.escape, parts)), text, re.DOTALL) is not None
