"""Strict numerics, eight devices, and small real TFDS datasets on disk."""

import gc
import json
import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# XLA skips most of its optimizations, here and in the processes that tests start: programs compile
# in half the time. With 0 it optimizes as it does for users: so does `.ci/run` on a newer Python.
few_optimizations = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
jax.config.update("jax_disable_most_optimizations", few_optimizations)
if few_optimizations and jax.__version__.startswith("0.10."):  # XLA aborts at flags it lacks
    # Its earlier code generator, in one piece: the order of the records compiles in a third of the
    # time. Only the oldest Python has this JAX; the newer ones test the code generator of users.
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", flags)

# A shell lets programs that it starts in the background ignore Ctrl-C, which tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# TensorFlow then does not import Keras, which takes a quarter of the time that processes of tests
# need to start. Tests of Keras layers import it.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

# TensorStore looks there for an account of Google, and not in the network. Nothing listens.
os.environ.setdefault("GCE_METADATA_ROOT", "127.0.0.1:1")

import costs
import hypothesis
import numpy as np
import tfds_datasets
from jax.sharding import AxisType, Mesh, NamedSharding

from datarax_tfds import batch_sharding, make_mesh

pytest_plugins = ["second_try"]

# A level of its own, because other libraries raise that of the root logger.
logging.getLogger("datarax_tfds").setLevel(logging.WARNING)

# How long an example takes says more of the machine than of the code. The examples are the same in
# each run, so that a failure does not come and go; `--full` draws others.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("full", deadline=None)


QUICK_ROWS = 2  # so that about an eighth of the tests run, and each test function does


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", help="append what the tests of faults measure to this file")
    parser.addoption("--full", action="store_true", help="test faults at length: minutes")
    parser.addoption(
        "--quick", action="store_true", help="leave out the tests marked slow, and most parameters"
    )
    parser.addoption(
        "--rows",
        type=int,
        metavar="N",
        help="run each test with N of its parameters at most; some marked versions with all",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--quick"):
        config.option.markexpr = "not slow"
        config.option.rows = config.option.rows or QUICK_ROWS
    hypothesis.settings.load_profile("full" if config.getoption("--full") else "same")
    # The longest groups of tests first, as `costs.mark` has them, instead of the largest.
    config.option.loadscopereorder = False
    # A program that several tests compile is compiled once: a quarter of the time of test_source.
    # Each worker has its own directory, because JAX does not write these files atomically.
    compiled = tempfile.TemporaryDirectory(prefix="jax-")
    config.add_cleanup(compiled.cleanup)
    jax.config.update("jax_compilation_cache_dir", compiled.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return costs.ByGroup(config, log) if config.getoption("dist") == "loadgroup" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    costs.mark(config, items)
    if (most := config.getoption("rows")) is not None:
        some = costs.some_rows([item.nodeid for item in items], most)
        left = [item for item in items if item.nodeid not in some and not costs.of_all_rows(item)]
        if left:
            config.hook.pytest_deselected(items=left)
            items[:] = [item for item in items if item not in set(left)]


def pytest_collection_finish() -> None:
    """Spares the garbage collector the modules of TensorFlow and JAX: 0.3 s at each full round."""
    gc.collect()
    gc.freeze()


LEFT_OUT = pytest.StashKey[int]()


def pytest_deselected(items: list[pytest.Item]) -> None:
    stash = items[0].config.stash
    stash[LEFT_OUT] = stash.get(LEFT_OUT, 0) + len(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Each worker of pytest-xdist has collected, and left out, the same tests."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    left_out = config.stash.get(LEFT_OUT, 0)
    if left_out and config.getoption("--quick"):
        terminalreporter.section("quick run")
        terminalreporter.line(
            f"{left_out} tests were left out: the slow ones, and of each test with more than"
            f" {config.getoption('rows')} parameters the others. All run without --quick."
        )


@pytest.fixture(autouse=True, scope="module")
def loggers_stay_on() -> Iterator[None]:
    yield
    assert not logging.root.manager.disable, "these tests silence the log of those after them"


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, str, object], None]:
    """Notes what a test has found, for the table of `scripts/fault_report.py`."""
    path = request.config.getoption("--figures")

    def note(name: str, found: str, target: object) -> None:
        if path is not None:
            with open(path, "a") as file:
                file.write(json.dumps([name, found, str(target)]) + "\n")

    return note


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether to test at length."""
    return request.config.getoption("--full")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every dataset of `tfds_datasets.py` is prepared."""
    directory = tmp_path_factory.mktemp("data")
    tfds_datasets.write_all(directory)
    return directory


@pytest.fixture
def user(data_dir: Path, tmp_path: Path) -> Any:
    """Who makes the calls of the tables of `test_advice_*.py`."""
    from advice import User

    return User(data_dir, tmp_path)


def shardings() -> dict[str, NamedSharding]:
    """Meshes that differ in all that must not matter: size, axes, kind of axes, device order."""
    devices = jax.devices()
    assert len(devices) == 8
    shuffled = np.array([devices[i] for i in (5, 2, 7, 0, 3, 6, 1, 4)])
    return {
        "one device": batch_sharding(make_mesh({"data": 1}, devices=devices[:1])),
        "8 devices": batch_sharding(make_mesh({"data": 8})),
        "8 devices, explicit axes": batch_sharding(
            make_mesh({"data": 8}, axis_type=AxisType.Explicit)
        ),
        "8 devices, permuted": batch_sharding(Mesh(shuffled, ("data",))),
        "4 x 2, replicas": batch_sharding(make_mesh({"data": 4, "model": 2})),
        "2 x 4, model axis first": batch_sharding(make_mesh({"model": 2, "data": 4})),
        "2 x 4, two batch axes": batch_sharding(
            make_mesh({"fsdp": 2, "data": 4}), ("data", "fsdp")
        ),
        "3 of the devices": batch_sharding(make_mesh({"data": 3}, devices=devices[3:6])),
    }


@pytest.fixture(params=list(shardings()))
def sharding(request: pytest.FixtureRequest) -> NamedSharding:
    return shardings()[request.param]


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Waits until something is so that other threads bring about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def limits():
    """How long this process waits, for a test to change."""
    from sharding.hosts.job import Limits, job

    before, job.limits = job.limits, Limits()
    yield job.limits
    job.limits = before


@pytest.fixture
def reads(monkeypatch):
    """The numbers of all records that are read, in the order in which they are."""
    from datarax_tfds.decoding.reader import RecordReader

    read, numbers = RecordReader.read, []

    def noting(self, some, keys=None):
        numbers.extend(some.tolist())
        return read(self, some, keys)

    monkeypatch.setattr(RecordReader, "read", noting)
    return numbers
