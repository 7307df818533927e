"""A process that forks, before or after it has used JAX and TensorFlow. Prints what its children
found, as JSON. A child that hangs is ended by an alarm.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import threading

import jax
import numpy as np
import tensorflow as tf

import datarax_tfds as dt
from datarax_tfds.runtime.threads import ThreadPool

HOW, DATA_DIR = sys.argv[1:]
FIELDS = {"name": "tiny", "split": "train", "data_dir": DATA_DIR, "shuffle": True, "seed": 5}


def stream(**fields):
    return dt.TFDSStreamingSource(dt.TFDSStreamingConfig(**FIELDS, **fields))


def eager():
    return dt.TFDSEagerSource(dt.TFDSEagerConfig(**FIELDS))


def by_number():
    return dt.random_access(dt.TFDSStreamingConfig(**FIELDS))


def ids(batch):
    return np.asarray(batch["id"]).tolist()


def in_child(action):
    """What an action returns or raises in a forked child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(300)
        try:
            found = action()
        except BaseException as error:
            found = f"{type(error).__name__}: {error}"
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        found = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.loads(found) if status == 0 else f"exit status {status}"


def unused():
    """Imported only: the child may read, and fork in its turn, and so may the parent later on."""
    found = {}
    numbered = by_number()  # it reads only metadata until a record is asked for

    def child():
        own = ids(stream().get_batch(16))
        found = {"stream": own, "eager": ids(eager().get_batch(16)), "grandchild": in_child(stream)}
        return found | {"by number": [int(numbered[number]["id"]) for number in (3, 96)]}

    found["child"] = in_child(child)
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        found["pool"] = pool.apply(sixteen)
    found["parent"] = sixteen()
    return found


def sixteen():
    return ids(stream().get_batch(16))


def jax_only():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
    # By JAX itself, when nothing of the package `sharding` has been imported yet.
    jax.distributed.initialize(address, 1, 0, coordinator_bind_address=address)
    jax.devices()

    def with_threads():  # so that no count of threads tells that the child was forked
        tf.constant(1)
        return stream()

    return {
        "joining": in_child(lambda: dt.initialize()),
        "new": in_child(stream),
        "new, with native threads": in_child(with_threads),
        "from_tfds": in_child(lambda: dt.from_tfds("tiny", "train")),
    }


def tensorflow_only():
    tf.constant(1)
    return {"new": in_child(stream), "eager": in_child(eager)}


def read_until(source, over):
    while not over.is_set():
        source.get_batch(8)


def used():
    pool = ThreadPool(1, "mine")
    source, devices, blocks = stream(prefetch_buffer=4), eager(), stream(access="sequential")
    pipeline = dt.Pipeline(source=source, batch_size=8)
    prefetched = dt.prefetch_to_device(dt.Pipeline(source=eager(), batch_size=8), size=4)
    records, numbered = iter(stream()), by_number()
    assert numbered[3]["id"] == 3
    before = [ids(next(iter(pipeline))), ids(next(prefetched)), ids(next(records))]
    before += [ids(devices.get_batch(8)), ids(blocks.get_batch(8))]
    first = devices.record_indices_at(0, 4).tolist()
    step = dt.Pipeline(source=devices, batch_size=8).step
    actions = {
        "get_batch": lambda: source.get_batch(8),
        "step": pipeline.step,
        "for": lambda: next(iter(pipeline)),
        "a loop that had begun": lambda: next(prefetched),
        "a loop over records that had begun": lambda: next(records),
        "one record": lambda: source[3],
        "records": lambda: source.get_records([1, 2]),
        "by number": lambda: numbered[3],
        "new by number": by_number,
        "blocks": lambda: blocks.get_batch(8),
        "eager get_batch": lambda: devices.get_batch(8),
        "eager get_batch_at": lambda: devices.get_batch_at(0, 8),
        "eager one record": lambda: devices[3],
        "eager indices": lambda: devices.record_indices_at(0, 4),
        "eager step": step,
        "scan": lambda: dt.Pipeline(source=devices, batch_size=8).scan(print, length=2),
        "all": devices.collect_to_array,
        "set_state": lambda: devices.set_state(devices.get_state()),
        "copy": lambda: source.copy(name="other").get_batch(8),
        "new stream": stream,
        "new eager": eager,
        "from_tfds": lambda: dt.from_tfds("tiny", "train", data_dir=DATA_DIR),
        "a submit": lambda: pool.submit(print),
    }
    found = {name: in_child(action) for name, action in actions.items()}
    found["harmless"] = in_child(lambda: [repr(source)[:19], len(source), source.cursor.index])
    held, done = threading.Event(), threading.Event()

    def hold():  # as a thread does that takes a batch
        with source.turn:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    found["another thread's turn"] = in_child(lambda: source.get_batch(8))
    done.set()
    holder.join()
    for name, busy in {"reads": source, "reads blocks": blocks}.items():
        over = threading.Event()
        reader = threading.Thread(target=read_until, args=(busy, over))
        reader.start()
        for number in range(5):  # another thread may hold any lock at the moment of the fork
            found[f"another thread {name}, {number}"] = in_child(
                lambda busy=busy: busy.get_batch(8)
            )
        over.set()
        reader.join()
    assert first == devices.record_indices_at(0, 4).tolist()
    after = [ids(pipeline.step()), ids(next(prefetched)), ids(next(records))]
    after += [ids(devices.get_batch(8)), ids(blocks.get_batch(8))]
    return found | {"before": before, "after": after}


def spawned():
    """The parent has read, and so does a child that it starts anew."""
    found = {"parent": sixteen()}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return found | {"child": pool.apply(sixteen)}


WAYS = {
    "unused": unused,
    "jax": jax_only,
    "tensorflow": tensorflow_only,
    "used": used,
    "spawned": spawned,
}
if __name__ == "__main__":  # and not in a child that is started anew
    sys.stdout.write(json.dumps(WAYS[HOW]()) + "\n")
