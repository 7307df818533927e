"""The fixes of messages about filters."""

import random
import zlib

import numpy as np
import pytest
import tensorflow as tf
from advice import Row

from datarax_tfds import TFDSEagerConfig

HASHED = (
    "to keep a random part of the records, take a hash of a feature, as"
    " tf.strings.to_hash_bucket_fast(tf.as_string(record['id']), 10) == 0"
)
TRACED = (
    "write filter_fn(record) in TensorFlow's operations; it takes a dict of tensors and returns one"
    " bool, as record['label'] == 3; or set filter_with='numpy' for a Python function"
)
VARIABLE = tf.Variable(3, dtype=tf.int64)
CONSTANT = tf.constant(VARIABLE.numpy())


def filtered(u, filter_fn, **fields):
    return u.stream(filter_fn=filter_fn, **fields).get_batch(2)


def in_python(u, filter_fn, **fields):
    return filtered(u, filter_fn, filter_with="numpy", **fields)


def is_three(record):
    return record["label"] == 3


def hashed(record):
    return tf.strings.to_hash_bucket_fast(tf.as_string(record["id"]), 10) == 0


def listed(record):
    return int(record["label"]) in [3, 4]


def drawn(record):
    return tf.random.uniform([]) < 0.5


def drawn_in_python():
    draws = random.Random(0)
    return lambda record: draws.random() < 0.5


def checked(record):
    fine = tf.debugging.Assert(record["id"] != 5, ["no such id"])
    with tf.control_dependencies([fine]):
        return record["id"] > 0


def divided(record):
    return 5 // int(record["id"] - 5) >= 0


ROWS = [
    Row(
        "filter_fn keeps none of the 97 records.",
        "let filter_fn return True for some records, or leave filter_fn out",
        lambda u: filtered(u, lambda record: record["label"] == 7),
        lambda u: filtered(u, is_three),
        lambda u: u.batch(),
    ),
    Row(
        "TensorFlow cannot trace filter_fn.",
        TRACED,
        lambda u: filtered(u, listed),
        lambda u: filtered(u, is_three),
        lambda u: in_python(u, listed),
    ),
    Row(
        "filter_fn must return one bool.",
        TRACED,
        lambda u: filtered(u, lambda record: record["label"]),
        lambda u: filtered(u, is_three),
        lambda u: in_python(u, is_three),
    ),
    Row(
        "filter_fn must return one bool.",
        "return True or False, as bool(record['label'] == 3)",
        lambda u: in_python(u, lambda record: record["label"]),
        lambda u: in_python(u, lambda record: bool(record["label"] == 3)),
    ),
    Row(
        "filter_fn draws random numbers that a resume would not draw again.",
        HASHED,
        lambda u: filtered(u, drawn),
        lambda u: filtered(u, hashed),
    ),
    Row(
        "filter_fn depends on state that a resume does not restore.",
        "make a constant outside filter_fn, as c = tf.constant(variable.numpy()), and use it there;"
        f" {HASHED}",
        lambda u: filtered(u, lambda record: record["label"] == VARIABLE),
        lambda u: filtered(u, lambda record: record["label"] == CONSTANT),
        lambda u: filtered(u, hashed),
    ),
    Row(
        "filter_fn depends on state that a resume does not restore.",
        "compute all of it by TensorFlow's operations on the record, without a clock (to measure"
        " how long something takes, use time.perf_counter; compute a fixed date outside filter_fn"
        f" and close over the value); {HASHED}",
        lambda u: filtered(u, lambda record: tf.timestamp() > 0),
        lambda u: filtered(u, is_three),
        lambda u: filtered(u, hashed),
    ),
    Row(
        "filter_fn gives another answer when it is asked again about the same record.",
        "let filter_fn depend on the record alone; to keep a random part of the records, take a"
        " hash of a feature, as zlib.crc32(record['image']) % 10 == 0",
        lambda u: in_python(u, drawn_in_python()),
        lambda u: in_python(u, lambda record: zlib.crc32(record["image"]) % 10 == 0),
    ),
    Row(
        "filter_fn fails on a record.",
        "let filter_fn cope with this record, or leave it out with split='train[0:5]+train[6:97]'",
        lambda u: filtered(u, checked),
        lambda u: filtered(u, is_three),
        lambda u: filtered(u, checked, split="train[0:5]+train[6:97]"),
    ),
    Row(
        "filter_fn fails on a record.",
        "let filter_fn cope with this record, or leave it out with split='train[0:5]+train[6:97]'",
        lambda u: in_python(u, divided),
        lambda u: in_python(u, is_three),
        lambda u: in_python(u, divided, split="train[0:5]+train[6:97]"),
    ),
    Row(
        "filter_fn fails on a record.",
        "let filter_fn cope with this record",
        lambda u: in_python(u, divided, split="train[5:6]"),
        lambda u: in_python(u, lambda record: np.bool_(True), split="train[5:6]", name="tiny"),
    ),
    Row(
        "filter_name is set, but there is no filter_fn.",
        "pass filter_fn, or leave filter_name out",
        lambda u: TFDSEagerConfig(name="tiny", split="train", filter_name="threes"),
        lambda u: TFDSEagerConfig(
            name="tiny", split="train", filter_name="threes", filter_fn=is_three
        ),
        lambda u: TFDSEagerConfig(name="tiny", split="train"),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_fix_of_a_message_works_when_it_is_followed(row, user):
    row.follow(user)
