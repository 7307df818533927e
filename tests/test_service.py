"""Decoding elsewhere: nothing that a worker does, or fails to do, changes what is read."""

import gc
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import Future, wait
from subprocess import PIPE
from types import SimpleNamespace
from typing import ClassVar

import jax
import numpy as np
import psutil
import pytest
from checkout import GUARD_S, ROOT
from hypothesis import given
from hypothesis import strategies as st

from datarax_tfds.runtime.timings import WORKERS, Timings
from datarax_tfds.service import rows_format
from datarax_tfds.service.admission import Admission, digest_of_rows
from datarax_tfds.service.channel import Channel
from datarax_tfds.service.dispatcher import Dispatcher
from datarax_tfds.service.driver_process import DriverProcess
from datarax_tfds.service.lent_files import BorrowedFiles, LentFiles, opened_in
from datarax_tfds.service.object_stores import ObjectStores
from datarax_tfds.service.pending_calls import Call, PendingCalls
from datarax_tfds.service.ray_worker import RayWorker
from datarax_tfds.service.served_reader import misfit

NEVER = 1e5  # seconds after which a call would be late
SPEC = {"x": jax.ShapeDtypeStruct((2,), np.int32)}


def decoded(numbers, keys=None):
    return {"x": np.stack([numbers, numbers**2], axis=1).astype(np.int32)}


class Fake:
    """A worker that does with each call what `answer` says, in the thread that calls."""

    def __init__(self, answer, capacity=2):
        self.answer, self.capacity, self.calls = answer, capacity, []

    def submit(self, numbers, keys):
        future = Future()
        self.calls.append((numbers, future))
        self.answer(future, numbers)
        return future


def soon(future, numbers):
    future.set_result(decoded(numbers))


def never(future, numbers):
    pass


def twice(future, numbers):
    soon(future, numbers)
    with pytest.raises(Exception, match="invalid"):  # what a queue may deliver twice counts once
        soon(future, numbers)


def failing(future, numbers):
    future.set_exception(RuntimeError("the worker is out of memory"))


def dying(future, numbers):
    raise OSError("the connection is lost")


def cancelling(future, numbers):
    future.cancel()
    future.set_running_or_notify_cancel()


def other_shape(future, numbers):
    future.set_result({"x": np.zeros((len(numbers), 3), np.int32)})


def other_rows(future, numbers):
    future.set_result({"x": np.zeros((len(numbers) + 1, 2), np.int32)})


def other_dtype(future, numbers):
    future.set_result({"x": decoded(numbers)["x"].astype(np.int64)})


def other_names(future, numbers):
    future.set_result({"y": decoded(numbers)["x"]})


def no_array(future, numbers):
    future.set_result({"x": "rows"})


def nothing(future, numbers):
    future.set_result(None)


def mixed_names(future, numbers):
    future.set_result({"x": decoded(numbers)["x"], 1: 2})  # which JAX cannot sort


ANSWERS = [
    soon, never, twice, failing, dying, cancelling, other_shape, other_rows, other_dtype,
    other_names, no_array, nothing, mixed_names,
]  # fmt: skip


def dispatcher(*, threads=0, late_s=NEVER, read=decoded, facts=None, length=100):
    compared = Admission(read, length, stochastic=False, facts=facts or {})
    fits = lambda rows, count: misfit(rows, SPEC, count)
    return Dispatcher(read, fits, compared, "subject", Timings(), late_s=late_s, threads=threads)


def test_a_thread_that_is_free_decodes_before_a_worker_is_asked():
    worker = Fake(soon)
    calls = dispatcher(threads=1)
    calls.team.add("worker", worker)
    assert calls.read(np.arange(4))["x"].tolist() == decoded(np.arange(4))["x"].tolist()
    assert not worker.calls


@pytest.mark.parametrize("answer", [each for each in ANSWERS if each is not never])
def test_an_answer_of_any_kind_gives_the_rows_that_are_decoded_here(answer):
    calls = dispatcher(threads=1)
    worker = Fake(answer)
    calls.team.add("worker", worker)
    assert calls.team.take() is None  # the only thread is busy, until the worker is asked
    done = threading.Thread(target=lambda: found.append(calls.read(np.arange(5, 9))))
    found: list = []
    done.start()
    while not worker.calls:
        pass
    calls.team.release(None)
    done.join()
    assert found[0]["x"].tolist() == decoded(np.arange(5, 9))["x"].tolist()
    assert calls.team.members[0].under_way == 0


