"""Rows of tokens on several processes, which are killed and gone on with by others."""

import numpy as np
import packed_texts
from oracle import numbers_of_epochs
from restarted_jobs import runs

from datarax_tfds.order.order import Order

# Processes, batch size, steps, and whether it is killed after the last one, which is not saved.
PLAN = [(2, 4, 5, True), (1, 6, 3, True), (4, 8, 8, False)]


def test_killed_and_gone_on_with_elsewhere_every_row_comes_once(tmp_path):
    packed_texts.write(tmp_path / "data")
    seen, encoded = [], []
    arguments = [tmp_path / "data", "concat"]
    for notes, counts in runs("packs.py", arguments, tmp_path, PLAN, "encoded"):
        encoded.append(counts)
        for note in notes:
            assert note["position"] <= len(seen)  # what was not saved comes again
            del seen[note["position"] :]
            columns = (note[name] for name in ("tokens", "segment_ids", "positions"))
            seen += zip(*columns, strict=True)
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
