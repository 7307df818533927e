"""The fixes of messages about records that are padded, and about Python functions of records."""

import random

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from advice import Row
from tfds_datasets import store


def tokens(u, **fields):
    """A batch of a list of numbers and a label."""
    return u.batch(name="text", include_keys={"tokens", "label"}, **fields)


def mapped(u, map_fn, **fields):
    return tokens(u, map_fn=map_fn, **fields)


def paired(record):
    return {"pair": (record["tokens"], record["label"])}


def named(record):
    return {"pair": {"tokens": record["tokens"], "label": record["label"]}}


def counted(record):
    return {"tokens": record["tokens"], "tokens_length": record["label"]}


def uneven(record):
    longer = tf.concat([record["tokens"], [7]], 0)
    return {"both": {"one": record["tokens"], "other": longer}}


def nested(u, **fields):
    """A batch of lists of lists."""
    if not (u.tmp / "nested").exists():
        sequence = tfds.features.Sequence(tfds.features.Sequence(np.int32))
        store(u.tmp, "nested", {"x": sequence, "y": np.int32}, [{"x": [[1], [2, 3]], "y": 4}])
    return u.batch(**{"name": "nested", "data_dir": str(u.tmp)} | fields)


def as_array(record):
    return {"x": record["x"].to_tensor(shape=[8, 8])}


PADDING = [
    Row(
        "pad_to must have a length, or a shape, for each name.",
        "use pad_to={'objects': 100} for a length, or pad_to={'image': (640, 640, 3)}",
        lambda u: tokens(u, pad_to={"tokens": 0}),
        lambda u: tokens(u, pad_to={"tokens": 100}),
        lambda u: tokens(u, pad_to={"tokens": (100,)}),
    ),
    Row(
        "truncate must name what pad_to pads, got 'tokens'.",
        "leave truncate out, or use pad_to={'tokens': 8}, too",
        lambda u: u.batch(truncate={"tokens"}),
        lambda u: u.batch(),
        lambda u: tokens(u, truncate={"tokens"}, pad_to={"tokens": 8}),
    ),
    Row(
        "pad_to must name features of a record, got 'token'.",
        "use 'tokens' in place of 'token'",
        lambda u: tokens(u, pad_to={"token": 8}),
        lambda u: tokens(u, pad_to={"tokens": 8}),
    ),
    Row(
        "pad_to names 'both/one' twice.",
        "leave 'both' out of pad_to, or leave 'both/one' out of it",
        lambda u: mapped(u, uneven, pad_to={"both": 8, "both/one": 8}),
        lambda u: mapped(u, lambda record: {"both": record}, pad_to={"both/tokens": 8}),
        lambda u: mapped(u, lambda record: {"both": {"one": record["tokens"]}}, pad_to={"both": 8}),
    ),
    Row(
        "'pair/0' is a part of a tuple, so there is no place for its length beside it.",
        "let map_fn return a dict in place of the tuple, or read the features by their names,"
        " without as_supervised",
        lambda u: mapped(u, paired, pad_to={"pair/0": 8}),
        lambda u: mapped(u, named, pad_to={"pair/tokens": 8}),
        lambda u: tokens(u, pad_to={"tokens": 8}),
    ),
    Row(
        "feature 'x' varies in length within a record, which pad_to cannot pad.",
        "leave 'x' out of pad_to, and let map_fn return an array for 'x', as"
        " x.to_tensor(shape=[8, 8]), which cuts and pads it",
        lambda u: nested(u, pad_to={"x": 8}),
        lambda u: nested(u, map_fn=as_array),
    ),
    Row(
        "pad_to does not fit the axes of 'photo'.",
        "give each axis that varies its size, as pad_to={'photo': (224, 224, 3)}",
        lambda u: u.batch(name="text", include_keys={"photo"}, pad_to={"photo": 224}),
        lambda u: u.batch(name="text", include_keys={"photo"}, pad_to={"photo": (224, 224, 3)}),
    ),
    Row(
        "pad_to does not fit the axes of 'label'.",
        "leave 'label' out of pad_to",
        lambda u: tokens(u, pad_to={"tokens": 8, "label": 8}),
        lambda u: tokens(u, pad_to={"tokens": 8}),
    ),
    Row(
        "pad_to adds 'tokens_length', and the record has a feature of that name.",
        "let map_fn leave that feature out, or name it otherwise",
        lambda u: mapped(u, counted, pad_to={"tokens": 8}),
        lambda u: mapped(u, lambda record: {"tokens": record["tokens"]}, pad_to={"tokens": 8}),
        lambda u: mapped(u, lambda record: record | {"n": record["label"]}, pad_to={"tokens": 8}),
    ),
    Row(
        "feature 'tokens' is larger than pad_to allows.",
        "use pad_to={'tokens': 2} or more, or cut what is longer, with truncate={'tokens'}",
        lambda u: tokens(u, pad_to={"tokens": 1}, split="train[:3]"),
        lambda u: tokens(u, pad_to={"tokens": 2}, split="train[:3]"),
        lambda u: tokens(u, pad_to={"tokens": 1}, split="train[:3]", truncate={"tokens"}),
    ),
    Row(
        "the parts of 'both' differ in length.",
        "in place of 'both', name 'both/one' and 'both/other', each with its size",
        lambda u: mapped(u, uneven, pad_to={"both": 8}),
        lambda u: mapped(u, uneven, pad_to={"both/one": 8, "both/other": 8}),
    ),
]


