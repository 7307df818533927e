"""The fixes of messages about files: damaged or missing ones, metadata, checkpoints, logs."""

import json
import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from advice import Row
from openers import OpenedBy

from datarax_tfds import Cursor, CursorLog, Pipeline, audit
from datarax_tfds.checkpoint import DataRestore, DataSave, latest_valid_step
from datarax_tfds.cli import main
from datarax_tfds.files.record_files import Piece, RecordFiles
from datarax_tfds.files.tfrecord_index import TFRecordOpener
from datarax_tfds.state import state_file
from datarax_tfds.state.state import IDENTITY, Identity, to_state

ARRAY = "tiny_array-train.array_record-00000-of-00004"
FIRST = "tiny-train.tfrecord-00000-of-00004"
RESTORE = (
    "put back an intact copy of the file, or delete its directory and prepare the dataset again"
)
SKIP = (
    f"{RESTORE}; or set max_corrupt_records=1 in the config, so that the next record is delivered"
    " in the place of this one"
)


def read(u, name="tiny", **fields):
    """The first records of the copy of a dataset."""
    return u.stream(name=name, data_dir=u.copy(name).parents[1], **fields).get_batch(4)


def file_of(u, name="tiny", file=FIRST):
    return u.copy(name) / file


def put_back(u, *files, name="tiny"):
    """Copies intact files over those of the copy, and reads them."""
    for file in files or (FIRST,):
        shutil.copy(u.place(name) / "1.0.0" / file, u.copy(name) / file)
    return read(u, name)


def prepared_again(u, name="tiny"):
    """Deletes the directory of the files, and writes the dataset anew."""
    shutil.rmtree(u.copy(name))
    shutil.copytree(u.place(name) / "1.0.0", u.copy(name))
    return read(u, name)


def damage(change, file=FIRST, name="tiny"):
    """Damages a file of the copy, and reads."""

    def call(u, **fields):
        path = file_of(u, name, file)
        path.write_bytes(change(path.read_bytes()))
        return read(u, name, **fields)

    return call


def flipped(byte):
    return lambda content: content[:byte] + bytes([content[byte] ^ 4]) + content[byte + 1 :]


def cut(content):
    return content[:-5]


def first_record_spoiled(u, **fields):
    """A record that is as it was written, and no example."""
    path = file_of(u)
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in [b"\xff" * 20, *records[1:]]:
            writer.write(record)
    return read(u, **fields)


def spoiled_array_record(u):
    """A byte of a record is flipped: the file tells by its checksum."""
    from array_record.python import array_record_module  # pyright: ignore

    path = file_of(u, "tiny_array", ARRAY)
    records = array_record_module.ArrayRecordReader(str(path)).read_all()
    # Not compressed, so that a record is found in the file by its bytes.
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    content = bytearray(path.read_bytes())
    content[content.index(records[0]) + 20] ^= 4
    path.write_bytes(content)
    return read(u, "tiny_array")


class MemoryIsShort(tfds.decode.Decoder):
    """A decoder that fails as TensorFlow does where memory is short."""

    short = True

    def decode_example(self, serialized_example):
        def decode(encoded):
            if MemoryIsShort.short:
                raise MemoryError("short")
            return tf.io.decode_png(encoded, channels=3).numpy()

        image = tf.py_function(decode, [serialized_example], tf.uint8)
        return tf.ensure_shape(image, [5, 4, 3])


def memory(u, short):
    MemoryIsShort.short = False
    stream = u.stream(decoders={"image": MemoryIsShort()}, allow_stateful_map_fn=True)
    MemoryIsShort.short = short
    return stream.get_batch(4)


def gone_for_a_while(u):
    """A file that is not there, as on a file system that is not mounted."""
    path = u.tmp / FIRST
    return RecordFiles([Piece(path, 0, 1, 24)], TFRecordOpener()).read(np.array([0]))


def there_again(u):
    shutil.copy(u.place("tiny") / "1.0.0" / FIRST, u.tmp)
    return gone_for_a_while(u)


def forbidden(u):
    """As another user than root meets a file that only its owner may read."""

    def open_file(path):
        if not path.stat().st_mode & 0o004:
            raise PermissionError(13, "Permission denied", str(path))
        return TFRecordOpener()(path)

    path = file_of(u)
    if not (u.tmp / "allowed").exists():
        path.chmod(0o600)
    return RecordFiles([Piece(path, 0, 1, 24)], OpenedBy(open_file)).read(np.array([0]))


def allowed(u):
    (u.tmp / "allowed").touch()
    subprocess.run(["chmod", "a+r", str(file_of(u))], check=True)
    return forbidden(u)


