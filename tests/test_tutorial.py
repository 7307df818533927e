"""The tutorial, followed by its words alone: its files are written, its commands run."""

import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import warmed
from checkout import GUARD_S, ROOT

from datarax_tfds import Pipeline, TFDSStreamingConfig, TFDSStreamingSource
from datarax_tfds.cli import main
from datarax_tfds.cli.launching import end, start

PAGE = (ROOT / "docs/tutorial.md").read_text()
FILES = dict(re.findall(r'```python title="(\w+\.py)"\n(.*?)```', PAGE, re.DOTALL))
COMMANDS = re.findall(r"```console\n\$ datarax-tfds (.*)\n((?:.*\n)*?)```", PAGE)
TRAIN = [sys.executable, "train.py"]


def steps(printed: str) -> dict[int, str]:
    """The record numbers that a run printed, by step."""
    return {int(step): rows for step, rows in re.findall(r"step (\d+): records (\[.*?\])", printed)}


def wait_for(done: Callable[[], bool], processes: list, log: Path) -> None:
    deadline = time.monotonic() + GUARD_S
    while not done():
        assert all(process.poll() is None for process in processes), log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rows_of_one_run() -> dict[int, str]:
    """What a run prints that is not interrupted, in this process."""
    config = TFDSStreamingConfig(
        name="shapes",
        split="train[:80%]",
        data_dir="data",
        shuffle=True,
        seed=7,
        include_keys={"label"},
    )
    source = TFDSStreamingSource(config)
    pipeline = Pipeline(source=source, batch_size=24, record_numbers=True)
    batches = enumerate(pipeline.steps(500), start=1)
    return {step: str(np.asarray(batch["record_number"])[:6]) for step, batch in batches}


def test_a_reader_gets_from_images_to_a_run_that_was_killed_and_resumed(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    warmed.run([sys.executable, "draw_photos.py"], timeout=GUARD_S)
    for words, printed in COMMANDS:
        assert main(shlex.split(words)) == 0
        expected = ".*".join(map(re.escape, printed.split("...")))
        said = capsys.readouterr().out
        assert re.fullmatch(expected, said), said
    logs = tmp_path / "logs"
    logs.mkdir()
    processes = start(2, TRAIN, logs, popen=warmed.Popen)
    log = logs / "process-0.log"
    try:
        wait_for(lambda: "step 150" in log.read_text() and Path("run/100").exists(), processes, log)
    finally:
        end(processes)  # as Ctrl-C does
    before = steps(log.read_text())
    resumed = warmed.run(TRAIN, timeout=GUARD_S)
    assert resumed.returncode == 0, resumed.stderr
    (saved,) = map(int, re.findall(r"resumed after step (\d+)", resumed.stdout))
    after = steps(resumed.stdout)
    assert list(after) == [*range(saved + 50, 501, 50)]
    assert {50, 100, 150} <= set(before)
    expected = rows_of_one_run()
    for printed in (before, after, steps(PAGE)):
        assert printed == {step: expected[step] for step in printed}
    ((right, tested),) = re.findall(r"(\d+) of (\d+) test images", resumed.stdout)
    assert int(tested) == 60
    assert int(right) > 45


@pytest.mark.parametrize("name", sorted(FILES))
def test_lines_of_the_files_fit_a_page(name):
    assert max(map(len, FILES[name].splitlines())) <= 100