class Doubled:
    """A transform as Grain's are."""

    def map(self, record):
        return record | {"label": 2 * record["label"]}


def picky(record):
    if record["label"] == 2:
        raise LookupError("2")
    return {"label": record["label"]}


def halved(record):
    label = int(record["label"])
    return {"x": label // 2 if label % 2 == 0 else label / 2}


def growing(record):
    names = ["a", "b"] if record["label"] else ["a"]
    return dict.fromkeys(names, 1)


def drawn(record):
    return {"x": random.random()}


def drawn_by_rng(record, rng):
    return {"x": rng.random()}


OTHER = (
    "let transform return the same names, dtypes and shapes for every record, as"
    " np.asarray(x, np.float32); pad what varies in size, as pad_to={'x': 8}"
)
TRANSFORMS = [
    Row(
        "transform must be a function of a record, or an object with a method `map`.",
        "pass a function, as transform=function",
        lambda u: u.batch(transform="halved"),
        lambda u: u.batch(transform=Doubled().map),
    ),
    Row(
        "transform must be a function of a record, or an object with a method `map`.",
        "pass an object of the class, as transform=Doubled()",
        lambda u: u.batch(transform=Doubled),
        lambda u: u.batch(transform=Doubled()),
    ),
    Row(
        "transform fails on a record.",
        "let transform(record) or transform(record, rng) cope with this record, a dict of NumPy"
        " arrays",
        lambda u: u.batch(transform=picky),
        lambda u: u.batch(transform=lambda record: record),
        lambda u: u.batch(transform=drawn_by_rng),
    ),
    Row(
        "transform must return a dict of arrays.",
        "return a dict with a name for each array, as {'image': image}",
        lambda u: u.batch(transform=lambda record: record["image"]),
        lambda u: u.batch(transform=lambda record: {"image": record["image"]}),
    ),
    Row(
        "transform returns something for 'x' that is not an array of numbers or text.",
        "leave 'x' out of what transform returns, or return numbers of one shape for it, as"
        " np.asarray(x, np.float32)",
        lambda u: u.batch(transform=lambda record: record | {"x": {1, 2}}),
        lambda u: u.batch(transform=lambda record: record),
        lambda u: u.batch(transform=lambda record: {"x": np.asarray([1, 2], np.float32)}),
    ),
    Row(
        "names must be text in a dict that transform returns.",
        "use texts as names, as '1' in place of 1",
        lambda u: u.batch(transform=lambda record: {1: record["id"]}),
        lambda u: u.batch(transform=lambda record: {"1": record["id"]}),
    ),
    Row(
        "transform depends on state that a resume does not restore.",
        "draw random numbers from rng, as transform(record, rng), and compute all else from the"
        " record; or accept other batches after a resume, with allow_stateful_map_fn=True",
        lambda u: u.batch(transform=drawn),
        lambda u: u.batch(transform=drawn_by_rng),
        lambda u: u.batch(transform=Doubled().map),
        lambda u: u.batch(transform=drawn, allow_stateful_map_fn=True),
    ),
    Row(
        "transform gives this record another dtype or shape than the first one.",
        OTHER,
        lambda u: u.batch(transform=halved),
        lambda u: u.batch(transform=lambda record: {"x": np.asarray(halved(record)["x"], "f4")}),
        lambda u: tokens(u, transform=lambda record: {"x": record["tokens"]}, pad_to={"x": 8}),
    ),
    Row(
        "transform gives this record other names than the first one.",
        OTHER,
        lambda u: u.batch(transform=growing),
        lambda u: u.batch(transform=lambda record: dict.fromkeys("ab", 1)),
        lambda u: tokens(u, transform=lambda record: {"x": record["tokens"]}, pad_to={"x": 8}),
    ),
    Row(
        "feature 'x' is text, which a JAX array cannot hold.",
        "let transform leave it out, or keep it on the host with host_keys={'x'}",
        lambda u: u.batch(transform=lambda record: record | {"x": "text"}),
        lambda u: u.batch(transform=lambda record: record),
        lambda u: u.batch(transform=lambda record: record | {"x": "text"}, host_keys={"x"}),
    ),
]
ROWS = PADDING + TRANSFORMS


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_fix_of_a_message_works_when_it_is_followed(row, user):
    row.follow(user)
