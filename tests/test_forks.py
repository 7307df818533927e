"""A forked child raises at once where it would wait for threads that only its parent has."""

import json
import subprocess
import sys

import pytest
from checkout import GUARD_S, WORKERS

WORKER = WORKERS / "forks.py"
REFUSED = "it cannot be used in a forked child, which lacks the threads of its parent."


def found(data_dir, how):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(WORKER), how, str(data_dir)],
        capture_output=True,
        text=True,
        timeout=GUARD_S,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_refused(children, used):
    for way, said in children.items():
        assert isinstance(said, str), (way, said)
        assert said.startswith("RuntimeError: "), (way, said)
        assert REFUSED in said, (way, said)
        assert f"used_before_the_fork: {used}" in said, (way, said)
        assert "get_context('spawn')" in said, (way, said)


def test_every_use_in_a_child_is_refused_and_the_parent_goes_on(data_dir):
    children = found(data_dir, "used")
    before, after = children.pop("before"), children.pop("after")
    assert children.pop("harmless") == ["TFDSStreamingSource", 97, 8]
    check_refused(children, "JAX, TensorFlow")
    assert all(one != other for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(("how", "used"), [("jax", "JAX"), ("tensorflow", "TensorFlow")])
def test_a_source_of_its_own_is_refused_where_the_parent_used(data_dir, how, used):
    children = found(data_dir, how)
    if how == "jax":
        assert "a forked child cannot ask the coordinator" in children.pop("joining")
    check_refused(children, used)


def test_a_spawned_child_reads_as_its_parent_does(data_dir):
    children = found(data_dir, "spawned")
    assert children["child"] == children["parent"]


def test_a_child_forked_before_either_is_used_reads_as_its_parent_does(data_dir):
    children = found(data_dir, "unused")
    child = children["child"]
    check_refused({"grandchild": child["grandchild"]}, "JAX, TensorFlow")
    assert child["by number"] == [3, 96]
    assert child["stream"] == child["eager"] == children["pool"] == children["parent"]
