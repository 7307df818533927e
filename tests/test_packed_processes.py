"""Rows of tokens on several processes, which are killed and gone on with by others."""

import json
import signal
import sys
import time

import numpy as np
import packed_texts
import warmed
from checkout import GUARD_S, WORKERS
from oracle import numbers_of_epochs

from datarax_tfds.cli import launching
from datarax_tfds.order.order import Order

# Processes, batch size, steps, and whether it is killed after the last one, which is not saved.
PLAN = [(2, 4, 5, True), (1, 6, 3, True), (4, 8, 8, False)]


def test_killed_and_gone_on_with_elsewhere_every_row_comes_once(tmp_path):
    packed_texts.write(tmp_path / "data")
    place = tmp_path / "place"
    place.mkdir()
    seen = []
    encoded = []
    for number, (count, size, steps, killed) in enumerate(PLAN):
        logs = tmp_path / f"run-{number}"
        logs.mkdir()
        how = "killed" if killed else "ends"
        command = [tmp_path / "data", place, "concat", size, steps, how]
        command = [sys.executable, *map(str, [WORKERS / "packs.py", *command])]
        processes = launching.start(count, command, logs, warmed.Popen)
        deadline = time.monotonic() + GUARD_S
        try:
            while processes[0].poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            if not killed:
                assert [process.wait(GUARD_S) for process in processes] == [0] * count
        finally:
            launching.end(processes)
        printed = "\n".join(path.read_text()[-2000:] for path in logs.glob("*.log"))
        assert processes[0].returncode == (-signal.SIGKILL if killed else 0), printed
        encoded.append([int((place / f"encoded-{n}").read_text()) for n in range(count)])
        for note in map(json.loads, (place / "rows-0").read_text().splitlines()):
            assert note["position"] <= len(seen)  # what was not saved comes again
            del seen[note["position"] :]
            columns = (note[name] for name in ("tokens", "segment_ids", "positions"))
            seen += zip(*columns, strict=True)
        for path in place.glob("rows-*"):
            path.unlink()
    expected = packed_texts.rows_of(packed_texts.DOCUMENTS, "concat")
    rows = len(expected["tokens"])
    numbers = numbers_of_epochs(Order(rows, 5), -(-len(seen) // rows))[: len(seen)]
    assert len(seen) == 4 * 4 + 6 * 2 + 8 * 8
    for at, name in enumerate(("tokens", "segment_ids", "positions")):
        assert np.array_equal([row[at] for row in seen], expected[name][numbers]), name
    # All documents once, by one of two processes; otherwise the sample, twice, and none for a row.
    sample = 2 * 32
    assert sorted(encoded[0]) == [sample, sample + len(packed_texts.TEXTS)]
    assert encoded[1:] == [[sample], [sample] * 4]
