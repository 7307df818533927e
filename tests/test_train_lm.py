"""The training of a language model on packed text, as a user runs it."""

import re
import shutil
import sys

import pytest
import warmed
from checkout import GUARD_S, ROOT

from datarax_tfds.state import state_file

SMALL = {
    "source.name": "golden_text",
    "rows.length": 32,
    "batch-size": 4,
    "model.width": 8,
    "model.layers": 1,
    "model.heads": 1,
    "checkpoint-every": 15,
}
LAUNCH = [sys.executable, "-m", "datarax_tfds", "launch"]
SCRIPT, CONFIG = ROOT / "scripts/train_lm.py", ROOT / "configs/docstrings.yaml"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with a dataset of short texts."""
    directory = tmp_path_factory.mktemp("train_lm")
    shutil.copytree(ROOT / "tests/golden/earlier/texts", directory / "data")
    return directory


def losses(place, checkpoints, steps, processes=1):
    """The losses that a run prints, by step."""
    command = [sys.executable, str(SCRIPT), str(CONFIG)]
    for name, value in (SMALL | {"steps": steps, "checkpoint-dir": checkpoints}).items():
        command += [f"--{name}", str(value)]
    if processes > 1:
        command = [*LAUNCH, str(processes), "--timeout-s", str(GUARD_S), "--", *command]
    done = warmed.run(command, cwd=place, timeout=GUARD_S)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.findall(r"step (\d+): loss ([\d.]+)", done.stdout)
    return {int(step): float(loss) for step, loss in found}


def test_a_run_that_died_goes_on_with_the_same_losses_on_two_processes(place):
    expected = losses(place, "whole", 30)
    assert list(expected) == [10, 20, 30]
    assert expected[30] < expected[10]
    shutil.copytree(place / "whole" / "15", place / "died" / "15")
    found = losses(place, "died", 30, processes=2)
    # The sums of gradients of two processes are rounded in another order.
    assert found == pytest.approx({step: expected[step] for step in (20, 30)}, abs=2e-3)
    states = [state_file.read(place / run / "30/data") for run in ("whole", "died")]
    assert states[0] == states[1]
