"""A `map_fn` is accepted only if a resume makes the same batches again, unless the user says so."""

import datetime
import functools
import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
import types
import uuid
from pathlib import Path
from time import perf_counter

import jax
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from checkout import GUARD_S
from contract import equal
from jax.experimental import jax2tf
from keras import layers
from refusals import check_message, refused
from sources import source_of

from datarax_tfds import Pipeline, StateMismatchError, TFDSEagerSource, TFDSStreamingSource


def pixels(record):
    return tf.cast(record["image"], tf.float32)


def pixels_only(record):
    return {"pixels": pixels(record)}


def table_of(kind, **options):
    keys, values = tf.constant([1, 2], tf.int64), tf.constant([3, 4], tf.int64)
    if kind is tf.lookup.StaticHashTable:
        return kind(tf.lookup.KeyValueTensorInitializer(keys, values), -1)
    table = kind(tf.int64, tf.int64, -1, **options)
    table.insert(keys, values)
    return table


scaled = keras.Sequential([layers.Resizing(4, 4), layers.CenterCrop(2, 2), layers.Rescaling(2)])
normalized = layers.Normalization(mean=1.0, variance=2.0)
normalized.build((None, None, 3))  # while it is traced, it would keep tensors of that trace
adapted = layers.Normalization()
adapted.adapt(np.arange(12, dtype=np.float32).reshape(4, 3))
vocabulary = layers.IntegerLookup(vocabulary=[1, 2, 3])
static_table = table_of(tf.lookup.StaticHashTable)
big = np.arange(300_000, dtype=np.float32)
big_tensor = tf.constant(big)


def drawn_by_jax(image):
    return jax.random.uniform(jax.random.key(0)) * image


# As jax2tf says: AutoGraph would rewrite the code of JAX that traces it, for 10 s of a core.
of_jax = tf.function(jax2tf.convert(drawn_by_jax), autograph=False)


@tf.function
def doubled(x):
    if x > 1:
        return x * 2
    return x


def checks_and_prints(record):
    tf.debugging.assert_greater(record["id"], tf.constant(-1, tf.int64))
    tf.debugging.check_numerics(pixels(record), "pixels")
    if record["id"] < 0:
        tf.print("below zero", record["id"])
    return {"x": record["id"]}


def branches_and_loops(record):
    total = tf.constant(0)
    while total < 3:
        total += 1
    for number in tf.range(3):
        total += number
    if record["id"] > 3:
        total = -total
    chosen = tf.switch_case(tf.cast(record["id"] % 2, tf.int32), [lambda: 1, lambda: 2])
    return {"x": total, "y": tf.cond(record["id"] > 3, lambda: 1.0, lambda: 2.0), "z": chosen}


def arrays(record):
    written = tf.TensorArray(tf.int32, 3)
    for number in tf.range(3):
        written = written.write(number, number)
    mapped = tf.map_fn(lambda x: x * 2, pixels(record))
    return {"x": written.stack(), "y": mapped, "z": tf.vectorized_map(lambda x: x * 2, mapped)}


def datasets_within(record):
    numbers = tf.data.Dataset.range(4).map(lambda x: x * record["id"])
    total = tf.constant(0, tf.int64)
    for number in numbers:
        total += number
    return {"x": total, "y": numbers.batch(4, drop_remainder=True).get_single_element()}


def stateless(record, seed):
    image = tf.image.stateless_random_flip_left_right(record["image"], seed)
    image = tf.image.stateless_random_crop(image, (4, 3, 3), seed)
    begin, _, _ = tf.image.stateless_sample_distorted_bounding_box(
        [5, 4, 3], tf.zeros([1, 1, 4]), seed
    )
    order = tf.random.experimental.stateless_shuffle(tf.range(3), seed)
    return {"x": image, "begin": begin, "n": tf.random.stateless_normal([2], seed), "o": order}


def table_within(record):
    return {"x": table_of(tf.lookup.StaticHashTable).lookup(record["id"])}


def seeded_while_traced(record):
    return {"x": record["label"] + np.random.default_rng(0).integers(9)}


def timed(map_fn):
    """A decorator as users write it to log how long a function takes."""

    @functools.wraps(map_fn)
    def wrapper(*args, **kwargs):
        start = time.perf_counter()
        result = map_fn(*args, **kwargs)
        logging.getLogger(__name__).debug("%.6f s", time.perf_counter() - start)
        return result

    return wrapper


