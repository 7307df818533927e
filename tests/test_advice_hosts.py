"""The fixes of messages about meshes, shardings, processes, signals and waits."""

import os
import signal
import threading
from concurrent.futures import Future

import jax
import numpy as np
import pytest
from advice import Row
from conftest import shardings
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from datarax_tfds import (
    Preemption,
    TFDSEagerConfig,
    TFDSEagerSource,
    batch_sharding,
    global_batch,
    initialize,
    make_mesh,
)
from datarax_tfds.records.memory import choose_layout, free_host_bytes
from sharding.hosts.job import job
from sharding.hosts.waits import result_of

DATA = PartitionSpec("data")


def rows_of(rows):
    return np.zeros(rows.stop - rows.start)


def placed(sharding, read=rows_of):
    return global_batch(read, 8, sharding)


def on_mesh(spec, axis_type=AxisType.Auto, **options):
    mesh = make_mesh({"data": 4, "model": 2}, axis_type=axis_type)
    return NamedSharding(mesh, spec, **options)


MESHES = [
    Row(
        "axes must be a dict of sizes by name.",
        "use axes={'data': -1}, which takes all devices",
        lambda u: make_mesh(["data"]),
        lambda u: make_mesh(axes={"data": -1}),
    ),
    Row(
        "devices must be a list of JAX devices.",
        "use devices=jax.devices(), or leave devices out",
        lambda u: make_mesh({"data": 8}, devices="cpu"),
        lambda u: make_mesh({"data": 8}, devices=jax.devices()),
        lambda u: make_mesh({"data": 8}),
    ),
    Row(
        "the axes do not multiply to the number of devices.",
        "give positive sizes whose product is 8, or make one of them -1 for all that are left, as"
        " axes={'data': -1}",
        lambda u: make_mesh({"data": 3}),
        lambda u: make_mesh({"data": 4, "model": 2}),
        lambda u: make_mesh({"data": -1}),
    ),
    Row(
        "mesh must be a jax.sharding.Mesh.",
        "pass mesh=make_mesh({'data': -1})",
        lambda u: batch_sharding("data"),
        lambda u: batch_sharding(mesh=make_mesh({"data": -1})),
    ),
    Row(
        "the mesh has no axis 'dta'.",
        "use axes='data'",
        lambda u: batch_sharding(make_mesh({"data": 8}), "dta"),
        lambda u: batch_sharding(make_mesh({"data": 8}), axes="data"),
    ),
    Row(
        "an axis is named twice: data, data.",
        "use axes='data'",
        lambda u: batch_sharding(make_mesh({"data": 8}), ["data", "data"]),
        lambda u: batch_sharding(make_mesh({"data": 8}), axes="data"),
    ),
]


def within_shard_map(u):
    """The batches of a source on the mesh of a shard_map are its argument."""
    mesh = make_mesh({"data": 8})
    config = TFDSEagerConfig(name="tiny", split="train", data_dir=u.data_dir)
    source = TFDSEagerSource(config, sharding=batch_sharding(mesh))
    double = jax.shard_map(lambda ids: ids * 2, mesh=mesh, in_specs=DATA, out_specs=DATA)
    return double(source.get_batch(8)["id"])


