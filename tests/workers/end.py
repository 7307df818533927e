"""One of two processes that train until one of them fails, or is stopped."""

import os
import signal
import sys
import time

DATA_DIR, HOW, WHO = sys.argv[1:]

import jax

from datarax_tfds import (
    Pipeline,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    initialize,
    make_mesh,
)

initialize(stall_warn_s=2, fail_fast=HOW != "left alone")
concerned = jax.process_index() == int(WHO)
config = TFDSStreamingConfig(name="tiny", split="train", data_dir=DATA_DIR, prefetch_buffer=0)
source = TFDSStreamingSource(config, sharding=batch_sharding(make_mesh({"data": -1})))
pipeline = Pipeline(source=source, batch_size=8)
total = jax.jit(lambda batch: batch["label"].sum())
for step in range(10_000):
    total(pipeline.step()).block_until_ready()
    time.sleep(0.01)
    if step == 5 and HOW == "stopped":
        initialize(stall_warn_s=2, stall_timeout_s=12)  # the first batches may take longer
    if step == 10 and concerned:
        sys.stdout.write(f"at {time.time()}\n")
        sys.stdout.flush()
        if HOW == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        raise ValueError("what the user's own code met")