def timed_by_its_own_imports(record):
    import time as clock
    from time import monotonic_ns, process_time

    begun = monotonic_ns(), process_time(), clock.thread_time(), perf_counter()
    assert min(begun) >= 0
    return {"x": record["id"]}


def timed_by(clock):
    def map_fn(record):
        begun = clock.monotonic()
        logging.getLogger(__name__).debug("%.6f s", clock.monotonic() - begun)
        return {"x": record["id"]}

    return map_fn


class Timed:
    """An object that measures its calls."""

    def __init__(self, clock):
        self.clock = clock

    def __call__(self, record):
        begun = self.clock()
        logging.getLogger(__name__).debug("%.6f s", self.clock() - begun)
        return {"x": record["id"]}


def in_the_order_of_a_set(record):
    """Python orders the names otherwise in every process."""
    return {name: record[name] for name in {"id", "label", "image"}}


def dated(tell):
    """Adds a number that depends on no clock."""
    return lambda record: {"x": tf.cast(record["id"], tf.float32) + float(tell()) % 1000}


def of_imported_times():
    import datetime as dates
    from time import mktime, strptime

    return mktime(strptime("2020", "%Y")) + dates.datetime(2020, 1, 1).year


UTC = datetime.timezone.utc  # noqa: UP017
DATES = {
    "a constant datetime": lambda: datetime.datetime(2020, 1, 1, tzinfo=UTC).timestamp(),
    "a constant date": lambda: datetime.date(2020, 1, 1).toordinal(),
    "a check for a date": lambda: isinstance(3, datetime.date),
    "checks for classes": lambda: isinstance(3, (datetime.date, datetime.datetime)),
    "a time that is parsed": lambda: time.mktime(time.strptime("2020", "%Y")),
    "a date that is parsed": lambda: datetime.datetime.strptime("2020", "%Y").year,
    "a date of a timestamp": lambda: datetime.datetime.fromtimestamp(0, UTC).year,
    "a date of ISO": lambda: datetime.date.fromisoformat("2020-01-01").year,
    "times imported within": of_imported_times,
}
NOW = {
    "time.time": lambda: time.time(),
    "time.time_ns": lambda: time.time_ns(),
    "time.gmtime": lambda: time.gmtime().tm_year,
    "time.gmtime of a given time": lambda: time.gmtime(0).tm_year,  # the message says what to do
    "time.localtime": lambda: time.localtime().tm_year,
    "time.ctime": lambda: len(time.ctime()),
    "time.asctime": lambda: len(time.asctime()),
    "time.strftime": lambda: time.strftime("%Y"),
    "time.gmtime, called by map": lambda: max(map(time.gmtime, [None])).tm_year,
    "datetime.now": lambda: datetime.datetime.now().year,
    "datetime.now, in a zone": lambda: datetime.datetime.now(UTC).year,
    "datetime.today": lambda: datetime.datetime.today().year,
    "date.today": lambda: datetime.date.today().year,
    "a class by another name": lambda: (lambda kind: kind.today().year)(datetime.date),
    "a method by its name": lambda: getattr(datetime.date, "today")().year,  # noqa: B009
}


@pytest.mark.parametrize("tell", DATES.values(), ids=list(DATES))
def test_a_date_that_does_not_come_from_a_clock_is_accepted(data_dir, tell):
    source = source_of(data_dir, map_fn=dated(tell))
    assert source.get_batch(2)["x"].tolist() == [float(tell()) % 1000, float(tell()) % 1000 + 1]


@pytest.mark.parametrize("tell", NOW.values(), ids=list(NOW))
def test_the_current_time_is_refused(data_dir, tell):
    with refused(ValueError, "it reads the clock.*fix:.*outside map_fn and close over the value"):
        source_of(data_dir, map_fn=dated(tell))


