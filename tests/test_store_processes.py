"""Four real processes that read from a store: who asks for what, and what a fault does to whom."""

import json
import re
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import warmed
from checkout import GUARD_S, WORKERS
from contract import N
from faulty_store import FaultyStore
from object_servers import BUCKET, environment
from oracle import expected_ids
from test_object_store import many_objects

from datarax_tfds.cli import launching

COUNT, WHO, SIZE = 4, 2, 16
FILES = 1_200  # more than a store lists at once
SHARD = ".tfrecord-0"


@pytest.fixture(scope="module")
def job(data_dir, tmp_path_factory):
    """A job whose process 2 has a store that fails. It ends when that process ends."""
    folder = tmp_path_factory.mktemp("job")
    phases = {}
    with (
        FaultyStore.started() as store,
        environment(XDG_CACHE_HOME=str(folder / "cache"), NO_GCE_CHECK="true"),
    ):
        store.put(data_dir / "tiny", "datasets/tiny")
        many_objects(store, FILES)
        port = int(store.url.rpartition(":")[2])

        def told(what):
            if "phase" in what:
                phases[what["phase"]] = store.requests = []
                return
            failed, fault = Counter(), what["fault"]
            fault = None if fault == "None" else int(fault) if fault.isdecimal() else fault

            def fails(request):
                if request.who != f"process-{WHO}" or request.range is None:
                    return None
                failed[request.name] += 1
                return fault if failed[request.name] <= int(what["times"]) else None

            store.fault = fails if fault is not None else lambda _: None

        store.told = told
        command = [
            sys.executable,
            WORKERS / "reads_a_store.py",
            f"gs://{BUCKET}/datasets",
            folder,
            WHO,
        ]
        processes = launching.start(COUNT, [*map(str, command)], folder, warmed.Popen)
        try:
            deadline = time.monotonic() + GUARD_S
            while any(process.poll() is None for process in processes):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            launching.end(processes)
    said = [(folder / f"process-{process}.log").read_text() for process in range(COUNT)]
    assert all((folder / f"{process}.json").exists() for process in range(COUNT)), "\n".join(said)
    notes = [json.loads((folder / f"{process}.json").read_text()) for process in range(COUNT)]
    statuses = [process.returncode for process in processes]
    return SimpleNamespace(phases=phases, notes=notes, statuses=statuses, said=said, port=port)


def by_process(requests):
    return [[each for each in requests if each.who == f"process-{p}"] for p in range(COUNT)]


def test_a_process_opens_many_objects_by_a_fixed_number_of_requests(job):
    for requests in by_process(job.phases["open many objects"]):
        kinds = Counter(each.kind for each in requests)
        assert kinds["list"] <= 2 * (2 * FILES // 1000 + 1), requests  # a thousand names each
        assert sum(kinds.values()) - kinds["list"] <= 12
        assert kinds["write"] == 0


def test_a_process_asks_only_for_the_objects_of_its_own_rows(job):
    rows, numbers = SIZE // COUNT, job.notes[0]["numbers"]
    for process, requests in enumerate(by_process(job.phases["read of many objects"])):
        own = {
            number for step in range(3) for number in numbers[step * SIZE + process * rows :][:rows]
        }
        data = [each for each in requests if ".record_index" not in each.name]
        asked = {int(re.search(r"-(\d{5})-of", each.name)[1]) for each in requests}
        assert asked <= own
        read = Counter(each.name for each in data if each.kind == "read" and each.answered)
        assert max(read.values()) == 1  # nothing twice
        assert len(requests) <= 3 * len(own)  # generation, index and record


def test_each_object_is_read_once_for_its_index_by_all_processes_together(job):
    reads = [each for each in job.phases["index"] if each.kind == "read" and SHARD in each.name]
    whole = Counter(each.name for each in reads if not each.range and each.answered > 1000)
    assert len(whole) == 4
    assert set(whole.values()) == {1}
    others = [each for each in reads if each.name in whole and each.range]
    assert sum(each.answered for each in others) <= 300 * COUNT  # the first record, and an end


def test_the_batches_are_those_of_a_disk_under_every_fault(job):
    steps = len(job.notes[0]["rows"])
    assert steps == 11
    expected = expected_ids(steps * SIZE // N + 1)
    for step in range(steps):
        parts = sorted(part for notes in job.notes for part in notes["rows"][step])
        batch = [number for _, numbers in parts for number in numbers]
        assert batch == expected[step * SIZE :][:SIZE]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("503", r"ConnectionError: gs://.*does not answer.*status 503"),
        ("403", r"PermissionError: gs://.*does not let.*status 403"),
        ("404", r"DataLossError: gs://.*no such object"),
        ("wrong", r"DataLossError: gs://.*checksum"),
        ("replaced", r"DataLossError: gs://.*was replaced"),
    ],
)
def test_only_the_process_whose_store_fails_raises_and_reads_on_when_it_is_mended(
    job, fault, message
):
    for process, notes in enumerate(job.notes):
        assert (fault in notes["errors"]) == (process == WHO)
    assert re.search(rf"(?s){message}.*fix:", job.notes[WHO]["errors"][fault])


def test_all_end_when_the_store_of_one_fails_and_say_of_whom_and_why(job):
    assert job.statuses == [70] * COUNT
    for process, said in enumerate(job.said):
        named = "" if process == WHO else f"process {WHO} .*has failed.*"
        assert re.search(rf"(?s){named}PermissionError: gs://{BUCKET}/datasets/tiny.*fix:", said)


def test_a_process_is_connected_to_the_store_and_to_the_others_only(job):
    for notes in job.notes:
        assert {address.partition(":")[0] for address in notes["addresses"]} == {"127.0.0.1"}
        assert f"127.0.0.1:{job.port}" in notes["addresses"]
