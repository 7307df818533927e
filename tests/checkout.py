"""Where the code of the checkout is, and how its workers are started as processes of a job."""

import re
import sys
from pathlib import Path

import warmed

from datarax_tfds.cli import launching

ROOT = Path(__file__).parent.parent
PACKAGES = ("sharding", "datarax_tfds")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
WORKERS = ROOT / "tests" / "workers"
# Against a hang only. With other jobs beside it, an import of TensorFlow alone may take a minute.
GUARD_S = 900
# What Orbax, absl, TensorFlow and JAX print of themselves, which helps nobody in a normal run.
NOISE = re.compile(
    r"^(WARNING|[IWE]\d{4} |\d{4}-\d\d-\d\d .*: [IWE] |\[Gloo\])|\w+Warning: ", re.MULTILINE
)
TRAIN = [sys.executable, str(ROOT / "scripts/train.py"), str(ROOT / "configs/digits.yaml")]


def run(count: int, script: str, *args: object, logs: Path, timeout_s: float = GUARD_S) -> None:
    """Runs a worker in `count` processes and fails with what it printed."""
    command = [sys.executable, str(WORKERS / script), *map(str, args)]
    status = launching.launch(count, command, logs, timeout_s, warmed.Popen)
    printed = "".join(path.read_text()[-3000:] for path in sorted(logs.glob("*.log")))
    assert status == 0, printed
