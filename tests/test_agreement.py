"""Real processes that differ, fail or stop: the others hear of it, by name and in time."""

import json
import re
import shutil
import sys
import time

import pytest
import warmed
from checkout import GUARD_S, WORKERS, run

from datarax_tfds.cli import launching
from sharding.hosts.agreement import agree

DIFFERS = {
    "seed": "seed",
    "split": "split, records|records, split",
    "split of each process": "split(.|\n)*fix: +pass the whole split on every process",
    "shuffle": "shuffle",
    "features": "features",
    "map_fn": "user_code(.|\\n)*fix: +let map_fn and decoders use the same values",
    "files": "fingerprint",
    "order": "order",
    "batch size": "batch_size",
    "remainder": "remainder",
    "eager": "seed",
    "graph": "edges",
    "restore": "index",
    "pipeline restore": "index",
    "save": "index",
    "what is done": "about",
    "checkpoints": "file of process 0",
    "0 comes again": "seed",
    "1 comes again": "seed",
    "0 gives up": "about",
    "then": "seed",
    "1 gives up": "about",
    "1 gives up in time": "about",
    "and then": "seed",
}
LATE = ["late", "late twice", "late after an error"]


def test_processes_that_differ_refuse_before_anything_is_read_or_moved(data_dir, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(data_dir / "tiny", elsewhere / "tiny")
    info = next((elsewhere / "tiny").rglob("dataset_info.json"))
    info.write_text(info.read_text().replace('"numBytes": "', '"numBytes": "1'))  # other records
    run(2, "agree.py", data_dir, elsewhere, tmp_path, logs=tmp_path)
    texts = {(tmp_path / f"{process}.json").read_text() for process in (0, 1)}
    assert len(texts) == 1  # the same words, wherever one looks
    one, verdict = json.loads(texts.pop())
    assert set(one) == {*DIFFERS, *LATE, "late but busy"}
    for case, field in DIFFERS.items():
        kind, message = one[case]
        assert kind == "DisagreementError", case
        assert re.search(rf"do not agree on .*({field})", message), message
        assert re.search(r"process 0 \(.+\): .*; process 1 \(.+\): (.|\n)*fix:", message), message
    for case in LATE:
        kind, message = one[case]
        assert kind == "WaitTimeoutError", case
        assert re.search(r"late: +process 1 \(.+\)\n(.|\n)*fix:", message)
    assert one["late but busy"] == ["WaitTimeoutError", "none"]
    log = (tmp_path / "process-0.log").read_text()
    assert re.search(r"waiting for \d+ s for process 1 .*, which is preparing a dataset", log)
    assert re.fullmatch(r"process 1 on .+ is slow: input-bound: .+", verdict)
    assert re.search(r"all of them: process 1 on .+ is slow: input-bound: .+", log)


def test_alone_there_is_nobody_to_agree_with():
    agree("anything", {"seed": 1}, [0])


@pytest.mark.parametrize(
    ("how", "who", "heard", "within_s"),
    [
        ("raised", 1, r"PeerFailedError: process 0(.|\n)*ValueError: what the user's", 5),
        ("raised", 0, r"PeerFailedError: process 1(.|\n)*ValueError: what the user's", 5),
        ("stopped", 1, r"process 1 \(.+\) has not been heard of(.|\n)*fix:", 12 + 2),
        ("left alone", 1, r"process 1 \(.+; process 0 is waiting for it", 2 + 2),
    ],
)
def test_no_process_waits_for_one_that_failed(
    data_dir, tmp_path, figure, how, who, heard, within_s
):
    command = [sys.executable, str(WORKERS / "end.py"), str(data_dir), how, str(who)]
    processes = launching.start(2, command, tmp_path, warmed.Popen)
    others = [process for number, process in enumerate(processes) if number != who]
    logs = [tmp_path / f"process-{number}.log" for number in (0, 1)]
    deadline = time.monotonic() + GUARD_S

    def done():
        if not re.search(r"at [\d.]+\n", logs[who].read_text()):
            return False  # on a busy machine, the first batches are late by themselves
        if how == "left alone":
            return re.search(heard, logs[1 - who].read_text())
        return all(process.poll() is not None for process in others)

    try:
        while not done():
            assert time.monotonic() < deadline, logs[1 - who].read_text()[-2000:]
            time.sleep(0.02)
        ended = time.time()
        if how == "raised":
            assert [process.wait(GUARD_S) for process in processes] == [70, 70]
            ended = time.time()
    finally:
        launching.end(processes)
    begun = float(re.search(r"at ([\d.]+)", logs[who].read_text())[1])
    assert re.search(heard, logs[1 - who].read_text())
    name = {
        "raised": f"exception on process {who} of 2: until all have ended",
        "stopped": "one process SIGSTOPped: until the other says who, and ends (limit 12 s)",
        "left alone": "exception with fail_fast=False: until the log says who (limit 2 s)",
    }
    figure(name[how], f"{ended - begun:.1f} s", f"{within_s} s")
