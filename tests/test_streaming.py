"""What a stream promises beyond the contract: what it reads, when, and how it ends."""

import gc
import itertools
import logging
import re
import shutil
import signal
import sys
import threading
import time
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
import tfds_datasets
import warmed
from checkout import GUARD_S
from conftest import shardings, wait_for
from contract import N, check_records, equal, ids
from flax import nnx
from openers import OpenedBy
from oracle import expected_ids

from datarax_tfds import (
    DataLossError,
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    Unbatched,
    from_tfds,
    prefetch_to_device,
)
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.files.record_files import Piece, RecordFiles

SIZE = 24


def streaming(data_dir, mesh="one device", **fields):
    fields = {"name": "tiny", "split": "train", "shuffle": True, "seed": 5} | fields
    config = TFDSStreamingConfig(data_dir=str(data_dir), **fields)
    return TFDSStreamingSource(config, sharding=shardings()[mesh])


class TestReading:
    def test_nothing_is_read_until_it_is_asked_for(self, data_dir, reads):
        source = streaming(data_dir)
        source.element_spec(), len(source), Pipeline(source=source, batch_size=SIZE)
        assert reads == []

    @pytest.mark.parametrize("ahead", [0, 1, 2, 5])
    def test_each_record_is_read_once_and_a_fixed_number_of_batches_ahead(
        self, data_dir, reads, ahead
    ):
        source = streaming(data_dir, prefetch_buffer=ahead)
        served = [number for _ in range(3) for batch in Pipeline(source=source, batch_size=SIZE)
                  for number in ids(batch)]  # fmt: skip
        wait_for(lambda: len(reads) == len(served) + (ahead + 1 if ahead else 0) * SIZE)
        assert sorted(reads) == sorted(expected_ids(5)[: len(reads)])
        assert served == expected_ids(4)[: len(served)]

    def test_small_batches_are_decoded_together(self, data_dir, monkeypatch):
        read, calls = RecordReader.read, []

        def noting(self, numbers, keys=None):
            calls.append(len(numbers))
            return read(self, numbers, keys)

        monkeypatch.setattr(RecordReader, "read", noting)
        source = streaming(data_dir, mesh="8 devices", prefetch_buffer=1)
        served = [
            number for batch in Pipeline(source=source, batch_size=8) for number in ids(batch)
        ]
        assert served == expected_ids(2)[: len(served)]
        # The first two alone, since nothing says yet that others follow. Two threads read, so the
        # second of these calls may be noted after the first of the others.
        assert sorted(calls)[:2] == [8, 8]
        assert set(sorted(calls)[2:]) == {16}

    def test_a_jump_reads_nothing_in_between(self, data_dir, reads):
        source = streaming(data_dir, prefetch_buffer=0)
        batches, states = [], []
        for batch in Pipeline(source=source, batch_size=SIZE):
            batches.append(batch)
            states.append(source.get_state())
        for step in (2, 0, 3, 1):
            reads.clear()
            source.set_state(states[step])
            assert equal(source.get_batch(SIZE), batches[step + 1])
            assert len(reads) == SIZE

    def test_batches_here_and_there_are_not_read_ahead_of(self, data_dir, reads):
        source = streaming(data_dir)
        for start in (40, 0, 64, 16):
            source.get_batch_at(start, 8)
        wait_for(lambda: len(reads) == 4 * 8)
        time.sleep(0.1)
        assert len(reads) == 4 * 8

    def test_rows_that_several_devices_hold_are_read_once(self, data_dir, reads):
        """That each of several hosts reads its own: `workers/serve.py`."""
        for mesh in ("3 of the devices", "4 x 2, replicas"):
            source = streaming(data_dir, mesh, prefetch_buffer=0)
            reads.clear()
            check_records(source.get_batch(SIZE))
            assert sorted(reads) == sorted(expected_ids()[:SIZE])

    def test_by_blocks_each_block_is_fetched_once(self, data_dir, monkeypatch):
        read, fetched = RecordFiles.read, []

        def noting(self, numbers):
            fetched.append(numbers.tolist())
            return read(self, numbers)

        monkeypatch.setattr(RecordFiles, "read", noting)
        source = streaming(data_dir, access="sequential", shuffle_buffer_size=30, prefetch_buffer=1)
        fetched.clear()  # a record, of which the source was built
        served = [
            number for batch in Pipeline(source=source, batch_size=8) for number in ids(batch)
        ]
        assert sorted(served[:N]) == list(range(N))
        first_epoch = fetched[: -(-N // 8)]
        assert sorted(sum(first_epoch, [])) == list(range(N))
        assert all(np.all(np.diff(block) == 1) for block in fetched)

    def test_batches_that_were_handed_out_stay_as_they_are(self, data_dir):
        source = streaming(data_dir, prefetch_buffer=3)
        batches = [source.get_batch(16) for _ in range(30)]
        for batch in batches:
            check_records(batch)

    def test_a_stream_and_its_clone_do_not_disturb_each_other(self, data_dir, reads):
        source = streaming(data_dir)
        other = nnx.clone(source)
        other.advance_to(source.cursor.__class__(3, 40))
        for _ in range(8):
            check_records(source.get_batch(SIZE))
            check_records(other.get_batch(SIZE))
        wait_for(lambda: len(reads) == 2 * (8 + 3) * SIZE)


class TestSingleRecords:
    def test_text_and_any_shape_come_one_by_one(self, data_dir):
        source = streaming(data_dir, name="text", shuffle=False, exclude_keys={"wide"})
        spec = source.element_spec()
        assert spec["text"] == Unbatched((), np.dtype(object))
        assert spec["photo"] == Unbatched((None, None, 3), np.dtype(np.uint8))
        assert spec["label"] == jax.ShapeDtypeStruct((), np.int32)
        for number, record in enumerate(source):
            assert record["text"] == f"number {number}".encode()
            assert record["tokens"].tolist() == list(range(number))
            assert record["photo"].shape == (number + 1, 2, 3)
            assert isinstance(record["photo"], jax.Array)
        assert number == 4
        assert source[-1]["text"] == b"number 4"

    @pytest.mark.parametrize(("feature", "problem"), [("text", "is text"), ("photo", "varies")])
    def test_batches_of_them_are_refused_by_name(self, data_dir, feature, problem):
        source = streaming(data_dir, name="text", include_keys={feature, "label"})
        message = (
            rf"feature '{feature}' (.|\n)*{problem}(.|\n)*fix:(.|\n)*exclude_keys(.|\n)*map_fn"
        )
        for read in (source.get_batch, lambda size: Pipeline(source=source, batch_size=size)):
            with pytest.raises(ValueError, match=message):
                read(2)


class TestDamage:
    """Nothing of a damaged file is handed out wrongly, and nothing is lost unseen."""

    @pytest.fixture
    def copy(self, data_dir, tmp_path):
        for name in ("tiny", "tiny_array"):
            shutil.copytree(data_dir / name, tmp_path / name)
        return tmp_path

    def shard(self, copy, name="tiny"):
        kind = "tfrecord" if name == "tiny" else "array_record"
        return copy / name / "1.0.0" / f"{name}-train.{kind}-00002-of-00004"

    @pytest.mark.parametrize("name", ["tiny", "tiny_array"])
    @pytest.mark.parametrize("damage", ["cut", "emptied", "replaced", "missing", "of no use"])
    def test_a_file_is_counted_before_any_of_its_records_is_handed_out(self, copy, name, damage):
        path = self.shard(copy, name)
        if damage == "missing":
            path.unlink()
        elif damage == "replaced":
            first = path.with_name(path.name.replace("00002-", "00000-"))
            path.write_bytes(first.read_bytes())  # of another number of records
        else:
            content = path.read_bytes()
            path.write_bytes({"cut": content[:-7], "emptied": b"", "of no use": b"x" * 99}[damage])
        with pytest.raises(DataLossError, match=rf"{path.name}(.|\n)*fix:"):
            streaming(copy, name=name).get_records(np.array([48]))  # the first of the third file

    def test_a_flipped_bit_is_named_where_its_record_comes(self, copy):
        path = self.shard(copy)
        content = bytearray(path.read_bytes())
        content[40] ^= 1
        path.write_bytes(content)
        source = streaming(copy, shuffle=False)
        first = 48  # of the third file
        served = []

        def serve():
            for record in source:
                check_records(jax.tree.map(lambda column: np.asarray(column)[None], record))
                served.append(int(record["id"]))

        message = rf"{path}(.|\n)*checksum(.|\n)*record: +0(.|\n)*fix"
        with pytest.raises(DataLossError, match=message):
            serve()
        assert served == list(range(len(served)))
        assert len(served) <= first
        assert source.cursor.index == len(served)

    @pytest.mark.parametrize("source", ["eager", "streaming"])
    def test_a_file_of_which_the_metadata_know_nothing_is_noticed(self, copy, source):
        info = copy / "tiny" / "1.0.0" / "dataset_info.json"
        info.write_text(re.sub(r'"24"', '"0"', info.read_text(), count=1))
        with pytest.raises(DataLossError, match=r"holds 24 records, dataset_info.json says 0"):
            from_tfds("tiny", "train", data_dir=str(copy), eager=source == "eager")

    def test_wrong_counts_in_the_metadata_are_noticed(self, copy):
        info = copy / "tiny" / "1.0.0" / "dataset_info.json"
        info.write_text(info.read_text().replace('"25"', '"26"', 1).replace('"24"', '"23"', 1))
        with pytest.raises(DataLossError, match=r"the file holds \d+ records, dataset_info.json"):
            streaming(copy).get_records(np.arange(N))

    def test_a_file_that_changes_while_it_is_read_is_noticed(self, copy):
        source = streaming(copy, prefetch_buffer=0)
        source.get_batch(SIZE)
        path = self.shard(copy)
        path.write_bytes(path.read_bytes()[:-300])
        batches = iter(Pipeline(source=source, batch_size=SIZE))
        with pytest.raises(DataLossError, match=f"{path}(.|\n)*cut while it was read"):
            list(batches)

    def test_a_replaced_file_is_refused_at_restore(self, copy):
        state = streaming(copy).get_state()
        shutil.rmtree(copy / "tiny")
        tfds_datasets.write(copy, "tiny", shards=3)
        with pytest.raises(ValueError, match="fingerprint: saved"):
            streaming(copy).set_state(state)

    def test_after_an_error_the_stream_goes_on_where_it_was(self, copy):
        path = self.shard(copy)
        sound, stat = path.read_bytes(), path.stat()
        source = streaming(copy, prefetch_buffer=2)
        content = bytearray(sound)
        content[40] ^= 1
        path.write_bytes(content)
        served = []

        def serve():
            for batch in Pipeline(source=source, batch_size=4):
                served.extend(ids(batch))

        with pytest.raises(DataLossError, match="checksum"):
            serve()
        path.write_bytes(sound)
        assert path.stat().st_size == stat.st_size
        serve()
        assert served[:N] == expected_ids()

    def test_an_error_comes_with_its_own_batch_however_many_are_decoded_together(
        self, copy, monkeypatch
    ):
        """Of batches in one call, those before the damage are handed out."""
        victim = expected_ids()[20]
        source = streaming(copy, prefetch_buffer=1)
        read = RecordReader.read

        def failing(self, numbers, keys=None):
            if victim in numbers:
                raise DataLossError("damage")
            return read(self, numbers, keys)

        monkeypatch.setattr(RecordReader, "read", failing)
        served = []

        def serve():
            for batch in Pipeline(source=source, batch_size=2):
                served.extend(ids(batch))

        with pytest.raises(DataLossError, match="damage"):
            serve()
        assert served == expected_ids()[:20]


class TestEnd:
    def threads(self):
        return {thread for thread in threading.enumerate() if "datarax_tfds" in thread.name}

    def test_a_stream_that_nobody_holds_ends_its_threads(self, data_dir):
        others = self.threads()  # of earlier tests, which may be ending meanwhile
        source = streaming(data_dir, access="sequential")
        batches = prefetch_to_device(Pipeline(source=source, batch_size=SIZE))
        next(batches)
        own = self.threads() - others
        assert own
        del source, batches
        gc.collect()
        wait_for(lambda: not any(thread.is_alive() for thread in own))

    def test_what_has_not_begun_is_left_when_it_ends(self, data_dir):
        """By what is read after the end, not by the time that it takes."""
        code = (
            "import os, sys, time\n"
            "from datarax_tfds.decoding.reader import RecordReader\n"
            "from datarax_tfds import TFDSStreamingConfig, TFDSStreamingSource\n"
            "source = TFDSStreamingSource(TFDSStreamingConfig(\n"
            f"    name='tiny', split='train', data_dir={str(data_dir)!r}))\n"
            "read, ending = RecordReader.read, []\n"
            "source.get_batch(16)\n"
            "def slow(*args):\n"
            "    os.write(1, b'late\\n' if ending else b'soon\\n')\n"
            "    time.sleep(2.0 if ending else 0.3)\n"
            "    return read(*args)\n"
            "RecordReader.read = slow\n"
            "for _ in range(2):\n"
            "    source.get_batch(960)\n"  # the next 2,880 rows are under way, by 128
            "ending.append(True)\n"
            "if sys.argv[1] == 'dropped':\n"
            "    import gc, threading\n"
            "    del source\n"
            "    gc.collect()\n"
            "    while any('datarax' in thread.name for thread in threading.enumerate()):\n"
            "        time.sleep(0.01)\n"
        )
        for way in ("exit", "dropped"):
            done = warmed.run([sys.executable, "-c", code, way], timeout=GUARD_S)
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("soon") >= 8
            # Of 22 calls, those that began before the process got so far as to end.
            assert done.stdout.count("late") <= 12, done.stdout

    @pytest.mark.parametrize("eager", [True, False])
    def test_a_pipeline_with_stages_lets_go_of_its_source(self, data_dir, eager):
        source = from_tfds("tiny", "train", data_dir=str(data_dir), eager=eager)
        records = weakref.ref(source.records)
        pipeline = Pipeline(source=source, stages=[lambda batch: batch], batch_size=SIZE)
        next(iter(pipeline))
        del source, pipeline
        gc.collect()
        assert records() is None

    @pytest.mark.parametrize(
        "ending",
        ["pass", "raise SystemExit", "import signal, os; os.kill(os.getpid(), signal.SIGINT)"],
    )
    def test_the_interpreter_ends_at_once_and_quietly(self, data_dir, ending):
        code = (
            "from datarax_tfds import Pipeline, TFDSStreamingConfig, TFDSStreamingSource\n"
            "config = TFDSStreamingConfig(name='tiny', split='train', prefetch_buffer=4,\n"
            f"    data_dir={str(data_dir)!r})\n"
            "batches = iter(Pipeline(source=TFDSStreamingSource(config), batch_size=24))\n"
            "next(batches)\n"
            f"{ending}\n"
        )
        done = warmed.run([sys.executable, "-c", code], timeout=GUARD_S)
        quiet = [
            line for line in done.stderr.splitlines() if "Error" in line or "Exception" in line
        ]
        assert quiet == []

    def test_ctrl_c_while_waiting_moves_nothing(self, data_dir, monkeypatch):
        source = streaming(data_dir, prefetch_buffer=1)
        slow, started = threading.Event(), threading.Event()
        read = RecordReader.read

        def waiting(self, numbers, keys=None):
            started.set()
            slow.wait(GUARD_S)
            return read(self, numbers, keys)

        monkeypatch.setattr(RecordReader, "read", waiting)
        main = threading.main_thread().ident

        def interrupt():
            assert started.wait(GUARD_S)
            time.sleep(0.2)
            signal.pthread_kill(main, signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            source.get_batch(SIZE)
        slow.set()  # the wait ended without what it waited for
        assert source.cursor.index == 0
        assert ids(source.get_batch(SIZE)) == expected_ids()[:SIZE]


def test_a_low_limit_of_open_files_is_kept(tmp_path):
    """Thirteen files, under a limit of which a sixth is ten; each is open with its index."""
    tfds_datasets.write(tmp_path, "tiny", shards=13)
    code = (
        "import os, resource, sys\n"
        "from datarax_tfds import Pipeline, TFDSStreamingConfig, TFDSStreamingSource\n"
        "def source(split):\n"
        "    return TFDSStreamingSource(TFDSStreamingConfig(\n"
        "        name='tiny', split=split, data_dir=sys.argv[1], shuffle=True))\n"
        "source('test').get_batch(4)\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))\n"
        "train = source('train')\n"
        "batches = list(Pipeline(source=train, batch_size=97))\n"
        "assert sorted(batches[0]['id'].tolist()) == list(range(97))\n"
        "links = [f'/proc/self/fd/{number}' for number in os.listdir('/proc/self/fd')]\n"
        "opened = [link for link in links if os.path.exists(link)]\n"
        "assert sum('tiny-train' in os.readlink(link) for link in opened) == 2 * 10\n"
    )
    done = warmed.run([sys.executable, "-c", code, str(tmp_path)], timeout=GUARD_S)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mesh", ["one device", "4 x 2, replicas"])
def test_a_run_may_go_on_with_the_other_source(data_dir, mesh):
    """From the devices to the disk and back, at every step."""
    config = TFDSEagerConfig(
        name="tiny_one", split="train", data_dir=str(data_dir), shuffle=True, seed=5
    )
    eager = Pipeline(source=TFDSEagerSource(config, sharding=shardings()[mesh]), batch_size=SIZE)
    stream = Pipeline(source=streaming(data_dir, mesh, name="tiny_one"), batch_size=SIZE)
    served = []
    for step in range(12):
        one, other = (eager, stream) if step % 2 else (stream, eager)
        served += ids(next(iter(one)))
        other.set_state(one.get_state())
    assert served == expected_ids(3)[: len(served)]


def test_a_slow_file_does_not_keep_the_others_open():
    """Files are closed again as they are counted, whichever is done first."""
    changes = []

    class File:
        def __init__(self, path):
            if path.name == "0":
                time.sleep(0.5)
            changes.append(1)

        def __len__(self):
            return 1

        def __del__(self):
            changes.append(-1)

    pieces = [Piece(Path(f"{number}"), 0, 1, 1) for number in range(200)]
    for _ in RecordFiles(pieces, OpenedBy(File), max_open=10, opening_threads=4).build_indexes():
        pass
    assert max(itertools.accumulate(changes)) <= 10 + 4 + 1


def test_64_bits_that_are_turned_off_later_are_refused(data_dir):
    with jax.enable_x64(True):
        source = streaming(data_dir, name="text", include_keys={"wide"}, shuffle=False)
        assert source.get_batch(2)["wide"].tolist() == [2**40, 2**40 + 1]
    for read in (lambda: source.get_batch(2), lambda: source[0]):
        with pytest.raises(RuntimeError, match=r"'wide' would be cut(.|\n)*fix:"):
            read()


def test_stages_see_batches_of_a_stream(data_dir):
    source = streaming(data_dir, "8 devices")
    double = lambda batch: batch | {"id": 2 * batch["id"]}
    batch = next(iter(Pipeline(source=source, stages=[double], batch_size=SIZE)))
    assert ids(batch) == [2 * number for number in expected_ids()[:SIZE]]


class TestChoice:
    """`from_tfds`: on the devices if it is small there."""

    def make(self, data_dir, name="tiny", **fields):
        return from_tfds(name, "train", data_dir=str(data_dir), **fields)

    def test_a_small_split_goes_to_the_devices(self, data_dir, caplog):
        with caplog.at_level(logging.INFO, "datarax_tfds"):
            source = self.make(data_dir, shuffle=True, seed=5, prefetch_buffer=3)
        assert isinstance(source, TFDSEagerSource)
        assert source.choice is not None
        assert source.choice.startswith("eager, since 6,596 bytes of records take 0.0%")
        assert f"from_tfds(tiny:train): {source.choice}" in caplog.text
        assert ids(source.get_batch(SIZE)) == expected_ids()[:SIZE]

    def test_the_choice_is_shown_by_the_source_and_its_clones(self, data_dir):
        source = self.make(data_dir)
        for each in (source, source.clone(), source.copy(name="copy")):
            assert repr(each).endswith(f"; {source.choice}")
        assert self.make(data_dir, eager=True).choice is None

    @pytest.mark.parametrize("fields", [{}, {"access": "sequential"}])
    def test_the_split_and_the_decoder_are_opened_once(self, data_dir, fields, monkeypatch):
        build, made = RecordReader.__init__, []

        def noting(self, *given):
            made.append(self)
            build(self, *given)

        monkeypatch.setattr(RecordReader, "__init__", noting)
        source = self.make(data_dir, **fields)
        assert len(made) == 1
        with pytest.raises(IndexError, match=rf"^{type(source).__name__}\(tiny:train\): "):
            source.get_records([N])

    def test_a_large_split_stays_on_disk(self, data_dir, monkeypatch):
        from datarax_tfds.records import memory

        monkeypatch.setattr(memory, "free_device_bytes", lambda batch: 60_000)
        source = self.make(data_dir, layout="sharded")
        assert isinstance(source, TFDSStreamingSource)
        assert "streaming, since 6,596 bytes of records take 11.0%" in repr(source)
        spread = self.make(data_dir, sharding=shardings()["8 devices"])
        assert isinstance(spread, TFDSEagerSource)  # cut over eight devices it is small

    @pytest.mark.parametrize(
        ("name", "fields", "reason"),
        [
            ("text", {}, "not all of one shape, or hold text"),
            ("tiny", {"map_fn": lambda record, seed: record}, "from epoch to epoch"),
            ("tiny", {"access": "sequential"}, "access is sequential"),
        ],
    )
    def test_what_cannot_lie_on_the_devices_is_streamed(self, data_dir, name, fields, reason):
        source = self.make(data_dir, name, **fields)
        assert isinstance(source, TFDSStreamingSource)
        assert reason in repr(source)

    @pytest.mark.parametrize("eager", [True, False])
    def test_one_may_choose(self, data_dir, eager):
        source = self.make(data_dir, eager=eager)
        assert isinstance(source, TFDSEagerSource) is eager

    def test_no_error_makes_it_choose(self, data_dir):
        with pytest.raises(ValueError, match="no such split"):
            from_tfds("tiny", "valid", data_dir=str(data_dir))
        with pytest.raises(ValueError, match="prefetch_buffer must be an integer"):
            self.make(data_dir, eager=True, prefetch_buffer=-1)