def told_of_records(u, *lengths):
    """dataset_info.json says other numbers of records than the files hold."""
    path = u.copy("tiny") / "dataset_info.json"
    content = json.loads(path.read_text())
    train = next(split for split in content["splits"] if split["name"] == "train")
    train["shardLengths"] = [str(length) for length in lengths]
    path.write_text(json.dumps(content))
    return read(u)


def missing(u):
    file_of(u).unlink()
    return read(u)


def grown(u):
    """A file that is opened again, as after many others, and is another one."""
    path, u.opener = file_of(u), TFRecordOpener()
    u.opener(path)
    u.before = shutil.copy2(path, u.tmp / "before")
    with path.open("ab") as file:
        file.write(b"more")
    return u.opener(path)


def as_it_was(u):
    subprocess.run(["cp", "-p", str(u.before), str(file_of(u))], check=True)
    return u.opener(file_of(u)).read([5])


def damaged_again(u):
    """An index whose last byte changes whenever it was written."""
    path, opener = file_of(u), TFRecordOpener()
    other = shutil.copy(path, u.tmp / "other")
    pieces = [Piece(each, 0, 24, 24) for each in (path, other)]
    files = RecordFiles(pieces, opener, max_open=1)
    for _ in range(3):
        files.read(np.array([23]))
        files.read(np.array([24]))  # which closes the first file
        with (path.parent / ".record_index" / path.name).open("r+b") as index:
            index.seek(-1, os.SEEK_END)
            index.write(b"\xff")


def without_indexes(u):
    shutil.rmtree(file_of(u).parent / ".record_index")
    return read(u)


def shrunk_while_read(u):
    path = file_of(u)
    file = TFRecordOpener()(path)
    os.truncate(path, 100)
    return file.read([5])


def reread(u, put):
    put(u)
    return TFRecordOpener()(file_of(u)).read([5])


DAMAGED = [
    Row("the file is cut short.", RESTORE, damage(cut), put_back, prepared_again),
    Row("a length fails its checksum.", RESTORE, damage(flipped(0)), put_back, prepared_again),
    Row(
        "a record fails its checksum.",
        SKIP,
        damage(flipped(40)),
        lambda u: read(u, max_corrupt_records=1),
        put_back,
        prepared_again,
    ),
    Row(
        "a record cannot be decoded.",
        SKIP,
        first_record_spoiled,
        lambda u: read(u, max_corrupt_records=1),
        put_back,
        prepared_again,
    ),
    Row(
        "a record cannot be decoded.",
        f"free memory if it is short; else {RESTORE}",
        lambda u: memory(u, short=True),
        lambda u: memory(u, short=False),
        prepared_again,
    ),
    Row(
        "record 0 is corrupt, and record 1 is delivered in its place.",
        RESTORE,
        lambda u: u.logged(lambda: damage(flipped(40))(u, max_corrupt_records=1)),
        lambda u: u.logged(lambda: put_back(u)),
        lambda u: u.logged(lambda: prepared_again(u)),
    ),
    Row(
        "2 records are corrupt, and max_corrupt_records=1 allows no more than 1.",
        f"{RESTORE}; or set max_corrupt_records to 2 or more, if the job can do without these"
        " records",
        lambda u: damage(lambda content: twice_flipped(content))(u, max_corrupt_records=1),
        lambda u: read(u, max_corrupt_records=2),
        put_back,
        prepared_again,
    ),
    Row(
        "the file cannot be read.",
        SKIP,
        spoiled_array_record,
        lambda u: read(u, "tiny_array", max_corrupt_records=1),
        lambda u: put_back(u, ARRAY, name="tiny_array"),
        lambda u: prepared_again(u, "tiny_array"),
    ),
    Row(
        "the file cannot be read.",
        RESTORE,
        damage(
            flipped(70),
            ARRAY,
            "tiny_array",
        ),
        lambda u: put_back(u, ARRAY, name="tiny_array"),
        lambda u: prepared_again(u, "tiny_array"),
    ),
    Row(
        "the file cannot be read.",
        "see with ls -l whether the file is there and its file system answers; mount that anew, or"
        " put back the file, and start again",
        gone_for_a_while,
        there_again,
    ),
    Row(
        "this process may not read the file.",
        "let its owner run: chmod a+r ...",
        forbidden,
        allowed,
    ),
    Row(
        "the file holds ... records, dataset_info.json says 24.",
        RESTORE,
        lambda u: told_of_records(u, 24, 24, 24, 25),
        lambda u: put_back(u, FIRST, "dataset_info.json"),
        prepared_again,
    ),
    Row(
        "the file holds ... records, dataset_info.json says 0.",
        "put back the dataset_info.json that was written with the file, or delete its directory"
        " and prepare the dataset again",
        lambda u: told_of_records(u, 0, 0, 0, 97),
        lambda u: put_back(u, "dataset_info.json"),
        prepared_again,
    ),
    Row(
        "1 of 4 files of the split are missing.",
        "put back the missing files, or delete their directory and prepare the dataset again",
        missing,
        put_back,
        prepared_again,
    ),
    Row(
        "the file has changed since its records were counted.",
        "put back the file as it was, with its time (cp -p), or build the source anew",
        grown,
        as_it_was,
        prepared_again,
    ),
    Row(
        "the index of the file is damaged again, after it was built anew.",
        "see whether the disk under .record_index is sound, delete that directory, and start again",
        damaged_again,
        without_indexes,
    ),
    Row(
        "the file was cut while it was read.",
        RESTORE,
        shrunk_while_read,
        lambda u: reread(u, put_back),
        lambda u: reread(u, prepared_again),
    ),
]


