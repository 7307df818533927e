"""A batch size that depends on where a batch begins: arithmetic against counting one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from datarax_tfds.order.cursor import Cursor, Schedule, Span
from datarax_tfds.order.growing import GrowingSchedule, schedule_of
from datarax_tfds.order.order import Order
from datarax_tfds.order.sampler import BatchAt

REMAINDERS = ["wrap", "drop", "pad"]


def walked(length, stages, remainder, start, batches):
    """The positions of the first batches from a place on, one record after the other."""
    epoch, index = start
    found = []
    while len(found) < batches:
        size = [rows for record, rows in stages if record <= epoch * length + index][-1]
        if remainder == "drop" and index + size > length:
            epoch, index = epoch + 1, 0
            continue
        batch = []
        while len(batch) < size and not (remainder == "pad" and batch and index == 0):
            batch.append((epoch, index))
            epoch, index = (epoch, index + 1) if index + 1 < length else (epoch + 1, 0)
        found.append(batch)
    return found


@st.composite
def schedules(draw):
    """A length, stages and a remainder policy that go together, and a place."""
    length, remainder = draw(st.integers(1, 30)), draw(st.sampled_from(REMAINDERS))
    most = length if remainder == "drop" else 40
    records = sorted(draw(st.sets(st.integers(1, 5 * length), max_size=4)))
    stages = [(record, draw(st.integers(1, most))) for record in [0, *records]]
    place = (draw(st.integers(0, 4)), draw(st.integers(0, length - 1)))
    return length, stages, remainder, place


def positions(spans):
    return [(span.epoch, index) for span in spans for index in range(span.start, span.stop)]


@given(schedules(), st.booleans())
def test_batches_steps_and_cursors_are_those_found_by_counting(drawn, one_size):
    length, stages, remainder, place = drawn
    stages = stages[:1] if one_size else stages
    schedule = schedule_of(length, stages[0][1] if one_size else stages, remainder, 1)
    assert isinstance(schedule, Schedule if one_size else GrowingSchedule)
    start = Cursor(*place)
    expected = walked(length, stages, remainder, place, 60)
    first = [Cursor(*batch[0]) for batch in expected]
    cursor = schedule.normalized(start)
    for step, batch in enumerate(expected[:-1]):
        assert cursor == first[step] == schedule.advanced(start, step)
        assert positions(schedule.spans(cursor)) == batch
        size = [rows for at, rows in stages if at <= cursor.epoch * length + cursor.index][-1]
        assert schedule.at(cursor).batch_size == size
        cursor = schedule.after(cursor)
    ends = [Cursor(epoch, index) for epoch in range(place[0], 6) for index in range(length)]
    for end in [end for end in ends if end <= first[-1]]:
        assert schedule.steps_between(start, end) == sum(each < end for each in first)
    if first[-1] > Cursor(first[0].epoch + 1):
        here = sum(each.epoch == first[0].epoch for each in first)
        assert schedule.steps(start) == here


@given(schedules())
def test_runs_have_one_size_each_and_follow_on_each_other(drawn):
    length, stages, remainder, place = drawn
    schedule = schedule_of(length, stages, remainder, 1)
    step, runs = 0, list(schedule.runs(Cursor(*place)))
    for first, one, steps in runs[:-1]:
        assert first == schedule.advanced(Cursor(*place), step)
        assert {schedule.at(schedule.advanced(first, n)) for n in range(steps)} == {one}
        step += steps
    assert runs[-1][1:] == (schedule.stages[-1][1], float("inf"))


def test_a_batch_keeps_its_size_if_another_begins_within_it():
    schedule = schedule_of(10, [(0, 4), (6, 2), (21, 3)], "wrap", 1)
    cursors = [schedule.advanced(Cursor(), step) for step in range(10)]
    assert [c.epoch * 10 + c.index for c in cursors] == [0, 4, 8, 10, 12, 14, 16, 18, 20, 22]
    assert list(schedule.spans(Cursor(2, 9))) == [Span(2, 9, 10), Span(3, 0, 2)]


def test_a_smaller_size_takes_what_a_larger_one_would_have_dropped():
    schedule = schedule_of(10, [(0, 4), (8, 2)], "drop", 1)
    assert schedule.after(Cursor(0, 4)) == Cursor(0, 8)
    assert Schedule(10, 4, "drop").after(Cursor(0, 4)) == Cursor(1, 0)


@given(schedules(), st.data())
def test_the_rows_of_a_slice_are_those_of_the_whole_batch(drawn, data):
    length, stages, remainder, place = drawn
    batch = BatchAt(Order(length, 3), schedule_of(length, stages, remainder, 1), Cursor(*place), 3)
    batch = batch.following
    numbers, keys = batch.record_numbers(), batch.keys()
    assert len(numbers) == len(keys) == batch.batch_size
    start = data.draw(st.integers(0, batch.batch_size))
    rows = slice(start, data.draw(st.integers(start, batch.batch_size)))
    assert batch.record_numbers(rows).tolist() == numbers[rows].tolist()
    assert batch.keys(rows).tolist() == keys[rows].tolist()


def test_the_steps_of_a_long_run_take_no_time_to_count():
    schedule = schedule_of(10**9 + 7, [(0, 256), (10**12, 512), (10**15, 1024)], "pad", 1)
    step = schedule.steps_between(Cursor(), Cursor(10**7))
    assert schedule.advanced(Cursor(), step) == Cursor(10**7)
    assert schedule.advanced(Cursor(), step - 1).epoch == 10**7 - 1


@pytest.mark.parametrize(
    ("stages", "remainder", "strata", "message"),
    [
        ([(1, 4)], "wrap", 1, "must ascend from 0"),
        ([(0, 4), (8, 2), (8, 4)], "wrap", 1, "must ascend from 0"),
        ([(0, 4), (8, 2), (4, 4)], "wrap", 1, "must ascend from 0"),
        ([(0, 4), (8.0, 2)], "wrap", 1, "must ascend from 0"),
        ([(0, 4), (8, 11)], "drop", 1, "leave out every record"),
        ([(0, 4), (8, 6)], "wrap", 4, "multiple of 4"),
    ],
)
def test_impossible_sizes_are_refused(stages, remainder, strata, message):
    with refused(ValueError, message):
        schedule_of(10, stages, remainder, strata)