def test_a_late_call_is_asked_of_another_worker_and_decoded_here_and_the_first_answer_wins():
    here, other = threading.Event(), Fake(never, capacity=1)

    def blocked(numbers, keys=None):
        here.set()
        other_answered.wait()
        return decoded(numbers)

    other_answered = threading.Event()
    calls = dispatcher(late_s=1e-3, read=blocked)
    calls.team.add("late", late := Fake(never, capacity=1))
    calls.team.add("other", other)
    found: list = []
    reading = threading.Thread(target=lambda: found.append(calls.read(np.arange(3))))
    reading.start()
    here.wait()
    while not (late.calls and other.calls):
        pass
    soon(other.calls[0][1], other.calls[0][0])
    reading.join()
    other_answered.set()
    assert found[0]["x"].tolist() == decoded(np.arange(3))["x"].tolist()
    soon(late.calls[0][1], late.calls[0][0])  # an answer that nobody waits for any more
    assert all(member.is_free for member in calls.team.members)


def test_a_worker_that_never_answers_gets_no_more_calls_than_its_capacity():
    calls = dispatcher(threads=0, late_s=1e-3)
    calls.team.add("stuck", stuck := Fake(never, capacity=2))
    for start in (0, 10):
        rows = calls.read(np.arange(start, start + 2))
        assert rows["x"].tolist() == decoded(np.arange(start, start + 2))["x"].tolist()
    calls.team.add("worker", worker := Fake(soon))
    for start in (20, 30, 40):
        calls.read(np.arange(start, start + 2))
    assert len(stuck.calls) == 2
    assert len(worker.calls) == 3


def test_the_error_of_a_record_is_the_one_that_there_is_without_workers():
    def damaged(numbers, keys=None):
        raise OverflowError("record 3 does not fit")

    calls = dispatcher(late_s=1e-3, read=damaged)
    calls.team.add("late", Fake(never))
    with pytest.raises(OverflowError, match="record 3"):
        calls.read(np.array([3]))


@given(st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=12), st.integers(1, 3))
def test_batches_are_equal_whatever_the_workers_do(answers, workers):
    left = iter(answers * 10)
    calls = dispatcher(threads=1, late_s=1e-3)
    for number in range(workers):
        answer = lambda future, numbers: next(left, failing)(future, numbers)
        calls.team.add(f"worker {number}", Fake(answer, capacity=1))
    pool = [threading.Thread(target=lambda n=n: rows.update({n: calls.read(np.arange(n, n + 2))}))
            for n in range(6)]  # fmt: skip
    rows: dict = {}
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    for n, found in rows.items():
        assert found["x"].tolist() == decoded(np.arange(n, n + 2))["x"].tolist()
    assert len(rows) == 6


def test_that_no_worker_is_left_is_said_once_and_that_they_are_back(caplog):
    calls = dispatcher(threads=1)
    for name in ("a", "b"):
        calls.team.add(name, Fake(soon))
    for name in ("a", "b", "b"):
        calls.team.remove(name, "it was killed")
    calls.team.add("c", Fake(soon))
    calls.team.add("d", Fake(soon))
    said = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert [("no worker is left" in each, "decode again" in each) for each in said] == [
        (True, False), (False, True)
    ]  # fmt: skip


def wrong_bytes(future, numbers):
    rows = decoded(numbers)["x"]
    future.set_result({"x": np.where(numbers[:, None] == 33, rows + 1, rows)})


@pytest.mark.parametrize(("answer", "facts", "says"), [
    (soon, {"tensorflow": "2.21", "fingerprint": "ab"}, None),
    (soon, None, None),  # an executor of the user
    (soon, {"tensorflow": "2.20", "fingerprint": "ab"}, "tensorflow differs: '2.21' here, '2.20'"),
    (soon, {"tensorflow": "2.21"}, "fingerprint differs: 'ab' here, None there"),
    (wrong_bytes, None, "1 of 16 records differ, first record 33"),
    (failing, None, "16 of 16 records were not decoded there, first record 0: RuntimeError: the"),
    (dying, None, "the connection is lost"),
])  # fmt: skip
def test_a_worker_that_would_give_other_bytes_is_refused_by_name(answer, facts, says, caplog):
    calls = dispatcher(facts={"tensorflow": "2.21", "fingerprint": "ab"})
    reason = calls.consider("host-7, pid 12", Fake(answer, capacity=16), facts).result()
    if says is None:
        assert reason is None
        assert len(calls.team.members) == 1
        return
    assert says in reason
    assert not calls.team.members
    assert "worker host-7, pid 12 is refused" in caplog.text
    assert says in caplog.text


