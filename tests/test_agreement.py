"""Real processes that differ, fail or stop: the others hear of it, by name and in time."""

import json
import re
import shutil
import sys
import time

import launch_local
import pytest
from test_processes import WORKERS, run

from sharding import agree

DIFFERS = {
    "seed": "seed",
    "split": "split, records|records, split",
    "shuffle": "shuffle",
    "features": "features",
    "files": "fingerprint",
    "order": "order",
    "batch size": "batch_size",
    "remainder": "remainder",
    "eager": "seed",
    "restore": "index",
    "pipeline restore": "index",
    "save": "index",
    "what is done": "about",
    "checkpoints": "file of process 0",
}


def test_processes_that_differ_refuse_before_anything_is_read_or_moved(data_dir, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(data_dir / "tiny", elsewhere / "tiny")
    shard = next((elsewhere / "tiny").rglob("*train.tfrecord*"))
    shard.write_bytes(shard.read_bytes() + b"\0")
    run(2, "agree.py", data_dir, elsewhere, tmp_path, logs=tmp_path)
    one, other = (json.loads((tmp_path / f"{process}.json").read_text()) for process in (0, 1))
    assert one == other  # the same words, wherever one looks
    assert set(one) == {*DIFFERS, "late", "late but busy"}
    for case, field in DIFFERS.items():
        kind, message = one[case]
        assert kind == "DisagreementError", case
        assert re.search(rf"do not agree on .*({field})", message), message
        assert re.search(r"process 0 \(.+\): .*; process 1 \(.+\): (.|\n)*fix:", message), message
    kind, message = one["late"]
    assert kind == "WaitTimeoutError"
    assert one["late but busy"] == ["WaitTimeoutError", "none"]
    assert re.search(r"late: +process 1\n(.|\n)*fix:", message)


def test_alone_there_is_nobody_to_agree_with():
    agree("anything", {"seed": 1}, [0])


@pytest.mark.parametrize(
    ("how", "who", "heard", "within_s"),
    [
        ("raised", 1, r"PeerFailedError: process 0(.|\n)*ValueError: what the user's", 5),
        ("raised", 0, r"PeerFailedError: process 1(.|\n)*ValueError: what the user's", 5),
        ("stopped", 1, r"process 1 \(.+\) has not been heard of(.|\n)*fix:", 12 + 2),
        ("left alone", 1, r"no batch for \d+ s; process 1 \(", 2 + 2),
    ],
)
def test_no_process_waits_for_one_that_failed(
    data_dir, tmp_path, figure, how, who, heard, within_s
):
    command = [sys.executable, str(WORKERS / "end.py"), str(data_dir), how, str(who)]
    processes = launch_local.start(2, command, tmp_path)
    others = [process for number, process in enumerate(processes) if number != who]
    logs = [tmp_path / f"process-{number}.log" for number in (0, 1)]
    deadline = time.monotonic() + 120

    def done():
        if how == "left alone":
            return "no batch for" in logs[1 - who].read_text()
        return all(process.poll() is not None for process in others)

    try:
        while not done():
            assert time.monotonic() < deadline, logs[1 - who].read_text()[-2000:]
            time.sleep(0.02)
        ended = time.time()
        if how == "raised":
            assert [process.wait(5) for process in processes] == [70, 70]
            ended = time.time()
    finally:
        launch_local.end(processes)
    begun = float(re.search(r"at ([\d.]+)", logs[who].read_text())[1])
    assert re.search(heard, logs[1 - who].read_text())
    name = {
        "raised": f"exception on process {who} of 2: until all have ended",
        "stopped": "one process SIGSTOPped: until the other says who, and ends (limit 12 s)",
        "left alone": "exception with end_together=False: until the log says who (limit 2 s)",
    }
    figure(name[how], f"{ended - begun:.1f} s", f"{within_s} s")
    assert ended - begun < 10 * within_s  # that it does not hang; how long it takes is measured
