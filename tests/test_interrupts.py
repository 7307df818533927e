"""An interrupt anywhere leaves a batch handed out and counted, or neither; and so do threads."""

import collections
import contextlib
import functools
import gc
import itertools
import linecache
import shutil
import signal
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from checkout import GUARD_S
from conftest import shardings
from contract import N, ids
from flax import nnx

import datarax_tfds
import sharding
from datarax_tfds import (
    Cursor,
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    from_tfds,
    prefetch_to_device,
)
from datarax_tfds.files.stored_file import StoredFile

SIZE = 24
START = Cursor(0, 80)  # the next batch goes over the end of the epoch
OURS = (datarax_tfds.__path__[0], sharding.__path__[0])

CONFIGS = {"eager": TFDSEagerConfig, "streaming": TFDSStreamingConfig}
SOURCES = {"eager": TFDSEagerSource, "streaming": TFDSStreamingSource}


@functools.cache
def loaded(data_dir, kind, place="one device"):
    config = CONFIGS[kind](name="tiny", split="train", data_dir=data_dir, shuffle=True, seed=5)
    return SOURCES[kind](config, sharding=shardings()[place])


class Seen(nnx.Module):
    """Counts the batches that it saw."""

    def __init__(self):
        self.batches = nnx.Variable(jnp.int32(0))

    def __call__(self, batch):
        self.batches.set_value(self.batches.get_value() + 1)
        return batch


def interrupted(call, at, error=KeyboardInterrupt):
    """Calls a function with an error at the nth line of ours; whether it got so far.

    Not at the end of a `with` block: between its last line and `__exit__`, CPython looks for no
    signal, but a trace function may raise there, and a lock would never be released. Nor while a
    file is closed: Python calls that as a finalizer, and drops what is raised there.
    """
    left = at
    within = set()

    def trace(frame, event, argument):
        nonlocal left
        code = frame.f_code
        if not code.co_filename.startswith(OURS) or code is StoredFile.close.__code__:
            return None
        if event == "line":
            if linecache.getline(code.co_filename, frame.f_lineno).lstrip().startswith("with "):
                line = (frame, frame.f_lineno)
                if line in within:
                    within.remove(line)
                    return trace
                within.add(line)
            left -= 1
            if left == 0:
                raise error
        return trace

    def called():
        # In a generator, which has an exception state of its own: where a trace function raises at
        # a `return` in an `except` block, CPython 3.11 keeps the exception that was handled there.
        yield call()

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        next(called())
    except error:
        assert left == 0
    finally:
        sys.settrace(before)
    return left <= 0


def every_interrupt(make, call, check):
    """Interrupts a call at each line in turn, on something new each time."""
    for at in itertools.count(1):
        subject = make()
        if not interrupted(lambda subject=subject: call(subject), at):
            assert at > 5
            return
        check(subject, at)


def step_fn(model, batch):
    model.batches.set_value(model.batches.get_value() + 1)
    return batch["id"]


def scan(pipeline):
    pipeline.scan(step_fn, length=2, modules=[pipeline.model])


# A call, and where it ends.
CALLS = {
    "step": (Pipeline.step, Cursor(1, 7)),
    "get_batch": (lambda p: p.source.get_batch(SIZE), Cursor(1, 7)),
    "next of a pipeline": (lambda p: next(p.batches), Cursor(1, 7)),
    "next of records": (lambda p: next(p.records), Cursor(0, 81)),
    "next of prefetched": (lambda p: next(p.prefetched), Cursor(1, 7)),
    "reset": (lambda p: p.reset(), Cursor(0, 0)),
    "reset with a seed": (lambda p: p.reset(seed=9), Cursor(0, 0)),
    "set_state": (lambda p: p.set_state(p.saved), Cursor(1, 7)),
    "scan": (scan, Cursor(1, 31)),
}
CASES = [("eager", "wrap", call) for call in CALLS] + [
    ("eager", "drop", "step"),
    ("eager", "drop", "scan"),
    ("streaming", "wrap", "step"),
]