@pytest.mark.parametrize(("answer", "admitted"), [(soon, 1), (failing, 0)])
def test_a_worker_that_is_slow_while_it_is_compared_is_named_and_decided_later(
    answer, admitted, caplog
):
    worker = Fake(never, capacity=16)
    calls = dispatcher(late_s=1e-3)
    decided = calls.consider("slow", worker)
    while "worker slow is not used yet" not in caplog.text:
        time.sleep(0.01)
    assert not decided.done()
    assert not calls.team.members
    for numbers, future in worker.calls:
        answer(future, numbers)
    assert (decided.result() is None) == bool(admitted)
    assert len(calls.team.members) == admitted


def test_workers_that_never_answer_do_not_keep_others_from_being_compared():
    calls = dispatcher(late_s=1e-3)
    for number in range(9):
        calls.consider(f"stuck {number}", Fake(never, capacity=16))
    assert calls.consider("worker", Fake(soon, capacity=16)).result() is None


def test_a_worker_that_never_answers_keeps_nothing_alive():
    compared, called = Fake(never, capacity=16), Fake(never)
    calls = dispatcher(late_s=1e-3, read=(read := Reads()))
    decided = calls.consider("compared", compared)
    calls.team.add("called", called)
    calls.read(np.arange(3))
    while len(compared.calls) < 16:
        time.sleep(0.01)
    there = weakref.ref(calls), weakref.ref(read)
    del calls, read
    deadline = time.monotonic() + GUARD_S
    while any(each() is not None for each in there):  # while a thread waits for the first answers
        assert time.monotonic() < deadline
        gc.collect()
        time.sleep(0.01)
    for worker in compared, called:
        for numbers, future in worker.calls:
            soon(future, numbers)
    assert decided.result() is None


class Reads:
    """Decodes here, and can be referred to weakly."""

    def __call__(self, numbers, keys=None):
        return decoded(numbers)


def test_corrupt_records_are_no_canaries():
    def damaged(numbers, keys=None):
        if 0 in numbers:
            raise ValueError("record 0 is corrupt")
        return decoded(numbers)

    calls = dispatcher(read=damaged)
    assert calls.consider("worker", worker := Fake(soon, capacity=16)).result() is None
    assert len(worker.calls) == 15


def test_a_worker_is_refused_where_no_record_can_be_compared():
    def damaged(numbers, keys=None):
        raise ValueError("corrupt")

    calls = dispatcher(read=damaged)
    reason = calls.consider("worker", worker := Fake(soon, capacity=16)).result()
    assert reason == "no record that could be compared is sound here"
    assert not worker.calls
    assert not calls.team.members


def test_workers_are_looked_for_at_the_first_read_only():
    started: list = []
    calls = dispatcher(threads=1)
    calls.start_with(started.append)
    assert not started
    calls.read(np.arange(2))
    calls.read(np.arange(2))
    assert started == [calls]


def test_the_time_of_workers_is_a_stage_of_its_own():
    timings = Timings()
    compared = Admission(decoded, 9, stochastic=False, facts={})
    calls = Dispatcher(
        decoded, lambda *_: None, compared, "subject", timings, late_s=NEVER, threads=0
    )
    calls.team.add("worker", Fake(soon))
    calls.read(np.arange(2))
    assert set(timings.totals().stages) == {WORKERS}


ROWS = {
    "image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, ::2],
    "nested": {"half": np.ones((2, 2), jax.numpy.bfloat16), "none": np.zeros((2, 0), np.float32)},
    "text": np.array([b"", b"\x00\xff"], object),
    "flag": np.array(True),
    "order of bytes": np.array([1, 258], ">i4"),
    "ragged": np.array([np.arange(3), None], object),
}
ROWS["ragged"][1] = np.zeros((0, 2), np.int16)


