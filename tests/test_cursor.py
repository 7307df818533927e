import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarax_tfds.order.cursor import Cursor, Schedule, Span

REMAINDERS = ["wrap", "drop", "pad"]


def positions(schedule: Schedule, cursor: Cursor) -> list[tuple[int, int]]:
    return [
        (span.epoch, position)
        for span in schedule.spans(cursor)
        for position in range(span.start, span.stop)
    ]


@pytest.mark.parametrize(
    ("remainder", "index", "spans", "after"),
    [
        ("wrap", 0, [(0, 0, 4)], (0, 4)),
        ("wrap", 4, [(0, 4, 8)], (0, 8)),
        ("wrap", 6, [(0, 6, 10)], (1, 0)),  # ends with the epoch
        ("wrap", 8, [(0, 8, 10), (1, 0, 2)], (1, 2)),
        ("pad", 8, [(0, 8, 10)], (1, 0)),
        ("pad", 4, [(0, 4, 8)], (0, 8)),
        ("drop", 4, [(0, 4, 8)], (1, 0)),  # 8 and 9 are left out
        ("drop", 2, [(0, 2, 6)], (0, 6)),
        ("drop", 8, [(1, 0, 4)], (1, 4)),  # a cursor that no full batch starts from
    ],
)
def test_what_a_batch_of_4_of_10_records_takes(remainder, index, spans, after):
    schedule, cursor = Schedule(10, 4, remainder), Cursor(0, index)
    assert list(schedule.spans(cursor)) == [Span(*span) for span in spans]
    assert schedule.after(cursor) == Cursor(*after)


def test_a_batch_may_span_many_epochs():
    schedule = Schedule(3, 8)
    assert list(schedule.spans(Cursor(5, 2))) == [
        Span(5, 2, 3), Span(6, 0, 3), Span(7, 0, 3), Span(8, 0, 1),
    ]  # fmt: skip
    assert schedule.after(Cursor(5, 2)) == Cursor(8, 1)


@pytest.mark.parametrize(
    ("remainder", "index", "steps"),
    [("wrap", 0, 3), ("wrap", 2, 2), ("wrap", 9, 1), ("pad", 0, 3), ("drop", 0, 2), ("drop", 8, 2)],
)
def test_steps_to_the_end_of_the_epoch(remainder, index, steps):
    assert Schedule(10, 4, remainder).steps(Cursor(0, index)) == steps


@given(
    length=st.integers(1, 50),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    remainder=st.sampled_from(REMAINDERS),
)
def test_every_position_comes_once_in_order_whatever_the_batch_sizes(length, sizes, remainder):
    if remainder == "drop":
        sizes = [min(size, length) for size in sizes]
    cursor, taken = Cursor(), []
    for size in sizes:
        schedule = Schedule(length, size, remainder)
        taken += positions(schedule, cursor)
        after = schedule.after(cursor)
        assert after > cursor
        assert 0 <= after.index < length
        cursor = after
    assert taken == sorted(taken)
    assert max(Counter(taken).values()) == 1
    if remainder != "drop":
        expected = [divmod(step, length) for step in range(len(taken))]
        assert taken == expected


@given(
    length=st.integers(1, 50), size=st.integers(1, 60), index=st.integers(0, 49),
    remainder=st.sampled_from(REMAINDERS),
)  # fmt: skip
def test_steps_are_the_batches_until_the_epoch_changes(length, size, index, remainder):
    if remainder == "drop":
        size = min(size, length)
    schedule, cursor = Schedule(length, size, remainder), Cursor(7, index % length)
    cursor = schedule.normalized(cursor)
    for _ in range(schedule.steps(cursor)):
        epoch = cursor.epoch
        cursor = schedule.after(cursor)
    assert cursor.epoch > epoch
    if remainder == "drop":
        assert cursor == Cursor(epoch + 1)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ((10, 4, "last"), "must be 'wrap', 'drop' or 'pad'(.|\n)*'last'(.|\n)*fix:"),
        ((10, 11, "drop"), "leave out every record(.|\n)*records: +10(.|\n)*fix:"),
    ],
)
def test_an_impossible_schedule_is_refused(schedule, message):
    with pytest.raises(ValueError, match=re.compile(message)):
        Schedule(*schedule)
