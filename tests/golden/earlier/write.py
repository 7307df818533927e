"""Writes what a version of datarax_tfds leaves on disk: see README.md."""

import json
import os
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorflow_datasets as tfds

from datarax_tfds import (
    CursorLog,
    PackedSource,
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
)
from datarax_tfds.checkpoint import DataSave

SIZE, STEPS, MTIME_NS = 8, 7, 10**18


def write_dataset(data_dir):
    """Forty records in two files; each record is its own number."""
    tfds.dataset_builders.store_as_tfds_dataset(
        name="golden",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"id": np.int32}),
        split_datasets={"train": ((number, {"id": number}) for number in range(40))},
        data_dir=data_dir,
        file_format="tfrecord",
        disable_shuffling=True,
        download_config=tfds.download.DownloadConfig(num_shards=2),
    )


def sources(data_dir):
    """One source for each way to order and to read: by the names of their directories."""
    fields = {"name": "golden", "split": "train", "data_dir": data_dir, "seed": 7}
    blocks = {"access": "sequential", "block_size": 4, "shuffle_buffer_size": 16}
    return {
        "eager": TFDSEagerSource(TFDSEagerConfig(**fields, shuffle=True)),
        "stored": TFDSStreamingSource(TFDSStreamingConfig(**fields)),
        "blocks": TFDSStreamingSource(TFDSStreamingConfig(**fields, **blocks, shuffle=True)),
    }


def write(directory, data_dir):
    following = {}
    for name, source in sources(data_dir).items():
        pipeline = Pipeline(source=source, batch_size=SIZE, record_numbers=True)
        log = CursorLog(directory / f"{name}.jsonl", pipeline)
        for _ in range(STEPS):
            log.note(pipeline.step()["record_number"])
        with ocp.CheckpointManager(directory / name) as manager:
            items = {"data": DataSave(pipeline)}
            if name == "eager":
                items["model"] = ocp.args.StandardSave({"w": jnp.arange(3.0)})
            manager.save(STEPS, args=ocp.args.Composite(**items))
        following[name] = [pipeline.step()["id"].tolist() for _ in range(6)]
    (directory / "following.json").write_text(json.dumps(following) + "\n")


def write_texts(data_dir):
    """Seventy texts of up to 30 letters."""
    texts = ("abcde"[: number % 6] * (number % 7) for number in range(70))
    tfds.dataset_builders.store_as_tfds_dataset(
        name="golden_text",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        split_datasets={"train": ((number, {"text": text}) for number, text in enumerate(texts))},
        data_dir=data_dir,
        file_format="tfrecord",
        disable_shuffling=True,
    )


def packed(data_dir, encode):
    stream = TFDSStreamingConfig(name="golden_text", split="train", data_dir=data_dir)
    return PackedSource(
        TFDSStreamingSource(stream),
        encode=encode,
        encode_name="bytes",
        length=16,
        packing="best_fit",
        shuffle=True,
        seed=7,
    )


def write_packed(directory, data_dir):
    source = packed(data_dir, lambda text: list(text.encode()))
    source.get_batch(4)
    rows = {"state": source.get_state()}
    rows["following"] = [source.get_batch(4)["tokens"].tolist() for _ in range(8)]
    (directory / "packed.json").write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    here, version = Path(sys.argv[1]), sys.argv[2]
    data = here / "data"
    if not data.exists():
        write_dataset(data)
    for file in data.rglob("*.tfrecord*"):
        os.utime(file, ns=(MTIME_NS, MTIME_NS))
    (here / version).mkdir()
    write(here / version, str(data))
    (data / "golden" / "1.0.0" / ".record_index").rename(here / version / "record_index")
