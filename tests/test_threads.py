"""Pools of threads: they may be collected at any moment, and they end with the interpreter."""

import gc
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, thread

import pytest
import warmed
from checkout import GUARD_S
from conftest import wait_for
from refusals import refused

from datarax_tfds import TFDSStreamingConfig, TFDSStreamingSource
from datarax_tfds.runtime.threads import ThreadPool, decoding_threads, native_call, running
from sharding.hosts.job import job


class Gate:
    """Work that begins, and then waits until the test lets it go on."""

    def __init__(self):
        self.begun, self.opened = threading.Event(), threading.Event()

    def __call__(self):
        self.begun.set()
        assert self.opened.wait(GUARD_S)
        return "done"


def test_work_runs_in_order_on_a_fixed_number_of_threads():
    pool, order, names = ThreadPool(3, "fixed"), [], set()

    def work(number):
        order.append(number)
        names.add(threading.current_thread().name)
        return number

    futures = [pool.submit(work, number) for number in range(200)]
    assert [future.result(60) for future in futures] == list(range(200))
    assert names <= {"fixed_0", "fixed_1", "fixed_2"}

    one = ThreadPool(1, "one")
    order.clear()
    for future in [one.submit(work, number) for number in range(50)]:
        future.result(60)
    assert order == list(range(50))


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_is_that_of_its_future_and_the_thread_goes_on(error):
    def fail():
        raise error

    pool = ThreadPool(1, "failing")
    assert pool.submit(fail).exception(60) is error
    assert pool.submit(lambda: 1).result(60) == 1


@pytest.mark.parametrize("end", ["closed", "collected", "collected in a cycle"])
def test_at_the_end_what_is_under_way_is_finished_and_the_rest_is_cancelled(end):
    pool, gate = ThreadPool(1, "ending"), Gate()
    under_way, waiting = pool.submit(gate), pool.submit(gate)
    assert gate.begun.wait(GUARD_S)
    own = [thread for thread in threading.enumerate() if thread.name == "ending_0"]
    if end == "closed":
        pool.close()
        with refused(RuntimeError, "it takes no more work, because it was closed"):
            pool.submit(gate)
    elif end == "collected in a cycle":
        pool.itself = pool
    del pool
    gc.collect()
    gate.opened.set()
    assert under_way.result(60) == "done"
    with pytest.raises(CancelledError):
        waiting.result(60)
    wait_for(lambda: not any(thread.is_alive() for thread in own))


def test_a_thread_that_waits_keeps_no_result_alive():
    class Result:
        pass

    pool = ThreadPool(1, "forgetting")
    result = weakref.ref(pool.submit(Result).result(60))
    wait_for(lambda: result() is None)


def test_a_stream_may_be_collected_while_any_executor_submits_work(data_dir):
    """`ThreadPoolExecutor.submit` holds a lock of the whole module, and may run the collector. A
    finalizer that waited for the threads of its stream, which waited for that lock, would hang.
    """
    import tensorflow as tf

    gate = Gate()

    def number_of(number):
        # Of what the threads read ahead of the second batch, only one record waits: two of them
        # could keep both threads of TensorFlow from that batch.
        return number if number != 16 or gate() else None

    def waiting(record):
        number = tf.numpy_function(number_of, [record["id"]], tf.int64)
        return {"id": tf.ensure_shape(number, [])}

    config = TFDSStreamingConfig(
        name="tiny",
        split="train",
        data_dir=str(data_dir),
        map_fn=waiting,
        allow_stateful_map_fn=True,
    )
    source = TFDSStreamingSource(config)
    for _ in range(2):
        source.get_batch(8)
    assert gate.begun.wait(GUARD_S)
    held, records = [source], weakref.ref(source.records)
    del source

    def collect():
        with thread._global_shutdown_lock:
            gate.opened.set()
            time.sleep(0.2)  # the threads finish their work, and look for more
            held.clear()
            gc.collect()

    collector = threading.Thread(target=collect, daemon=True)
    collector.start()
    collector.join(GUARD_S)
    assert not collector.is_alive()
    wait_for(lambda: gc.collect() >= 0 and records() is None)  # once no thread decodes for it


def test_no_native_call_begins_once_the_interpreter_exits(monkeypatch):
    with native_call():
        assert threading.get_ident() in running.native_calls
    monkeypatch.setattr(running, "exiting", True)
    with refused(RuntimeError, "the interpreter exits"), native_call():
        pass
    assert not running.native_calls


READ = """
import sys, threading
import tensorflow as tf
from datarax_tfds import Pipeline, TFDSStreamingConfig, TFDSStreamingSource
from datarax_tfds.files.record_files import RecordFiles
from datarax_tfds.runtime.threads import running

def slow(record):
    steps = tf.while_loop(lambda i, x: i < 3000, lambda i, x: (i + 1, tf.sin(x)), (0, 1.0))
    return record | {"slow": steps[1]}

way, name, data_dir = sys.argv[1:]
config = TFDSStreamingConfig(
    name=name, split="train", data_dir=data_dir, prefetch_buffer=4,
    map_fn=slow if way == "decoding" else None,
    access="sequential" if way == "blocks" else "random", block_size=4)
pipeline = Pipeline(source=TFDSStreamingSource(config), batch_size=8)
pipeline.step()
read, begun = RecordFiles.read, threading.Event()
def hanging(self, numbers):
    begun.set()
    if way in ("hanging", "blocks"):
        threading.Event().wait()
    return read(self, numbers)
RecordFiles.read = hanging
running.pool_wait_s = 1.0
def forever():
    while True:
        pipeline.step()
threading.Thread(target=forever, daemon=True).start()
assert begun.wait(900)
"""


@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("decoding", "tiny"),  # in TensorFlow: a thread that returned later would abort the process
        ("reading", "tiny_array"),  # likewise, in the C++ of array_record
        ("hanging", "tiny"),  # on a file system that does not answer
        ("blocks", "tiny"),  # of which the decoding threads wait for those that read
    ],
)
def test_the_interpreter_exits_quietly_whatever_is_under_way(data_dir, way, name):
    """Also with a daemon thread of the user's that takes batches for ever."""
    done = warmed.run([sys.executable, "-c", READ, way, name, str(data_dir)], timeout=GUARD_S)
    assert done.returncode == 0, done.stderr
    noise = ("Error", "Exception", "Traceback", "terminate", "FATAL")
    assert [line for line in done.stderr.splitlines() if any(word in line for word in noise)] == []


@pytest.mark.parametrize(
    ("cores", "allowed", "processes", "threads"),
    [
        (192, 192, 1, 193),
        (192, 192, 8, 25),
        (192, 24, 8, 25),  # the launcher has bound each process to cores of its own
        (192, 8, 1, 9),  # as in a container
        (4, 4, 8, 2),
    ],
)
def test_the_processes_of_a_machine_share_its_cores(
    cores, allowed, processes, threads, monkeypatch
):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(allowed), raising=False)
    monkeypatch.setattr(job, "processes_here", processes)
    assert decoding_threads() == threads