REPEATABLE = {
    "the record itself": lambda record: record,
    "layers without variables": lambda record: {"x": scaled(pixels(record)[None])[0]},
    "a given normalization": lambda record: {"x": normalized(pixels(record))},
    "an adapted normalization": lambda record: {"x": adapted(pixels(record))},
    "a layer with a vocabulary": lambda record: {"x": vocabulary(record["id"][None])},
    "a static table": lambda record: {"x": static_table.lookup(record["id"])},
    "a static table of its own": table_within,
    "assertions and prints": checks_and_prints,
    "control flow": branches_and_loops,
    "arrays and mapped functions": arrays,
    "datasets": datasets_within,
    "stateless random operations": stateless,
    "another tf.function": lambda record: {"x": doubled(pixels(record)[0, 0, 0])},
    "a tf.function itself": tf.function(lambda record: {"x": record["id"]}),
    "a partial function": functools.partial(lambda add, record: {"x": record["id"] + add}, 3),
    "a large constant": lambda record: {"x": tf.reduce_sum(pixels(record)[0, 0, 0] * big)},
    "a large tensor": lambda record: {"x": tf.reduce_sum(pixels(record)[0, 0, 0] * big_tensor)},
    "a generator seeded within": seeded_while_traced,
    "a function of JAX": lambda record: {"x": of_jax(pixels(record))},
    "features in the order of a set": in_the_order_of_a_set,
    "a function that is timed": timed(pixels_only),
    "a function that times itself": timed_by_its_own_imports,
    "a function with a clock of its own": timed_by(time),
    "an object that is timed": Timed(time.perf_counter),
    "a time that is given": lambda record: {"x": record["id"] + datetime.timedelta(1).days},
}


@functools.cache
def repeatable(data_dir, name):
    return source_of(data_dir, shuffle=True, map_fn=REPEATABLE[name])


@pytest.mark.parametrize("name", REPEATABLE)
def test_a_repeatable_map_fn_is_accepted_and_resumed(data_dir, name):
    one = repeatable(data_dir, name).clone()
    other = source_of(data_dir, shuffle=True, map_fn=REPEATABLE[name])
    one.get_batch(8)
    state = one.get_state()
    other.set_state(state)
    assert "stateful" not in state["features"]
    assert equal(one.get_batch(8), other.get_batch(8))


variable = tf.Variable(2.0)
dense = layers.Dense(2)
dense.build((None, 3))
flip = layers.RandomFlip("horizontal", seed=1)
zoom = keras.Sequential([layers.RandomRotation(0.1), layers.RandomZoom(0.1)])
mutable_table = table_of(tf.lookup.experimental.MutableHashTable)
dense_table = table_of(
    tf.lookup.experimental.DenseHashTable, empty_key=tf.constant(-5, tf.int64), deleted_key=-6
)
queue = tf.queue.FIFOQueue(100, [tf.float32])
iterator = iter(tf.data.Dataset.range(1000))
outer_dataset = tf.data.Dataset.range(3)
generator = tf.random.Generator.from_seed(1)
numpy_generator = np.random.default_rng(1)
python_generator = random.Random(1)
calls = []


def python_called(call, **options):
    def map_fn(record):
        drawn = call(lambda: np.float32(np.random.rand()), [], tf.float32, **options)
        return {"x": tf.ensure_shape(drawn, [])}

    return map_fn


def random_in_a_loop(record):
    total = 0.0
    for _ in tf.range(3):
        total += tf.random.normal([])
    return {"x": total}


def random_in_a_dataset(record):
    drawn = tf.data.Dataset.range(3).map(lambda _: tf.random.uniform([]))
    return {"x": drawn.reduce(0.0, lambda a, b: a + b)}


def shuffled_dataset(record):
    return {"x": tf.data.Dataset.range(3).shuffle(3).batch(3).get_single_element()}


def written_table(record):
    mutable_table.insert(record["id"], record["id"])
    return {"x": record["id"]}


@tf.function
def uniform():
    return tf.random.uniform([])


@tf.function
def numpy_uniform(shift):
    return np.float32(np.random.rand()) + shift


def counted(record):
    calls.append(record)
    return {"x": record["label"] + len(calls)}


def sometimes(draw):
    def map_fn(record):
        return {"x": record["image"][::-1] if draw() < 0.5 else record["image"]}

    return map_fn