def twice_flipped(content):
    second = len(content) // 25 * 2
    return flipped(second)(flipped(40)(content))


def own_feature(u):
    """A dataset with a feature of a module of the user's."""
    (u.tmp / "advised_features.py").write_text(
        "import tensorflow_datasets as tfds\nclass Own(tfds.features.Tensor):\n    pass\n"
    )
    path = u.copy("tiny") / "features.json"
    content = json.loads(path.read_text())
    content["featuresDict"]["features"]["id"] = {
        "pythonClassName": "advised_features.Own",
        "tensor": {"shape": {}, "dtype": "int64", "encoding": "none"},
    }
    path.write_text(json.dumps(content))
    return read(u)


def imported(u):
    sys.path.insert(0, str(u.tmp))
    try:
        import advised_features  # pyright: ignore  # noqa: F401

        return read(u)
    finally:
        sys.path.remove(str(u.tmp))
        del sys.modules["advised_features"]


def linked(u):
    """The features are a link to a file elsewhere."""
    elsewhere = u.tmp / "else where.json"
    (u.copy("tiny") / "features.json").rename(elsewhere)
    (u.copy("tiny") / "features.json").symlink_to(elsewhere)
    return read(u)


def copied(u):
    """Runs the command of the message."""
    command = "cp --remove-destination"
    target, file = u.tmp / "else where.json", u.copy("tiny") / "features.json"
    subprocess.run(f"{command} '{target}' '{file}'", shell=True, check=True)
    return read(u)


def pointing_elsewhere(u):
    """The metadata name files above the directory of the dataset."""
    path = u.copy("tiny") / "dataset_info.json"
    content = json.loads(path.read_text())
    for split in content["splits"]:
        split["filepathTemplate"] = "../../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    path.write_text(json.dumps(content))
    return read(u)


METADATA = [
    Row(
        "the metadata of the dataset cannot be read: dataset_info.json, features.json.",
        "put back intact copies of these files, or delete their directory and prepare the dataset"
        " again",
        damage(lambda content: b"{", "dataset_info.json"),
        lambda u: put_back(u, "dataset_info.json", "features.json"),
        prepared_again,
    ),
    Row(
        "the features of the dataset cannot be read.",
        RESTORE,
        damage(lambda content: b"{", "features.json"),
        lambda u: put_back(u, "features.json"),
        prepared_again,
    ),
    Row(
        "the dataset asks for code that is not imported here.",
        "if you trust that code, import advised_features before the source is built; else do not"
        " use this dataset",
        own_feature,
        imported,
        lambda u: u.batch(),
    ),
    Row(
        "features.json is a link, and its contents are elsewhere, outside of the data.",
        "if you trust that file, put a copy in the place of the link: cp --remove-destination"
        " '.../else where.json' .../features.json",
        linked,
        copied,
    ),
    Row(
        "the metadata name a file outside of the dataset.",
        "do not use this copy of the dataset: prepare the dataset again",
        pointing_elsewhere,
        prepared_again,
    ),
]


def manager_of(u):
    return ocp.CheckpointManager(u.tmp / "checkpoints")


def checkpointed(u):
    """Two checkpoints of a pipeline, and the path of the newer state."""
    pipeline = u.pipeline()
    with manager_of(u) as manager:
        for step in (1, 2):
            pipeline.step()
            model = ocp.args.StandardSave({"w": jnp.zeros(3)})
            manager.save(step, args=ocp.args.Composite(model=model, data=DataSave(pipeline)))
    return u.tmp / "checkpoints" / "2" / "data" / state_file.NAME


