"""Where the records of a TFRecord file begin: kept in a file, and never believed blindly."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from datarax_tfds import offset_index
from datarax_tfds.offset_index import record_starts
from datarax_tfds.tfrecord import scanned_starts


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

    monkeypatch.setattr(offset_index, "scanned_starts", counting)
    return counted


def beside(path):
    return path.parent / ".record_index" / path.name


def test_a_file_is_read_through_once(path, scans):
    expected = scanned_starts(path)
    for _ in range(3):
        assert np.array_equal(record_starts(path), expected)
    assert len(scans) == 1
    assert beside(path).stat().st_size < 16 * len(expected) + 64


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


def test_every_flipped_bit_and_every_truncation_of_an_index_is_noticed(path, scans):
    expected = record_starts(path)
    sound = beside(path).read_bytes()
    damaged = [sound[:length] for length in range(len(sound))]
    for byte in range(len(sound)):
        for bit in range(8):
            copy = bytearray(sound)
            copy[byte] ^= 1 << bit
            damaged.append(bytes(copy))
    header = np.frombuffer(sound[32:], "<i8")[:3]
    assert offset_index._checked(sound, header) is not None
    assert all(offset_index._checked(content, header) is None for content in damaged)
    beside(path).write_bytes(damaged[-1])
    assert np.array_equal(record_starts(path), expected)
    assert beside(path).read_bytes() == sound  # mended


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
    assert list(offset_index._places(path)) == [beside(path)]


def test_many_processes_may_build_it_at_once(path):
    """None reads what another has half written, and nothing but the index is left."""
    code = (
        "import sys, pathlib\n"
        "from datarax_tfds.offset_index import record_starts\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "sys.stdin.readline()\n"
        "for _ in range(300):\n"
        "    assert len(record_starts(path)) == int(sys.argv[2])\n"
        "    (path.parent / '.record_index' / path.name).unlink(missing_ok=True)\n"
    )
    count = str(len(scanned_starts(path)))
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path), count], stdin=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.close()
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    record_starts(path)
    assert [file.name for file in beside(path).parent.iterdir()] == [path.name]