@pytest.mark.parametrize(("kind", "remainder", "name"), CASES)
def test_an_interrupt_leaves_the_old_place_or_the_new_one(data_dir, kind, remainder, name):
    call, end = CALLS[name]
    shared = loaded(str(data_dir), kind)
    start = START if remainder == "wrap" else Cursor(0, 48)
    pipeline = Pipeline(
        source=shared.clone(), stages=[Seen()], batch_size=SIZE, remainder=remainder
    )
    stateless = "source" if name in ("get_batch", "next of records") else "pipeline"
    pipeline.model = Seen()
    pipeline.source.seek(Cursor(1, 7))
    saved = pipeline.get_state()

    def ready():
        pipeline.source.sampler = shared.sampler
        pipeline.source.seek(start)
        pipeline.source.reset_operation_stats()
        for module in (pipeline.model, pipeline.stages[0]):
            module.batches.set_value(jnp.int32(0))
        pipeline.saved = nnx.static(saved)
        pipeline.batches = nnx.static(iter(pipeline))
        pipeline.records = nnx.static(iter(pipeline.source))
        pipeline.prefetched = nnx.static(prefetch_to_device(pipeline.steps(4), 1))
        return pipeline

    call(ready())  # compiles
    ends = pipeline.cursor
    assert remainder == "drop" or ends == end
    steps = int(pipeline.stages[0].batches.get_value())
    moved = pipeline.source.get_operation_stats()

    @functools.cache
    def batch_at(sampler, cursor):
        other = shared.clone()
        other.sampler = sampler
        other.advance_to(cursor)
        return ids(other.get_batch(SIZE))

    def check(pipeline, at):
        source, cursor = pipeline.source, pipeline.cursor
        assert (source.epoch.get_value(), source.index.get_value()) == (cursor.epoch, cursor.index)
        assert cursor in (start, ends), at
        seed = 9 if name == "reset with a seed" and cursor == ends else 5
        assert source.sampler.seed == seed, at
        unmoved = {"applied_count": 0, "skipped_count": 0}
        assert source.get_operation_stats() == (moved if cursor == ends else unmoved), at
        if name != "next of prefetched" and stateless == "pipeline":
            expected = steps if cursor == ends else 0
            assert int(pipeline.stages[0].batches.get_value()) == expected, at
        trained = int(pipeline.model.batches.get_value())  # not deleted
        assert trained == (2 if name == "scan" and cursor == ends else 0), at
        if remainder == "wrap":
            assert ids(pipeline.step()) == batch_at(source.sampler, cursor), at
        for batches in (pipeline.batches, pipeline.prefetched):
            if name.startswith("next of p") and cursor == start:
                pipeline.source.advance_to(start)
                assert ids(next(batches)) == batch_at(source.sampler, start), at
        if name == "next of prefetched":
            assert len(list(pipeline.prefetched)) == 3, at

    every_interrupt(ready, call, check)


CONSTRUCTIONS = {
    "eager": lambda data_dir, **fields: TFDSEagerSource(
        TFDSEagerConfig(data_dir=data_dir, **fields)
    ),
    "streaming": lambda data_dir, **fields: TFDSStreamingSource(
        TFDSStreamingConfig(data_dir=data_dir, **fields)
    ),
    "from_tfds": lambda data_dir, **fields: from_tfds(data_dir=data_dir, **fields),
    "pipeline": lambda data_dir, **fields: Pipeline(
        source=loaded(data_dir, "streaming").clone(), batch_size=8
    ),
}


