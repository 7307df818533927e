"""Datasets in stores of objects: the same batches and states as from a disk, under every fault."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import object_servers
import pytest
from checkout import GUARD_S, ROOT
from conftest import wait_for
from faulty_store import FaultyStore
from object_servers import BUCKET, environment, upload
from pairs import all_pairs
from refusals import refused

from datarax_tfds import (
    DataLossError,
    DatasetNotFoundError,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    TrustError,
    random_access,
)
from datarax_tfds.files import remote_dataset
from datarax_tfds.files.record_index import index_content
from datarax_tfds.files.stored_object import version_of
from datarax_tfds.stores import object_store
from datarax_tfds.stores.object_path import ObjectPath

DATASETS = f"gs://{BUCKET}/datasets"
TRAIN = "tiny-train.tfrecord"
FIRST = f"{TRAIN}-00000-of-00004"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache directory of the test's own."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache / "datarax_tfds"


@pytest.fixture(scope="session")
def served(data_dir, tmp_path_factory):
    """The environment that leads to a real server of each kind, which holds the tiny datasets."""
    with (
        object_servers.gcs(tmp_path_factory.mktemp("gcs")) as gcs,
        object_servers.s3() as s3,
        environment(**gcs, **s3),
    ):
        for name in ("tiny", "tiny_array", "tiny_uneven"):
            for scheme in ("gs", "s3"):
                upload(data_dir / name, f"{scheme}://{BUCKET}/datasets/{name}")
        yield gcs | s3


@pytest.fixture
def store(data_dir):
    """A store of our own with the tiny datasets, at its first errors."""
    with FaultyStore.started() as store:
        for name in ("tiny", "tiny_array"):
            store.put(data_dir / name, f"datasets/{name}")
        yield store
        # Otherwise they would go on with the store of the next test.
        wait_for(
            lambda: not any("datarax_tfds_open" in each.name for each in threading.enumerate())
        )


@pytest.fixture
def impatient(monkeypatch):
    """Few retries: faults that last are reported within seconds."""
    monkeypatch.setattr(object_store, "PATIENCE", object_store.Patience(retries=3, answer_s=30.0))


def stream(data_dir, name="tiny", **fields):
    fields = {"split": "train", "shuffle": True, "access": "random"} | fields
    return TFDSStreamingSource(TFDSStreamingConfig(name=name, data_dir=str(data_dir), **fields))


def batches(source, count=8, size=16):
    return [{k: np.asarray(v) for k, v in source.get_batch(size).items()} for _ in range(count)]


def nowhere():
    """An address at which no server is."""
    return f"http://127.0.0.1:{object_servers.free_port()}"


def equal(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            assert np.array_equal(one[key], other[key])


class TestRealServers:
    @pytest.mark.parametrize(
        ("scheme", "name", "access"),
        all_pairs(["gs", "s3"], ["tiny", "tiny_array", "tiny_uneven"], ["random", "sequential"]),
    )
    def test_a_stream_gives_the_batches_and_the_state_of_a_disk(
        self, served, data_dir, scheme, name, access
    ):
        disk = stream(data_dir, name, access=access)
        remote = stream(f"{scheme}://{BUCKET}/datasets", name, access=access)
        equal(batches(disk, 3), batches(remote, 3))
        assert disk.get_state() == remote.get_state()
        moved = stream(f"{scheme}://{BUCKET}/datasets", name, access=access)
        moved.set_state(disk.get_state())  # from disk to store
        back = stream(data_dir, name, access=access)
        back.set_state(remote.get_state())  # from store to disk
        equal(batches(back, 5), batches(moved, 5))

    @pytest.mark.parametrize("name", ["tiny", "tiny_array"])
    def test_records_by_number_are_those_of_a_disk(self, served, data_dir, name):
        disk, remote = (
            random_access(TFDSStreamingConfig(name=name, split="train", data_dir=str(place)))
            for place in (data_dir, f"gs://{BUCKET}/datasets")
        )
        copy = pickle.loads(pickle.dumps(remote))
        numbers = [5, 96, 0, 41]
        equal(copy.__getitems__(numbers), disk.__getitems__(numbers))

    @pytest.mark.parametrize("scheme", ["gs", "s3"])
    def test_an_eager_source_holds_the_records_of_a_disk(self, served, data_dir, scheme):
        fields = {"name": "tiny", "split": "test+train[10:50]", "shuffle": True}
        disk = TFDSEagerSource(TFDSEagerConfig(data_dir=str(data_dir), **fields))
        there = f"{scheme}://{BUCKET}/datasets"
        equal(batches(disk), batches(TFDSEagerSource(TFDSEagerConfig(data_dir=there, **fields))))

    @pytest.mark.parametrize("scheme", ["gs", "s3"])
    @pytest.mark.parametrize("place", ["", "/1.0.0"])
    def test_from_directory_and_the_directory_itself_name_a_dataset(
        self, served, data_dir, scheme, place
    ):
        directory = f"{scheme}://{BUCKET}/datasets/tiny{place}"
        config = TFDSStreamingConfig.from_directory(directory, "train")
        assert config.name == "tiny"
        assert config.data_dir == f"{scheme}://{BUCKET}/datasets/tiny/1.0.0"
        disk = batches(stream(data_dir, shuffle=False))
        equal(batches(TFDSStreamingSource(config)), disk)
        equal(batches(stream(directory, shuffle=False)), disk)

    @pytest.mark.parametrize("scheme", ["gs", "s3"])
    def test_an_index_is_kept_beside_the_data_for_all_hosts(self, served, cache, scheme):
        source = stream(f"{scheme}://{BUCKET}/datasets")
        there = ObjectPath.parse(f"{scheme}://{BUCKET}/datasets/tiny/1.0.0/.record_index")
        assert {name for name in object_store.names(there) if name.startswith(TRAIN)} == {
            f"{TRAIN}-{shard:05}-of-00004" for shard in range(4)
        }
        shutil.rmtree(cache, ignore_errors=True)
        equal(batches(source), batches(stream(f"{scheme}://{BUCKET}/datasets")))

    def test_a_dataset_is_opened_without_tensorflow(self, served):
        code = (
            "import sys; from datarax_tfds.files.split import open_split\n"
            "from datarax_tfds import TFDSStreamingConfig\n"
            f"config = TFDSStreamingConfig(name='tiny', split='train', data_dir={DATASETS!r})\n"
            "split = open_split(config)\n"
            "assert len(split.files.read_one(96))\n"
            "assert 'tensorflow' not in sys.modules\n"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=GUARD_S)
        assert done.returncode == 0, done.stderr


class TestFaults:
    @pytest.mark.parametrize("fault", [408, 429, 500, 503, "reset", "short"])
    @pytest.mark.parametrize("name", ["tiny", "tiny_array"])
    def test_what_passes_changes_no_batch(self, store, data_dir, name, fault):
        """Every object's first answers fail: of its metadata, of its index, and of its records."""
        failed = {}

        def fails(request):
            # A list or a stat has no bytes to be short of; TensorStore reads them whole.
            if fault == "short" and request.range is None:
                return None
            failed[request.name] = failed.get(request.name, 0) + 1
            return fault if failed[request.name] <= 2 else None

        store.fault = fails
        disk = batches(stream(data_dir, name))
        equal(batches(stream(DATASETS, name)), disk)
        assert len(failed) >= 4

    @pytest.mark.parametrize(("fault", "kind"), [("page", "list"), (501, "list"), (501, "read")])
    def test_no_error_quotes_an_answer_or_the_password_of_an_endpoint(
        self, store, impatient, monkeypatch, fault, kind
    ):
        url = os.environ["TENSORSTORE_GCS_HTTP_URL"].replace("://", "://me:secret-word@")
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        store.fault = lambda request: fault if request.kind == kind else None
        with refused(ConnectionError, r"^gs://.*does not answer.*endpoint: http://127") as raised:
            stream(DATASETS)
        assert "secret" not in str(raised.value)

    @pytest.mark.parametrize("address", ["http://a b", "http://[::1", "127.0.0.1:99999", "%zz"])
    def test_an_endpoint_that_is_no_address_is_refused(self, store, monkeypatch, address):
        """TensorStore would read beside the answer, and may crash."""
        monkeypatch.delenv("TENSORSTORE_GCS_HTTP_URL")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        with refused(ConnectionError, r"^gs://.*is not the address of a server.*EMULATOR_HOST"):
            stream(DATASETS)

    @pytest.mark.parametrize(
        ("fault", "kind", "message"),
        [
            (503, ConnectionError, r"does not answer.*offset: .*503.*fix:.*TENSORSTORE_GCS_HTTP_"),
            (403, PermissionError, r"does not let.*offset: .*403.*fix:.*Storage Object Viewer"),
            ("short", ConnectionError, r"does not answer.*shorter than what was requested"),
            ("wrong", DataLossError, r"checksum.*record: .*fix:.*max_corrupt_records"),
        ],
    )
    def test_what_lasts_is_an_error_that_names_the_object(
        self, store, impatient, fault, kind, message
    ):
        source = stream(DATASETS)
        batches(source, 1)
        store.fault = lambda request: (
            fault if request.kind == "read" and ".tfrecord-0000" in request.name else None
        )
        with refused(kind, rf"^gs://{BUCKET}/datasets/tiny/1.0.0/{TRAIN}.*{message}") as raised:
            batches(source)
        assert "secret" not in str(raised.value)
        store.fault = lambda _: None
        state = source.get_state()
        again = stream(DATASETS)
        again.set_state(state)
        equal(batches(source), batches(again))  # nothing is lost, and nothing comes twice

    def test_a_store_that_never_answers_is_an_error_in_time(self, store, monkeypatch):
        source = stream(DATASETS)
        monkeypatch.setattr(object_store, "PATIENCE", object_store.Patience(answer_s=1.0))
        store.fault = lambda _: "hang"
        with refused(ConnectionError, r"^gs://.*no answer within 1 s.*fix:"):
            batches(source)

    def test_a_dead_store_is_an_error_in_time(self, impatient, monkeypatch):
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", nowhere())
        with refused(ConnectionError, r"^gs://.*Could not connect.*fix:"):
            stream(DATASETS)

    def test_an_object_that_is_replaced_during_a_run_is_refused(self, store, data_dir):
        source = stream(DATASETS)
        batches(source, 1)
        for shard in range(4):
            store.generations[f"datasets/tiny/1.0.0/{TRAIN}-{shard:05}-of-00004"] = 2
        with refused(DataLossError, rf"^gs://.*{TRAIN}.*was replaced.*fix:.*build the source anew"):
            batches(source)
        equal(batches(stream(DATASETS)), batches(stream(data_dir)))  # of the new generation

    def test_a_missing_object_is_refused_when_the_source_is_built(self, store):
        del store.objects[f"datasets/tiny/1.0.0/{FIRST}"]
        with refused(DataLossError, rf"1 of 4 files of the split are missing.*gs://.*{FIRST}"):
            stream(DATASETS)

    def test_an_object_with_other_records_than_the_metadata_say_is_refused(self, store):
        store.objects[f"datasets/tiny/1.0.0/{FIRST}"] = b""
        with refused(DataLossError, rf"^gs://.*{FIRST}: the file holds 0 records.*says 24"):
            batches(stream(DATASETS))

    def test_an_object_that_is_cut_short_is_refused(self, store):
        name = f"datasets/tiny/1.0.0/{FIRST}"
        store.objects[name] = store.objects[name][:-3]
        with refused(DataLossError, rf"^gs://.*{FIRST}: the file is cut short.*offset: "):
            batches(stream(DATASETS))

    def test_a_store_that_cannot_be_written_is_read_by_the_cache(self, store, cache):
        store.writable = False
        first = batches(stream(DATASETS))
        assert not [name for name in store.objects if ".record_index" in name]
        store.requests.clear()
        equal(batches(stream(DATASETS)), first)
        assert store.count("read", TRAIN) == len(
            [each for each in store.requests if each.range and TRAIN in each.name]
        )  # no object is read as a whole again

    def test_a_damaged_index_in_the_store_is_built_again(self, store, cache, data_dir):
        stream(DATASETS)
        shutil.rmtree(cache)
        for name in [name for name in store.objects if ".record_index" in name]:
            store.objects[name] = store.objects[name][:-8] + bytes(8)
        equal(batches(stream(DATASETS)), batches(stream(data_dir)))


