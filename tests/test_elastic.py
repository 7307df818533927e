"""Killed at random, gone on with on another number of hosts, from a disk or from a store: exactly
once, in the same order.
"""

import itertools
import json
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import object_servers
import pytest
import warmed
from checkout import GUARD_S, WORKERS
from contract import KEPT, N
from oracle import expected_ids, mixed, numbers_of_epochs

from datarax_tfds.cli import launching
from datarax_tfds.order.order import Order

WORKER = WORKERS / "train_and_note.py"


def notes(ledger: Path, count: int) -> list[list[dict]]:
    """What each process of a run noted; the last line of a killed one may be cut."""
    runs = []
    for process in range(count):
        path = Path(f"{ledger}-{process}.jsonl")
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        runs.append([json.loads(line) for line in lines if line.endswith("\n")])
    return runs


def committed(checkpoints: Path) -> bool:
    return any(path.name.isdecimal() for path in checkpoints.glob("*"))


def replayed(runs: list[list[dict]]) -> list[int]:
    """The records that training has seen in the end: a restart takes back what came after."""
    seen: list[int] = []
    total = 0
    for run in runs:
        for note in run:
            del seen[note["position"] :]  # at the first note of a run; none is skipped:
            assert len(seen) == note["position"]
            seen += note["ids"]
            total = sum(number % 7 for number in seen)
            assert note["sum"] == total  # the model and the data were saved together
    return seen


# Source, processes, batch size, and when all are killed: at random, or at a moment of their own.
SHORT = [
    ("eager", 2, 12, "random"),
    ("streaming", 1, 20, "save"),
    ("streaming", 4, [[0, 8], [50, 12]], "random"),  # a size that changes during the run
    ("eager", 2, [[0, 16], [150, 24], [200, 32]], None),
]
KINDS = itertools.cycle(["eager", "streaming", "streaming"])
COUNTS = itertools.cycle([4, 2, 3, 1])
BATCHES = itertools.cycle([12, 24, 36, 12, 48])
MOMENTS = itertools.cycle(["random", "save", "random", "epoch", "restore", "random"])
# Where the next run reads the data.
PLACES = ["disk", "store", "store", "disk", "disk", "store", "disk"]
FULL = [
    *itertools.islice(zip(KINDS, COUNTS, BATCHES, MOMENTS, strict=False), 26),
    ("eager", 4, 12, None),
]


@pytest.fixture
def store(data_dir, tmp_path):
    """A store with the dataset that is on the disk."""
    datasets = f"gs://{object_servers.BUCKET}/datasets"
    with (
        object_servers.gcs(tmp_path / "gcs") as variables,
        object_servers.environment(XDG_CACHE_HOME=str(tmp_path / "cache"), **variables),
    ):
        object_servers.upload(data_dir / "tiny", f"{datasets}/tiny")
        yield datasets


# A mixture, whose weights change at record 50: within a batch of each of these sizes.
MIXTURE = [("mixture", 2, 12, "random"), ("mixture", 1, 20, "save"), ("mixture", 4, 8, None)]
FILTERED = [("filtered", 2, 12, "random"), ("filtered", 1, 20, None)]


def expected_of_mixture(count: int) -> list[int]:
    """The ids at the first positions, worked out apart from the library."""
    stages = [(0, {"web": 7, "code": 3}), (50, {"web": 1, "code": 3})]
    first = {"web": 0, "code": 60}  # the number in `tiny` of the first record of each part
    drawn = mixed(stages, {"web": Order(60, 5), "code": Order(N - 60, 5)}, count)
    return [first[name] + number for name, number in drawn]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("what", ["one split", "mixture", "filter"])
def test_killed_and_gone_on_with_elsewhere_every_record_comes_once(
    data_dir, tmp_path, figure, full, store, what
):
    plan = {"mixture": MIXTURE, "filter": FILTERED}.get(what, FULL if full else SHORT)
    length = len(KEPT) if what == "filter" else N
    chance = random.Random(7)
    checkpoints = tmp_path / "checkpoints"
    history = []
    kills = 0
    for number, ((kind, count, batch_size, moment), place) in enumerate(
        zip(plan, itertools.cycle(PLACES))
    ):
        logs = tmp_path / f"run-{number}"
        logs.mkdir()
        ledger = logs / "ledger"
        epochs = 10_000 if moment else len(replayed(history)) // length + 3
        datasets = data_dir if place == "disk" else store
        command = [sys.executable, WORKER, datasets, checkpoints, ledger, kind, batch_size, epochs]
        command = [*map(str, command), str(moment)]
        processes = launching.start(count, command, logs, warmed.Popen)
        steps = chance.randint(5, 9) if moment == "random" else float("inf")
        deadline = time.monotonic() + GUARD_S
        try:
            while min(map(len, notes(ledger, count))) < steps or not committed(checkpoints):
                ended = [process.poll() for process in processes]
                if any(ended) or all(status == 0 for status in ended):
                    break
                assert time.monotonic() < deadline, f"run {number} did not come so far"
                time.sleep(0.01)
            if moment == "random":
                time.sleep(chance.random() * 0.05)  # anywhere in a step, or in a save
        finally:
            launching.end(processes)
        printed = "\n".join(path.read_text()[-2000:] for path in logs.glob("*.log"))
        states = [process.returncode for process in processes]
        if moment is None:
            assert states == [0] * count, printed
        else:
            assert -signal.SIGKILL in states, printed
            kills += states.count(-signal.SIGKILL)
        runs = notes(ledger, count)
        shared = min(map(len, runs))
        assert shared >= {"random": 3, "restore": 0}.get(moment, 1), printed
        assert all(run[:shared] == runs[0][:shared] for run in runs)  # all hosts saw the same
        history.append(max(runs, key=len))
    seen = replayed(history)
    expected = expected_ids(len(seen) // N + 1)[: len(seen)]
    if what == "mixture":
        expected = expected_of_mixture(len(seen))
    if what == "filter":
        numbers = numbers_of_epochs(Order(length, 5), len(seen) // length + 1)[: len(seen)]
        expected = [KEPT[number] for number in numbers]
    lost, twice = Counter(expected) - Counter(seen), Counter(seen) - Counter(expected)
    places = " -> ".join(str(count) for _, count, _, _ in plan[:5])
    figure(
        f"records of {what} lost / delivered twice over {kills} SIGKILLs,"
        f" {len(plan)} runs on {places} -> ... processes",
        f"{lost.total()} / {twice.total()} of {len(seen):,}",
        "0 / 0",
    )
    assert seen == expected
    assert len(seen) == epochs * length + len(seen) % length
    restarts = [run[0]["position"] for run in history[1:] if run]
    assert all(restarts)  # each went on from a checkpoint, none began anew


def test_the_oracle_notices_what_is_wrong():
    """Faults that an oracle on sets, or on counts, would miss."""
    order = expected_ids()[:40]
    label = lambda ids: sum(number % 7 for number in ids)

    def run(*batches, at=0, before=()):
        result, seen = [], list(before)
        for ids in batches:
            seen += ids
            result.append({"position": at, "ids": ids, "sum": label(seen)})
            at += len(ids)
        return result

    good = [run(order[:8], order[8:16]), run(order[8:20], order[20:40], at=8, before=order[:8])]
    assert replayed(good) == order
    swapped = [order[1], order[0], *order[2:8]]
    repeated = [order[0], *order[:7]]
    for wrong in (swapped, repeated, order[1:9]):
        assert replayed([run(wrong)]) != order[:8]
    with pytest.raises(AssertionError):
        replayed([run(order[:8]), run(order[9:16], at=9, before=order[:8])])