def test_rows_come_through_the_channel_as_they_are_and_as_views():
    ours, theirs = map(Channel, Channel.pair())
    theirs.send({"kind": "rows"}, rows_format.written(ROWS))
    theirs.send({"kind": "done"})
    received = ours.receive()
    assert received is not None
    message, body = received
    rows = rows_format.read(body)
    assert message == {"kind": "rows"}
    assert jax.tree.structure(rows) == jax.tree.structure(ROWS)
    for ours_, theirs_ in zip(jax.tree.leaves(rows), jax.tree.leaves(ROWS), strict=True):
        assert ours_.dtype == theirs_.dtype
        assert ours_.shape == theirs_.shape
        if ours_.dtype != object:
            assert ours_.tobytes() == theirs_.tobytes()
    assert rows["text"].tolist() == ROWS["text"].tolist()
    assert rows["ragged"][1].shape == (0, 2)
    assert np.shares_memory(rows["image"], body)
    done = ours.receive()
    assert done is not None
    assert done[0] == {"kind": "done"}
    assert not ours.wait(0)
    theirs.close()
    assert ours.receive() is None
    ours.close()


def test_rows_in_parts_are_read_as_one():
    whole = {name: column for name, column in ROWS.items() if name != "flag"}
    parts = [jax.tree.map(lambda column: column[at : at + 1], whole) for at in range(3)]  # 1, 1, 0
    body = b"".join(map(bytes, rows_format.written(*parts)))
    rows = rows_format.read(np.frombuffer(body, np.uint8))
    assert digest_of_rows(rows) == digest_of_rows(whole)


class Megabytes:
    """Describes records of 3 MiB, and is their reader, which notes what it reads."""

    split = SimpleNamespace(dataset="large", ranges="train", fingerprint_of_all="")
    versions: ClassVar = {}
    user_code = None
    record_bytes = 3 << 20
    calls: ClassVar[list] = []

    def opened(self):
        return self

    def read(self, numbers, keys):
        self.calls.append((numbers.tolist(), keys.tolist()))
        return decoded(numbers)


def test_a_worker_decodes_a_large_call_in_parts():
    Megabytes.calls.clear()
    worker = RayWorker("test")
    worker.open("large", pickle.dumps(Megabytes()))
    numbers = np.arange(5)
    parts = worker.read("large", numbers, np.stack([numbers, numbers], axis=1))
    assert Megabytes.calls == [
        ([0, 1], [[0, 0], [1, 1]]),
        ([2, 3], [[2, 2], [3, 3]]),
        ([4], [[4, 4]]),
    ]
    np.testing.assert_array_equal(
        np.concatenate([part["x"] for part in parts]), decoded(numbers)["x"]
    )
    assert worker.status()["records"] == 5


def test_a_call_for_no_records_is_answered():
    worker = RayWorker("test")
    worker.open("large", pickle.dumps(Megabytes()))
    none = np.zeros(0, np.int64)
    small = worker.lend("large", none, none, [])
    assert isinstance(small, list)
    for parts in (worker.read("large", none, none), small):
        body = b"".join(map(bytes, rows_format.written(*parts)))
        assert rows_format.read(np.frombuffer(body, np.uint8))["x"].shape == (0, 2)


@pytest.mark.parametrize("value", [[1, 2], "text", 3, None])
def test_what_is_neither_bytes_nor_an_array_is_not_written_as_if_it_were(value):
    column = np.empty(1, object)
    column[0] = value
    with pytest.raises(TypeError):
        rows_format.written({"x": column})


@pytest.mark.parametrize(("capacities", "parallel"), [
    ([], 3), ([1], 4), ([2], 4), ([2, 2], 5), ([5, 1], 8),
])  # fmt: skip
def test_a_batch_is_cut_into_calls_for_all_threads_and_workers(capacities, parallel):
    team = dispatcher(threads=3).team
    for number, capacity in enumerate(capacities):
        team.add(f"worker {number}", Fake(soon, capacity=capacity))
    assert team.parallel == parallel


def test_memory_of_the_channel_is_used_again_once_it_was_read_and_never_before():
    ours, theirs = map(Channel, Channel.pair())
    random, held, places = np.random.default_rng(0), [], set()
    for value in range(200):
        sent = np.full(random.integers(1, 200_000), value % 251, np.uint8)
        theirs.send({}, [sent])
        received = ours.receive()
        assert received is not None
        held.append((received[1], sent))
        if len(sent) > 50_000:
            places.add(received[1].ctypes.data)
        del received
        if len(held) > 3:
            held.pop(random.integers(len(held)))
        for body, as_sent in held:
            np.testing.assert_array_equal(body, as_sent)
        ours.send({"kind": "says what was read"})
        theirs.receive()
    assert len(places) < 50  # of about 150; a file that is too small is made anew
    ours.close()
    theirs.close()


