"""One of two processes loads or indexes records, slowly or never, while the other waits where they
agree.
"""

import os
import sys
import threading
import time

DATA_DIR, HOW = sys.argv[1:]  # HOW: slow, never or indexed

import jax
import numpy as np
import tensorflow as tf

from datarax_tfds import (
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    initialize,
)
from sharding.hosts.agreement import agree

# Per record, of which there are 97; or per read, of which indexing the one file takes 30.
SECONDS = {"slow": 0.4, "never": 10_000.0, "indexed": 1.0}
PATIENCE_S = 10 if HOW == "indexed" else 20
initialize(timeout_s=900)
one_at_a_time = threading.Lock()
mine = batch_sharding(jax.sharding.Mesh(np.array(jax.local_devices()), ("data",)))
pause_s = 0.0


def pause(label):
    with one_at_a_time:
        time.sleep(pause_s)
    return label


def map_fn(record):
    label = tf.ensure_shape(tf.numpy_function(pause, [record["label"]], record["label"].dtype), [])
    return record | {"label": label}


def load():
    TFDSEagerSource(
        TFDSEagerConfig(
            name="tiny",
            split="train",
            data_dir=DATA_DIR,
            map_fn=map_fn,
            allow_stateful_map_fn=True,
        ),
        sharding=mine,
    )


def index():
    """As on a file system that is slow."""
    pread = os.pread

    def pread_slowly(*args):
        time.sleep(pause_s)
        return pread(*args)

    os.pread = pread_slowly
    config = TFDSStreamingConfig(name="large", split="train", data_dir=DATA_DIR)
    TFDSStreamingSource(config, sharding=mine)
    os.pread = pread


load()  # with all imports, which may take long
agree("the begin", {}, [0, 1])
if HOW == "never":
    initialize(timeout_s=PATIENCE_S, stall_warn_s=20, stall_timeout_s=30)
else:
    initialize(timeout_s=PATIENCE_S, stall_warn_s=4)
begun = time.monotonic()
if jax.process_index() == 1:
    pause_s = SECONDS[HOW]
    (index if HOW == "indexed" else load)()
agree("the end", {}, [0, 1])
assert time.monotonic() - begun > 2 * PATIENCE_S or HOW == "slow"
sys.stdout.write("went on\n")
