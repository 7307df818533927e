#!/usr/bin/env python3
"""Changes the arithmetic of order and cursor, one operator at a time, and sees if a test fails.

    scripts/mutate.py            # every mutant of every module below; some minutes
    scripts/mutate.py cursor     # of one

A mutant that no test notices is printed. `+` becomes `-`, `<` becomes `<=`, `//` becomes `/`, an
integer one more: what is easily got wrong at the end of an epoch or of a file.
"""

import argparse
import ast
import copy
import importlib.machinery
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Once, and not again in each child: 3 s. Nothing of ours, and no device.
import grain  # noqa: F401
import hypothesis.stateful
import pytest
from flax import nnx  # noqa: F401

ROOT = Path(__file__).parent.parent
TESTS = {
    "cursor": ["test_cursor.py", "test_history.py"],
    "selection": ["test_selection.py", "test_history.py"],
    "block_order": ["test_block_order.py", "test_history.py"],
    "order": ["test_order.py"],
}
SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
# No program can tell them from the original, and why.
EQUIVALENT = {
    "selection: lower < upper -> lower <= upper": "a span of no records adds none",
    "block_order: places[places != short] > short -> places[places != short] >= short": (
        "it is not among them"
    ),
    "block_order: 1 -> 2 in `return key % (full + 1) if self._missing else full + 1`": (
        "both are behind all"
    ),
    "order: 0 -> 1 in `return positions * 0`": "of one record, all positions are 0",
    "order: 1 -> 2 in `values = np.arange(1 << _BLOCK_BITS)`": "no walk leaves the block",
    "order: half <= 16 -> half < 16": "wider words hold the same halves",
    **dict.fromkeys(
        [
            "order: n >= 7 -> n > 7",
            "order: 7 -> 8 in `t = 3 if n >= 7 else (n - 1) // 2`",
            "order: 1 -> 2 in `t = 3 if n >= 7 else (n - 1) // 2`",
        ],
        "the number of rounds is even",
    ),
    **dict.fromkeys(
        [
            "order: stride >= _SPARSE * (stop - start) -> stride > _SPARSE * (stop - start)",
            "order: stop - start -> stop + start",
            "order: self.length > _CHUNK -> self.length >= _CHUNK",
            "order: 16 -> 17 in `_SPARSE = 16`",
            "order: 1 -> 2 in `_CHUNK = 1 << _BLOCK_BITS  # positions computed at once on the host,"
            " 12 ms ahead of their use`",
            "order: 0 -> 1 in `def span(self, epoch: int, start: int, stop: int, stride: int = 0)"
            " -> np.ndarray:`",
            "block_order: 0 -> 1 in `def span(self, epoch: int, start: int, stop: int,"
            " stride: int = 0) -> np.ndarray:  # noqa: ARG002`",
            "block_order: 4 -> 5 in `@functools.lru_cache(maxsize=4)  # the window in use, the"
            " next, and those of an evaluation set`",
            "order: 4 -> 5 in `@functools.lru_cache(maxsize=4)  # the chunk in use, the next, and"
            " those of an evaluation set`",
        ],
        "the same numbers, sooner or later",
    ),
}
# A failure is enough, and need not be made small; the same examples each time.
PROFILE = "mutants"
hypothesis.settings.register_profile(
    PROFILE,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    derandomize=True,
    deadline=None,
)
LIMIT_S = 90  # a mutant that loops for ever is caught, too


def main() -> int:
    """Tries all mutants; 0 if at least 95 % of them are caught."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", choices=[*TESTS, []], help="all by default")
    modules = parser.parse_args().modules or list(TESTS)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]
    os.chdir(ROOT)
    total = caught = 0
    for module in modules:
        path = ROOT / "datarax_tfds" / f"{module}.py"
        if run(path, path.read_text(), TESTS[module]):
            print(f"{module}: its tests fail as it is")
            return 2
        for line, what, source in mutants(path.read_text()):
            if f"{module}: {what}" in EQUIVALENT:
                continue
            total += 1
            if run(path, source, TESTS[module]):
                caught += 1
            else:
                print(f"survived: {path.relative_to(ROOT)}:{line}: {what}", flush=True)
    print(f"{caught} of {total} mutants caught: {caught / total:.1%}")
    return 0 if caught >= 0.95 * total else 1


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """The line, the change, and the whole text with it."""
    tree = ast.parse(source)
    places = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp | ast.Compare)]
    for number, node in enumerate(places):
        operators = node.ops if isinstance(node, ast.Compare) else [node.op]
        for place, operator in enumerate(operators):
            if type(operator) in SWAPS:
                other = copy.deepcopy(tree)
                same = (n for n in ast.walk(other) if isinstance(n, ast.BinOp | ast.Compare))
                changed: Any = list(same)[number]
                swapped = SWAPS[type(operator)]()
                if isinstance(changed, ast.Compare):
                    changed.ops[place] = swapped
                else:
                    changed.op = swapped
                yield node.lineno, f"{ast.unparse(node)} -> {ast.unparse(changed)}", text(other)
    for number, node in enumerate(integers(tree)):
        other = copy.deepcopy(tree)
        changed = integers(other)[number]
        changed.value += 1
        line = source.splitlines()[node.lineno - 1].strip()
        yield node.lineno, f"{node.value} -> {changed.value} in `{line}`", text(other)


def integers(tree: ast.AST) -> list[Any]:
    """The whole numbers that stand in a text."""
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [node for node in constants if type(node.value) is int]


def text(tree: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(tree))


def run(path: Path, source: str, tests: list[str]) -> bool:
    """Whether a test fails where the module at a path is that source."""
    child = os.fork()
    if child == 0:
        load = importlib.machinery.SourceFileLoader.get_code

        def mutated(self: Any, fullname: str) -> Any:
            if self.path == str(path):
                return compile(source, str(path), "exec")
            return load(self, fullname)

        importlib.machinery.SourceFileLoader.get_code = mutated
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        options = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-o", "addopts="]
        options += ["-o", "timeout=0", f"--hypothesis-profile={PROFILE}"]
        os._exit(pytest.main([*options, *(f"tests/{test}" for test in tests)]))
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status != 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


if __name__ == "__main__":
    sys.exit(main())
