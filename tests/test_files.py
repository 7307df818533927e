import errno
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import tfds_datasets
from checkout import GUARD_S
from conftest import wait_for
from openers import OpenedBy
from refusals import refused

from datarax_tfds import (
    DataLossError,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    from_tfds,
)
from datarax_tfds.config.config import TFDSEagerConfig
from datarax_tfds.files.array_record import ArrayRecordFile
from datarax_tfds.files.record_files import Piece, RecordFiles
from datarax_tfds.files.split import open_split
from datarax_tfds.files.tfrecord import TFRecordFile, scanned_starts
from datarax_tfds.files.tfrecord_index import TFRecordOpener
from sharding import WaitTimeoutError

SHARD = "1.0.0/tiny-train.tfrecord-00001-of-00004"
ARRAY_SHARD = "1.0.0/tiny_array-train.array_record-00001-of-00004"


@pytest.fixture
def copy(data_dir, tmp_path):
    """A copy of the tiny datasets, to be damaged."""
    for name in ("tiny", "tiny_array"):
        shutil.copytree(data_dir / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="module")
def expected(data_dir):
    """The records of the second shard, as TensorFlow reads them."""
    import tensorflow as tf

    path = str(data_dir / "tiny" / SHARD)
    return [record.numpy() for record in tf.data.TFRecordDataset(path)]


def opened(data_dir, name="tiny", split="train"):
    return open_split(TFDSEagerConfig(name=name, split=split, data_dir=str(data_dir))).files


@pytest.mark.parametrize(
    ("name", "open_file"),
    [
        ("tiny/" + SHARD, TFRecordOpener()),
        ("tiny_array/" + ARRAY_SHARD, ArrayRecordFile),
    ],
)
def test_a_file_gives_any_records_in_any_order(data_dir, expected, name, open_file):
    file = open_file(data_dir / name)
    assert len(file) == len(expected)
    for places in ([0], [3, 4, 5], [7, 2, 3, 4, 0], list(range(len(expected))), [5, 5], []):
        assert file.read(places) == [expected[place] for place in places]


@pytest.mark.parametrize("name", ["tiny", "tiny_array"])
def test_numbers_run_through_the_files_in_order(data_dir, name):
    files = opened(data_dir, name)
    everything = files.read(np.arange(len(files)))
    assert len(files) == tfds_datasets.TINY_TRAIN
    assert len(set(everything)) == tfds_datasets.TINY_TRAIN
    numbers = np.random.default_rng(0).permutation(tfds_datasets.TINY_TRAIN)
    assert files.read(numbers) == [everything[number] for number in numbers]


@pytest.mark.parametrize("split", ["train[10:50]", "train[90:]", "test+train[:5]", "train[30:31]"])
@pytest.mark.parametrize("name", ["tiny", "tiny_array"])
def test_a_part_of_a_split_has_numbers_of_its_own(data_dir, name, split):
    def read(split):
        files = opened(data_dir, name, split)
        return files.read(np.arange(len(files)))

    parts = {name: read(name) for name in ("train", "test")}
    wanted = []
    for term in split.split("+"):
        part, _, slice_ = term.partition("[")
        start, _, stop = slice_.rstrip("]").partition(":")
        wanted += parts[part][int(start or 0) : int(stop) if stop else None]
    assert read(split) == wanted


def test_a_header_at_any_place_of_the_window_is_found(tmp_path):
    """Records of many sizes, over several windows of the scan."""
    import tensorflow as tf

    sizes = np.random.default_rng(0).integers(0, 90_000, 100)
    path = tmp_path / "x.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for size in sizes:
            writer.write(bytes(int(size)))
    file = TFRecordOpener()(path)
    assert [len(record) for record in file.read(range(100))] == sizes.tolist()


@pytest.fixture
def small_records(tmp_path):
    """A file of 6,000 records of up to 40 bytes, so that its last record is on another page."""
    import tensorflow as tf

    path = tmp_path / "x.tfrecord"
    records = [b"%d" % number * (number % 10) for number in range(6000)]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path, records


SCATTERED = [*range(5999, 0, -3), 7, 7, *range(100, 120)]  # more ranges than a call may have


@pytest.mark.parametrize("without", [(), ("memfd_create",)], ids=["at once", "one by one"])
def test_many_small_records_are_read_at_once_where_the_system_can(
    small_records, without, monkeypatch
):
    path, records = small_records
    for name in without:
        monkeypatch.delattr(os, name)
    calls = []
    pwritev = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda *args: calls.append(args) or pwritev(*args))
    file = TFRecordOpener()(path)
    for places in (SCATTERED, list(range(6000)), SCATTERED[:9]):
        assert file.read(places) == [records[place] for place in places]
    assert len(calls) == (0 if without else 3)  # two for the first, none for records in a row


