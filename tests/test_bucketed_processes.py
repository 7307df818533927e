"""Batches of a few lengths on several processes, which are killed and gone on with by others."""

import ragged_records
from oracle import bucketed
from ragged_records import LENGTHS, SIZES, N, bucket
from restarted_jobs import runs

from datarax_tfds.order.order import Order

# Processes, batch size, steps, and whether it is killed after the last one, which is not saved.
PLAN = [(2, 4, 7, True), (1, 6, 5, True), (4, 8, 12, False)]


def test_killed_and_gone_on_with_elsewhere_every_record_comes_once_as_short_as_can_be(tmp_path):
    ragged_records.write(tmp_path / "data")
    seen, read = [], []
    for notes, counts in runs("buckets.py", [tmp_path / "data"], tmp_path, PLAN, "read"):
        read.append(counts)
        for note in notes:
            assert note["position"] <= len(seen)  # what was not saved comes again
            del seen[note["position"] :]
            length = LENGTHS[max(map(bucket, note["id"]))]
            for one, tokens in zip(note["id"], note["tokens"], strict=True):
                assert tokens == ragged_records.padded(one, length)["tokens"].tolist()
            assert note["tokens_length"] == [SIZES[one] for one in note["id"]]
            seen += note["id"]
    buckets = [bucket(one) for one in range(N)]
    rule = [bucketed(Order(N, 5), buckets, 24, 65_520, True, epoch) for epoch in range(2)]
    assert len(seen) == 6 * 4 + 4 * 6 + 12 * 8
    assert seen == (rule[0] + rule[1])[: len(seen)]
    assert sorted(rule[0]) == list(range(N))
    # All lengths are read once, by the first two processes together.
    first = read[-1][0]
    assert sum(read[0]) >= N
    assert read[1:] == [[first], [first] * 4]
    assert first < 10
