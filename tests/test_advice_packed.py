"""The fixes of messages about packed text."""

import shutil
from pathlib import Path

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
import tfds_datasets
from advice import Row

from datarax_tfds import PackedSource, from_tfds
from datarax_tfds.tokens.encoder import Encoder

AN_ENCODER = (
    "pass a function such as encode=lambda text: list(text.encode()), or a tokenizer with"
    " encode_batch"
)
SAME_IDS = "let encode return the same ids in each call"
CALLS: list[str] = []


def encode(text):
    return list(text.encode())


def pack(u, stream=None, **fields):
    stream = u.stream(**({"name": "text"} | (stream or {})))
    return PackedSource(stream, **({"encode": encode, "length": 8} | fields))


def batch_of(u, **fields):
    return pack(u, **fields).get_batch(2)


def other_each_time(text):
    CALLS.append(text)
    return [len(CALLS)]


def odd(u, **fields):
    """A dataset of which one text is not UTF-8."""
    if not (u.tmp / "odd").exists():
        text = {"text": tfds.features.Text()}
        tfds_datasets.store(u.tmp, "odd", text, [{"text": b"a"}, {"text": b"\xff"}])
    return pack(u, {"name": "odd", "data_dir": str(u.tmp)}, **fields)


def renamed(u, encode=encode, name="mine"):
    """A source of data of its own, whose tokenizer has a name."""
    u.copy("text")
    stream = {"data_dir": str(u.tmp / "copy")}
    return pack(u, stream, encode=encode, encode_name=name)


def changed(u, *, delete):
    renamed(u)
    if delete:
        shutil.rmtree(Path(u.copy("text"), ".token_counts"))
    return renamed(u, lambda text: encode(text)[1:])


def swapped(u, *, delete=False, name="mine"):
    renamed(u)
    if delete:
        shutil.rmtree(Path(u.copy("text"), ".token_counts"))
    return renamed(u, lambda text: encode(text)[::-1], name)


def in_jit(u):
    import jax

    return jax.jit(lambda x: pack(u).get_batch(2)["tokens"] + x)(0)


class Short:
    def encode_batch(self, texts):
        return [encode(text) for text in texts[1:]]


class Whole:
    def encode_batch(self, texts):
        return [encode(text) for text in texts]


def drawn(record, seed):
    return {"text": tf.strings.join([record["text"], tf.strings.as_string(seed[0])])}


ROWS = [
    Row(
        "encode must be a function of a text, or have a method encode_batch.",
        AN_ENCODER,
        lambda u: pack(u, encode="gpt2"),
        pack,
        lambda u: pack(u, encode=Whole()),
    ),
    Row(
        "encode_batch must return the ids of each text that it gets.",
        "let encode_batch return a list as long as that of the texts",
        lambda u: pack(u, encode=Short()),
        lambda u: pack(u, encode=Whole()),
    ),
    Row(
        "encode fails on the text of a record.",
        "let encode take this text, too, and return [] for a text that is to be left out",
        lambda u: pack(u, encode=lambda text: {"number 0": [1]}[text]),
        lambda u: pack(u, encode=lambda text: {"number 0": [1]}.get(text, [])),
    ),
    Row(
        "encode must return a list of integers in [0, 2**31).",
        "return only such ids, as [17, 4, 256]",
        lambda u: Encoder(lambda text: [0.5], None, "test")(["text"], str),
        lambda u: Encoder(lambda text: [17, 4, 256], None, "test")(["text"], str),
    ),
    Row(
        "encode gives other tokens when it is called again with the same text.",
        f"{SAME_IDS}: switch off its dropout or sampling",
        lambda u: pack(u, encode=other_each_time),
        pack,
    ),
    Row(
        "encode gives another number of tokens than when they were counted.",
        f"{SAME_IDS}; if you changed the tokenizer or the data on purpose, delete the directory in"
        " which the counts are kept, and build the source anew",
        lambda u: changed(u, delete=False),
        renamed,
        lambda u: changed(u, delete=True),
    ),
    Row(
        "encode gives other tokens than those that are kept.",
        f"{SAME_IDS}; if you changed the tokenizer on purpose, pass another encode_name, or delete"
        " the directory in which the tokens are kept, and build the source anew",
        swapped,
        renamed,
        lambda u: swapped(u, name="other"),
        lambda u: swapped(u, delete=True),
    ),
    Row(
        "the text of a record is not UTF-8.",
        "use errors='replace', which puts U+FFFD in the place of such bytes, or errors='ignore',"
        " which leaves them out",
        odd,
        lambda u: odd(u, errors="replace"),
        lambda u: odd(u, errors="ignore"),
    ),
    Row(
        "feature 'label' must be one text in each record.",
        "use feature='text', or let map_fn return a text under this name",
        lambda u: pack(u, feature="label"),
        pack,
        lambda u: pack(
            u,
            {"map_fn": lambda record: {"label": tf.strings.as_string(record["label"])}},
            feature="label",
        ),
    ),
    Row(
        "the dataset has no feature 'txt' to pack.",
        "use feature='text'",
        lambda u: pack(u, feature="txt"),
        pack,
    ),
    Row(
        "the documents have no tokens.",
        "pass another feature, or an encode that returns at least one token",
        lambda u: pack(u, encode=lambda text: []),
        pack,
    ),
    Row(
        "source must be a TFDSStreamingSource.",
        "pass TFDSStreamingSource(TFDSStreamingConfig(name=..., split=...)), or from_tfds(...,"
        " eager=False)",
        lambda u: PackedSource(u.loaded, encode=encode, length=8),
        lambda u: PackedSource(
            from_tfds("text", "train", eager=False, data_dir=u.data_dir),
            encode=encode,
            length=8,
        ),
        pack,
    ),
    Row(
        "a source cannot be built inside a function that is being traced by JAX.",
        "build the source outside, and pass it to nnx.jit as an argument",
        in_jit,
        batch_of,
    ),
    Row(
        "length must be an integer in [1, 2**24].",
        "use length=16",
        lambda u: pack(u, length="16"),
        lambda u: pack(u, length=16),
    ),
    Row(
        "eos_id must be a token id, an integer in [0, 2**31).",
        "use eos_id=0, or another id of the tokenizer",
        lambda u: pack(u, eos_id=-1),
        lambda u: pack(u, eos_id=0),
        lambda u: pack(u, eos_id=10),
    ),
    Row(
        "packing must be 'concat' or 'best_fit'.",
        "use packing='best_fit'",
        lambda u: pack(u, packing="best-fit"),
        lambda u: pack(u, packing="best_fit"),
    ),
    Row(
        "errors must be 'strict', 'replace' or 'ignore'.",
        "use errors='strict'",
        lambda u: pack(u, errors=None),
        lambda u: pack(u, errors="strict"),
    ),
    Row(
        "encode_name must be a text of 1 to 199 characters.",
        "use encode_name='name and version of the tokenizer', or leave it out",
        lambda u: pack(u, encode_name=""),
        lambda u: pack(u, encode_name="name and version of the tokenizer"),
        pack,
    ),
    Row(
        "records must be the same in every epoch, because tokens are counted once.",
        "use a map_fn without random numbers, and a random stage of the Pipeline",
        lambda u: pack(u, {"map_fn": drawn}),
        lambda u: pack(u, {"map_fn": lambda record: {"text": record["text"]}}),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_fix_of_a_message_works_when_it_is_followed(row, user):
    row.follow(user)
