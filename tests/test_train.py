"""The main job, as a user runs it."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import warmed
from checkout import GUARD_S, NOISE, TRAIN

from datarax_tfds.cli import launching

LAUNCH = [sys.executable, "-m", "datarax_tfds", "launch"]
ACCURACY = re.compile(r"test accuracy: ([\d.]+)% \((\d+) of (\d+) records\), step (\d+)")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory, in which the dataset is prepared once."""
    return tmp_path_factory.mktemp("train")


def trained(place, *overrides, processes=None):
    command = [*TRAIN, *overrides]
    if processes:
        command = [*LAUNCH, str(processes), "--timeout-s", str(GUARD_S), "--", *command]
    done = warmed.run(command, cwd=place, timeout=GUARD_S)
    assert done.returncode == 0, done.stderr[-3000:]
    found = ACCURACY.search(done.stdout)
    assert found, done.stdout[-3000:]
    assert not NOISE.search(done.stdout + done.stderr), done.stdout + done.stderr
    return float(found[1]), int(found[3]), int(found[4]), done.stdout + done.stderr


def test_the_digits_are_learned_also_when_killed_on_the_way(place):
    process = warmed.Popen(TRAIN, cwd=place, stderr=subprocess.DEVNULL)
    checkpoints = place / "runs/digits"
    deadline = time.monotonic() + GUARD_S
    while not [path for path in checkpoints.glob("*") if path.name.isdecimal()]:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    accuracy, records, step, printed = trained(place)
    assert re.search(r"from step [1-9]\d*:", printed)
    assert accuracy >= 97
    assert (records, step) == (360, 599)
    # Finished: started again, it evaluates, and does not train.
    assert trained(place)[:3] == (accuracy, records, step)


@pytest.mark.parametrize("count", [1, 2])
def test_a_notice_of_preemption_makes_all_save_the_same_step_and_stop(place, tmp_path, count):
    checkpoints = tmp_path / "checkpoints"
    command = [*TRAIN, "--epochs", "400", "--source.data-dir", str(place / "data")]
    command += ["--checkpoint-dir", str(checkpoints)]
    processes = launching.start(count, command, tmp_path, warmed.Popen)
    logs = [tmp_path / f"process-{number}.log" for number in range(count)]
    deadline = time.monotonic() + GUARD_S
    try:
        while not [path for path in checkpoints.glob("*") if path.name.isdecimal()]:
            assert not any(process.poll() for process in processes), logs[-1].read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        processes[-1].send_signal(signal.SIGTERM)
        assert [process.wait(GUARD_S) for process in processes] == [os.EX_TEMPFAIL] * count
    finally:
        launching.end(processes)
    said = [re.search(r"saved at step (\d+)", log.read_text())[1] for log in logs]
    assert len(set(said)) == 1
    assert (checkpoints / said[0] / "data/data_state.json").exists()
    assert max(int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal()) == int(
        said[0]
    )


def test_four_processes_learn_the_same(place):
    short = ["--epochs", "3", "--checkpoint-dir"]
    alone = trained(place, *short, "runs/alone")
    together = trained(place, *short, "runs/together", processes=4)
    assert together[1:3] == alone[1:3] == (360, 45)
    # The batches are the same; the sums of gradients are rounded in another order.
    assert together[0] == pytest.approx(alone[0], abs=1)
