"""A Python function of the user's on every record, in the threads that decode."""

import functools
import random
import threading
import time

import jax
import numpy as np
import pytest
import tensorflow as tf
from checkout import GUARD_S
from contract import check_resume_after_every_batch, equal, ids
from refusals import refused
from sources import source_of
from tfds_datasets import tiny_record

from datarax_tfds import Pipeline, TFDSEagerSource, TFDSStreamingSource, from_tfds
from datarax_tfds.decoding.functions.code_digest import code_digest

KINDS = [TFDSEagerSource, TFDSStreamingSource]


def framed(record):
    """Changes what it is given, and returns what NumPy makes arrays of."""
    record["image"][0] = 0
    return {
        "id": record["id"],
        "image": record["image"][:, ::-1],
        "more": {"pixels": record["image"].astype(np.float32).mean((0, 1)), "list": [1, 2]},
        "name": f"record {record['id']}",
    }


def jittered(record, rng):
    return {"id": record["id"], "noise": rng.random(3, np.float32)}


class Shifted:
    """A transform as Grain's random ones are."""

    def __init__(self, scale):
        self.scale = scale

    def random_map(self, record, rng: np.random.Generator):
        return jittered(record, rng) | {"scale": self.scale}


@pytest.mark.parametrize("kind", KINDS)
def test_a_transform_sees_each_record_and_makes_the_batch(data_dir, kind):
    source = source_of(data_dir, kind, "8 devices", transform=framed, host_keys={"name"})
    assert source.element_spec()["more"]["list"] == jax.ShapeDtypeStruct((2,), np.int32)
    batch = source.get_batch(32)
    for row, number in enumerate(ids(batch)):
        image = tiny_record(number)["image"]
        image[0] = 0
        assert np.array_equal(batch["image"][row], image[:, ::-1])
        mean = image.astype(np.float32).mean((0, 1))
        assert np.array_equal(batch["more"]["pixels"][row], mean)
        assert batch["name"][row] == f"record {number}".encode()


def test_a_transform_gets_what_map_fn_returns_and_before_it_is_padded(data_dir):
    def cut(record):
        return record | {"image": record["image"][: 1 + record["label"] % 4]}

    def noted(record):
        return record | {"rows": record["image"].shape[0]}

    batch = source_of(
        data_dir, map_fn=cut, transform=noted, pad_to={"image": 4}, shuffle=True
    ).get_batch(24)
    assert np.array_equal(batch["rows"], batch["image_length"])
    assert np.array_equal(batch["rows"], 1 + np.asarray(batch["label"]) % 4)


def test_a_transform_does_not_get_what_a_filter_leaves_out(data_dir):
    """Not even when it is tried on the first record."""

    def picky(record):
        assert record["label"] == 3
        return record

    source = source_of(data_dir, transform=picky, filter_fn=lambda record: record["label"] == 3)
    assert set(source.get_batch(8)["label"].tolist()) == {3}


def test_a_transform_that_returns_its_record_changes_no_bit(data_dir):
    """Of text, and of shapes that vary: padded as without it."""
    fields = {"name": "text", "exclude_keys": {"wide"}, "host_keys": {"text"}}
    fields["pad_to"] = {"tokens": 5, "photo": (7, 2, None)}
    plain = source_of(data_dir, **fields).get_batch(5)
    assert equal(source_of(data_dir, **fields, transform=lambda record: record).get_batch(5), plain)


def test_random_numbers_depend_on_seed_epoch_and_record_alone(data_dir):
    def noises(size=97, mesh="one device", **fields):
        """The noise by epoch and record."""
        source = source_of(data_dir, mesh=mesh, **{"transform": jittered, "seed": 3} | fields)
        pipeline = Pipeline(source=source, batch_size=size, remainder="drop")
        return {
            (epoch, number): tuple(noise)
            for epoch in range(2)
            for batch in pipeline
            for number, noise in zip(ids(batch), batch["noise"].tolist(), strict=True)
        }

    noise = noises()
    assert len(set(noise.values())) == 2 * 97
    assert noises(24, "8 devices", shuffle=True).items() <= noise.items()
    assert noises(transform=Shifted(2.0)) == noise
    assert not set(noises(seed=4).values()) & set(noise.values())


