#!/usr/bin/env python3
"""Tries an installed datarax_tfds: writes a small dataset, reads it, resumes; for `scripts/wheel`.

python smoke.py [DIRECTORY]    # fails if the packages are not imported from DIRECTORY
"""

import sys
import tempfile

import numpy as np

import datarax_tfds as dt
import sharding

RECORDS = 20


def main() -> int:
    """Writes, reads, resumes; returns 0."""
    if len(sys.argv) > 1:
        for package in (dt, sharding):
            assert str(package.__file__).startswith(sys.argv[1]), package.__file__
    with tempfile.TemporaryDirectory() as data_dir:
        write(data_dir)
        config = dt.TFDSStreamingConfig(
            name="numbers", split="train", data_dir=data_dir, shuffle=True, seed=42
        )
        rows = dt.batch_sharding(dt.make_mesh({"data": -1}))

        def new_pipeline() -> dt.Pipeline:
            source = dt.TFDSStreamingSource(config, sharding=rows)
            return dt.Pipeline(source=source, batch_size=4)

        pipeline, resumed = new_pipeline(), new_pipeline()
        seen = []
        for batch in dt.prefetch_to_device(pipeline):
            seen += np.asarray(batch["x"]).tolist()
            if len(seen) == 8:
                resumed.set_state(pipeline.get_state())
        assert sorted(seen) == list(range(RECORDS)), seen
        assert np.asarray(resumed.step()["x"]).tolist() == seen[8:12]
    print(f"smoke: {RECORDS} records were read once each, and a resume went on with the same batch")
    return 0


def write(data_dir: str) -> None:
    import tensorflow_datasets as tfds

    tfds.dataset_builders.store_as_tfds_dataset(
        name="numbers",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"x": np.int32}),
        split_datasets={"train": ((key, {"x": key}) for key in range(RECORDS))},
        data_dir=data_dir,
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        disable_shuffling=True,
    )


if __name__ == "__main__":
    sys.exit(main())
