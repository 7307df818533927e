"""Where the time of a run goes: what is counted, and what the report says of it."""

import itertools
import logging
import threading
from types import SimpleNamespace

import pytest
import tensorflow as tf
from prometheus_client import CollectorRegistry
from refusals import refused

from datarax_tfds import HostReport, Pipeline, PipelineCollector, Report, from_tfds
from datarax_tfds.runtime.timings import DECODING, MAP_FN, PLACING, READING, Timings


class ManualClock(threading.local):
    """A clock that stands still unless the thread that reads it says that time has passed."""

    now = 0.0

    def __call__(self):
        return self.now


def host(process=0, waiting_s=0.0, steps=10, **stages):
    return HostReport(process, f"host-{process}", 8, "gs://data/mnist", steps, 100.0, waiting_s,
                      stages, 2_000_000, 640, 80)  # fmt: skip


VERDICTS = [
    (host(waiting_s=0.3), "compute-bound: batches were ready 99.7% of the time"),
    (host(steps=0), "no batch was asked for yet"),
    (
        host(waiting_s=50.0, decoding=62.0, map_fn=38.0, placing=20.0),
        "input-bound: steps waited 50% of the time; 62% of the work is decoding; 8 more cores would"
        " hide it",
    ),
    (
        host(waiting_s=10.0, transform=3.0, decoding=1.0),
        "input-bound: steps waited 10% of the time; 75% of the work is transform; 1 more core would"
        " hide it",
    ),
    (
        host(waiting_s=20.0, reading=9.0, decoding=1.0),
        "input-bound: steps waited 20% of the time; 90% of the work is reading, from"
        " gs://data/mnist",
    ),
    (
        host(waiting_s=20.0, workers=80.0, transform=15.0, decoding=5.0),
        "input-bound: steps waited 20% of the time; 75% of the work here is transform; more"
        " workers, or more cores here, would hide it",
    ),
    (
        host(waiting_s=20.0, reading=9.0, decoding=1.0, workers=10.0),
        "input-bound: steps waited 20% of the time; 90% of the work here is reading, from"
        " gs://data/mnist",
    ),
    (
        host(waiting_s=20.0, decoding=0.0, workers=80.0),  # as after an earlier report
        "input-bound: steps waited 20% of the time, for workers; more workers, or more cores here,"
        " would hide it",
    ),
    (
        host(waiting_s=20.0, placing=15.0, decoding=90.0),
        "input-bound: steps waited 20% of the time, for copies to the devices; prefetch_to_device"
        " would hide them",
    ),
    (
        host(waiting_s=20.0),
        "input-bound: steps waited 20% of the time, for the calls that gather records on the"
        " devices; scan makes one call for many steps",
    ),
]


@pytest.mark.parametrize(("of_host", "verdict"), VERDICTS)
def test_the_verdict_names_what_bounds_a_host(of_host, verdict):
    assert of_host.verdict == verdict
    assert Report((of_host,)).verdict == verdict


def test_the_verdict_names_the_host_for_which_the_others_wait():
    fast, slow = [host(n, waiting_s=8.0, decoding=9.0) for n in (0, 1)], host(2, 60.0, reading=9.0)
    assert Report((*fast, slow)).verdict == f"process 2 on host-2 is slow: {slow.verdict}"
    alike = Report((*fast, host(2, 9.0, decoding=9.0)))
    assert alike.verdict == alike.hosts[2].verdict


def test_a_report_is_a_table_and_numbers_for_metric_writers():
    report = Report((host(0, 50.0, decoding=3.0, reading=1.0, placing=25.0), host(1, 0.3)))
    lines = repr(report).splitlines()
    assert lines[0].split() == ["host", "steps", "seconds", "waiting", "placing", "decoding",
                                "reading", "MB", "read", "requests"]  # fmt: skip
    assert lines[1].split() == ["0", "host-0", "10", "100.0", "50.0%", "25.0%", "75.0%", "25.0%",
                                "2.0", "80"]  # fmt: skip
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[3] == report.verdict
    scalars = report.scalars("data")
    assert scalars["data/waiting"] == 0.5
    assert scalars["data/decoding_s"] == 3.0
    assert all(type(value) is float for value in scalars.values())