def test_a_pipeline_with_a_random_transform_resumes_after_every_batch(data_dir):
    source = source_of(data_dir, mesh="8 devices", transform=jittered, shuffle=True)
    check_resume_after_every_batch(lambda: Pipeline(source=source.clone(), batch_size=24), 2)


def test_a_random_transform_is_for_streams(data_dir):
    with refused(ValueError, "random transform.*fix: +use a TFDSStreamingSource"):
        source_of(data_dir, TFDSEagerSource, transform=jittered)
    with refused(ValueError, "as transform asks(.|\n)*fix: +use cacheable=False"):
        source_of(data_dir, transform=jittered, cacheable=True)
    source = from_tfds("tiny", "train", data_dir=str(data_dir), transform=jittered)
    assert source.choice == "streaming, since transform changes the records from epoch to epoch"


def test_threads_transform_records_at_the_same_time(data_dir):
    """Each call of the function waits until another one has begun, which a lock would prevent."""
    meeting = threading.Barrier(2, timeout=GUARD_S)
    built = []

    def meet(record):
        return record | {"place": meeting.wait() if built else 0}

    source = source_of(data_dir, transform=meet, allow_stateful_map_fn=True)
    built.append(True)
    assert sum(source.get_batch(32)["place"].tolist()) == 16  # the places are 0 and 1


def test_an_error_of_a_transform_names_the_record_and_has_it_as_its_cause(data_dir):
    def picky(record):
        if record["id"] == 40:
            raise LookupError("not this one")
        return record

    with refused(
        RuntimeError, "record 16 of .*-00001-of-00004(.|\n)*error: LookupError: not this one"
    ) as caught:
        source_of(data_dir, transform=picky).get_batch(64)
    assert isinstance(caught.value.__cause__, LookupError)


def counted(record, _seen=[]):  # noqa: B006  # it is shared by all calls, as a mistake
    _seen.append(1)
    return {"x": len(_seen)}


def timed(record):
    return {"x": record["id"], "time": time.time()}


def drawn_elsewhere(record):
    return {"x": random.random()}


OWN = np.random.default_rng(1)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (counted, "other values"),
        (timed, "clock"),
        (drawn_elsewhere, "random numbers"),
        (lambda record: {"x": OWN.integers(2)}, "random numbers"),
    ],
)
def test_a_transform_that_a_resume_would_not_repeat_is_refused(data_dir, function, why):
    with refused(ValueError, f"state that a resume does not restore(.|\n)*{why}"):
        source_of(data_dir, transform=function)
    state = source_of(data_dir, transform=function, allow_stateful_map_fn=True).get_state()
    assert "user_code" not in state


def scaled(factor):
    return lambda record: {"x": record["label"] * factor}


def test_a_resume_with_another_function_logs_a_warning(data_dir, caplog):
    source = source_of(data_dir, transform=scaled(2))
    source.get_batch(8)
    state = source.get_state()
    assert state["user_code"].startswith(f"tensorflow {tf.__version__}, python 3.")
    source_of(data_dir, transform=scaled(2)).set_state(state)
    assert not caplog.records
    source_of(data_dir, transform=scaled(3)).set_state(state)
    assert "transform or a decoder computes something else" in caplog.text


def helped(record):
    return helper(record)


def helper(record):
    return FACTOR * record


FACTOR = 2
WORDS = {"a": 1, "b": np.arange(3)}


class Holder:
    def __init__(self, value):
        self.value = value
        self.itself = self

    def __call__(self, record):
        return self.inner(record) * self.value

    def inner(self, record):
        return record


def test_a_digest_of_code_changes_with_whatever_the_code_refers_to(monkeypatch):
    first = {
        "helped": code_digest(helped),
        "holder": code_digest(Holder(1)),
        "partial": code_digest(functools.partial(scaled, 1)),
        "words": code_digest(lambda record: WORDS[record]),
    }
    assert len(set(first.values())) == 4
    assert code_digest(Holder(1)) == first["holder"] != code_digest(Holder(2))
    assert code_digest(functools.partial(scaled, 2)) != first["partial"]
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert code_digest(helped) != first["helped"]
    monkeypatch.setitem(WORDS, "b", np.arange(4))
    assert code_digest(lambda record: WORDS[record]) != first["words"]
    monkeypatch.setattr(Holder, "inner", lambda self, record: record + 1)
    assert code_digest(Holder(1)) != first["holder"]
