"""A run from the data to a restore that notes what it asks of the system, once all is imported."""

import json
import sys
from collections import Counter
from pathlib import Path

DATA_DIR, OUT = sys.argv[1:]

import orbax.checkpoint as ocp

from datarax_tfds import (
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    prefetch_to_device,
)
from datarax_tfds.checkpoint import DataRestore, DataSave, latest_valid_step


def train(directory):
    fields = {"name": "tiny", "split": "train", "data_dir": DATA_DIR, "shuffle": True}
    for source in (
        TFDSEagerSource(TFDSEagerConfig(**fields)),
        TFDSStreamingSource(TFDSStreamingConfig(**fields)),
    ):
        pipeline = Pipeline(source=source, batch_size=8)
        with ocp.CheckpointManager(directory / type(source).__name__) as manager:
            for step, batch in enumerate(prefetch_to_device(pipeline), 1):
                model = {"sum": batch["label"].sum()}
                saved = ocp.args.StandardSave(model)
                if step % 5 == 0:
                    args = ocp.args.Composite(model=saved, data=DataSave(pipeline))
                    manager.save(step, args=args)
            manager.wait_until_finished()
            restored = ocp.args.StandardRestore(model)
            args = ocp.args.Composite(model=restored, data=DataRestore(pipeline))
            manager.restore(latest_valid_step(manager), args=args)


train(Path(OUT) / "imports")
events = Counter()
sys.addaudithook(lambda event, args: events.update([event]))
train(Path(OUT) / "watched")
Path(OUT, "events.json").write_text(json.dumps(events))