def test_a_report_may_leave_out_what_an_earlier_one_has():
    first = Report((host(0, 40.0, decoding=3.0),))
    later = Report((HostReport(0, "host-0", 8, "", 30, 150.0, 42.0,
                               {"decoding": 4.0, "reading": 1.0}, 3_000_000, 1000,
                               90),))  # fmt: skip
    (between,) = later.since(first).hosts
    assert (between.steps, between.elapsed_s, between.waiting_s) == (20, 50.0, 2.0)
    assert between.stages == {"decoding": 1.0, "reading": 1.0}
    counts = between.read_bytes, between.read_records, between.read_requests
    assert counts == (1_000_000, 360, 10)


def test_the_time_of_a_loop_is_waiting_or_its_own():
    clock = ManualClock()
    timings = Timings(clock=clock)
    for waits, steps in [(3.0, 1.0), (0.0, 5.0), (1.0, 100.0)]:
        asked_at = clock.now
        clock.now += waits
        timings.count_step(asked_at)
        clock.now += steps
    totals = timings.totals()
    assert (totals.steps, totals.waiting_s, totals.elapsed_s) == (3, 4.0, 10.0)
    timings.reset()
    assert timings.totals() == Timings().totals()


def test_map_fn_has_its_share_of_what_decoding_took_and_parts_are_added():
    made = [3]
    part = Timings(reads="b", requests=lambda: made[-1])
    part.reset()
    made.append(7)
    shares = [0.25, 0.75]
    part.map_fn_share = lambda: shares.pop(0)
    part.add(DECODING, 8.0)
    part.count_read([b"12", b"3"])
    whole = Timings([part, Timings(reads="a"), Timings(reads="b")])
    whole.add(PLACING, 1.0)
    totals = whole.totals()
    assert totals.stages == {DECODING: 6.0, MAP_FN: 2.0, PLACING: 1.0}
    assert (totals.read_bytes, totals.read_records, whole.reads) == (3, 2, "b, a")
    assert totals.read_requests == 4  # since `reset`
    part.add(DECODING, 4.0)
    later = whole.totals()  # the share of what came since is another one
    assert later.stages == {DECODING: 7.0, MAP_FN: 5.0, PLACING: 1.0}


def test_a_signal_handler_may_count_while_its_thread_counts():
    timings = Timings()

    class Interrupted(list):
        def __len__(self):  # as if a signal came within `count_read`
            timings.add(READING, 1.0)
            return super().__len__()

    timings.count_read(Interrupted([b"12"]))
    assert timings.totals().stages == {READING: 1.0}


def streamed(data_dir, **fields):
    return from_tfds("tiny", "train", eager=False, data_dir=data_dir, **fields)


@pytest.mark.parametrize(
    ("slow", "shares", "cause"),
    [
        (SimpleNamespace(reading=3.0, transform=1.0, step=0.0), (0.75, 0.25), READING),
        (SimpleNamespace(reading=1.0, transform=4.0, step=0.0), (0.2, 0.8), "transform"),
    ],
)
def test_each_stage_of_a_stream_has_the_time_that_it_takes(
    data_dir, monkeypatch, slow, shares, cause
):
    clock = ManualClock()

    def transform(record):
        clock.now += slow.transform
        return {"id": record["id"]}

    source = streamed(data_dir, transform=transform, prefetch_buffer=0)
    reader = source.records.reader
    read = reader.files.read

    def slowly(numbers):
        clock.now += slow.reading * len(numbers)
        return read(numbers)

    monkeypatch.setattr(reader.files, "read", slowly)
    source.records.timings.clock = clock
    pipeline = Pipeline(source=source, batch_size=8)
    for _ in pipeline.steps(3):
        clock.now += 2.0
    (here,) = pipeline.report().hosts
    assert (here.shares[READING], here.shares["transform"]) == shares
    assert here.cause == cause
    assert (here.steps, here.elapsed_s, here.waiting_s) == (3, 4.0, 0.0)
    assert here.read_records >= 24
    assert here.read_bytes > 0
    assert here.reads == str(source.records.reader.files.paths[0].parent)