class TestSizes:
    @pytest.mark.parametrize("megabytes", [0, 0.001, 1, 2.5, 3, 7.9, 8, 33])
    def test_the_length_of_an_object_is_found_without_reading_it(self, store, megabytes):
        length = int(megabytes * (1 << 20))
        store.objects["x"] = bytes(length)
        assert object_store.object_bytes(ObjectPath.parse(f"gs://{BUCKET}/x")) == length
        assert sum(each.answered for each in store.requests) <= 2 << 20


class TestBlocks:
    def test_a_store_is_read_in_blocks_of_bytes_unless_one_asks_for_single_records(
        self, store, data_dir
    ):
        remote = stream(DATASETS, access="auto")
        order = remote.get_state()["order"]
        size = int(re.search(r"blocks of (\d+)", str(order))[1])
        assert size == 97  # of 200 bytes: a block has 2 MiB, or all records
        disk = stream(data_dir, access="sequential", block_size=size)
        assert disk.get_state() == remote.get_state()
        equal(batches(remote), batches(disk))
        local = stream(data_dir, access="auto")
        assert local.get_state() == stream(data_dir).get_state()

    def test_a_block_takes_one_request(self, store, data_dir):
        source = stream(DATASETS, access="auto", block_size=8, shuffle_buffer_size=32)
        batches(source, 1, 1)
        store.requests.clear()
        batches(source, 6, 16)
        reads = store.count("read", TRAIN)
        assert reads <= 12 + 3  # 13 blocks, of which three lie in two shards; some are there
        disk = stream(data_dir, access="sequential", block_size=8, shuffle_buffer_size=32)
        batches(disk, 1, 1)
        batches(disk, 6, 16)
        equal(batches(source, 2), batches(disk, 2))