def restored(u, step):
    pipeline = u.pipeline()
    with manager_of(u) as manager:
        manager.restore(step, args=ocp.args.Composite(data=DataRestore(pipeline)))
    return pipeline.cursor


def damaged_state(change):
    """Restores the newer of two checkpoints, whose state was changed."""

    def call(u):
        path = checkpointed(u)
        path.write_bytes(change(path.read_bytes()))
        return restored(u, 2)

    return call


def newest(u):
    with manager_of(u) as manager:
        return latest_valid_step(manager)


def earlier_restored(u):
    step = newest(u)
    assert step == 1
    assert restored(u, step).index == 8


def other_index(content):
    return json.dumps(json.loads(content) | {"index": 24}, indent=1).encode()


def no_place(content):
    """A state that was saved of a place that cannot be."""
    identity = Identity(**{name: json.loads(content)[name] for name in IDENTITY})
    return json.dumps(to_state(Cursor(0, -1), identity), indent=1).encode()


LATEST = "restore the step that latest_valid_step(manager) finds"

CHECKPOINTS = [
    Row(
        "pipeline must be a Pipeline or a source.",
        "pass the pipeline or the source itself, not an iterator over it",
        lambda u: DataSave(iter(u.pipeline())),
        lambda u: DataSave(u.pipeline()),
        lambda u: DataSave(u.stream()),
    ),
    Row(
        "manager must be the manager of the checkpoints, got the path of their directory.",
        "pass orbax.checkpoint.CheckpointManager(path)",
        lambda u: latest_valid_step(u.tmp / "checkpoints"),
        lambda u: newest(u),
    ),
    Row(
        "the saved state is damaged: it is not JSON.",
        LATEST,
        damaged_state(lambda content: content[:50]),
        earlier_restored,
    ),
    Row(
        "the saved state is damaged: its checksum does not match.",
        LATEST,
        damaged_state(other_index),
        earlier_restored,
    ),
    Row(
        "the saved state is damaged: its cursor is outside of the data.",
        LATEST,
        damaged_state(no_place),
        earlier_restored,
    ),
]


def logged_run(u, name, **fields):
    """The lines that a CursorLog writes in some steps of a run."""
    path = u.tmp / name
    if not path.exists():
        pipeline = Pipeline(source=u.stream(**fields), batch_size=8)
        log = CursorLog(path, pipeline)
        for _ in range(3):
            pipeline.step()
            log.note()
    return path.read_text().splitlines()


def logged_file(u):
    logged_run(u, "one")
    return u.tmp / "one"


def audited_file(u):
    with open(logged_file(u)) as lines:
        assert audit(lines).sound


def changed_log(u):
    return [line.replace('"at"', '"ta"') for line in logged_run(u, "one")]


AUDITS = [
    Row(
        "pipeline must be a Pipeline, which says how many records a batch has.",
        "pass the pipeline; for a source, Pipeline(source=source, batch_size=...)",
        lambda u: CursorLog(u.tmp / "log", u.stream()),
        lambda u: CursorLog(u.tmp / "log", u.pipeline()),
        lambda u: CursorLog(u.tmp / "log", Pipeline(source=u.stream(), batch_size=8)),
    ),
    Row(
        "a log must be the lines of a file, got the path of one.",
        "pass its lines, as audit(CursorLog.lines(path)), or run: datarax-tfds audit PATH",
        lambda u: audit(u.tmp / "one"),
        lambda u: audited_file(u),
        lambda u: main(["audit", str(logged_file(u))]),
    ),
    Row(
        "the logs hold no run.",
        "pass the lines of files that a CursorLog wrote",
        lambda u: audit([]),
        lambda u: audit(logged_run(u, "one")),
    ),
    Row(
        "the line is not of a log of cursors.",
        "pass the lines of files that a CursorLog wrote, unchanged; leave out a file that was"
        " changed",
        lambda u: audit(logged_run(u, "two"), changed_log(u)),
        lambda u: audit(logged_run(u, "one")),
        lambda u: audit(logged_run(u, "two")),
    ),
    Row(
        "the logs differ in seed.",
        "audit the logs of one job at a time",
        lambda u: audit(
            logged_run(u, "one", shuffle=True), logged_run(u, "two", shuffle=True, seed=7)
        ),
        lambda u: audit(logged_run(u, "one")),
        lambda u: audit(logged_run(u, "two")),
    ),
]

ROWS = DAMAGED + METADATA + CHECKPOINTS + AUDITS


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_fix_of_a_message_works_when_it_is_followed(user, row):
    row.follow(user)
