"""The fixes of messages about object stores."""

import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import object_servers
import pytest
from advice import Row
from faulty_store import FaultyStore
from object_servers import BUCKET, environment, upload

from datarax_tfds import CursorLog, audit
from datarax_tfds.files.array_record import ArrayRecordFile
from datarax_tfds.stores import object_store

DATASETS = f"gs://{BUCKET}/datasets"
SHARD = "datasets/tiny/1.0.0/tiny-train.tfrecord-00000-of-00004"
ROOM = (
    "free room there, set XDG_CACHE_HOME to a directory on a larger disk, or write the dataset as"
    " TFRecord, which is read without copies"
)


@contextmanager
def serving(u, *names, fault=lambda _: None):
    """A store that holds datasets, and is soon given up."""
    patience = object_store.Patience(retries=0, answer_s=60.0)
    with FaultyStore.started() as store, ExitStack() as stack:
        stack.enter_context(mock.patch.object(object_store, "PATIENCE", patience))
        stack.enter_context(environment(XDG_CACHE_HOME=str(u.tmp / "cache")))
        for name in names or ("tiny", "tiny_array"):
            store.put(u.place(name), f"datasets/{name}")
        store.fault = fault
        yield store


def read(u, *names, name="tiny", data_dir=DATASETS, fault=lambda _: None, **variables):
    """The first records of a dataset in a store."""
    with serving(u, *names, fault=fault), environment(**variables):
        return u.stream(name=name, data_dir=data_dir).get_batch(4)


def changed(u, change, undo=lambda store, before: None, anew=False):
    """Reads while the store changes, and is put back; perhaps by a new source."""
    with serving(u) as store:
        source = u.stream(name="tiny", data_dir=DATASETS, access="random")
        source.get_batch(1)
        before = store.objects[SHARD]
        change(store)
        undo(store, before)
        source = u.stream(name="tiny", data_dir=DATASETS) if anew else source
        return source.get_batch(4)


def replace(store):
    store.generations[SHARD] = 2


def remove(store):
    del store.objects[SHARD]


def put_back(store, before):
    store.objects[SHARD] = before
    store.generations[SHARD] = 1


def on_a_full_disk(u, name="tiny_array", free=0):
    usage = mock.Mock(free=free)
    with mock.patch.object(shutil, "disk_usage", return_value=usage):
        return read(u, name=name)


def keeping(u, place="kept", **fields):
    """Reads with blocks kept on the local disk."""
    fields = {"access": "sequential", "cache_dir": u.tmp / place} | fields
    with serving(u):
        return u.stream(name="tiny", data_dir=DATASETS, **fields).get_batch(4)


def in_a_file(u):
    (u.tmp / "file").touch()
    return keeping(u, "file/kept")


def from_s3(u, denied):
    """Reads by the protocol of S3, from a server that may deny it."""
    with ExitStack() as stack:
        stack.enter_context(serving(u, fault=lambda _: 403 if denied else None))
        if denied:
            url = object_store.os.environ["TENSORSTORE_GCS_HTTP_URL"]
            account = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
            stack.enter_context(environment(AWS_ENDPOINT_URL=url, **account))
        else:
            stack.enter_context(environment(**stack.enter_context(object_servers.s3())))
            upload(u.place("tiny"), f"s3://{BUCKET}/datasets/tiny")
        return u.stream(name="tiny", data_dir=f"s3://{BUCKET}/datasets").get_batch(4)


def lines_of_a_log(u, *, right):
    """Audits the log that was written, or another one."""
    with serving(u, "tiny"):
        CursorLog(f"gs://{BUCKET}/log", u.pipeline()).flush()
        return audit(CursorLog.lines(f"gs://{BUCKET}/{'log' if right else 'lag'}"))


def moved(u, saved, **fields):
    """Goes on with the data in a store from where a run on a disk was, which had other fields."""
    state = u.stream(name="tiny", shuffle=True, **saved).get_state()
    with serving(u, "tiny"):
        stream = u.stream(name="tiny", data_dir=DATASETS, shuffle=True, **fields)
        stream.set_state(state)
        return stream.get_batch(8)


BLOCKS = {"access": "sequential", "block_size": 8, "shuffle_buffer_size": 16}
DIFFERS = "the saved state and this run differ in order."
AS_IT_WAS = "build the source and the pipeline as they were, with"
AFRESH = "; or start afresh with reset()"