@pytest.fixture
def kept(tmp_path):
    """The fields of streams that keep blocks of eight records on the local disk."""
    return {
        "access": "sequential",
        "shuffle_buffer_size": 16,
        "cache_dir": str(tmp_path / "kept"),
        "cache_bytes": 1 << 20,
    }


class TestReadAhead:
    @pytest.mark.parametrize("access", ["random", "sequential"])
    def test_many_records_are_requested_before_they_are_decoded(self, store, data_dir, access):
        """Text is decoded record by record, in few threads, which do not wait for the store."""
        store.put(data_dir / "text", "datasets/text")
        fields = {"name": "text", "access": access, "block_size": 1, "shuffle_buffer_size": 1}
        fields |= {"include_keys": {"text"}}
        source = stream(DATASETS, **fields)
        records = iter(source)
        first = [next(records) for _ in range(3)]
        until = time.monotonic() + GUARD_S
        while store.count("read", "text-train") < len(source) and time.monotonic() < until:
            time.sleep(0.01)
        assert store.count("read", "text-train") >= len(source)
        disk = [record for record, _ in zip(stream(data_dir, **fields), first, strict=False)]
        assert [str(record) for record in first] == [str(record) for record in disk]


class TestCacheDirectory:
    def test_blocks_are_read_once_by_all_jobs_of_a_host(self, store, data_dir, kept):
        disk = batches(stream(data_dir, access="sequential", shuffle_buffer_size=16), 12)
        source = stream(DATASETS, **kept)
        store.requests.clear()
        equal(batches(source, 12), disk)  # two epochs
        assert bytes_read(store) == sum(len(store.objects[name]) for name in shards(store))
        store.requests.clear()
        equal(batches(stream(DATASETS, **kept), 12), disk)
        assert bytes_read(store) < 1000  # of the record that shows what a record is

    def test_a_bound_that_is_smaller_than_the_split_changes_no_batch(self, store, data_dir, kept):
        kept |= {"cache_bytes": 8000}
        disk = batches(stream(data_dir, access="sequential", shuffle_buffer_size=16), 24)
        equal(batches(stream(DATASETS, **kept), 24), disk)
        files = Path(kept["cache_dir"]).rglob("*")
        assert 4000 < sum(file.stat().st_size for file in files if file.is_file()) <= 8008

    def test_a_directory_that_is_removed_meanwhile_changes_no_batch(self, store, data_dir, kept):
        source = stream(DATASETS, **kept)
        disk = stream(data_dir, access="sequential", shuffle_buffer_size=16)
        for _ in range(3):
            equal(batches(source, 4), batches(disk, 4))
            shutil.rmtree(kept["cache_dir"], ignore_errors=True)

    def test_blocks_of_a_replaced_object_are_not_used(self, store, kept):
        before = batches(stream(DATASETS, shuffle=False, **kept), 6)
        first, second = shards(store)[:2]
        store.objects[first], store.objects[second] = store.objects[second], store.objects[first]
        store.generations |= {first: 2, second: 2}
        after = batches(stream(DATASETS, shuffle=False, **kept), 6)
        with pytest.raises(AssertionError):
            equal(before, after)
        equal(after, batches(stream(DATASETS, shuffle=False, access="sequential"), 6))

    def test_bytes_that_the_store_damaged_are_not_kept(self, store, data_dir, kept):
        store.fault = lambda request: (
            "wrong" if request.range and request.name in shards(store) else None
        )
        with refused(DataLossError, "checksum"):
            batches(stream(DATASETS, **kept))
        store.fault = lambda _: None
        disk = batches(stream(data_dir, access="sequential", shuffle_buffer_size=16))
        equal(batches(stream(DATASETS, **kept)), disk)


