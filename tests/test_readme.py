"""The programs of the README run."""

import re
from pathlib import Path

import jax.numpy as jnp
import orbax.checkpoint as ocp

README = (Path(__file__).parent.parent / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_programs_run_as_they_stand(data_dir, tmp_path):
    # Only the dataset and the batch size are replaced: the test has no network, and 97 records.
    here = f'name="tiny", data_dir={str(data_dir)!r}'
    first, hosts, checkpoints = (
        program.replace('name="mnist"', here).replace("batch_size=128", "batch_size=64")
        for program in PROGRAMS
    )
    steps = []
    names = {"train_step": lambda batch: steps.append(batch["label"].shape)}
    exec(first, names)
    assert steps == [(64,)] * 16  # 10 epochs of 97 records, the last batch of each completed
    exec(hosts, names)
    assert steps == [(64,)] * 18

    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        names |= {"manager": manager, "step": 3, "model": {"w": jnp.zeros(2)}}
        before = names["pipeline"].get_state()
        exec(checkpoints, names)
        assert names["pipeline"].get_state() == before
        assert manager.latest_step() == 3