def left_open(data_dir):
    """The descriptors and files that there are."""
    descriptors = collections.Counter()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists the others
            descriptors[str(descriptor.readlink())] += 1
    of_data = {path: n for path, n in descriptors.items() if path.startswith(data_dir)}
    return of_data, set(Path(data_dir, "tiny").rglob("*"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system lists no descriptors")
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("eager", KeyboardInterrupt),
        ("eager", MemoryError),
        ("streaming", KeyboardInterrupt),
        ("streaming", MemoryError),
        ("from_tfds", KeyboardInterrupt),  # which makes one of the above
        ("pipeline", MemoryError),
    ],
)
def test_an_interrupted_construction_leaves_nothing_behind(
    data_dir, tmp_path, monkeypatch, kind, error
):
    """Also one that has to index the files first."""
    # An error in a finalizer is reported by Python, and goes no further; pytest would keep it, with
    # all that the finalizer holds.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    without_indexes = shutil.ignore_patterns(".record_index")
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny", ignore=without_indexes)
    indexes = tmp_path / "tiny" / "1.0.0" / ".record_index"
    construct = functools.partial(
        CONSTRUCTIONS[kind], str(tmp_path), name="tiny", split="train", shuffle=True
    )

    def first_batch():
        return ids(next(iter(Pipeline(source=as_source(construct()), batch_size=8))))

    expected = first_batch()
    gc.collect()
    gc.freeze()  # what there is now, all of TensorFlow's and JAX's, would be looked at each time
    before, threads = left_open(str(tmp_path)), set(threading.enumerate())
    at = 1
    while interrupted(construct, at, error):
        at += 83  # a sample of about a thousand lines
        gc.collect()
        for thread in set(threading.enumerate()) - threads:
            thread.join(GUARD_S)  # one that was told to end
        gc.collect()  # what those threads held
        descriptors, files = left_open(str(tmp_path))
        assert descriptors == before[0], at
        assert files <= before[1], at
        assert set(threading.enumerate()) <= threads, at
        if kind != "pipeline":
            shutil.rmtree(indexes, ignore_errors=True)
    got = []
    # A lock that is still held would let the thread that holds it in.
    another = threading.Thread(target=lambda: got.append(first_batch()), daemon=True)
    another.start()
    another.join(GUARD_S)
    assert got == [expected]
    assert left_open(str(tmp_path))[1] == before[1]


def as_source(made):
    return made.source if isinstance(made, Pipeline) else made


def in_threads(work, threads=4):
    """Runs work in threads at once, and raises what it raised."""
    errors, barrier = [], threading.Barrier(threads)

    def run():
        try:
            barrier.wait(GUARD_S)
            work()
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(GUARD_S)
    assert not any(thread.is_alive() for thread in running)
    if errors:
        raise errors[0]


PLACES = [("eager", "one device"), ("eager", "8 devices"), ("streaming", "one device")]


@pytest.mark.parametrize(("kind", "place"), PLACES)
@pytest.mark.parametrize("way", ["step", "get_batch", "one iterator", "prefetched", "records"])
def test_threads_take_each_record_once(data_dir, kind, place, way):
    pipeline = Pipeline(source=loaded(str(data_dir), kind, place).clone(), batch_size=8)
    got, states, stop = [], [], threading.Event()
    shared = {
        "one iterator": lambda: iter(pipeline),
        "prefetched": lambda: prefetch_to_device(pipeline, 2),
        "records": lambda: iter(pipeline.source),
    }
    if way in shared:
        batches = shared[way]()

        def work():
            for batch in batches:
                got.extend(np.atleast_1d(np.asarray(batch["id"])).tolist())

    else:
        take = {"step": pipeline.step, "get_batch": lambda: pipeline.source.get_batch(8)}[way]

        def work():
            for _ in range(13):
                got.extend(ids(take()))

    def save():
        while not stop.wait(0.002):
            states.append(pipeline.get_state())

    saving = threading.Thread(target=save)
    saving.start()
    try:
        in_threads(work)
    finally:
        stop.set()
        saving.join(GUARD_S)
    if way == "records":
        assert collections.Counter(got) == collections.Counter(range(N))
    else:
        whole, rest = divmod(len(got), N)
        counts = collections.Counter(got)
        assert len(counts) == min(N, len(got))
        assert set(counts.values()) <= {whole, whole + 1}
        assert sum(count == whole + 1 for count in counts.values()) == rest
    assert pipeline.source.get_operation_stats()["applied_count"] == len(got)
    places = [(state["epoch"], state["index"]) for state in states]
    assert places == sorted(places)


