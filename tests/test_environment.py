"""What a job does to its process, and what its process may be like."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import warmed
from checkout import GUARD_S, WORKERS
from contract import equal

from datarax_tfds import Pipeline, TFDSEagerConfig, TFDSEagerSource
from datarax_tfds.order.order import Order

WORKER = WORKERS / "environment.py"
EXPECTED = Order(97, 5).host_numbers(0, 0, 40).tolist()


def found(data_dir, how="", *, flags=(), shell=None, **variables):
    """In a new process, which may have options of Python and of the shell."""
    command = [sys.executable, *flags, str(WORKER), str(data_dir), how]
    if shell is not None:
        command = ["sh", "-c", f'{shell}; exec "$@"', "sh", *command]
    environment = {name: value for name, value in os.environ.items() if name not in variables}
    environment |= {name: value for name, value in variables.items() if value is not None}
    done = subprocess.run(command, capture_output=True, text=True, timeout=GUARD_S, env=environment)
    return checked(done), done.stderr


def checked(done):
    assert done.returncode == 0, done.stderr[-3000:]
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["order"] == printed["eager"] == EXPECTED
    return printed


def found_in_copy(data_dir, how):
    """In a copy of a process that has imported JAX and TensorFlow, for 5 s of a core less."""
    command = [sys.executable, str(WORKER), str(data_dir), how]
    done = warmed.run(command, timeout=GUARD_S)
    return checked(done), done.stderr


@pytest.mark.parametrize(
    ("flags", "shell", "variables"),
    [
        (
            ("-O",),
            "ulimit -n 64",
            {"HOME": None, "XDG_CACHE_HOME": None, "LC_ALL": "C", "TZ": "Asia/Kathmandu"},
        ),
        (
            (),
            None,
            {"PYTHONHASHSEED": "7", "JAX_ENABLE_X64": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg"},
        ),
    ],
)
def test_the_order_is_the_same_in_any_environment(data_dir, flags, shell, variables):
    printed, _ = found(data_dir, flags=flags, shell=shell, **variables)
    assert not [pair for pair in printed["environment"] if not pair[0].startswith(IMPORTED)]


# What TensorFlow and TFDS set when they are imported, whoever does that.
IMPORTED = ("TF_", "TF2_", "KMP_", "TPU_", "GRPC_")


def test_tensorflow_takes_no_gpu(data_dir):
    printed, _ = found_in_copy(data_dir, "gpus")
    assert printed["gpus"] == []
    assert printed["kinds"] == ["CPU"]


def test_memory_files_and_threads_stay_as_they_are(data_dir, figure):
    printed, _ = found_in_copy(data_dir, "bounds")
    figure("memory over 100 epochs", f"{printed['grown_mib']:+.1f} MiB", "flat")
    assert printed["grown_mib"] < 20
    assert printed["more_files"] <= 4
    assert printed["more_threads"] <= 0


def test_an_exit_with_batches_under_way_neither_hangs_nor_prints_errors(data_dir):
    _, errors = found_in_copy(data_dir, "exit")
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors


def test_a_forked_child_is_refused_in_place_of_a_deadlock(data_dir):
    printed, _ = found(data_dir, "fork")
    assert printed["child"] == 0


@pytest.fixture
def source(data_dir):
    return TFDSEagerSource(TFDSEagerConfig(name="tiny", split="train", data_dir=str(data_dir)))


@pytest.mark.parametrize("of", [lambda source: source, lambda s: Pipeline(source=s, batch_size=8)])
def test_neither_a_source_nor_a_pipeline_is_pickled(source, of):
    with pytest.raises(TypeError, match=r"cannot be copied or pickled(.|\n)*get_state"):
        pickle.dumps(of(source))


def test_an_interrupt_in_a_batch_hands_nothing_out(source, monkeypatch):
    pipeline = Pipeline(source=source, batch_size=8)
    first = pipeline.step()
    state = pipeline.get_state()

    def interrupted(selection):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(source.records, "batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(iter(pipeline))
    assert pipeline.get_state() == state
    pipeline.reset()
    assert equal(pipeline.step(), first)
