"""Copies of the warm process are like new processes, and are told from those that cannot be."""

import os
import signal
import subprocess
import sys

import pytest
import warmed
from checkout import GUARD_S
from conftest import wait_for

LOOK = """
import os, sys
ours = [name for name in sys.modules if name.startswith(("datarax_tfds", "sharding"))]
here = sys.argv, sys.path, os.getcwd(), sys.stdin.read(), __name__, globals().get("__file__"), ours
print(here, dict(os.environ), os.getsid(0) == os.getpid(), len(os.listdir("/proc/self/fd")))
"""


def command(code, *arguments):
    return [sys.executable, "-c", code, *arguments]


@pytest.mark.parametrize("is_script", [True, False])
def test_a_copy_finds_what_a_new_process_finds(tmp_path, is_script):
    script = tmp_path / "script.py"
    script.write_text(LOOK)
    one = [sys.executable, str(script), "a b"] if is_script else command(LOOK, "a b")
    how = {"cwd": tmp_path, "env": os.environ | {"JAX_PROCESS_ID": "3"}}
    new = subprocess.run(
        one, **how, stdin=subprocess.DEVNULL, capture_output=True, start_new_session=True
    )
    copy = warmed.run(one, **how, timeout=GUARD_S)
    assert copy.stdout == new.stdout.decode() != ""
    assert copy.stderr == new.stderr.decode() == ""


def test_what_test_modules_import_does_not_keep_processes_from_being_copies():
    """They may set variables, as scikit-learn does. In a run of all tests, all were imported."""
    process = warmed.Popen(command(""))
    assert process.wait(GUARD_S) == 0
    assert not isinstance(process, subprocess.Popen)


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("raise ValueError('no')", 1, "ValueError: no"),
        ("import atexit; atexit.register(print, 'bye')", 0, "bye"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_a_copy_ends_as_a_new_process_does(code, status, said):
    copy = warmed.run(command(code), timeout=GUARD_S)
    assert copy.returncode == status
    assert said in copy.stdout + copy.stderr


def test_a_signal_reaches_a_copy_and_a_wait_for_it_has_a_limit():
    sleeping = warmed.Popen(command("import time; time.sleep(10_000)"))
    assert sleeping.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        sleeping.wait(0.01)
    sleeping.send_signal(signal.SIGTERM)
    assert sleeping.wait(GUARD_S) == sleeping.poll() == -signal.SIGTERM
    sleeping.kill()  # of which nobody hears: another process may have its id


def test_copies_end_with_the_tests_that_started_them():
    """Also if these are killed."""
    code = (
        f"import os, sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import warmed\n"
        "forever = [sys.executable, '-c', 'import time; time.sleep(10_000)']\n"
        "print(warmed.Popen(forever).pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    tests = warmed.run(command(code), timeout=GUARD_S)
    assert tests.returncode == -9
    pid = int(tests.stdout)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), GUARD_S)


@pytest.mark.parametrize(
    ("started", "variables"),
    [
        (command("print(1)"), {"JAX_ENABLE_X64": "1"}),
        (command("print(1)"), {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}),
        ([sys.executable, "-O", "-c", "print(1)"], {}),
        (["echo", "1"], {}),
    ],
)
def test_what_a_copy_cannot_be_is_a_new_process(started, variables):
    process = warmed.Popen(started, env=os.environ | variables, stdout=subprocess.PIPE)
    assert isinstance(process, subprocess.Popen)
    assert process.communicate(timeout=GUARD_S) == (b"1\n", None)