def shards(store):
    return sorted(name for name in store.objects if re.search(rf"1.0.0/{TRAIN}-", name))


def bytes_read(store):
    """How many bytes of the files of the split were read."""
    names = shards(store)
    return sum(each.answered for each in store.requests if each.name in names)


class TestTrust:
    def test_metadata_that_name_code_are_refused(self, store):
        name = "datasets/tiny/1.0.0/features.json"
        store.objects[name] = store.objects[name].replace(
            b"tensorflow_datasets.core.features.", b"planted.features."
        )
        with refused(TrustError, rf"^gs://{BUCKET}/{name}: .*asks for code.*fix:"):
            stream(DATASETS)

    def test_the_name_of_an_object_does_not_lead_out_of_the_private_copy(self, store, tmp_path):
        features = store.objects["datasets/tiny/1.0.0/features.json"]
        for name in ("../../../../../../../../planted", "1.0.0/../../../../../../../planted"):
            store.objects[f"datasets/tiny/{name}/features.json"] = features
        stream(DATASETS)
        assert not Path("/planted").exists()
        assert not list(Path(tmp_path.anchor, "tmp").glob("planted"))

    def test_a_file_outside_of_the_dataset_is_refused(self, store):
        name = "datasets/tiny/1.0.0/dataset_info.json"
        store.objects[name] = store.objects[name].replace(b"{DATASET}-{SPLIT}", b"../x/{SPLIT}")
        with pytest.raises((TrustError, DataLossError), match=r"gs://(.|\n)*fix:"):
            stream(DATASETS)


