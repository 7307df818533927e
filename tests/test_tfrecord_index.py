"""Where the records of a TFRecord file begin: kept in a file, and never believed blindly."""

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from checkout import GUARD_S
from indexes import record_starts

from datarax_tfds import DataLossError
from datarax_tfds.files.record_files import Piece, RecordFiles
from datarax_tfds.files.record_index import RecordIndex, index_content
from datarax_tfds.files.stored_file import FileVersion, StoredFile
from datarax_tfds.files.tfrecord import scanned_starts
from datarax_tfds.files.tfrecord_index import TFRecordOpener, index_paths, parse_format_1


@pytest.fixture
def path(data_dir, tmp_path, monkeypatch):
    """A TFRecord file of one's own, without an index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copy(
        data_dir / "tiny" / "1.0.0" / "tiny-train.tfrecord-00001-of-00004",
        tmp_path / "a name with spaces.tfrecord",
    )


@pytest.fixture
def scans(monkeypatch):
    """How often a file was read through."""
    counted = []

    def counting(path):
        counted.append(path)
        return scanned_starts(path)

    monkeypatch.setattr("datarax_tfds.files.tfrecord_index.scanned_starts", counting)
    return counted


def beside(path):
    return path.parent / ".record_index" / path.name


def test_a_file_is_read_through_once(path, scans):
    expected = scanned_starts(path)
    for _ in range(3):
        assert np.array_equal(record_starts(path), expected)
    assert len(scans) == 1
    assert beside(path).stat().st_size < 4 * len(expected) + 100


@pytest.mark.parametrize("change", ["shorter", "touched"])
def test_a_file_that_changed_is_read_through_again(path, scans, change):
    starts = record_starts(path)
    if change == "shorter":
        path.write_bytes(path.read_bytes()[: starts[-2]])
    else:
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    expected = starts[:-1] if change == "shorter" else starts
    for _ in range(2):
        assert np.array_equal(record_starts(path), expected)
    assert len(scans) == 2


def every_damage(sound):
    """Every truncation of some bytes, and every flip of one bit."""
    for length in range(len(sound)):
        yield sound[:length]
    for byte in range(len(sound)):
        for bit in range(8):
            yield sound[:byte] + bytes([sound[byte] ^ 1 << bit]) + sound[byte + 1 :]


def test_every_flipped_bit_and_every_truncation_of_an_index_is_noticed(path, scans):
    expected, version = record_starts(path), StoredFile(path).version()
    sound = beside(path).read_bytes()

    def starts(content):
        read_at = lambda start, length: content[start : start + length]
        index = RecordIndex.opened(read_at, len(content), version, "a file")
        return None if index is None else index.bounds(np.arange(len(index)))[0].tolist()

    def noticed(content):
        try:
            return starts(content) is None
        except DataLossError:  # of a page, once it is read
            return True

    assert starts(sound) == expected[:-1].tolist()
    assert all(map(noticed, every_damage(sound)))
    assert len(scans) == 1
    *_, in_a_page = every_damage(sound)
    in_the_head = bytes([sound[0] ^ 1]) + sound[1:]
    for damaged in (in_the_head, in_a_page):
        beside(path).write_bytes(damaged)
        opener, length = TFRecordOpener(), len(expected) - 1
        files = RecordFiles([Piece(path, 0, length, length)], opener)
        assert len(files.read(np.arange(length))) == length
        assert beside(path).read_bytes() == sound  # mended


@pytest.mark.parametrize("records", [0, 1, 1023, 1024, 1025, 300_000])
@pytest.mark.parametrize("gap", [0, 1 << 31, 1 << 33])
def test_an_index_reads_only_the_pages_that_are_needed(records, gap):
    """Of any number of records, in a file of any size."""
    lengths = np.random.default_rng(0).integers(16, 100, records)
    starts = np.append(0, np.cumsum(lengths)) + gap * (np.arange(records + 1) > records // 2)
    version = FileVersion(int(starts[-1]), 7, 1, 2)
    content, read = index_content(starts, version), []

    def read_at(start, length):
        read.append(length)
        return content[start : start + length]

    index = RecordIndex.opened(read_at, len(content), version, "a file")
    assert len(index) == records
    assert len(content) <= (4 if starts[-1] < 1 << 32 else 8) * (records + 2) * 1.002 + 100
    for places in ([], [0], [records - 1], [records // 2, 0], range(records)):
        places = np.array([place for place in places if 0 <= place < records], np.int64)
        read.clear()
        found = index.bounds(places)
        assert np.array_equal(found, (starts[places], starts[places + 1]))
        assert sum(read) <= 2 * len(places) * 4096


def test_an_index_of_format_1_is_read_unless_it_is_damaged(path, scans):
    starts, version = scanned_starts(path), StoredFile(path).version()
    words = np.array([1, version.size, version.modified_ns, *starts], "<i8").tobytes()
    sound = hashlib.sha256(words).digest() + words
    assert np.array_equal(parse_format_1(sound, version), starts)
    assert all(parse_format_1(content, version) is None for content in every_damage(sound))
    beside(path).parent.mkdir()
    beside(path).write_bytes(sound)
    assert np.array_equal(record_starts(path), starts)
    assert beside(path).read_bytes() == index_content(starts, version)  # from now on by pages
    assert scans == []


def a_socket(place):
    # By its name alone, since the length of a path is limited.
    with contextlib.chdir(place.parent), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place.name)


IN_THE_WAY = {
    "a pipe": os.mkfifo,
    "a socket": a_socket,
    "a directory": os.mkdir,
    "a directory with files": lambda place: (place / "a").mkdir(parents=True),
    "a link to nothing": lambda place: place.symlink_to("nowhere"),
    "a link to a pipe": lambda place: (
        os.mkfifo(f"{place}-pipe"),
        place.symlink_to(f"{place}-pipe"),
    ),
    "a link to itself": lambda place: place.symlink_to(place),
    "a device": lambda place: place.symlink_to("/dev/zero"),
    "an empty file": lambda place: place.touch(),
    "a file of odd length": lambda place: place.write_bytes(bytes(77)),
    "a huge file": lambda place: (place.touch(), os.truncate(place, 1 << 40)),
    "a file that may not be read": lambda place: place.touch(0o000),
}


@pytest.mark.parametrize("which", ["index", "directory"])
@pytest.mark.parametrize("kind", list(IN_THE_WAY))
def test_what_lies_in_the_place_of_an_index_neither_hangs_nor_breaks_anything(
    path, scans, kind, which
):
    place = beside(path) if which == "index" else beside(path).parent
    place.parent.mkdir(exist_ok=True)
    IN_THE_WAY[kind](place)
    for _ in range(2):
        assert np.array_equal(record_starts(path), scanned_starts(path))
    assert len(scans) == 1  # the index is kept there, or in the cache


def write_records(path, lengths):
    """A TFRecord file of records of those lengths, at a time of long ago."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number, length in enumerate(lengths):
            writer.write(bytes([number]) * length)
    os.utime(path, ns=(0, 10**18))


