"""Another package called `sharding`, of which the registry has one, is told from ours."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import GUARD_S
from refusals import check_message

ROOT = Path(__file__).parent.parent
OTHERS = {
    "a package before ours": ("sharding/__init__.py", "class ShardedTable: ..."),
    "a module before ours": ("sharding.py", "def make_mesh(): ..."),
    "a package that cannot be imported": ("sharding/__init__.py", "import no_such_module"),
}


def imported(path):
    """How the import of our package ends where that directory comes first on the path."""
    return subprocess.run(
        [sys.executable, "-c", "import datarax_tfds"],
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=GUARD_S,
        cwd="/",
    )


def check_refused(path, found):
    said = imported(path).stderr
    message = said.partition("ImportError: ")[2].strip()
    check_message(message)
    assert f"found: {found}" in message
    assert "pip uninstall sharding" in message


@pytest.mark.parametrize("other", OTHERS)
def test_another_package_called_sharding_is_named_with_its_file(tmp_path, other):
    name, text = OTHERS[other]
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    check_refused(tmp_path, file)
    file.unlink()
    done = imported(tmp_path)
    assert done.returncode == 0, done.stderr


def test_another_package_that_was_installed_over_ours_is_refused(tmp_path):
    """They share a directory then, and of ours only the submodules are left."""
    for package in ("datarax_tfds", "sharding"):
        shutil.copytree(ROOT / package, tmp_path / package)
    ours = tmp_path / "sharding/__init__.py"
    ours.write_text("class ShardedTable: ...")
    check_refused(tmp_path, ours)