SHARDINGS = [
    Row(
        "it must be a NamedSharding.",
        "build one with batch_sharding(make_mesh({'data': -1}))",
        lambda u: placed(DATA),
        lambda u: placed(batch_sharding(make_mesh({"data": -1}))),
    ),
    Row(
        "its mesh must consist of devices, and this mesh has none.",
        "build the mesh with make_mesh({'data': -1})",
        lambda u: placed(NamedSharding(AbstractMesh((8,), ("data",)), DATA)),
        lambda u: placed(NamedSharding(make_mesh({"data": -1}), DATA)),
    ),
    Row(
        "it must not be unreduced or reduced: batches hold records, and no sums.",
        "use PartitionSpec(axes) without unreduced and reduced",
        lambda u: placed(on_mesh(PartitionSpec("data", unreduced={"model"}), AxisType.Explicit)),
        lambda u: placed(on_mesh(PartitionSpec("data"), AxisType.Explicit)),
    ),
    Row(
        "it must split batches along axis 0 only.",
        "use batch_sharding(mesh, axis), and reshard other axes inside your own jit",
        lambda u: placed(on_mesh(PartitionSpec("data", "model"))),
        lambda u: jax.jit(
            lambda x: jax.lax.with_sharding_constraint(x, on_mesh(PartitionSpec("data", "model")))
        )(
            placed(
                batch_sharding(make_mesh({"data": 4, "model": 2}), "data"),
                lambda rows: np.zeros((rows.stop - rows.start, 2)),
            )
        ),
    ),
    Row(
        "its mesh must not have Manual axes, which exist only within a shard_map.",
        "build the source with the mesh that the shard_map is over",
        lambda u: placed(NamedSharding(jax.make_mesh((8,), ("data",), (AxisType.Manual,)), DATA)),
        within_shard_map,
    ),
    Row(
        "its memory_kind must be ..., the memory that the devices compute with.",
        "leave memory_kind out, and move a batch with jax.device_put(batch,"
        " sharding.with_memory_kind('pinned_host'))",
        lambda u: placed(on_mesh(DATA, memory_kind="pinned_host")),
        lambda u: jax.device_put(
            placed(on_mesh(DATA)), on_mesh(DATA).with_memory_kind("pinned_host")
        ),
    ),
    Row(
        "it must be a positive integer, a multiple of 8 (the mesh has 8 row shards), got 0.",
        "use 8",
        lambda u: global_batch(rows_of, 0, shardings()["8 devices"]),
        lambda u: global_batch(rows_of, 8, shardings()["8 devices"]),
    ),
    Row(
        "read must be a function.",
        "pass a function of a slice, as lambda rows: records[rows]",
        lambda u: placed(shardings()["8 devices"], read=np.arange(8)),
        lambda u: placed(shardings()["8 devices"], read=lambda rows: np.arange(8)[rows]),
    ),
    Row(
        "read must return exactly the rows of its slice.",
        "return arrays [1, ...] for this slice",
        lambda u: placed(shardings()["8 devices"], read=lambda rows: np.zeros(8)),
        lambda u: placed(shardings()["8 devices"], read=lambda rows: np.zeros(1)),
    ),
]


def laid_out(layout, rows=1.0, row_bytes=1 << 20):
    """A layout of records that take twice the memory of a device, or a part of that."""
    free = free_host_bytes() // 8
    count = int(2 * free * rows) >> 20
    return choose_layout(
        layout, rows=count, row_bytes=row_bytes, batch=shardings()["8 devices"], subject="records"
    )


LAYOUTS = [
    Row(
        "the records do not fit the devices (replicated).",
        "use layout='sharded' on more devices, leave features out with exclude_keys, read a part of"
        " the split, as split='train[:50%]', or stream the records with a TFDSStreamingSource",
        lambda u: laid_out("replicated"),
        lambda u: laid_out("sharded"),
        lambda u: laid_out("replicated", row_bytes=1 << 18),
        lambda u: laid_out("replicated", rows=0.25),
        lambda u: u.batch(),
    ),
    Row(
        "an eager source must have fewer than 2**31 records, as an axis of an array has.",
        "stream the records with a TFDSStreamingSource, or read a part of the split, as"
        " split='train[:50%]'",
        lambda u: laid_out("auto", rows=2**31, row_bytes=1),
        lambda u: u.batch(),
        lambda u: u.eager(split="train[:50%]"),
    ),
]


def launched(call, variables=None, **arguments):
    """Calls `initialize`, and then `call`, where variables say that there are several processes."""
    job.is_complete, before = False, dict(os.environ)
    os.environ.update({"WORLD_SIZE": "2"} | (variables or {}))
    try:
        if arguments or variables:
            initialize(**arguments)
        return call()
    finally:
        os.environ.clear()
        os.environ.update(before)
        job.is_complete = False


