"""A small job that looks at what it does to its own process. What it finds is printed as JSON."""

import gc
import json
import os
import resource
import sys
import threading
import time

DATA_DIR, HOW = sys.argv[1:]
before = dict(os.environ)

from datarax_tfds import (
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
)

fields = {"name": "tiny", "split": "train", "data_dir": DATA_DIR, "shuffle": True, "seed": 5}


def stream():
    return TFDSStreamingSource(TFDSStreamingConfig(**fields))


def order(source):
    return [int(number) for number in source.get_batch(40)["id"]]


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


found = {"order": order(stream()), "eager": order(TFDSEagerSource(TFDSEagerConfig(**fields)))}
found["environment"] = sorted(set(os.environ.items()) ^ set(before.items()))
if HOW == "gpus":
    import tensorflow as tf

    found["gpus"] = [device.name for device in tf.config.get_visible_devices("GPU")]
    found["kinds"] = sorted({device.device_type for device in tf.config.get_visible_devices()})
elif HOW == "bounds":
    source = stream()
    pipeline = Pipeline(source=source, batch_size=8)
    sizes = []
    for epoch in range(110):
        for _ in pipeline:
            pass
        if epoch in (10, 109):
            sizes.append(memory())
    found["grown_mib"] = sizes[1] - sizes[0]
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(20):
        order(stream())
    gc.collect()
    deadline = time.monotonic() + 600
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.1)
    found["more_files"] = len(os.listdir("/proc/self/fd")) - files
    found["more_threads"] = threading.active_count() - threads
elif HOW == "exit":
    pipeline = Pipeline(source=stream(), batch_size=8)
    batches = iter(pipeline)
    next(batches)
    next(batches)  # others are under way
elif HOW == "fork":
    source = stream()
    order(source)
    child = os.fork()
    if child == 0:
        try:
            order(source)
        except RuntimeError as error:
            os._exit(0 if "spawn" in str(error) else 1)
        os._exit(2)
    found["child"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.stdout.write(json.dumps(found) + "\n")