def test_loops_in_threads_share_an_epoch(data_dir):
    """Each loop goes on where the others are, and ends with the epoch."""
    pipeline = Pipeline(
        source=loaded(str(data_dir), "eager").clone(), batch_size=8, remainder="pad"
    )
    got = []
    loops = [iter(pipeline) for _ in range(4)]
    first = [next(loop) for loop in loops]

    def work():
        got.extend(loops.pop())

    in_threads(work)
    numbers = [
        number
        for batch in first + got
        for number, real in zip(ids(batch), np.asarray(batch["mask"]).tolist(), strict=True)
        if real
    ]
    assert sorted(numbers) == list(range(N))
    assert pipeline.cursor == Cursor(1, 0)


def test_the_state_can_be_read_while_a_thread_takes_a_batch(data_dir):
    """As a signal handler does, which may never wait for a lock."""
    pipeline = Pipeline(source=loaded(str(data_dir), "eager").clone(), batch_size=8)
    read = []
    with pipeline.source.turn:
        thread = threading.Thread(target=lambda: read.append(pipeline.get_state()))
        thread.start()
        thread.join(GUARD_S)
    assert read == [pipeline.get_state()]


@pytest.mark.parametrize("kind", ["eager", "streaming"])
def test_a_signal_handler_may_save_the_state(data_dir, kind):
    """Also one that interrupts itself: the state is that of before the batch or of after it."""
    pipeline = Pipeline(source=loaded(str(data_dir), kind).clone(), batch_size=8)
    states, depth = [], 0

    def handler(number, frame):
        nonlocal depth
        depth += 1
        if depth == 1:
            signal.raise_signal(signal.SIGALRM)
        states.append(pipeline.get_state())
        depth -= 1

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for _ in range(2_000):
            pipeline.step()
            if len(states) > 200:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    places = [(state["epoch"], state["index"]) for state in states]
    # The outer of two handlers saves after the inner one.
    assert len(places) >= 2
    assert places == sorted(places)
    assert {(97 * epoch + index) % 8 for epoch, index in places} == {0}


def test_clones_do_not_wait_for_each_other(data_dir):
    source = loaded(str(data_dir), "eager").clone()
    got = []
    with source.turn:
        thread = threading.Thread(target=lambda: got.append(ids(source.clone().get_batch(8))))
        thread.start()
        thread.join(GUARD_S)
    assert got == [ids(source.get_batch(8))]


def test_an_error_in_a_loop_ends_nothing(data_dir):
    """After an interrupt that is caught, the loop goes on: else the epoch would be cut short."""
    pipeline = Pipeline(source=loaded(str(data_dir), "eager").clone(), batch_size=8)
    batches = iter(pipeline)
    next(batches)
    assert interrupted(lambda: next(batches), 3)
    assert len(list(batches)) == len(range(8, N, 8))


def test_cursor_variables_are_variables(data_dir):
    source = loaded(str(data_dir), "eager").clone()
    for set_index in (
        lambda: source.index.set_value(7),
        lambda: source.index.set_value(jnp.int32(7)),
        lambda: setattr(source, "index", nnx.Variable(7)),
        lambda: nnx.update(source, nnx.state(moved)),
    ):
        moved = source.clone()
        moved.advance_to(Cursor(1, 7))
        source.advance_to(Cursor(1, 3))
        set_index()
        assert source.cursor == Cursor(1, 7)
        assert (int(source.epoch.get_value()), int(source.index.get_value())) == (1, 7)
        source.get_batch(8)
        assert source.cursor == Cursor(1, 15)
        assert isinstance(source.index, nnx.Variable)
    assert set(nnx.state(source)) >= {"epoch", "index"}
    graphdef, state = nnx.split(source)
    assert nnx.merge(graphdef, state).cursor == Cursor(1, 15)