class TestLookup:
    @pytest.mark.parametrize("status", [401, 403])
    def test_a_listing_that_is_denied_is_not_an_empty_one(self, store, status):
        store.fault = lambda _: status
        with refused(PermissionError, rf"^{DATASETS}/tiny: .*{status}"):
            stream(DATASETS)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("tinny", r"holds no prepared dataset.*searched: .*gs://.*tinny.*tfds build tinny"),
            ("tiny:2.0.0", r"but not as 'tiny:2.0.0'.*use name='tiny:1.0.0'"),
        ],
    )
    def test_what_the_store_does_not_hold_is_refused(self, store, name, message):
        with refused(DatasetNotFoundError, message):
            stream(DATASETS, name)

    def test_try_gcs_says_within_seconds_that_it_cannot_be_reached(self, monkeypatch, tmp_path):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        monkeypatch.setattr(remote_dataset, "BRIEF", object_store.Patience(retries=1, answer_s=8.0))
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", nowhere())
        config = TFDSStreamingConfig(name="mnist", split="train", try_gcs=True)
        with refused(ConnectionError, r"^gs://tfds-data/datasets/mnist: .*fix:"):
            TFDSStreamingSource(config)

    def test_try_gcs_says_how_long_it_waited_for_a_server_that_never_answers(
        self, store, monkeypatch, tmp_path
    ):
        """The short limit, not that of a store in use; it is named."""
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        monkeypatch.setattr(remote_dataset, "BRIEF", object_store.Patience(answer_s=1.0))
        store.fault = lambda _: "hang"
        config = TFDSStreamingConfig(name="mnist", split="train", try_gcs=True)
        with refused(ConnectionError, r"^gs://tfds-data/datasets/mnist: .*no answer within 1 s"):
            TFDSStreamingSource(config)

    def test_the_variable_of_emulators_leads_to_one_and_no_other_variable_is_set(
        self, store, data_dir, monkeypatch
    ):
        url = os.environ["TENSORSTORE_GCS_HTTP_URL"]
        monkeypatch.delenv("TENSORSTORE_GCS_HTTP_URL")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url.removeprefix("http://") + "/")
        before = dict(os.environ)
        equal(batches(stream(DATASETS)), batches(stream(data_dir)))
        assert dict(os.environ) == before

    def test_try_gcs_reads_the_public_bucket_of_tfds(self, store, data_dir, tmp_path, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        config = TFDSStreamingConfig(name="tiny", split="train", try_gcs=True)
        equal(batches(TFDSStreamingSource(config)), batches(stream(data_dir, shuffle=False)))


class TestRequests:
    def test_few_requests_open_a_dataset_and_none_touches_what_is_not_needed(self, store):
        batches(stream(DATASETS), 1)  # builds the indexes
        store.requests.clear()
        source = stream(DATASETS, split="train[:20]", shuffle=False)
        batches(source, 1)
        touched = {each.name for each in store.requests if each.kind in ("read", "stat")}
        assert {name for name in touched if ".tfrecord-" in name} == {
            f"datasets/tiny/1.0.0/{FIRST}"
        }

    def test_the_records_of_a_batch_are_requested_together(self, store):
        source = stream(DATASETS, shuffle=False, prefetch_buffer=0)
        batches(source, 1, 8)
        store.requests.clear()
        batches(source, 1, 8)
        assert store.count("read") == 1  # eight neighbours

    def test_ten_thousand_objects_are_not_looked_at_one_by_one(self, store, data_dir):
        many_objects(store, 10_000)
        source = stream(DATASETS, "tiny_many", prefetch_buffer=0)
        assert len(source) == 10_000
        assert store.count("list") <= 21  # a thousand names in each
        assert store.count("stat") <= 4  # of the records that show what a record is
        store.requests.clear()
        batches(source, 1, 16)
        assert store.count("list") == 0
        assert len(store.requests) <= 3 * 16  # generation, index and record of each
        assert sum(each.answered for each in store.requests) <= 16 * 500  # which are short


def many_objects(store: FaultyStore, count: int) -> None:
    """The tiny dataset again, with one record in each of many objects, which have indexes."""
    source, target = "datasets/tiny/1.0.0", "datasets/tiny_many/1.0.0"
    shard = store.objects[f"{source}/{FIRST}"]
    record = shard[: 16 + int.from_bytes(shard[:8], "little")]
    store.objects[f"{target}/features.json"] = store.objects[f"{source}/features.json"]
    info = json.loads(store.objects[f"{source}/dataset_info.json"])
    info["name"] = "tiny_many"
    info["splits"] = [each for each in info["splits"] if each["name"] == "train"]
    info["splits"][0] |= {"shardLengths": ["1"] * count, "numBytes": str(count * len(record))}
    store.objects[f"{target}/dataset_info.json"] = json.dumps(info).encode()
    generation = object_store.generation(ObjectPath.parse(f"{DATASETS}/tiny/1.0.0/{FIRST}"))
    index = index_content(np.array([0, len(record)]), version_of(generation, len(record)))
    for number in range(count):
        name = f"tiny_many-train.tfrecord-{number:05}-of-{count:05}"
        store.objects[f"{target}/{name}"] = record
        store.objects[f"{target}/.record_index/{name}"] = index
