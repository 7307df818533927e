"""Real processes over loopback: the same batches, whatever the number of hosts."""

import json
import re
import shutil
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import object_servers
import pytest
import tfds_datasets
import warmed
from checkout import GUARD_S, WORKERS, run
from contract import N
from oracle import numbers_of_epochs

from datarax_tfds.cli import launching
from datarax_tfds.order.keys import record_keys
from datarax_tfds.order.order import Order

SIZE, STEPS = 60, 4  # as in workers/serve.py


def expected_batches() -> list[dict[str, np.ndarray]]:
    """The batches by the promise: the order, and the records as they were written."""
    numbers = numbers_of_epochs(Order(N, 5), 3)
    records = [tfds_datasets.tiny_record(number) for number in range(N)]
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


@pytest.mark.parametrize(("count", "meshes"), [(1, 1), (2, 5), (4, 2)])
def test_every_device_holds_its_rows_on_any_number_of_processes(count, meshes, data_dir, tmp_path):
    run(count, "serve.py", data_dir, tmp_path, logs=tmp_path)
    for notes in require_expected(count, tmp_path):
        assert len(notes) == 4 * meshes + (count == 2)  # sources on each mesh; random stages


def require_expected(count, directory):
    """Compares the rows that each process has noted with the promise; returns all notes."""
    expected = expected_batches()
    every = [json.loads((directory / f"{process}.json").read_text()) for process in range(count)]
    for notes in every:
        for case, steps in notes.items():
            for step, slices in enumerate(steps):
                assert slices, case
                for name, start, stop, checksum in slices:
                    rows = expected[step][name][start:stop]
                    assert zlib.crc32(rows.tobytes()) == checksum, (case, step, name)
    return every


def test_processes_read_from_a_store_what_they_read_from_a_disk(data_dir, tmp_path, monkeypatch):
    """From `s3://`; `test_elastic.py` and `test_store_processes.py` do it from `gs://`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    datasets = f"s3://{object_servers.BUCKET}/datasets"
    with object_servers.s3() as variables, object_servers.environment(**variables):
        for name in ("tiny", "tiny_array", "tiny_one", "tiny_uneven"):
            object_servers.upload(data_dir / name, f"{datasets}/{name}")
        # One mesh, and no programs of a caller's own: a store changes only where records come from.
        run(2, "serve.py", datasets, tmp_path, "reversed", logs=tmp_path)
    for notes in require_expected(2, tmp_path):
        assert len(notes) == 4


def test_the_former_name_of_fail_fast_still_works():
    from datarax_tfds import initialize

    with pytest.warns(DeprecationWarning, match="it is called fail_fast now"):
        initialize(end_together=False)


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
    run(2, str(worker), logs=tmp_path)


@pytest.fixture(scope="module")
def slow_loads(data_dir, tmp_path_factory):
    """Two processes for each way to load, all at once, since most of the time they sleep."""
    folders = {how: tmp_path_factory.mktemp(how) for how in ("slow", "indexed", "never")}
    copied = shutil.copytree(data_dir / "tiny", folders["indexed"] / "data" / "tiny").parent
    tfds_datasets.write(copied, "large")
    jobs = {}
    try:
        for how, folder in folders.items():
            where = copied if how == "indexed" else data_dir
            command = [sys.executable, str(WORKERS / "loads_slowly.py"), str(where), how]
            jobs[how] = launching.start(2, command, folder, warmed.Popen)
        statuses = {
            how: [process.wait(timeout=GUARD_S) and 70 for process in processes]
            for how, processes in jobs.items()
        }
    finally:
        for processes in jobs.values():
            launching.end(processes)
    logs = {
        how: [(folder / f"process-{number}.log").read_text() for number in range(2)]
        for how, folder in folders.items()
    }
    return statuses, logs


@pytest.mark.parametrize(
    ("how", "statuses", "logged"),
    [
        ("slow", [0, 0], ["the end: waiting for .* for process 1(.|\n)*went on", "went on"]),
        # One file, so that no file is done in time.
        (
            "indexed",
            [0, 0],
            ["the end: waiting for .*reading .*large-train(.|\n)*went on", "still reading .*large"],
        ),
        # Whichever of the two tells of it first, it names the process and what is waited for.
        ("never", [70, 70], [r"process 1 (.|\n)*decoding records", "decoding records"]),
    ],
)
def test_others_wait_for_a_load_that_gets_on_and_not_for_one_that_hangs(
    slow_loads, how, statuses, logged
):
    found, logs = slow_loads
    for log, expected in zip(logs[how], logged, strict=True):
        assert re.search(expected, log), log[-3000:]
    assert found[how] == statuses


def test_a_process_that_holds_no_row_is_told_so_and_the_others_go_on(data_dir, tmp_path):
    run(2, "holds_nothing.py", data_dir, tmp_path, logs=tmp_path)
    served, refused = (json.loads((tmp_path / f"{n}.json").read_text()) for n in range(2))
    assert served["eager"] == served["stream"]
    assert served["batch"] == list(range(8))
    for message in refused.values():
        assert "process 1 holds no device of the mesh." in message
        assert "leave this process out" in message
