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
# No program can tell these lines from the original ones, and why.
EQUIVALENT = {
    "selection: if lower <= upper:": "a span of no records adds none",
    "block_order: others = places[places != short] - (places[places != short] >= short)": (
        "it is not among them"
    ),
    "block_order: return key % (full + 1) if self._missing else full + 2": "both are behind all",
    "order: return positions * 1": "of one record, all positions are 0",
    "order: values = np.arange(2 << _BLOCK_BITS)": "no walk leaves the block",
    "order: word = np.uint16 if half < 16 else np.uint32": "wider words hold the same halves",
    **dict.fromkeys(
        [
            "order: t = 3 if n > 7 else (n - 1) // 2",
            "order: t = 3 if n >= 8 else (n - 1) // 2",
            "order: t = 3 if n >= 7 else (n - 2) // 2",
        ],
        "the number of rounds is even",
    ),
    **dict.fromkeys(
        [
            "order: if stride > _SPARSE * (stop - start) and self.length > _CHUNK:",
            "order: if stride >= _SPARSE * (stop + start) and self.length > _CHUNK:",
            "order: if stride >= _SPARSE * (stop - start) and self.length >= _CHUNK:",
            "order: _SPARSE = 17",
            "order: _CHUNK = 2 << _BLOCK_BITS",
            "order: @functools.lru_cache(maxsize=5)",
            "block_order: @functools.lru_cache(maxsize=5)",
            *(
                f"{module}: def span(self, epoch: int, start: int, stop: int, stride: int = 1)"
                " -> np.ndarray:"
                for module in ("order", "block_order")
            ),
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
        tried = list(mutants(path.read_text()))
        listed = [f"{module}: {what}" for _, what, _ in tried]
        known = [entry for entry in EQUIVALENT if entry.startswith(f"{module}: ")]
        if sorted(known) != sorted(entry for entry in listed if entry in EQUIVALENT):
            print(f"{module}: EQUIVALENT names what is no mutant, or several")
            return 2
        for line, what, source in tried:
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
    """The number of a line, how it then reads, and the whole text with it."""
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
                yield node.lineno, changed_line(source, node, ast.unparse(changed)), text(other)
    for number, node in enumerate(integers(tree)):
        other = copy.deepcopy(tree)
        changed = integers(other)[number]
        changed.value += 1
        yield node.lineno, changed_line(source, node, str(changed.value)), text(other)


def changed_line(source: str, node: Any, new: str) -> str:
    """The line on which a node begins, with something in its place; without its comment."""
    lines = source.splitlines()
    before = lines[node.lineno - 1][: node.col_offset]
    after = lines[node.end_lineno - 1][node.end_col_offset :]
    return f"{before}{new}{after}".partition("  # ")[0].strip()


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
