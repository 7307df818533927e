"""The examples for other libraries train as they stand, and resume."""

import json
import re
import sys

import pytest
import warmed
from checkout import GUARD_S, NOISE, ROOT

from datarax_tfds.cli import launching

ACCURACY = re.compile(r"test accuracy: ([\d.]+)%")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory, in which the dataset is prepared once."""
    return tmp_path_factory.mktemp("examples")


def trained(place, name):
    command = [sys.executable, str(ROOT / f"scripts/example_{name}.py")]
    done = warmed.run(command, cwd=place, timeout=GUARD_S)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not NOISE.search(done.stdout + done.stderr), done.stdout + done.stderr
    return float(ACCURACY.search(done.stdout)[1]), done.stdout


@pytest.mark.parametrize("name", ["nnx", "linen", "equinox"])
def test_the_digits_are_learned(place, name):
    assert trained(place, name)[0] > 93


def test_with_optax_a_run_ends_as_one_that_was_not_interrupted(place):
    accuracy, printed = trained(place, "optax")
    assert accuracy > 93
    assert "step 50:" in printed
    # From the last checkpoint on, as after a kill.
    again, printed = trained(place, "optax")
    assert again == accuracy
    assert "step" not in printed


@pytest.mark.parametrize("name", ["nnx", "linen", "equinox", "optax", "keras"])
def test_an_example_is_short(name):
    lines = (ROOT / f"scripts/example_{name}.py").read_text().splitlines()
    assert 40 <= len(lines) <= 80


def kept_training(place, directory, *, epochs, processes):
    """The test accuracy of each process that trains with Keras up to this epoch."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import example_keras\n"
        f"print(example_keras.main('data', {directory!r}, {epochs}))"
    )
    logs = place / f"{directory}-{epochs}-{processes}"
    logs.mkdir()
    started = launching.start(processes, [sys.executable, "-c", code], logs, warmed.Popen)
    try:
        for process in started:
            assert process.wait(GUARD_S) == 0, [log.read_text()[-2000:] for log in logs.iterdir()]
    finally:
        launching.end(started)
    return [
        float((logs / f"process-{number}.log").read_text().splitlines()[-1])
        for number in range(processes)
    ]


def test_keras_trains_alike_in_two_processes_and_after_a_resume(place, monkeypatch):
    monkeypatch.chdir(place)
    whole = kept_training(place, "whole", epochs=4, processes=1)
    kept_training(place, "resumed", epochs=2, processes=1)
    resumed = kept_training(place, "resumed", epochs=4, processes=2)
    assert whole[0] > 0.8
    # Sums over devices are rounded in another order.
    assert resumed == pytest.approx(whole * 2, abs=2 / 360)
    states = [json.loads((place / run / "data.json").read_text()) for run in ("whole", "resumed")]
    assert states[0] == states[1]
    assert (states[0]["epoch"], states[0]["index"]) == (4, 0)
