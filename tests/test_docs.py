"""The programs of the guide run, page by page, and the reference names all that is public."""

import re
import signal
from pathlib import Path

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

import datarax_tfds

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))

CHECKPOINT = {"DataSave", "DataRestore", "DataCheckpointable", "latest_valid_step"}


def programs(page: Path, data_dir: Path) -> list[str]:
    """Those of a page; only what names the dataset is another, since the test has no network."""
    found = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    here = f'"tiny", data_dir={str(data_dir)!r}'
    found = [re.sub('name="(mnist|imagenet2012)"', f"name={here}", program) for program in found]
    first = f'from_tfds("tiny", "train", data_dir={str(data_dir)!r},'
    return [program.replace('from_tfds("mnist", "train",', first) for program in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_programs_of_a_page_run_one_after_the_other(page, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # those of this process stay its own
    steps = []
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        names = {"train_step": steps.append, "manager": manager, "model": {"w": jnp.zeros(2)}}
        names["directory"] = tmp_path / "another"
        for program in programs(page, data_dir):
            exec(program, names)
    assert bool(steps) is ("train_step" in page.read_text())


def test_every_public_name_is_in_the_reference():
    described = re.findall(r"::: [\w.]*\.(\w+)", (ROOT / "docs" / "reference.md").read_text())
    assert set(datarax_tfds.__all__) | CHECKPOINT == set(described)