LENGTHS, OTHER_LENGTHS = (5, 80, 7, 300, 12), (300, 12, 5, 7, 80)


def contents(lengths):
    return [bytes([number]) * length for number, length in enumerate(lengths)]


class TestIndexOfAnotherLayout:
    """The file has the size, the time and the number of records of the one that was indexed."""

    @pytest.fixture
    def path(self, path):
        write_records(path, LENGTHS)
        record_starts(path)
        return path

    def opened(self, path):
        opener = TFRecordOpener()
        length = len(scanned_starts(path)) - 1
        return RecordFiles([Piece(path, 0, length, length)], opener)

    def test_it_is_built_anew_once_a_record_does_not_fit(self, path, scans, caplog):
        write_records(path, OTHER_LENGTHS)
        for _ in range(2):
            files = self.opened(path)
            assert files.read(np.arange(len(files))) == contents(OTHER_LENGTHS)
        assert len(scans) == 1  # when it did not fit; then the new one is kept
        assert caplog.text.count("is built again") == 1

    def test_threads_that_meet_it_at_once_all_go_on(self, path):
        write_records(path, OTHER_LENGTHS)
        files = self.opened(path)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda number: files.read(np.array([number])), range(len(files))))
        assert [records[0] for records in found] == contents(OTHER_LENGTHS)

    def test_damaged_data_are_told_from_a_wrong_index(self, path, scans):
        starts = record_starts(path)
        content = bytearray(path.read_bytes())
        content[starts[2] + 14] ^= 1
        path.write_bytes(content)
        files = self.opened(path)
        for _ in range(2):
            with pytest.raises(
                DataLossError, match=r"a record fails its checksum(.|\n)*record: +2"
            ):
                files.read(np.arange(len(files)))
        assert len(scans) == 2  # for the new time of the file, and for the doubt

    def test_a_file_that_is_replaced_while_it_is_in_use_stays_an_error(self, path):
        other = shutil.copy(path, path.with_name("other"))
        opener, length = TFRecordOpener(), len(LENGTHS)
        pieces = [Piece(file, 0, length, length) for file in (path, other)]
        files = RecordFiles(pieces, opener, max_open=1)
        files.read(np.array([0]))
        replacement = path.with_name("replacement")
        write_records(replacement, OTHER_LENGTHS)
        os.replace(replacement, path)
        files.read(np.array([length]))  # which closes the first file
        with pytest.raises(DataLossError, match="a record fails its checksum"):
            files.read(np.arange(len(files)))