def built_in_a_thread():
    """Builds it as a thread that trains does, and raises what that raises."""
    built: Future[None] = Future()

    def build():
        try:
            Preemption().close()
        except RuntimeError as error:
            built.set_exception(error)

    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    return built.result(timeout=0)


def built_in_the_main_thread():
    """The thread that trains asks the one that the main thread has built."""
    asked: list[bool] = []
    with Preemption(signals=[signal.SIGUSR1]) as preemption:
        thread = threading.Thread(target=lambda: asked.append(preemption.reached(1)))
        thread.start()
        thread.join()
    assert asked == [False]


def done():
    reading: Future[str] = Future()
    reading.set_result("read")
    return reading


def done_later():
    reading: Future[str] = Future()
    threading.Timer(1.5, lambda: reading.set_result("read")).start()
    return reading


def awaited(limit_s, reading):
    """Waits for what another thread reads, no longer than the limit."""
    initialize(stall_timeout_s=limit_s)
    try:
        return result_of(reading, "records", lambda: "a file")
    finally:
        initialize()


def with_limits(**limits):
    try:
        initialize(**limits)
    finally:
        initialize()


PROCESSES = [
    Row(
        "there is a sign of several processes, and JAX sees 1.",
        "call datarax_tfds.initialize() before any other JAX call; if this process is alone on"
        " purpose, set JAX_NUM_PROCESSES=1 or call initialize(num_processes=1)",
        lambda u: launched(u.eager),
        lambda u: launched(u.eager, {"JAX_NUM_PROCESSES": "1"}),
        lambda u: launched(u.eager, num_processes=1),
    ),
    Row(
        "there is a sign of several processes, and it does not say how to join them.",
        "set JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID for each process, or pass"
        " coordinator_address, process_id to initialize(); if this process is alone on purpose,"
        " set JAX_NUM_PROCESSES=1 or call initialize(num_processes=1)",
        lambda u: launched(initialize),
        lambda u: launched(initialize, {"JAX_NUM_PROCESSES": "1"}),
        lambda u: launched(u.eager, num_processes=1),
    ),
    Row(
        "it does not have an argument 'timout_s'.",
        "use timeout_s",
        lambda u: initialize(timout_s=60),
        lambda u: with_limits(timeout_s=60),
    ),
    Row(
        "it does not have an argument 'xyz'.",
        "leave xyz out",
        lambda u: initialize(xyz=1),
        lambda u: with_limits(),
    ),
    Row(
        "stall_warn_s must be a number of seconds above 0.",
        "use stall_warn_s=600, or leave it out",
        lambda u: initialize(stall_warn_s="30"),
        lambda u: with_limits(stall_warn_s=600),
        lambda u: with_limits(),
    ),
    Row(
        "signals must be a list of signals.",
        "pass a list, as signals=(signal.SIGTERM,)",
        lambda u: Preemption(signals=signal.SIGTERM),
        lambda u: Preemption(signals=(signal.SIGTERM,)).close(),
    ),
    Row(
        "it must be built in the main thread, because Python sets signal handlers only there.",
        "build it in the main thread, and pass it to the thread that trains",
        lambda u: built_in_a_thread(),
        lambda u: built_in_the_main_thread(),
    ),
    Row(
        "signals must be signals that a process can handle.",
        "use for example signals=(signal.SIGTERM, signal.SIGUSR1)",
        lambda u: Preemption(signals=[signal.SIGKILL]),
        lambda u: Preemption(signals=(signal.SIGTERM, signal.SIGUSR1)).close(),
    ),
    Row(
        "reading takes longer than the limit.",
        "see with ls -l whether that file system answers, and mount it anew if it does not; if it"
        " only needs longer, set a larger stall_timeout_s in initialize()",
        lambda u: awaited(0.5, Future()),
        lambda u: awaited(0.5, done()),
        lambda u: awaited(600.0, done_later()),
    ),
]

ROWS = MESHES + SHARDINGS + LAYOUTS + PROCESSES


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_fix_of_a_message_works_when_it_is_followed(user, row):
    row.follow(user)