def test_a_file_that_is_cut_while_it_is_mapped_is_an_error_and_not_a_signal(small_records):
    path, records = small_records
    file = TFRecordOpener()(path)
    assert file.read(SCATTERED)[0] == records[5999]
    os.truncate(path, path.stat().st_size // 3)
    with refused(DataLossError, "the file was cut while it was read"):
        file.read(SCATTERED)
    low = list(range(0, 1000, 2))
    assert file.read(low) == [records[place] for place in low]


def test_of_many_records_the_damaged_one_is_named(small_records):
    path, _ = small_records
    starts = scanned_starts(path)
    with path.open("r+b") as content:
        content.seek(int(starts[4444]) + 12)
        content.write(b"x")
    file = TFRecordOpener()(path)
    with refused(DataLossError, "a record fails its checksum") as caught:
        file.read([*range(0, 4000, 4), 4444])
    assert caught.value.record == 4444


@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning")
def test_a_forked_child_copies_ranges_through_a_buffer_of_its_own(small_records):
    """Otherwise it would overwrite what its parent is about to read."""
    path, records = small_records
    file = TFRecordOpener()(path)
    assert file.read(SCATTERED)[0] == records[5999]
    assert _files_in_memory() > 0
    child = os.fork()
    if not child:
        os._exit(_files_in_memory())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _files_in_memory():
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum("memfd:datarax_tfds" in os.readlink(link) for link in links if os.path.islink(link))


def test_the_scan_of_large_records_reads_their_headers_only(tmp_path, monkeypatch):
    import os

    import tensorflow as tf

    path = tmp_path / "x.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for size in [100_000] * 50 + [10] * 50:
            writer.write(bytes(size))
    pread, read = os.pread, []
    monkeypatch.setattr(os, "pread", lambda *args: read.append(args[1]) or pread(*args))
    assert len(scanned_starts(path)) == 101
    assert sum(read) < 3_000_000  # of 5 MB
    monkeypatch.undo()


def impatient(data_dir):
    """The files of a split, which are tried again without a wait."""
    paths = sorted((data_dir / "tiny" / "1.0.0").glob("tiny-train*"))
    lengths = [len(scanned_starts(path)) - 1 for path in paths]
    pieces = [Piece(path, 0, length, length) for path, length in zip(paths, lengths, strict=True)]
    return RecordFiles(pieces, TFRecordOpener(), retry_waits_s=(0.0, 0.0, 0.0))


@pytest.fixture
def failing(monkeypatch):
    """Makes the next so many reads of a file fail with an error; notes the tries."""
    read, tries = TFRecordFile.read, []

    def fail(code, times):
        def failing(self, places):
            tries.append(self)
            if len(tries) <= times:
                raise OSError(code, os.strerror(code))
            return read(self, places)

        monkeypatch.setattr(TFRecordFile, "read", failing)
        return tries

    return fail


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_what_fails_for_a_moment_is_read_from_a_file_opened_anew(data_dir, failing, caplog, code):
    files = impatient(data_dir)
    expected = files.read(np.arange(3))
    tries = failing(code, 3)
    assert files.read(np.arange(3)) == expected
    assert len(set(map(id, tries))) == 4
    assert caplog.text.count(os.strerror(code)) == 3
    assert SHARD.replace("00001-of", "00000-of") in caplog.text


def test_what_fails_for_good_is_named(data_dir, failing):
    failing(errno.EIO, 4)
    with pytest.raises(DataLossError, match=rf"{SHARD[:20]}(.|\n)*Errno 5(.|\n)*tries: +4"):
        impatient(data_dir).read(np.arange(3))


def test_what_cannot_pass_is_not_tried_again(data_dir, failing):
    tries = failing(errno.EBADF, 1)
    with pytest.raises(OSError, match="Errno 9"):
        impatient(data_dir).read(np.arange(3))
    assert len(tries) == 1


def test_a_file_that_goes_is_named(copy):
    files = impatient(copy)
    (copy / "tiny" / SHARD).unlink()
    with pytest.raises(DataLossError, match=rf"{SHARD}: the file cannot be read(.|\n)*fix:"):
        files.read(np.arange(len(files)))


def test_each_process_indexes_files_of_its_own():
    """Those that have no index yet, so that a job indexes a dataset together."""
    pieces = [Piece(Path(f"{number}"), 0, 3, 3) for number in range(7)]

    def indexed(share, shares, without=range(7)):
        opened = []
        files = RecordFiles(
            pieces,
            OpenedBy(
                lambda path: opened.append(int(path.name)) or [0] * 3,
                lambda paths: [path for path in paths if int(path.name) in without],
            ),
            opening_threads=1,
        )
        assert [int(path.name) for path in files.build_indexes(share, shares)] == opened
        return opened

    assert indexed(0, 1) == list(range(7))
    assert [indexed(share, 3) for share in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [indexed(share, 3, without={1, 3, 5}) for share in range(3)] == [[3], [1], [5]]


def test_a_file_that_hangs_when_it_is_opened_is_named_and_bounded(tmp_path, limits):
    hanging = tmp_path / "hanging"
    os.mkfifo(hanging)  # nobody ever writes to it
    files = RecordFiles([Piece(hanging, 0, 1, 1)], OpenedBy(Path.read_bytes))
    limits.stall_timeout_s = 1.0
    with pytest.raises(WaitTimeoutError, match=r"hanging \(\d+ s\)(.|\n)*stall_timeout_s"):
        list(files.build_indexes())


BUILDS = {
    "eager": lambda **fields: TFDSEagerSource(TFDSEagerConfig(**fields)),
    "streaming": lambda **fields: TFDSStreamingSource(TFDSStreamingConfig(**fields)),
    "from_tfds": lambda **fields: from_tfds(**fields),
}


@pytest.mark.parametrize("build", BUILDS)
def test_a_source_whose_file_hangs_when_it_is_indexed_names_it(
    data_dir, tmp_path, monkeypatch, limits, build
):
    shutil.copytree(data_dir / "tiny_one" / "1.0.0", tmp_path / "tiny_one" / "1.0.0")
    shutil.rmtree(tmp_path / "tiny_one" / "1.0.0" / ".record_index", ignore_errors=True)
    end, pread = threading.Event(), os.pread

    def hang(*args):
        limits.stall_timeout_s = 1.0  # of nothing that comes before, however slow
        end.wait()
        return pread(*args)

    monkeypatch.setattr(os, "pread", hang)
    try:
        with pytest.raises(WaitTimeoutError, match=r"tiny_one-train(.|\n)*stall_timeout_s"):
            BUILDS[build](name="tiny_one", split="train", data_dir=str(tmp_path))
    finally:
        end.set()


@pytest.mark.parametrize("hanging", ["features.json", "dataset_info.json"])
def test_metadata_that_hang_when_they_are_read_are_named_and_bounded(
    data_dir, tmp_path, limits, caplog, hanging
):
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny")
    (path,) = (tmp_path / "tiny").rglob(hanging)
    path.unlink()
    os.mkfifo(path)  # nobody ever writes to it
    limits.stall_warn_s = 0.0

    def bound():
        wait_for(lambda: "tiny:train: still reading the metadata" in caplog.text, GUARD_S)
        limits.stall_timeout_s = 0.0

    threading.Thread(target=bound, daemon=True).start()
    config = TFDSEagerConfig(name="tiny", split="train", data_dir=str(tmp_path))
    with pytest.raises(WaitTimeoutError, match=r"tiny:train(.|\n)*tiny(.|\n)*stall_timeout_s"):
        open_split(config)


@pytest.mark.parametrize(
    ("index_bytes", "kept"),
    [(0, 5), (8, 2)],  # two files of 50 million records take 800 MB, three take 1.2 GB
)
def test_files_stay_open_up_to_a_limit_of_memory(index_bytes, kept):
    opened, records = [], 50_000_000

    class File:
        def __init__(self, path):
            opened.append(path)

        def __len__(self):
            return records

        def read(self, places):
            return [b""] * len(places)

    pieces = [Piece(Path(f"{number}"), 0, records, records) for number in range(5)]
    files = RecordFiles(pieces, OpenedBy(File, index_bytes=index_bytes))
    files.read(np.arange(5) * records)
    opened.clear()
    for number in reversed(range(5)):  # those used last come first
        files.read(np.array([number * records]))
    assert len(opened) == 5 - kept


def test_records_in_a_row_are_one_request(data_dir):
    """But not those of two files."""
    files = opened(data_dir)
    in_a_file = len(files) // 4
    made = []
    for numbers in ([3, 4, 5], [5, 4, 9], [in_a_file - 1, in_a_file]):
        before = files.requests
        files.read(np.array(numbers))
        made.append(files.requests - before)
    assert made == [1, 3, 2]
