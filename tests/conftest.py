"""Strict numerics, eight devices, and small real TFDS datasets on disk."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# The processes that tests start show where records go, not how fast: they compile in half the time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import datasets
import hypothesis
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from datarax_tfds import batch_sharding, make_mesh

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", help="append what the tests of faults measure to this file")
    parser.addoption("--full", action="store_true", help="test faults at length: minutes")


# They start processes of their own: two at a time would be slower than one after the other.
OF_PROCESSES = {
    "test_agreement",
    "test_elastic",
    "test_environment",
    "test_launch_local",
    "test_preparing",
    "test_processes",
    "test_structure",
    "test_train",
    "test_trust",
}


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the tests of a file, which share sources, on one worker of pytest-xdist."""
    for item in items:
        name = "processes" if item.path.stem in OF_PROCESSES else item.path.stem
        item.add_marker(pytest.mark.xdist_group(name))


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
    """Where every dataset of `datasets.py` is prepared."""
    directory = tmp_path_factory.mktemp("data")
    datasets.write_all(directory)
    return directory


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


@pytest.fixture
def reads(monkeypatch):
    """The numbers of all records that are read, in the order in which they are."""
    from datarax_tfds.records import RecordReader

    read, numbers = RecordReader.read, []

    def noting(self, some, keys=None):
        numbers.extend(some.tolist())
        return read(self, some, keys)

    monkeypatch.setattr(RecordReader, "read", noting)
    return numbers
