"""One of two processes that save by Orbax's roles: a directory each, or another primary process."""

import json
import sys
from pathlib import Path

DATA_DIR, OUT = sys.argv[1], Path(sys.argv[2])
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

import jax
import orbax.checkpoint as ocp
from file_operations import file_operations
from orbax.checkpoint import v1

from datarax_tfds import (
    Pipeline,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    initialize,
    make_mesh,
)
from datarax_tfds.checkpoint import (
    DataCheckpointable,
    DataRestore,
    DataSave,
    latest_valid_step,
)

initialize(timeout_s=600)
process = jax.process_index()


def new_pipeline():
    config = TFDSStreamingConfig(name="tiny", split="train", data_dir=DATA_DIR, shuffle=True)
    source = TFDSStreamingSource(config, sharding=batch_sharding(make_mesh({"data": -1})))
    return Pipeline(source=source, batch_size=8)


def manager_of(directory, primary_host):
    roles = ocp.options.MultiprocessingOptions(primary_host=primary_host)
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=roles)
    return ocp.CheckpointManager(directory, options=options)


pipeline = new_pipeline()
pipeline.step()
found, looked = {}, {}
for case, directory, primary_host in (
    ("a directory each", OUT / f"disk-{process}", None),
    ("process 1 is primary", OUT / "shared", 1),
):
    directory.mkdir(exist_ok=True)
    with manager_of(directory, primary_host) as manager:
        for step in (1, 2):
            manager.save(step, args=ocp.args.Composite(data=DataSave(pipeline)))
        manager.wait_until_finished()
    with manager_of(directory, primary_host) as manager:
        restored = new_pipeline()
        manager.restore(2, args=ocp.args.Composite(data=DataRestore(restored)))
        with file_operations() as counts:
            newest = [latest_valid_step(manager)]
        if case == "a directory each" and process == 1:
            # As after a disk that was full: the newest step is good on one host only.
            (directory / "2" / "data" / "data_state.json").unlink()
        if case == "a directory each":
            newest.append(latest_valid_step(manager))
        found[case] = [restored.get_state() == pipeline.get_state(), newest]
        looked[case] = counts.total()
shared = OUT / "shared-v1"
context = v1.Context()
context.multiprocessing.primary_host = 1
with context:
    v1.save_checkpointables(shared, {"data": DataCheckpointable(pipeline)})
    restored = new_pipeline()
    v1.load_checkpointables(shared, {"data": DataCheckpointable(restored)})
found["process 1 is primary, by v1"] = [restored.get_state() == pipeline.get_state(), []]
(OUT / f"{process}.json").write_text(json.dumps(found))
(OUT / f"looked-{process}.json").write_text(json.dumps(looked))
