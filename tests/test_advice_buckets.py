"""The fixes of messages about buckets of lengths."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow as tf
from advice import Row

from datarax_tfds import BucketedSource, Pipeline, from_tfds

FEATURES = {"tokens", "label"}
CHANGE = (
    "let the functions that make the records give the same lengths in each call; if you changed"
    " them or the data on purpose, delete the directory in which the lengths are kept, and build"
    " the source anew"
)


def buckets(u, lengths=None, stream=None, **fields):
    stream = u.stream(**({"name": "text", "include_keys": FEATURES} | (stream or {})))
    return BucketedSource(stream, lengths or {"tokens": (2, 4)}, **fields)


def drawn(record, seed):
    return record | {"tokens": record["tokens"] + seed[0]}


def plain(record):
    return record | {"tokens": record["tokens"] + 1}


def both(record):
    return record | {"twice": tf.repeat(record["tokens"], 2)}


def ragged(record):
    rows = tf.RaggedTensor.from_row_lengths(record["tokens"], [tf.size(record["tokens"])])
    return {"tokens": rows}


def wide(record):
    return {"tokens": record["tokens"][:, tf.newaxis] * tf.ones([1, 2], tf.int32)}


def in_jit(u):
    return jax.jit(lambda x: buckets(u).get_batch(2)["label"] + x)(0)


def compiled(u):
    source = buckets(u)
    return jax.jit(lambda start: source.get_batch_at(start, 2))(0)


def mixed(u, size=2, epoch=0, remainder="wrap", built_for="wrap", **fields):
    # With a name of its own, because the message comes once.
    source = buckets(u, name=f"buckets of {u.tmp.name}", remainder=built_for, **fields)
    pipeline = Pipeline(source=source, batch_size=size, remainder=remainder)
    for _ in range(epoch):
        list(pipeline)
    u.logged(lambda: next(iter(pipeline)))


class Repeated:
    """A transform whose code stays the same while what it does changes."""

    times = 1

    def map(self, record):
        return {"tokens": np.repeat(record["tokens"], self.times)}


def changed(u, *, times, delete=False):
    u.copy("text")
    transform = Repeated()
    stream = {"data_dir": str(u.tmp / "copy"), "transform": transform}
    stream |= {"allow_stateful_map_fn": True}
    if delete:
        shutil.rmtree(Path(u.copy("text"), ".record_lengths"))
    transform.times = 2 if delete else 1
    source = buckets(u, {"tokens": (1, 4, 20)}, stream, truncate=True)
    transform.times = times
    return source.get_batch(5)


ROWS = [
    Row(
        "source must be a TFDSStreamingSource.",
        "pass TFDSStreamingSource(TFDSStreamingConfig(name=..., split=...)), or from_tfds(...,"
        " eager=False)",
        lambda u: BucketedSource(u.loaded, {"tokens": (4,)}),
        lambda u: BucketedSource(
            from_tfds("text", "train", eager=False, data_dir=u.data_dir, include_keys=FEATURES),
            {"tokens": (4,)},
        ),
        buckets,
    ),
    Row(
        "a source cannot be built inside a function that is being traced by JAX.",
        "build the source outside, and pass it to nnx.jit as an argument",
        in_jit,
        lambda u: buckets(u).get_batch(2),
    ),
    Row(
        "lengths must have the lengths of the buckets for each ragged feature.",
        "use lengths={'tokens': (64, 128, 256)}, with the name of a feature",
        lambda u: buckets(u, [64, 128]),
        lambda u: buckets(u, {"tokens": (64, 128, 256)}),
    ),
    Row(
        "the lengths of 'tokens' must be 1 to 64 positive integers, each larger than the one"
        " before.",
        "use lengths={'tokens': (2, 4)}",
        lambda u: buckets(u, {"tokens": (4, 2)}),
        lambda u: buckets(u, {"tokens": (2, 4)}),
    ),
    Row(
        "all features must have equally many lengths: one for each bucket.",
        "use lengths={'tokens': (4,), 'twice': (8,)}, or add the missing ones",
        lambda u: buckets(u, {"tokens": (2, 4), "twice": (8,)}, {"map_fn": both}),
        lambda u: buckets(u, {"tokens": (4,), "twice": (8,)}, {"map_fn": both}),
        lambda u: buckets(u, {"tokens": (2, 4), "twice": (4, 8)}, {"map_fn": both}),
    ),
    Row(
        "lengths must name features of a record, got 'token'.",
        "use 'tokens' in place of 'token'",
        lambda u: buckets(u, {"token": (2, 4)}),
        lambda u: buckets(u, {"tokens": (2, 4)}),
    ),
    Row(
        "feature 'label' must vary in its first axis, and in no other.",
        "leave 'label' out of lengths",
        lambda u: buckets(u, {"tokens": (2, 4), "label": (2, 4)}),
        buckets,
    ),
    Row(
        "feature 'tokens' must vary in its first axis, and in no other.",
        "leave 'tokens' out of pad_to of the stream, or leave 'tokens' out of lengths",
        lambda u: buckets(u, stream={"pad_to": {"tokens": 4}}),
        buckets,
        lambda u: u.stream(name="text", include_keys=FEATURES, pad_to={"tokens": 4}).get_batch(2),
    ),
    Row(
        "feature 'tokens' must vary in its first axis, and in no other.",
        "leave 'tokens' out of lengths, or let map_fn return arrays of which only the first axis"
        " varies",
        lambda u: buckets(
            u, stream={"map_fn": lambda r: {"tokens": r["photo"]}, "include_keys": None}
        ),
        lambda u: buckets(u, stream={"map_fn": wide}),
    ),
    Row(
        "records must be the same in every epoch, because lengths are counted once.",
        "use a map_fn without random numbers, and a random stage of the Pipeline",
        lambda u: buckets(u, stream={"map_fn": drawn}),
        lambda u: buckets(u, stream={"map_fn": plain}),
    ),
    Row(
        "1 of 5 records are longer than the last of the lengths.",
        "use lengths={'tokens': (2, 4)}, or cut what is longer, with truncate=True",
        lambda u: buckets(u, {"tokens": (2, 3)}),
        lambda u: buckets(u, {"tokens": (2, 4)}),
        lambda u: buckets(u, {"tokens": (2, 3)}, truncate=True),
    ),
    Row(
        "run must be a number of records in [1, 2**16]: a multiple of the batch size.",
        "use run=16",
        lambda u: buckets(u, run="16"),
        lambda u: buckets(u, run=16),
    ),
    Row(
        "many batches have records of two buckets, and are padded to the larger one, because"
        " batch_size does not divide run.",
        "use run=258, or a batch_size that divides 256",
        lambda u: mixed(u, size=3),
        lambda u: mixed(u, size=3, run=258),
        lambda u: mixed(u, size=2),
    ),
    Row(
        "many batches have records of two buckets, and are padded to the larger one, because the"
        " source was built for another remainder than that of the pipeline.",
        "build the source with remainder='pad'",
        lambda u: mixed(u, epoch=1, remainder="pad"),
        lambda u: mixed(u, epoch=1, remainder="pad", built_for="pad"),
    ),
    Row(
        "a record has another length than when the lengths were counted.",
        CHANGE,
        lambda u: changed(u, times=2),
        lambda u: changed(u, times=1),
        lambda u: changed(u, times=2, delete=True),
    ),
    Row(
        "the order of buckets cannot be computed within a compiled function.",
        "take the batch outside and pass it in",
        compiled,
        lambda u: jax.jit(lambda batch: batch["label"])(buckets(u).get_batch(2)),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_fix_of_a_message_works_when_it_is_followed(row, user):
    row.follow(user)