def heavy(record):
    product = tf.fill([256, 256], tf.reduce_mean(tf.cast(record["image"], tf.float32)))
    for _ in range(10):  # 10 ms, where decoding the image takes less than 0.1 ms
        product = product @ product
    return {"product": product[0]}


def test_a_heavy_map_fn_is_told_from_decoding(data_dir):
    pipeline = Pipeline(source=streamed(data_dir, map_fn=heavy), batch_size=8)
    assert MAP_FN not in pipeline.report().hosts[0].shares  # before the first batch
    pipeline.step()
    (here,) = pipeline.report().hosts
    assert here.shares[MAP_FN] > here.shares[DECODING]
    assert set(here.shares) == {READING, DECODING, MAP_FN}


def test_batches_of_records_on_the_devices_are_counted_too(data_dir):
    source = from_tfds("tiny", "train", eager=True, data_dir=data_dir)
    pipeline = Pipeline(source=source, batch_size=8)
    first = pipeline.report()
    assert first.verdict == "no batch was asked for yet"
    assert first.hosts[0].read_bytes == 0  # what was loaded at the construction does not count
    for _ in pipeline.steps(3):
        pass
    assert pipeline.report(since=first).hosts[0].steps == 3
    with refused(TypeError, "^Pipeline.report: since must be an earlier report"):
        pipeline.report(since=3)


def test_prometheus_gets_the_counters(data_dir):
    pipeline = Pipeline(source=streamed(data_dir, include_keys={"id"}), batch_size=8)
    registry = CollectorRegistry()
    registry.register(PipelineCollector(pipeline))
    for _ in pipeline.steps(3):
        pass
    (here,) = pipeline.report().hosts
    named = {"source": pipeline.source.name}
    sample = lambda name, **labels: registry.get_sample_value(name, named | labels)
    assert sample("datarax_tfds_steps_total") == 3
    assert sample("datarax_tfds_waiting_seconds_total") == here.waiting_s
    assert sample("datarax_tfds_elapsed_seconds_total") == here.elapsed_s
    assert sample("datarax_tfds_read_bytes_total") > 0
    assert sample("datarax_tfds_read_requests_total") == here.read_requests > 0
    assert sample("datarax_tfds_stage_seconds_total", stage="decoding") > 0
    copy = Pipeline(source=pipeline.source.copy(name="another"), batch_size=8)
    both = CollectorRegistry()
    both.register(PipelineCollector(pipeline, copy))
    for name in (pipeline.source.name, "another"):
        assert both.get_sample_value("datarax_tfds_steps_total", {"source": name}) == 3
    with refused(TypeError, "^PipelineCollector: each of pipelines must be a Pipeline, got int"):
        PipelineCollector(pipeline, 3)


def test_reports_are_logged_from_time_to_time(data_dir, caplog):
    caplog.set_level(logging.INFO, "datarax_tfds")
    source = streamed(data_dir, include_keys={"id"})
    source.records.timings.clock = itertools.count().__next__  # a second for each look at it
    pipeline = Pipeline(source=source, batch_size=8)
    pipeline.log_reports(every_s=1000)
    pipeline.step()
    said = lambda: [text for text in caplog.messages if text.startswith(f"{source.name}: ")]
    assert not said()
    pipeline.log_reports(every_s=1)
    pipeline.step()
    assert len(said()) == 1
    assert "input-bound" in said()[0]
    pipeline.log_reports(every_s=0)
    pipeline.step()
    assert len(said()) == 1
