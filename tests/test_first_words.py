"""Each script and command says what it does before it imports what takes seconds to import."""

import subprocess
import sys

from checkout import GUARD_S, ROOT

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
    for name in ("first_words", "config_file"):
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


def printed(code, *words):
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=GUARD_S,
        cwd=ROOT / "scripts",
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_script_says_what_it_does_before_its_imports():
    scripts = sorted((ROOT / "scripts").glob("example_*.py"))
    scripts += [*sorted((ROOT / "scripts").glob("train_*.py")), ROOT / "scripts/train.py"]
    said = printed(OF_SCRIPTS, *map(str, scripts)).stderr.splitlines()
    assert said == [f"{path.name}: importing JAX and TensorFlow ..." for path in scripts]


def test_only_process_0_says_it(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert not printed(OF_SCRIPTS, str(ROOT / "scripts/example_nnx.py")).stderr


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
