"""Real processes over loopback: the same batches, whatever the number of hosts."""

import json
import os
import sys
import zlib
from pathlib import Path

import datasets
import jax
import jax.numpy as jnp
import launch_local
import numpy as np
import pytest
from contract import N

from datarax_tfds.hashing import record_keys
from datarax_tfds.order import Order

WORKERS = Path(__file__).parent / "workers"
SIZE, STEPS = 60, 4  # as in workers/serve.py


def run(count: int, script: str, *args: object, logs: Path, timeout_s: float = 240) -> None:
    """Runs a worker in `count` processes and fails with what it printed."""
    command = [sys.executable, str(WORKERS / script), *map(str, args)]
    status = launch_local.launch(count, command, logs, timeout_s)
    printed = "".join(path.read_text()[-3000:] for path in sorted(logs.glob("*.log")))
    assert status == 0, printed


def expected_batches() -> list[dict[str, np.ndarray]]:
    """The batches by the promise: the order, and the records as they were written."""
    numbers = np.concatenate([Order(N, 5).span(epoch, 0, N) for epoch in range(3)])
    records = [datasets.tiny_record(number) for number in range(N)]
    columns = {
        "id": np.array([record["id"] for record in records], np.int32),
        "image": np.array([record["image"] for record in records]),
        "label": np.array([record["label"] for record in records], np.int32),
    }
    batches = [
        {name: column[numbers[step * SIZE :][:SIZE]] for name, column in columns.items()}
        for step in range(STEPS)
    ]
    keys = [record_keys(5, epoch, numbers[epoch * N : (epoch + 1) * N]) for epoch in range(3)]
    words = jnp.asarray(np.concatenate(keys).view(np.uint32))

    def bits_of_the_first_stage(word):
        return jax.random.bits(jax.random.fold_in(jax.random.wrap_key_data(word), 0))

    bits = np.asarray(jax.vmap(bits_of_the_first_stage)(words))
    for step, batch in enumerate(batches):
        batch["bits"] = bits[step * SIZE :][:SIZE]
    return batches


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_device_holds_the_rows_it_should_on_any_number_of_processes(
    count, data_dir, tmp_path
):
    run(count, "serve.py", data_dir, tmp_path, logs=tmp_path)
    expected = expected_batches()
    for process in range(count):
        notes = json.loads((tmp_path / f"{process}.json").read_text())
        assert len(notes) == 4 * (4 if count == 1 else 5) + 1  # sources, meshes; random stages
        for case, steps in notes.items():
            for step, slices in enumerate(steps):
                assert slices, case
                for name, start, stop, checksum in slices:
                    rows = expected[step][name][start:stop]
                    assert zlib.crc32(rows.tobytes()) == checksum, (case, step, name)


@pytest.mark.parametrize(
    ("variable", "value", "refused"),
    [
        ("SLURM_STEP_NUM_TASKS", "4", True),
        ("OMPI_COMM_WORLD_SIZE", "2", True),
        ("WORLD_SIZE", "8", True),
        ("TPU_WORKER_HOSTNAMES", "a,b", True),
        ("JAX_NUM_PROCESSES", "2", True),
        ("SLURM_STEP_NUM_TASKS", "1", False),
        ("TPU_WORKER_HOSTNAMES", "a", False),
        ("WORLD_SIZE", "", False),
    ],
)
def test_several_processes_that_jax_does_not_see_are_refused(
    variable, value, refused, data_dir, monkeypatch
):
    """Each would take itself for the only one, and train on all of the data."""
    from datarax_tfds import TFDSEagerConfig, TFDSEagerSource

    monkeypatch.setenv(variable, value)
    config = TFDSEagerConfig(name="mask", split="train", data_dir=str(data_dir))
    if refused:
        with pytest.raises(RuntimeError, match=rf"JAX sees 1(.|\n)*{variable}(.|\n)*fix:"):
            TFDSEagerSource(config)
    else:
        TFDSEagerSource(config)


def test_a_launcher_that_jax_cannot_join_is_refused_with_the_remedy(monkeypatch):
    from datarax_tfds import initialize

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"torchrun(.|\n)*fix:(.|\n)*JAX_COORDINATOR_ADDRESS"):
        initialize()


def test_alone_there_is_nothing_to_join():
    from datarax_tfds import initialize

    assert not [name for name in os.environ if name.startswith("JAX_NUM_PROC")]
    initialize()


def test_several_processes_need_a_sharding(data_dir, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import sys\n"
        "from datarax_tfds import TFDSEagerConfig, TFDSEagerSource, initialize\n"
        "initialize()\n"
        f"config = TFDSEagerConfig(name='mask', split='train', data_dir={str(data_dir)!r})\n"
        "try:\n"
        "    TFDSEagerSource(config)\n"
        "except ValueError as error:\n"
        "    assert 'no sharding says' in str(error) and 'fix:' in str(error)\n"
        "else:\n"
        "    sys.exit('it was not refused')\n"
    )
    run(2, str(worker), logs=tmp_path, timeout_s=60)
