"""How the code hangs together: what imports what, what it costs, and what messages look like."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sharding", "datarax_tfds")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).glob("*.py"))]

# Lowest first: a module imports from those above it only.
LAYERS = [
    "sharding.messages",
    "sharding.errors",
    "sharding.coordination",
    "sharding.waits",
    "sharding.agreement",
    "sharding.watch",
    "sharding.preemption",
    "sharding.integers",
    "sharding.meshes",
    "sharding.placement",
    "sharding.gathers",
    "sharding.processes",
    "sharding",
    "datarax_tfds.errors",
    "datarax_tfds.hashing",
    "datarax_tfds.order",
    "datarax_tfds.block_order",
    "datarax_tfds.cursor",
    "datarax_tfds.selection",
    "datarax_tfds.positions",
    "datarax_tfds.opened",
    "datarax_tfds.state",
    "datarax_tfds.config",
    "datarax_tfds.tfrecord",
    "datarax_tfds.offset_index",
    "datarax_tfds.array_record",
    "datarax_tfds.files",
    "datarax_tfds.block_files",
    "datarax_tfds.trust",
    "datarax_tfds.preparing",
    "datarax_tfds.split",
    "datarax_tfds.spec",
    "datarax_tfds.decoding",
    "datarax_tfds.records",
    "datarax_tfds.threads",
    "datarax_tfds.packing",
    "datarax_tfds.layout",
    "datarax_tfds.eager_records",
    "datarax_tfds.read_ahead",
    "datarax_tfds.record_cache",
    "datarax_tfds.streaming_records",
    "datarax_tfds.prefetch",
    "datarax_tfds.arguments",
    "datarax_tfds.operation_counts",
    "datarax_tfds.statistics",
    "datarax_tfds.source",
    "datarax_tfds.tfds_source",
    "datarax_tfds.stages",
    "datarax_tfds.pipeline",
    "datarax_tfds.cursor_log",
    "datarax_tfds.audit",
    "datarax_tfds.cli",
    "datarax_tfds.__main__",
    "datarax_tfds.state_file",
    "datarax_tfds.valid_steps",
    "datarax_tfds.checkpoint",
    "datarax_tfds",
]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(LAYERS)
            found |= submodules or {node.module}
    return {name for name in found if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path):
    name = name_of(path)
    allowed = LAYERS[: LAYERS.index(name)]
    assert imports_of(path) <= set(allowed)


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_no_tensorflow_and_starts_no_device():
    python(
        "import sys, datarax_tfds, sharding\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'orbax', 'grain', 'array_record'}\n"
        "loaded = heavy & {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded, loaded\n"
        "import jax._src.xla_bridge as bridge\n"
        "assert not bridge.backends_are_initialized()\n"
    )


def test_public_names_are_the_same_here_and_there():
    import datarax_tfds
    import sharding

    for name in ("batch_sharding", "global_batch", "initialize", "make_mesh"):
        assert getattr(datarax_tfds, name) is getattr(sharding, name)
    for package in (datarax_tfds, sharding):
        assert all(hasattr(package, name) for name in package.__all__)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_error_says_what_where_and_how_to_fix_it(path):
    """By way of `explain`, whose `fix` is required; or it passes on what was raised."""
    tree = ast.parse(path.read_text())
    wording = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and "explain(" in ast.unparse(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = ast.unparse(node.exc)
            where = f"line {node.lineno}: {raised}"
            if isinstance(node.exc, ast.Call):
                maker = ast.unparse(node.exc.func).removeprefix("self.")
                assert "explain(" in raised or maker in wording, where
            else:  # an error that was caught or made elsewhere, and no bare class
                assert isinstance(node.exc, ast.Name), where
                assert node.exc.id.islower(), where


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_message_is_a_sentence_with_the_values_that_show_it(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "explain":
            said = ast.unparse(node)
            named = {keyword.arg for keyword in node.keywords}
            assert "fix" in named, said
            assert len(named) > 1, f"no value beside the fix: {said}"
            _, problem = node.args
            parts = problem.values if isinstance(problem, ast.JoinedStr) else [problem]
            if isinstance(parts[-1], ast.Constant):
                assert parts[-1].value.endswith("."), said