ROWS = [
    Row(
        DIFFERS,
        f"{AS_IT_WAS} access='random', strata=None{AFRESH}",
        lambda u: moved(u, {}),
        lambda u: moved(u, {}, access="random", strata=None),
        lambda u: read(u),
    ),
    Row(
        DIFFERS,
        f"{AS_IT_WAS} access='sequential', block_size=8, shuffle_buffer_size=16{AFRESH}",
        lambda u: moved(u, BLOCKS),
        lambda u: moved(u, BLOCKS, **BLOCKS),
        lambda u: read(u),
    ),
    Row(
        DIFFERS,
        f"{AS_IT_WAS} strata=8{AFRESH}",
        lambda u: moved(u, {"strata": 8}),
        lambda u: moved(u, {"strata": 8}, strata=8),
        lambda u: read(u),
    ),
    Row(
        "data_dir must name a bucket, and no directory '', '.' or '..'.",
        "use data_dir='gs://bucket/datasets'",
        lambda u: read(u, data_dir=f"gs://{BUCKET}/../datasets"),
        lambda u: read(u, data_dir=DATASETS),
    ),
    Row(
        "data_dir lacks a slash, which pathlib.Path takes away.",
        f"pass a string, data_dir='{DATASETS}'",
        lambda u: read(u, data_dir=str(Path(DATASETS))),
        lambda u: read(u, data_dir=DATASETS),
    ),
    Row(
        "this is not the name of a bucket.",
        "use the name of a bucket, as gs://bucket/datasets",
        lambda u: read(u, data_dir="gs://B/datasets"),
        lambda u: read(u, data_dir=DATASETS),
    ),
    Row(
        "the store holds no prepared dataset of that name.",
        "prepare it where TFDS can write (tfds build tiny), and copy its directory there; or set"
        " data_dir to the directory that holds the dataset; or, if it is there, let the account of"
        " this process list the bucket (Storage Object Viewer, s3:ListBucket)",
        lambda u: read(u, fault=lambda request: 403 if request.kind == "list" else None),
        lambda u: read(u, "tiny_array", "tiny"),
        lambda u: read(u, data_dir=f"{DATASETS}/tiny"),
        lambda u: read(u),
    ),
    Row(
        "the object was replaced after its records were counted.",
        "put back the object as it was, or build the source anew",
        lambda u: changed(u, replace),
        lambda u: changed(u, replace, put_back),
        lambda u: changed(u, replace, anew=True),
    ),
    Row(
        "there is no such object in the store.",
        "put back an intact copy of the file, or delete its directory and prepare the dataset"
        " again",
        lambda u: changed(u, remove),
        lambda u: changed(u, remove, put_back),
        lambda u: changed(u, remove, put_back, anew=True),
    ),
    Row(
        "the store does not let this process read or write the object.",
        "give the account of this process the role Storage Object Viewer on the bucket, or Storage"
        " Object User if it writes there, or choose another account with"
        " GOOGLE_APPLICATION_CREDENTIALS",
        lambda u: read(u, fault=lambda _: 403),
        lambda u: read(u),
    ),
    Row(
        "the store does not let this process read or write the object.",
        "allow the account of this process s3:GetObject and s3:ListBucket on the bucket, and"
        " s3:PutObject if it writes there, or choose another account with AWS_PROFILE",
        lambda u: from_s3(u, denied=True),
        lambda u: from_s3(u, denied=False),
    ),
    Row(
        "the store does not answer as it should.",
        "check with another client whether this host can read the object, and whether"
        " TENSORSTORE_GCS_HTTP_URL is right, if it is set; then start again, and the run goes on"
        " where it was saved",
        lambda u: read(
            u, TENSORSTORE_GCS_HTTP_URL=f"http://127.0.0.1:{object_servers.free_port()}"
        ),
        lambda u: read(u),
    ),
    Row(
        "there is no log of cursors.",
        "pass the path that CursorLog was given",
        lambda u: lines_of_a_log(u, right=False),
        lambda u: lines_of_a_log(u, right=True),
    ),
    Row(
        "the object cannot be copied to the local disk, from which ArrayRecord is read.",
        ROOM,
        lambda u: read(u, name="tiny_array", XDG_CACHE_HOME="/dev/null/cache"),
        lambda u: read(u, name="tiny_array", XDG_CACHE_HOME=str(u.tmp / "larger")),
        lambda u: read(u, name="tiny", XDG_CACHE_HOME="/dev/null/cache"),
    ),
    Row(
        "cache_dir must be a directory of the local disk.",
        "use cache_dir='~/blocks', or leave it out",
        lambda u: keeping(u, cache_dir=f"gs://{BUCKET}/kept"),
        lambda u: keeping(u),
        lambda u: read(u),
    ),
    Row(
        "cache_bytes is set, but nothing is kept without cache_dir.",
        "set cache_dir, too, or leave out cache_bytes",
        lambda u: keeping(u, cache_dir=None, cache_bytes=1 << 20),
        lambda u: keeping(u, cache_bytes=1 << 20),
        lambda u: read(u),
    ),
    Row(
        "nothing can be kept in this directory.",
        "use a directory that this process can write, or leave cache_dir out",
        in_a_file,
        lambda u: keeping(u),
        lambda u: read(u),
    ),
    Row(
        "only blocks of records are kept, and single records are read.",
        "use access='auto' without strata, or leave out cache_dir",
        lambda u: keeping(u, access="random"),
        lambda u: keeping(u, access="auto"),
        lambda u: read(u),
    ),
    Row(
        "there is no room for the blocks of two windows.",
        "use cache_bytes=... or more, a smaller shuffle_buffer_size, or leave out cache_dir",
        lambda u: keeping(u, cache_bytes=1 << 13),
        lambda u: keeping(u, cache_bytes=1 << 15),
        lambda u: keeping(u, cache_bytes=1 << 13, shuffle_buffer_size=8),
        lambda u: read(u),
    ),
    Row(
        "the copies of the split would fill more than half of the disk.",
        ROOM,
        on_a_full_disk,
        lambda u: on_a_full_disk(u, free=1 << 30),
        lambda u: on_a_full_disk(u, name="tiny"),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_fix_of_a_message_works_when_it_is_followed(row, user):
    row.follow(user)


def test_a_copy_is_read_as_what_it_is_a_copy_of(user):
    """A damaged copy is named as the object, which the user knows."""
    copy = user.copy("tiny_array") / "tiny_array-train.array_record-00000-of-00004"
    copy.write_bytes(b"damaged")
    with pytest.raises(Exception, match=r"^gs://bucket/x: "):
        ArrayRecordFile(copy, named=object_store.ObjectPath("gs:", "bucket", "x")).read([0])