def test_messages_and_bodies_of_a_cluster_of_many_machines_come_through_the_channel():
    stores = [(f"machine-{number}.example.org", 10**11, 96, not number) for number in range(5000)]
    ours, theirs = map(Channel, Channel.pair())
    theirs.send({"kind": "connected"}, [json.dumps(stores).encode()])
    received = ours.receive()
    assert received is not None
    found = ObjectStores(calls=2)
    found.connected(json.loads(received[1].tobytes()))
    shortage = found.shortage("reader", 10**9, 9)
    assert shortage is not None
    assert shortage.needed == 2 * 96 * 10**9
    ours.close()
    theirs.close()


def test_a_process_that_reads_nothing_any_more_keeps_no_thread_waiting():
    ours, theirs = Channel.pair()
    channel, other = Channel(ours, send_limit_s=1), Channel(theirs)

    def fill():
        while True:
            channel.send({"kind": "call"}, [bytes(1000)])

    with pytest.raises(BlockingIOError):
        fill()
    assert other.receive() is not None
    channel.close()
    other.close()


def test_a_driver_that_is_stopped_ends_when_its_connection_is_full():
    with socket.create_server(("127.0.0.1", 0)) as nobody:  # who answers, so that it goes on
        host, port = nobody.getsockname()
        driver = DriverProcess({"address": f"{host}:{port}"})
        [process] = [
            each for each in psutil.Process().children() if "ray_driver" in " ".join(each.cmdline())
        ]
        process.suspend()
    while not driver.wait(0):
        driver.send({"kind": "call"}, bytes(1000))
    assert driver.receive() is None
    assert "-9" in driver.end()


def test_a_cluster_that_was_stopped_is_not_waited_for(tmp_path, monkeypatch):
    known = tmp_path / "ray" / "ray_current_cluster"
    known.parent.mkdir()
    known.write_text("127.0.0.1:1")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    driver = DriverProcess({"address": "auto"})
    assert driver.receive() is None
    assert "Connection refused" in driver.end()


def test_a_file_of_another_process_is_opened_only_if_it_is_the_one_that_was_lent():
    file = LentFiles().lend([memoryview(b"123"), memoryview(b"456789")])
    lender = os.getpid()
    borrowed = BorrowedFiles()
    token = file.loan.token
    body = borrowed.borrow(file.loan, lambda: opened_in(lender, file.descriptor, token))
    assert body.tobytes() == b"123456789"
    with pytest.raises(FileNotFoundError, match="not the file that was lent"):
        opened_in(lender, file.descriptor, "0" * 16)
    assert not borrowed.read()
    del body
    assert borrowed.read() == [file.loan.number]
    file.close()
    with pytest.raises(OSError, match=str(lender)):
        opened_in(lender, 10**6, token)


def test_a_file_that_could_not_be_written_is_used_again(monkeypatch):
    def full(descriptor, size):
        raise OSError("no space is left")

    lent = LentFiles()
    with monkeypatch.context() as limited:
        limited.setattr(os, "truncate", full)
        with pytest.raises(OSError, match="no space"):
            lent.lend([memoryview(b"123")])
    assert lent.lend([memoryview(b"123")]).loan.number == 0
    lent.close()


FORKS = """
import os
from datarax_tfds.service.lent_files import BorrowedFiles, LentFiles, opened_in

lent, borrowed, lender = LentFiles(), BorrowedFiles(), os.getpid()

def lend(content):
    file = lent.lend([memoryview(content)])
    return borrowed.borrow(
        file.loan, lambda: opened_in(lender, file.descriptor, file.loan.token)
    )

body = lend(b"before")
given_up, go_on = os.pipe()
child = os.fork()
if child == 0:
    os.read(given_up, 1)
    print(body.tobytes().decode(), flush=True)
    os._exit(0)
for content in (b"after", b"later"):
    del body
    lent.take_back(borrowed.read())
    body = lend(content)
    print(body.tobytes().decode(), flush=True)
os.write(go_on, b".")
os.waitpid(child, 0)
"""


def test_a_forked_child_keeps_the_rows_that_its_parent_had_when_it_forked():
    done = subprocess.run([sys.executable, "-c", FORKS], cwd=ROOT, check=True, stdout=PIPE)
    assert done.stdout.decode().split() == ["after", "later", "before"]


