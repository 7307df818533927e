"""Each script and command says what it does before it imports what takes seconds to import."""

import subprocess
import sys

import pytest
from checkout import GUARD_S, NOISE, ROOT

from datarax_tfds.cli import commands

# An import of one of these ends what is run, so nothing that is said later is found.
BLOCKED = """
class Blocked:
    def find_spec(self, name, *_):
        if name in ("jax", "tensorflow", "tensorflow_datasets", "keras", "numpy"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
"""

OF_SCRIPTS = f"""
import runpy, sys
{BLOCKED}
for path in sys.argv[1:]:
    for name in ("first_words", "config_file", "benchmark_words"):
        sys.modules.pop(name, None)
    sys.argv = [path]
    try:
        runpy.run_path(path, run_name="__main__")
    except ImportError:
        continue
    sys.exit(f"{{path}} has ended well")
"""

OF_COMMANDS = f"""
import io, sys
from datarax_tfds.cli import main
{BLOCKED}
class Terminal(io.StringIO):
    def isatty(self):
        return True
for words in sys.argv[1:]:
    sys.stderr = Terminal()
    try:
        main(words.split())
    except ImportError:
        pass
    said, sys.stderr = sys.stderr.getvalue(), sys.__stderr__
    print(f"{{words.split()[0]}}: {{said!r}}")
"""


def printed(code, *words, folder="scripts"):
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=GUARD_S,
        cwd=ROOT / folder,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_script_says_what_it_does_before_its_imports():
    scripts = sorted((ROOT / "scripts").glob("example_*.py"))
    scripts += [*sorted((ROOT / "scripts").glob("train_*.py")), ROOT / "scripts/train.py"]
    said = printed(OF_SCRIPTS, *map(str, scripts)).stderr.splitlines()
    assert said == [f"{path.name}: importing JAX and TensorFlow ..." for path in scripts]


def test_a_benchmark_says_what_it_does_before_its_imports():
    folder = "scripts/benchmarks"
    found = sorted((ROOT / folder).glob("*.py"))
    found = [path for path in found if "__main__" in path.read_text()]
    said = printed(OF_SCRIPTS, *map(str, found), folder=folder).stderr.splitlines()
    assert len(found) > 15
    assert said == [f"{path.name}: importing JAX and others ..." for path in found]


def test_only_process_0_says_it(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert not printed(OF_SCRIPTS, str(ROOT / "scripts/example_nnx.py")).stderr


# As TensorFlow 2.21 prints them on a processor with AVX512.
NOTES = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795875163.488294   11803 port.cc:153] oneDNN custom operations are on.
I0000 00:00:1795875604.148573   11803 cpu_feature_guard.cc:227] This TensorFlow binary is optimized.
To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow with flags.
"""
NOTED = f"""
import os
from datarax_tfds.runtime.startup_notes import startup_notes_left_out
with startup_notes_left_out():
    os.write(2, {NOTES.encode()!r} + b"E0000 00:00:1.5 7 port.cc:1] A fault.\\n")
    raise ImportError("no library")
"""


def test_notes_of_tensorflow_are_left_out_and_errors_are_not():
    done = subprocess.run(
        [sys.executable, "-c", NOTED], capture_output=True, text=True, timeout=GUARD_S
    )
    first, *_, last = done.stderr.splitlines()
    assert first == "E0000 00:00:1.5 7 port.cc:1] A fault."
    assert last == "ImportError: no library"
    assert not [line for line in NOTES.splitlines() if line in done.stderr]


@pytest.mark.parametrize("words", [["scripts/example_nnx.py"], ["-m", "datarax_tfds", "info", "."]])
def test_a_new_process_prints_no_notes_of_its_imports(words, tmp_path):
    # Not a copy of a process that has imported them already.
    words = [str(ROOT / word) if word.endswith(".py") else word for word in words]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=GUARD_S, cwd=tmp_path
    )
    assert done.stderr
    assert not NOISE.search(done.stderr), done.stderr


WORDS = {
    "prepare": "prepare mnist",
    "convert": "convert . --name images --data-dir nowhere",
    "fill": "fill mnist --out nowhere",
    "info": "info mnist",
    "show": "show mnist",
    "index": "index mnist",
    "verify": "verify mnist",
    "bench": "bench mnist",
    "workers": "workers --address 127.0.0.1:1",
    "place": "place --devices 8 --hosts 2 --mesh data=8 --batch-size 8",
    "audit": "audit nowhere.jsonl",
}
# It imports nothing that takes long, and says that it starts the processes.
AT_ONCE = {"launch"}


def test_a_command_says_on_a_terminal_what_it_does_before_its_imports():
    assert {*WORDS} | AT_ONCE == {*commands}
    said = printed(OF_COMMANDS, *WORDS.values()).stdout.splitlines()
    assert len(said) == len(WORDS)
    for name, line in zip(WORDS, said, strict=True):
        assert line.startswith(f"{name}: 'datarax-tfds: "), line
        assert "Traceback" not in line
