"""Content that is kept on the local disk: exact or missing, within its bound, in any accident."""

import builtins
import fcntl
import hashlib
import os
import shutil
import threading

import pytest
from refusals import refused

from datarax_tfds.runtime import disk_cache
from datarax_tfds.runtime.disk_cache import DiskCache

KB = 1000
FILE = KB + 4  # with its checksum


def name(number):
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


def content(number):
    return bytes([number % 256]) * KB


def put(cache, *numbers):
    for number in numbers:
        cache.write(name(number), content(number))


def size(directory):
    return sum(file.stat().st_size for file in directory.iterdir() if len(file.name) == 32)


def used(directory, *numbers):
    """Sets when files were used: in this order."""
    for time, number in enumerate(numbers):
        os.utime(directory / name(number), (time, time))


def test_content_is_read_as_it_was_written_also_by_another_job(tmp_path):
    cache = DiskCache(tmp_path / "cache")
    assert cache.read(name(1)) is None
    put(cache, 1, 2)
    put(cache, 1)
    other = DiskCache(tmp_path / "cache", 10 * KB)
    for each in (cache, other):
        assert [each.read(name(number)) for number in (1, 2)] == [content(1), content(2)]


def test_what_was_used_least_recently_goes_first(tmp_path):
    cache = DiskCache(tmp_path, 4 * FILE)
    put(cache, 1, 2, 3)
    used(tmp_path, 1, 2, 3)
    assert cache.read(name(1)) == content(1)
    put(cache, 4, 5)
    assert [number for number in range(1, 6) if cache.read(name(number))] == [1, 4, 5]


def test_content_that_is_larger_than_the_bound_is_not_kept(tmp_path):
    cache = DiskCache(tmp_path, KB)
    put(cache, 1)
    assert size(tmp_path) == 0


@pytest.mark.parametrize("damage", [
    lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\0"),
    lambda file: file.write_bytes(file.read_bytes()[:-1]),
    lambda file: file.write_bytes(b""),
    lambda file: (file.unlink(), os.mkfifo(file)),
    lambda file: (file.rename(file.with_name("other")), file.symlink_to("other")),
])  # fmt: skip
def test_a_damaged_file_counts_as_missing(tmp_path, damage):
    cache = DiskCache(tmp_path, 10 * KB)
    put(cache, 1)
    damage(tmp_path / name(1))
    assert cache.read(name(1)) is None
    put(cache, 1)
    assert cache.read(name(1)) == content(1)


def test_a_full_disk_costs_only_what_is_kept(tmp_path, monkeypatch, caplog):
    cache = DiskCache(tmp_path, 10 * KB)
    put(cache, 1)

    def full(path, mode):
        return builtins.open("/dev/full" if mode == "xb" else path, mode.replace("x", "w"))

    monkeypatch.setattr(disk_cache, "open", full, raising=False)
    put(cache, 2, 3)
    monkeypatch.undo()
    assert [cache.read(name(number)) for number in (1, 2, 3)] == [content(1), None, None]
    warnings = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "No space left" in warnings[0]
    put(cache, 2)
    assert cache.read(name(2)) == content(2)


def test_a_directory_that_is_removed_is_made_again(tmp_path):
    cache = DiskCache(tmp_path / "cache", 10 * KB)
    put(cache, 1)
    shutil.rmtree(tmp_path / "cache")
    assert cache.read(name(1)) is None
    put(cache, 2)
    assert cache.read(name(2)) == content(2)


def test_what_a_killed_process_leaves_changes_nothing(tmp_path):
    cache = DiskCache(tmp_path, 4 * FILE)
    put(cache, 1)
    (tmp_path / ".draft").write_bytes(b"half")
    (tmp_path / ".lock").write_bytes(b"\xff" * 8)  # the number of bytes, far too high
    put(cache, 2, 3)
    assert [cache.read(name(number)) for number in (1, 2, 3)] == list(map(content, (1, 2, 3)))


def test_files_of_others_are_left_alone(tmp_path):
    mine = tmp_path / "thesis.tex"
    mine.write_bytes(bytes(10 * KB))
    cache = DiskCache(tmp_path, 2 * FILE)
    put(cache, *range(5))
    assert mine.exists()
    assert size(tmp_path) <= 2 * FILE


def test_jobs_that_share_a_directory_read_what_was_written_and_keep_to_the_bound(tmp_path):
    failures = []

    def work(cache, first):
        for step in range(60):
            number = (first + 7 * step) % 40
            found = cache.read(name(number))
            if found not in (None, content(number)):
                failures.append(number)
            put(cache, number)
            if (held := size_now(tmp_path)) > 10 * FILE:
                failures.append(held)

    threads = [
        threading.Thread(target=work, args=(cache, 10 * first))
        for cache in (DiskCache(tmp_path, 10 * FILE), DiskCache(tmp_path, 10 * FILE))
        for first in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert size(tmp_path) > 5 * FILE


def size_now(directory):
    """The size of what is there at one time: names are listed, and each is then looked at."""
    total = 0
    for entry in os.scandir(directory):
        try:
            total += entry.stat().st_size if len(entry.name) == 32 else 0
        except FileNotFoundError:
            continue
    return total


def test_a_process_that_hangs_with_the_lock_is_not_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(disk_cache, "LOCK_WAIT_S", 0.05)
    cache = DiskCache(tmp_path, 10 * KB)
    with open(tmp_path / ".lock", "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        put(cache, 1)
    assert cache.read(name(1)) is None
    assert "blocks cannot be kept" in caplog.text
    put(cache, 1)
    assert cache.read(name(1)) == content(1)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with refused(ValueError, r"^cache_dir: nothing can be kept.*file/cache.*fix: +use a directory"):
        DiskCache(tmp_path / "file" / "cache")