def test_drafts_that_killed_processes_left_are_removed_and_others_are_not(path):
    """By who has locked them: clocks may differ, and jump."""
    code = (
        "import sys, pathlib, os, signal\n"
        "from datarax_tfds.runtime.small_files import draft_of\n"
        "with draft_of(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'half')\n"
        "    file.flush()\n"
        "    print('written', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    beside(path).parent.mkdir()
    command = [sys.executable, "-c", code, str(beside(path))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as killed, subprocess.Popen(command, **pipes) as alive:
        for process in (killed, alive):
            assert process.stdout.readline() == b"written\n"
        killed.kill()
        killed.wait(timeout=GUARD_S)
        assert len(list(beside(path).parent.iterdir())) == 2
        record_starts(path)
        assert len(list(beside(path).parent.iterdir())) == 2  # the index, and the other's draft
        alive.communicate(b"\n", timeout=GUARD_S)
    assert [file.name for file in beside(path).parent.iterdir()] == [path.name]


def test_where_nothing_can_be_written_beside_the_data_the_cache_is_used(path, scans, tmp_path):
    (path.parent / ".record_index").write_text("in the way, as a read-only directory would be")
    for _ in range(2):
        assert np.array_equal(record_starts(path), scanned_starts(path))
    assert len(scans) == 1
    assert len(list((tmp_path / "cache").rglob("*"))) == 3


def test_where_nothing_can_be_written_at_all_it_works_all_the_same(path, scans, tmp_path):
    (path.parent / ".record_index").write_text("in the way")
    (tmp_path / "cache").write_text("in the way")
    for _ in range(2):
        assert np.array_equal(record_starts(path), scanned_starts(path))
    assert len(scans) == 2


def test_without_a_home_there_is_no_cache(path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert list(index_paths(path)) == [beside(path)]


def test_many_processes_may_build_it_at_once(path):
    """None reads what another has half written, and nothing but the index is left."""
    code = (
        "import sys, pathlib\n"
        "from indexes import record_starts\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "sys.stdin.readline()\n"
        "for _ in range(300):\n"
        "    assert len(record_starts(path)) == int(sys.argv[2])\n"
        "    (path.parent / '.record_index' / path.name).unlink(missing_ok=True)\n"
    )
    count = str(len(scanned_starts(path)))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), count],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).parent,
        )
        for _ in range(4)
    ]
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.close()
    assert [process.wait(timeout=GUARD_S) for process in processes] == [0] * 4
    record_starts(path)
    assert [file.name for file in beside(path).parent.iterdir()] == [path.name]