@pytest.mark.parametrize("line", range(5))
def test_threads_that_ask_at_once_what_was_read_do_not_wait_for_each_other(line):
    lent, borrowed, lender, found = LentFiles(), BorrowedFiles(), os.getpid(), []
    file = lent.lend([memoryview(b"123456789")])
    borrowed.borrow(file.loan, lambda: opened_in(lender, file.descriptor, file.loan.token))

    def ask():
        lines = iter(range(line))

        def trace(frame, event, _):
            if frame.f_code.co_name != "read":
                return None
            if event == "line" and next(lines, None) is None:
                found.extend(borrowed.read())  # as another thread may, between two lines
            return trace

        sys.settrace(trace)
        found.extend(borrowed.read())
        sys.settrace(None)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(GUARD_S)
    assert not asking.is_alive()
    assert found == [file.loan.number]
    lent.close()


def test_a_call_without_an_answer_does_not_keep_others_from_theirs():
    calls = dispatcher(threads=1, late_s=NEVER)
    calls.team.add("stuck", stuck := Fake(never, capacity=1))
    assert calls.team.take() is None
    waiting = threading.Thread(target=lambda: calls.read(np.arange(1)))
    waiting.start()
    while not stuck.calls:
        pass
    calls.team.release(None)
    assert len(calls.read(np.arange(4))["x"]) == 4  # by the thread
    soon(stuck.calls[0][1], stuck.calls[0][0])
    wait([stuck.calls[0][1]])
    waiting.join()


SMALL, LARGE = 1000, 10_000  # bytes of object stores


@pytest.mark.parametrize(("stores", "calls", "workers", "expected"), [
    ([("a", SMALL, 2, True)], [("x", 100)], 4, None),  # 2 calls x 4 workers x 100
    ([("a", SMALL, 2, True)], [("x", 100), ("x", 130)], 4, ("a", 1040)),
    ([("a", SMALL, 2, True)], [("x", 100), ("y", 30)], 4, ("a", 1040)),  # of two readers
    ([("a", LARGE, 0, True), ("b", SMALL, 8, False)], [("x", 100)], 8, ("b", 1600)),
    ([("a", SMALL, 0, True), ("b", LARGE, 8, False)], [("x", 100)], 8, ("a", 1600)),
    ([("a", SMALL, 0, True), ("b", SMALL, 9, False)], [("x", 100)], 8, ("b", 1800)),
    ([], [("x", 100)], 8, None),
])  # fmt: skip
def test_a_store_that_may_be_filled_is_named_with_what_it_needs(stores, calls, workers, expected):
    found = ObjectStores(calls=2)
    found.connected(stores)
    shortages = [found.shortage(key, size, workers) for key, size in calls]
    assert shortages[:-1] == [None] * (len(calls) - 1)
    last = shortages[-1]
    assert (last and (last.store.node, last.needed)) == expected
    assert found.shortage(*calls[-1], workers) is None  # it is no larger than the last one
    more = found.shortage(*calls[-1], 10**6)  # but there are more workers
    assert (more is None) == (not stores)
    for key, _ in calls:
        found.forget(key)
    assert found.shortage("z", 1, workers) is None


def test_calls_are_answered_once_and_fail_with_their_worker():
    def damaged():
        raise ValueError("no rows")

    calls = PendingCalls()
    asked = [Call(worker, "key", (np.arange(2), None)) for worker in (0, 1, 1, 2, 7)]
    one, two, three, five, four = (each.future for each in asked)
    first, second, third, other = map(calls.add, asked[:4])
    calls.answer_error(other, "out of memory")
    calls.answer_error(other, "again")
    with pytest.raises(RuntimeError, match="out of memory"):
        five.result()
    calls.answer(first, lambda: decoded(np.arange(2)))
    calls.answer(second, damaged)
    calls.fail("it was killed", 1)
    calls.answer(third, lambda: decoded(np.arange(2)))  # too late
    assert one.result()["x"].shape == (2, 2)
    with pytest.raises(ValueError, match="no rows"):
        two.result()
    with pytest.raises(ConnectionError, match="it was killed"):
        three.result()
    calls.add(asked[4])
    calls.fail("the connection is lost")
    with pytest.raises(ConnectionError, match="the connection is lost"):
        four.result()
