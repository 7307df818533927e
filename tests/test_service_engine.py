"""When Ray or a worker ends, each call still goes to the worker that was admitted, or fails."""

import json
import queue
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
from checkout import GUARD_S

from datarax_tfds.config.ray_service import RayService
from datarax_tfds.service import ray_engine, rows_format
from datarax_tfds.service.team import Team

NUMBERS = np.arange(3)


class Driver:
    """Stands for the process that talks to Ray: the test says what comes from it."""

    def __init__(self):
        self.sent: queue.SimpleQueue = queue.SimpleQueue()
        self._comes: queue.SimpleQueue = queue.SimpleQueue()
        self._received = None
        self.ending, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()

    def send(self, message, values):
        self.sent.put((message, values))

    def wait(self, timeout_s):
        try:
            self._received = self._comes.get(timeout=timeout_s)
        except queue.Empty:
            return False
        return True

    def receive(self):
        return self._received

    def end(self):
        self.ending.set()
        self.may_end.wait()
        return "it was killed"

    def says(self, kind, body=None, **message):
        self._comes.put(({"kind": kind, **message}, body))

    def dies(self):
        self._comes.put(None)

    def connects(self, stores=()):
        """Returns the key of the reader."""
        body = np.frombuffer(json.dumps(stores).encode(), np.uint8)
        self.says("connected", body, address="here", token=True)
        return self.sent.get(timeout=GUARD_S)[0]["key"]


class Reader:
    """Stands for a dispatcher: the test says when a worker has been compared."""

    def __init__(self):
        self.team = Team("subject", 1)
        self._asked: queue.SimpleQueue = queue.SimpleQueue()

    def consider(self, name, executor, facts):
        decided: Future = Future()
        self._asked.put((name, executor, decided))
        return decided

    def asked(self):
        return self._asked.get(timeout=GUARD_S)

    def admit(self, name, executor, decided):
        self.team.add(name, executor)
        decided.set_result(None)


@pytest.fixture
def drivers(monkeypatch):
    made: queue.SimpleQueue = queue.SimpleQueue()

    def start(_settings):
        driver = Driver()
        made.put(driver)
        return driver

    monkeypatch.setattr(ray_engine, "DriverProcess", start)
    return made


def joined(drivers):
    """A reader that has joined, its key, and the driver."""
    reader, engine = Reader(), ray_engine.RayEngine(RayService())
    engine.join(reader, None)  # pyright: ignore  # stand-ins
    driver = drivers.get(timeout=GUARD_S)
    return reader, driver.connects(), driver


def test_a_call_goes_to_the_worker_that_was_admitted_and_not_to_a_later_one_of_its_number(drivers):
    reader, key, driver = joined(drivers)
    driver.says("opened", worker=0, key=key, name="old", facts={})
    name, executor, decided = reader.asked()
    reader.admit(name, executor, decided)
    rows = executor.submit(NUMBERS, None)
    message, _ = driver.sent.get(timeout=GUARD_S)
    body = b"".join(map(bytes, rows_format.written({"x": NUMBERS})))
    driver.says("rows", np.frombuffer(body, np.uint8), number=message["number"])
    assert rows.result(GUARD_S)["x"].tolist() == NUMBERS.tolist()

    unanswered = executor.submit(NUMBERS, None)
    driver.dies()
    with pytest.raises(ConnectionError, match="lost"):
        unanswered.result(GUARD_S)
    later = drivers.get(timeout=GUARD_S)
    assert not reader.team.members
    later.says("opened", worker=0, key=later.connects(), name="new", facts={})
    reader.asked()  # so it is there, but not admitted
    stale = executor.submit(NUMBERS, None)
    assert stale.done()
    with pytest.raises(ConnectionError, match="the worker has ended"):
        stale.result()
    assert later.sent.empty()


@pytest.mark.parametrize("ends", ["worker", "driver", None])
def test_a_worker_that_ends_while_it_is_compared_is_not_left_in_the_team(drivers, ends):
    reader, key, driver = joined(drivers)
    driver.says("opened", worker=0, key=key, name="first", facts={})
    first = reader.asked()
    if ends == "driver":
        driver.dies()
        driver = drivers.get(timeout=GUARD_S)
        driver.connects()
    elif ends == "worker":
        driver.says("gone", worker=0, why="it was killed")
    driver.says("opened", worker=1, key=key, name="second", facts={})
    second = reader.asked()  # so what came before is done
    reader.admit(*first)
    reader.admit(*second)
    left = {member.name for member in reader.team.members}
    assert left == ({"second"} if ends else {"first", "second"})


def test_the_process_is_started_again_where_it_could_not_be_started_once(drivers, monkeypatch):
    start, failures = ray_engine.DriverProcess, iter([OSError("Too many open files")])

    def fails_once(settings):
        for failure in failures:
            raise failure
        return start(settings)

    monkeypatch.setattr(ray_engine, "DriverProcess", fails_once)
    reader, key, driver = joined(drivers)
    driver.says("opened", worker=0, key=key, name="worker", facts={})
    reader.admit(*reader.asked())
    assert len(reader.team.members) == 1


def test_a_reader_that_joins_while_an_unused_cluster_ends_is_told_of_no_fault(drivers, caplog):
    engine = ray_engine.RayEngine(RayService())
    reader = Reader()
    engine.join(reader, None)  # pyright: ignore  # stand-ins
    driver = drivers.get(timeout=GUARD_S)
    driver.connects()
    driver.may_end.clear()
    del reader
    assert driver.ending.wait(GUARD_S)
    later = Reader()
    engine.join(later, None)  # pyright: ignore
    driver.may_end.set()
    drivers.get(timeout=GUARD_S).connects()
    assert "no connection" not in caplog.text


def test_a_cluster_that_starts_no_worker_is_said_to_start_none_and_may_start_it_later(
    drivers, monkeypatch, caplog
):
    monkeypatch.setattr(ray_engine, "ALONE_S", 0.0)
    reader, key, driver = joined(drivers)

    deadline = time.monotonic() + GUARD_S
    while "no worker has started yet" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    driver.says("opened", worker=0, key=key, name="there", facts={})
    reader.admit(*reader.asked())
    assert reader.team.members


def test_workers_of_equal_names_do_not_stand_for_each_other(drivers):
    reader, key, driver = joined(drivers)
    for worker in (0, 1):
        driver.says("opened", worker=worker, key=key, name="host, pid 7", facts={})
        reader.admit(*reader.asked())
    assert [each.name for each in reader.team.members] == ["host, pid 7", "host, pid 7, worker 1"]
    driver.says("gone", worker=0, why="it was killed")
    deadline = time.monotonic() + GUARD_S
    while len(reader.team.members) == 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [each.name for each in reader.team.members] == ["host, pid 7, worker 1"]
