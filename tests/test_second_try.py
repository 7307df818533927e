"""The second try of failed tests, and the choice of those that run."""

import os
import subprocess
import sys
from pathlib import Path

import costs
import pytest
from checkout import GUARD_S

# Each test fails until the file that it is given exists, and then passes.
TEST = """
import pathlib, pytest

@pytest.mark.parametrize("name", {names})
def test_it(name):
    path = pathlib.Path(name)
    existed = path.exists()
    path.touch()
    assert existed and {sound}, "the first try of " + name
"""


@pytest.mark.parametrize(
    ("names", "sound", "status", "tries", "flaky"),
    [
        (["a", "b: c::d"], True, 0, 2, 2),
        (["a"], False, 1, 1, 0),  # it fails twice
        ([*"abcdefghijk"], True, 1, 0, 0),  # more than a busy machine does
    ],
)
def test_up_to_ten_tests_are_tried_again(tmp_path, names, sound, status, tries, flaky):
    (tmp_path / "conftest.py").write_text("pytest_plugins = ['second_try']")
    (tmp_path / "test_it.py").write_text(TEST.format(names=names, sound=sound))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--second-try=flaky.txt"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=GUARD_S,
    )
    assert done.returncode == status, done.stdout
    assert done.stdout.count("second try: ") == tries
    for name in names:
        assert f"the first try of {name}" in done.stdout
    listed = (tmp_path / "flaky.txt").read_text() if flaky else ""
    assert listed.count("flaky: ") == flaky
    assert listed.count("It passes alone, and failed in a process that tested test_it.py") == flaky
    assert listed.count("AssertionError: the first try of ") == flaky
    assert flaky or not (tmp_path / "flaky.txt").exists()


def test_of_each_test_some_rows_run_and_are_the_same_in_each_run():
    few = ["test_a.py::test_one", "test_a.py::test_two[1]", "test_b.py::test_two[1]"]
    many = [f"test_a.py::TestIt::test_many[{n}-{kind}]" for n in range(9) for kind in "ab"]
    some = costs.some_rows([*few, *many], 4)
    assert some > set(few)
    assert len(some - set(few)) == 4
    assert {row[-2] for row in some - set(few)} == {"a", "b"}
    assert costs.some_rows([*reversed(many), *few], 4) == some