def imported_clock(record):
    from time import time_ns

    return {"x": record["label"] + time_ns() // 10**12 % 2}


def second():
    return int(time.time())


class Augmentation:
    """An object with a generator and a variable of its own."""

    def __init__(self):
        self.generator = np.random.default_rng(2)
        self.calls = None

    def __call__(self, record):
        return {"x": record["image"][::-1] if self.generator.random() < 0.5 else record["image"]}

    def count(self, record):
        if self.calls is None:
            self.calls = tf.Variable(1.0)
        return {"x": self.calls.assign_add(1.0)}


def path_of(record):
    return {"x": tf.strings.length(tf.io.read_file(__file__)) + tf.cast(record["id"], tf.int32)}


def of_today(record):
    return {"x": tf.constant(datetime.date.today().day)}


class Compose:
    """Transforms one after the other, as augmentations are often written."""

    def __init__(self, *transforms):
        self.transforms = transforms

    def __call__(self, record):
        for transform in self.transforms:
            record = transform(record)
        return record


RANDOM = r"map_fn draws random numbers that a resume would not draw again.*operations: +.*"
STATE = r"map_fn depends on state that a resume does not restore.*"
PYTHON = r"map_fn depends on what Python does while it is traced.*python: +.*"
UNREPEATABLE = {
    "a random operation": (lambda record: {"x": tf.random.uniform([])}, RANDOM + "RandomUniform"),
    "a random crop": (
        lambda record: {"x": tf.image.random_crop(record["image"], (2, 2, 3))},
        RANDOM + "RandomUniformInt",
    ),
    "a shuffle": (lambda record: {"x": tf.random.shuffle(record["image"])}, "RandomShuffle"),
    "dropout": (lambda record: {"x": tf.nn.dropout(pixels(record), 0.5)}, "RandomUniform"),
    "a random branch": (
        lambda record: {"x": tf.cond(record["id"] > 3, uniform, lambda: 0.0)},
        "RandomUniform",
    ),
    "a random loop": (random_in_a_loop, "RandomStandardNormal"),
    "a random dataset": (random_in_a_dataset, "RandomUniform"),
    "a shuffled dataset": (shuffled_dataset, "ShuffleDataset"),
    "a random tf.function": (lambda record: {"x": uniform()}, "RandomUniform"),
    "a generator of TensorFlow": (
        lambda record: {"x": generator.uniform([])},
        STATE + "StateVar:0 int64.*RngReadAndSkip",
    ),
    "a random layer": (
        lambda record: {"x": flip(record["image"][None], training=True)[0]},
        STATE + "variables: .*seed_generator",
    ),
    "several random layers": (
        lambda record: {"x": zoom(pixels(record)[None], training=True)[0]},
        STATE + "variables: .*seed_generator",
    ),
    "a counting variable": (lambda record: {"x": variable.assign_add(1.0)}, "Variable:0 float32"),
    "a variable that is read": (lambda record: {"x": variable + 1.0}, "Variable:0 float32"),
    "a layer with weights": (lambda record: {"x": dense(pixels(record))}, "dense/kernel"),
    "a variable made while it is traced": (Augmentation().count, "Variable:0 float32"),
    "a mutable table": (lambda record: {"x": mutable_table.lookup(record["id"])}, "resources: "),
    "a dense table": (lambda record: {"x": dense_table.lookup(record["id"])}, "resources: "),
    "a table that is written": (written_table, "LookupTableInsert"),
    "a queue": (lambda record: {"x": queue.dequeue()}, "QueueDequeue"),
    "an iterator": (lambda record: {"x": iterator.get_next()}, "resources: "),
    "a dataset from outside": (
        lambda record: {"x": outer_dataset.batch(3).get_single_element()},
        "resources: +variant",
    ),
    "the clock of TensorFlow": (lambda record: {"x": tf.timestamp()}, "Timestamp"),
    "a file": (path_of, "ReadFile"),
    "numpy_function": (python_called(tf.numpy_function), "PyFunc"),
    "numpy_function said to be stateless": (
        python_called(tf.numpy_function, stateful=False),
        "PyFuncStateless",
    ),
    "py_function": (python_called(tf.py_function), "EagerPyFunc"),
    "numpy": (lambda record: {"x": tf.constant(np.random.rand())}, PYTHON + "numpy.random"),
    "numpy in a tf.function": (lambda record: {"x": numpy_uniform(1.0)}, PYTHON + "numpy.random"),
    "random": (lambda record: {"x": tf.constant(random.random())}, PYTHON + "random"),
    "a branch by numpy": (sometimes(np.random.rand), PYTHON + "numpy.random"),
    "a branch by random": (sometimes(random.random), PYTHON + "random"),
    "a branch by a generator of numpy": (
        lambda record: {"x": record["id"] if numpy_generator.random() < 0.5 else record["label"]},
        PYTHON + "numpy.random",
    ),
    "a branch by a generator of random": (
        lambda record: {"x": record["id"] if python_generator.random() < 0.5 else record["label"]},
        PYTHON + "random",
    ),
    "a branch by an object's generator": (Augmentation(), PYTHON + "numpy.random"),
    "the clock, imported within": (imported_clock, PYTHON + "clock"),
    "the clock in a function it calls": (lambda record: {"x": tf.constant(second())}, "clock"),
    "the date, in a list of transforms": (Compose(of_today), PYTHON + "clock"),
    "an identifier": (
        lambda record: {"x": tf.strings.to_hash_bucket_fast(tf.constant(uuid.uuid4().hex), 99)},
        PYTHON + "constants",
    ),
    "a counter of Python": (counted, PYTHON + "constants"),
    "a measured time": (lambda record: {"x": tf.constant(perf_counter())}, PYTHON + "constants"),
    "a time of day to measure with": (Timed(time.time), PYTHON + "clock"),
}


@pytest.mark.parametrize(("map_fn", "message"), UNREPEATABLE.values(), ids=list(UNREPEATABLE))
def test_a_map_fn_that_a_resume_does_not_repeat_is_refused(data_dir, map_fn, message):
    with refused(ValueError, rf"{message}.*fix:.*allow_stateful_map_fn=True"):
        source_of(data_dir, map_fn=map_fn)


DRAWS = {"random": random.random, "numpy.random": np.random.random}


def drawn_while_traced(draw, traces):
    """A function in whose first traces another thread draws, and the thread is over by then."""
    begun = []

    def map_fn(record):
        begun.append(record)
        if len(begun) <= traces:
            thread = threading.Thread(target=draw)
            thread.start()
            thread.join()
        return {"x": record["id"]}

    return map_fn


@pytest.mark.parametrize("traces", [1, 2, 3])
@pytest.mark.parametrize("draw", DRAWS)
def test_a_thread_that_draws_during_a_trace_is_not_blamed_on_map_fn(data_dir, draw, traces):
    # By an attribute, so that the function does not refer to the generator.
    by = types.SimpleNamespace(draw=DRAWS[draw])
    source = source_of(data_dir, map_fn=drawn_while_traced(lambda: by.draw(), traces))
    assert source.get_batch(2)["x"].tolist() == [0, 1]


@pytest.mark.parametrize("draw", DRAWS)
def test_a_thread_that_draws_all_the_time_is_not_blamed_on_map_fn(data_dir, draw):
    over = threading.Event()

    def keep_drawing():
        while not over.is_set():
            DRAWS[draw]()
            over.wait(1e-4)

    thread = threading.Thread(target=keep_drawing)
    thread.start()
    try:
        source = source_of(data_dir, map_fn=lambda record: {"x": record["id"]})
        with refused(ValueError, PYTHON + "random"):
            source_of(data_dir, map_fn=sometimes(DRAWS[draw]))
    finally:
        over.set()
        thread.join()
    assert source.get_batch(2)["x"].tolist() == [0, 1]


@pytest.mark.parametrize("draw", DRAWS)
def test_a_draw_through_an_attribute_is_found(data_dir, draw):
    by = types.SimpleNamespace(draw=DRAWS[draw])
    with refused(ValueError, PYTHON + "it draws random numbers|" + PYTHON + "constants"):
        source_of(data_dir, map_fn=sometimes(lambda: by.draw()))


@pytest.mark.parametrize("kind", [TFDSEagerSource, TFDSStreamingSource])
@pytest.mark.parametrize("mesh", ["one device", "8 devices"])
def test_every_source_refuses_a_random_map_fn_without_a_seed(data_dir, kind, mesh):
    with refused(ValueError, "RandomUniform"):
        source_of(data_dir, kind, mesh, map_fn=lambda record: {"x": tf.random.uniform([])})


@pytest.mark.parametrize("kind", [TFDSEagerSource, TFDSStreamingSource])
@pytest.mark.parametrize("mesh", ["one device", "8 devices"])
def test_a_stateful_map_fn_is_used_if_that_is_accepted(data_dir, kind, mesh):
    accepted = {"map_fn": python_called(tf.numpy_function), "allow_stateful_map_fn": True}
    source = source_of(data_dir, kind, mesh, **accepted)
    assert len(set(np.asarray(source.get_batch(16)["x"]).tolist())) > 1
    state = source.get_state()
    assert state["features"].endswith(", stateful map_fn")
    again = source_of(data_dir, kind, mesh, **accepted)
    again.set_state(state)
    assert again.cursor == source.cursor


@pytest.mark.parametrize("accepts", [True, False])
@pytest.mark.parametrize(
    "made_of", [lambda source: source, lambda source: Pipeline(source=source, batch_size=4)]
)
def test_a_state_with_a_stateful_map_fn_is_restored_only_if_both_configs_allow_it(
    data_dir, accepts, made_of
):
    one, other = (
        made_of(source_of(data_dir, map_fn=pixels_only, allow_stateful_map_fn=accepted))
        for accepted in (not accepts, accepts)
    )
    stateful = r"features: saved '\w+, stateful map_fn', now '\w+'\n"
    plain = r"features: saved '\w+', now '\w+, stateful map_fn'\n"
    with refused(StateMismatchError, plain if accepts else stateful):
        other.set_state(one.get_state())


def recoded(**fields):
    """Makes a config of a value, as a function that takes it from outside."""
    return lambda value: {name: make(value) for name, make in fields.items()}


def adding(kind):
    def make(value):
        outside = kind(value)
        return lambda record: {"x": pixels(record) + outside}

    return make


def table_of_values(value):
    keys = tf.constant([0, 1, 2], tf.int64)
    filled = tf.lookup.KeyValueTensorInitializer(keys, value + keys)
    table = tf.lookup.StaticHashTable(filled, -1)
    return lambda record: {"x": table.lookup(record["id"])}


def branch(value):
    return lambda record: {"x": record["image"][::-1] if value == 1 else record["image"]}


def within(value):
    inner = tf.function(lambda image: image * value)
    return lambda record: {"x": tf.cond(record["id"] > 3, lambda: inner(1.0), lambda: 1.0)}


def decoder(value):
    @tfds.decode.make_decoder(output_dtype=tf.float32)
    def scaled(example, feature):
        return tf.cast(feature.decode_example(example), tf.float32) * value

    return {"image": scaled()}


CODE = {
    "a tensor": recoded(map_fn=adding(lambda value: tf.constant(float(value)))),
    "an array": recoded(map_fn=adding(lambda value: np.full(3, value, np.float32))),
    "a number": recoded(map_fn=adding(float)),
    "a large array": recoded(
        map_fn=adding(lambda value: np.full((400, 1, 1, 3), value, np.float32))
    ),
    "a branch": recoded(map_fn=branch),
    "a function within": recoded(map_fn=within),
    "a table": recoded(map_fn=table_of_values),
    "a decoder": recoded(decoders=decoder),
    "a decoder and a map_fn": recoded(decoders=decoder, map_fn=lambda value: pixels_only),
}


class TestCodeOfAnotherRun:
    """Values that a run takes from outside its functions: it cannot tell whether the next run has
    them, too, but the next run can.
    """

    @pytest.mark.parametrize("kind", [TFDSEagerSource, TFDSStreamingSource])
    @pytest.mark.parametrize("code", CODE.values(), ids=list(CODE))
    def test_a_resume_with_other_values_warns(self, data_dir, kind, code, caplog):
        source = source_of(data_dir, kind, **code(1))
        source.get_batch(8)
        state = source.get_state()
        assert len(json.dumps(state)) < 2048
        source_of(data_dir, kind, **code(1)).set_state(state)
        assert not caplog.records
        other = source_of(data_dir, kind, **code(2))
        other.set_state(state)
        assert other.cursor == source.cursor
        (entry,) = caplog.records
        assert entry.levelno == logging.WARNING
        check_message(entry.getMessage())
        assert "computes something else than in the run that was saved" in entry.getMessage()

    def test_a_resume_without_the_map_fn_warns(self, data_dir, caplog):
        def pipeline(**fields):
            return Pipeline(source=source_of(data_dir, **fields), batch_size=8)

        pipeline().set_state(pipeline(map_fn=lambda record: record).get_state())
        assert "now None" in caplog.text

    def test_the_same_code_has_the_same_digest_in_every_process(self, data_dir, tmp_path):
        worker = Path(__file__).parent / "workers/user_code.py"
        command = [sys.executable, str(worker), str(data_dir), str(tmp_path / "codes.json")]
        environment = os.environ | {"PYTHONHASHSEED": "1"}
        subprocess.run(command, check=True, timeout=GUARD_S, cwd=tmp_path, env=environment)
        for name, code in json.loads((tmp_path / "codes.json").read_text()).items():
            assert repeatable(data_dir, name).get_state()["user_code"] == code, name

    def test_a_stateful_map_fn_has_no_digest(self, data_dir):
        state = source_of(data_dir, map_fn=pixels_only, allow_stateful_map_fn=True).get_state()
        assert "user_code" not in state
