"""How the code hangs together: what imports what, what it costs, and what messages look like."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import GUARD_S, MODULES, PACKAGES, ROOT

# The rooms, lowest first: a module imports from its own room and from those above it only.
ROOMS = [
    "sharding.checks sharding.errors",
    "sharding.hosts",
    "sharding",
    "datarax_tfds.errors datarax_tfds.runtime",
    "datarax_tfds.stores",
    "datarax_tfds.order",
    "datarax_tfds.state",
    "datarax_tfds.config",
    "datarax_tfds.files",
    "datarax_tfds.decoding",
    "datarax_tfds.service",
    "datarax_tfds.counts",
    "datarax_tfds.tokens datarax_tfds.lengths",
    "datarax_tfds.records",
    "datarax_tfds.sources datarax_tfds.stages datarax_tfds.report",
    "datarax_tfds.tfds_source",
    "datarax_tfds.derived_source",
    "datarax_tfds.packed_source datarax_tfds.bucketed_source",
    "datarax_tfds.mixture_source",
    "datarax_tfds.pipeline datarax_tfds.checkpoint",
    "datarax_tfds.adapters datarax_tfds.evaluation datarax_tfds.history",
    "datarax_tfds.pictures",
    "datarax_tfds.public_names",
    "datarax_tfds",
    "datarax_tfds.cli",
    "datarax_tfds.__main__",
]
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms.split()}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The longest name in the table that the module's own name begins with."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next(name for name in names if name in FLOORS)


def imports_of(path: Path) -> set[str]:
    known = set(map(name_of, MODULES))
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= submodules or {node.module}
    return {name for name in found if name.split(".")[0] in PACKAGES}


def test_every_folder_has_a_place_in_the_table():
    folders = {name_of(path) for path in MODULES if path.name == "__init__.py"} - set(PACKAGES)
    parents = {"datarax_tfds.decoding.functions"}
    assert folders - parents <= set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path):
    room = room_of(name_of(path))
    for imported in imports_of(path):
        other = room_of(imported)
        assert other == room or FLOORS[other] < FLOORS[room], imported


@pytest.mark.parametrize("folder", [path.parent for path in MODULES if path.stem == "__init__"])
def test_modules_of_one_folder_import_each_other_in_no_circle(folder):
    names = {name_of(path): path for path in folder.glob("*.py") if path.stem != "__init__"}
    left = {name: imports_of(path) & set(names) for name, path in names.items()}
    while ready := {name for name, needed in left.items() if not needed & set(left)}:
        left = {name: needed for name, needed in left.items() if name not in ready}
    assert not left


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=GUARD_S, cwd="/"
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


def test_the_process_that_talks_to_ray_loads_no_jax():
    python(
        "import sys\n"
        "from datarax_tfds.service import channel, ray_driver, rows_format\n"
        "assert not {'jax', 'tensorflow'} & set(sys.modules)\n"
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
    """`refused` or `error_message` makes each error, with a `fix`; or it is raised again."""
    tree = ast.parse(path.read_text())
    wording = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and "refused(" in ast.unparse(node)
    } | {"refusal"}  # of `Field`, for all that checks one
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = ast.unparse(node.exc)
            where = f"line {node.lineno}: {raised}"
            if isinstance(node.exc, ast.Call):
                maker = ast.unparse(node.exc.func).rpartition(".")[2]
                assert "refused(" in raised or maker in wording, where
            else:  # an error that was caught or made elsewhere, and no bare class
                assert isinstance(node.exc, ast.Name), where
                assert node.exc.id.islower(), where


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_message_is_a_sentence_with_the_values_that_show_it(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("refused", "error_message"):
            said = ast.unparse(node)
            named = {keyword.arg for keyword in node.keywords}
            assert "fix" in named, said
            assert len(named) > 1, f"no value beside the fix: {said}"
            problem = node.args[-1]
            parts = problem.values if isinstance(problem, ast.JoinedStr) else [problem]
            if isinstance(parts[-1], ast.Constant):
                assert parts[-1].value.endswith("."), said


# Python may run these inside any call, also of code that holds a lock. Each with the reason why it
# never waits for one.
HOOKS = {
    "datarax_tfds/cli/launch.py": {"signal.signal": "appends a number to a list"},
    "datarax_tfds/files/mapped_file.py": {"register_at_fork": "empties a deque of descriptors"},
    "datarax_tfds/files/stored_file.py": {"__del__": "swaps a number and closes it"},
    "datarax_tfds/service/lent_files.py": {
        "__del__": "puts a number into a SimpleQueue",
        "register_at_fork": "adds one to a number",
    },
    "datarax_tfds/service/ray_engine.py": {"finalize": "puts a text into a SimpleQueue"},
    "datarax_tfds/stores/metadata_copy.py": {"finalize": "removes a few small files"},
    "datarax_tfds/cli/terminal.py": {"atexit.register": "calls gc.freeze"},
    "datarax_tfds/runtime/forks.py": {"register_at_fork": "reads attributes of modules"},
    "datarax_tfds/runtime/threads.py": {
        "finalize": "sets a flag and puts a sentinel into a SimpleQueue",
        "atexit.register": "sleeps for a bounded time, and looks at a dict",
        "register_at_fork": "empties a dict and a set",
    },
    "sharding/hosts/forked_children.py": {
        "atexit.register": "flushes two streams and ends the process",
        "register_at_fork": "registers an exit hook and resets a signal handler",
        "signal.signal": "is that of the system",
    },
    "sharding/hosts/coordination.py": {"register_at_fork": "reads an attribute of a module"},
    "sharding/hosts/exit_cause.py": {"threading.excepthook": "keeps the text of an error"},
    "sharding/hosts/preemption.py": {"signal.signal": "sets a bool, and calls the earlier handler"},
    "sharding/hosts/exit_hooks.py": {
        "atexit.register": "polls the coordinator for as long as the other processes live",
        "sys.excepthook": "asks the coordinator for a bounded time",
    },
}


def hooks_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found |= {ast.unparse(node)} & {"atexit.register", "signal.signal"}
            found |= {node.attr} & {"finalize", "register_at_fork"}
        elif isinstance(node, ast.FunctionDef):
            found |= {node.name} & {"__del__"}
        elif isinstance(node, ast.Assign):
            targets = set(map(ast.unparse, node.targets))
            found |= targets & {"__del__", "sys.excepthook", "threading.excepthook"}
    return found - {"finalize"} if path.name == "checkpoint.py" else found  # a method of Orbax's


def test_every_finalizer_and_hook_is_known_not_to_wait_for_a_lock():
    found = {str(path.relative_to(ROOT)): hooks_of(path) for path in MODULES}
    assert {file: hooks for file, hooks in found.items() if hooks} == {
        file: set(hooks) for file, hooks in HOOKS.items()
    }
