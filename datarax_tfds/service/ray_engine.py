"""Keeps the workers of Ray for all readers of this process that use the same service."""

import dataclasses
import functools
import json
import logging
import os
import platform
import queue
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

import jax
import numpy as np

from datarax_tfds.config.ray_service import RayService
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.threads import decoding_threads
from datarax_tfds.service.dispatcher import Dispatcher
from datarax_tfds.service.driver_process import DriverProcess
from datarax_tfds.service.executor import Rows
from datarax_tfds.service.lent_files import BorrowedFiles, Loan, opened_in
from datarax_tfds.service.object_stores import ObjectStores
from datarax_tfds.service.pending_calls import Call, PendingCalls
from datarax_tfds.service.ray_worker import CALLS
from datarax_tfds.service.rows_format import read
from sharding.checks import error_message
from sharding.hosts.job import job

_log = logging.getLogger(__name__)

_LOOK_S = 0.5  # how often it looks for readers that nobody uses any more
_START_S = 180.0  # the longest that Ray may take to start
_AGAIN_S, _AGAIN_MAX_S = 1.0, 15.0  # before it connects again
ALONE_S = 60.0  # without any worker after which a warning says so

StoredNumbers = Callable[[np.ndarray], np.ndarray]


class Described(Protocol):
    """Describes what workers open. It is sent to them by pickle, and they call `opened`."""

    def opened(self) -> Any:
        """Returns an object with `read` and `record_bytes`, as of a `RecordReader`, and what
        `facts_of` needs.
        """
        ...


@dataclasses.dataclass
class _Joined:
    """A reader that uses the workers."""

    dispatcher: "weakref.ref[Dispatcher]"
    description: Described
    stored_numbers: StoredNumbers | None


@dataclasses.dataclass
class _RayExecutor:
    """A worker of Ray, for one reader.

    Args:
        engine: Sends calls.
        driver: Started the worker. Another one gives the same number to another worker.
        worker: Its number.
        key: Names the reader.
        stored_numbers: See `RayEngine.join`.
    """

    engine: "RayEngine"
    driver: DriverProcess
    worker: int
    key: str
    stored_numbers: StoredNumbers | None
    capacity: int = CALLS

    def submit(self, numbers: np.ndarray, keys: np.ndarray | None, /) -> Future[Rows]:
        if self.stored_numbers is not None:
            numbers = self.stored_numbers(numbers)
        return self.engine.call(self.driver, Call(self.worker, self.key, (numbers, keys)))


@not_copied
class RayEngine:
    """Starts the process that talks to Ray, and starts it again whenever it ends.

    Nothing here waits for Ray, and no error of it is raised: readers are told which workers there
    are, and calls that nobody will answer fail.

    Args:
        service: Which cluster, and how many workers.
    """

    def __init__(self, service: RayService):
        self._service = service
        self._lock = threading.Lock()
        self._joined: dict[str, _Joined] = {}
        self._keys = 0
        # A finalizer puts keys here, and so takes no lock.
        self._left: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._driver: DriverProcess | None = None  # once it is connected to Ray
        self._names: dict[int, str] = {}
        self._alone_since: float | None = None  # without any worker, while it is connected
        self._calls = PendingCalls()
        self._stores = ObjectStores(CALLS)
        self._borrowed: defaultdict[int, BorrowedFiles] = defaultdict(BorrowedFiles)  # by worker
        self._far: set[int] = set()  # workers whose rows come through Ray
        self._thread: threading.Thread | None = None
        self._said: set[str] = set()

    def join(
        self,
        dispatcher: Dispatcher,
        description: Described,
        *,
        stored_numbers: StoredNumbers | None = None,
    ) -> None:
        """Lets a reader use the workers, as soon as they are there.

        Args:
            dispatcher: Gives calls to them.
            description: What they read.
            stored_numbers: Makes the numbers in the whole split of those of the reader.
        """
        with self._lock:
            self._keys += 1
            key = f"{os.getpid()}.{self._keys}"
            joined = _Joined(weakref.ref(dispatcher), description, stored_numbers)
            self._joined[key] = joined
            weakref.finalize(dispatcher, self._left.put, key).atexit = False
            driver = self._driver
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve, name="datarax_tfds_ray", daemon=True
                )
                self._thread.start()
        if driver is not None:
            driver.send({"kind": "open", "key": key}, description)

    def call(self, driver: DriverProcess, call: Call) -> Future[Rows]:
        """Asks a worker of this driver for records. The call fails if either has ended."""
        with self._lock:
            if driver is not self._driver or call.worker not in self._names:
                call.future.set_exception(ConnectionError("the worker has ended"))
                return call.future
            number, borrowed = self._calls.add(call), self._borrowed[call.worker]
        self._ask(driver, number, call, borrowed.read())
        return call.future

    def _ask(self, driver: DriverProcess, number: int, call: Call, returned: list[int]) -> None:
        message = {"kind": "call", "number": number, "worker": call.worker, "key": call.key}
        driver.send(message | {"returned": returned}, call.values)

    def _serve(self) -> None:
        """Connects again and again, as long as there are readers."""
        failures = 0
        while True:
            connected, why = self._connected()
            with self._lock:
                if not self._joined:
                    self._thread = None
                    return
            if why is None:
                continue  # a reader has joined after the last one had left
            failures = 0 if connected else failures + 1
            self._warn_once(
                "connection",
                error_message(
                    f"service {self._where}",
                    "there is no connection to Ray, so this process decodes alone. It goes on"
                    " trying.",
                    reason=why,
                    fix="see with `ray status` whether the cluster runs and this machine belongs to"
                    " it; if not, run ray start --address=HOST:PORT --num-cpus=0 here. If the"
                    " cluster has a token, set RAY_AUTH_MODE=token here, too",
                ),
            )
            pause = threading.Event()
            pause.wait(min(_AGAIN_S * 2 ** min(failures, 8), _AGAIN_MAX_S))

    @property
    def _where(self) -> str:
        return self._service.address or os.environ.get("RAY_ADDRESS") or "on this machine"

    def _connected(self) -> tuple[bool, str | None]:
        """Runs the process until it ends; returns whether it was connected, and why it ended: None
        if no reader needed it.
        """
        try:
            driver = DriverProcess(self._settings())
        except OSError as error:  # as without a free descriptor, which there may be later
            return False, str(error)
        connected = False
        try:
            while (received := self._next(driver)) is not None:
                connected = True
                self._handle(driver, *received)
        finally:
            needed = bool(self._joined)
            self._disconnected()
            why = driver.end()
        return connected, why if needed else None

    def _settings(self) -> dict[str, Any]:
        address = self._service.address or os.environ.get("RAY_ADDRESS") or None
        workers = self._service.workers
        if workers is None and address is None:
            workers = decoding_threads()
        return {
            "address": address,
            "workers": workers,
            "processes": jax.process_count(),
            "object_store_bytes": self._service.object_store_bytes,
            "started_by": f"{platform.node()} pid {os.getpid()}",
        }

    def _next(self, driver: DriverProcess) -> tuple[dict[str, Any], np.ndarray] | None:
        """The next message; None at the end of the connection, or if nobody needs it any more."""
        begun = time.monotonic()
        while True:
            self._forget_left(driver)
            self._note_alone()
            starting = self._driver is None and time.monotonic() - begun > _START_S
            if not self._joined or starting:
                return None
            if driver.wait(_LOOK_S):
                return driver.receive()

    def _forget_left(self, driver: DriverProcess) -> None:
        while not self._left.empty():
            key = self._left.get()
            with self._lock:
                self._joined.pop(key, None)
            self._stores.forget(key)
            driver.send({"kind": "forget", "key": key}, None)

    def _note_alone(self) -> None:
        """Warns if no worker starts, as on a cluster whose cores are all taken."""
        if self._alone_since is None or time.monotonic() - self._alone_since < ALONE_S:
            return
        self._alone_since = None
        self._warn_once(
            "alone",
            error_message(
                f"service {self._where}",
                "no worker has started yet, so this process decodes alone. It goes on waiting.",
                waited_s=f"{ALONE_S:g}",
                fix="see with `ray status` which cores are free: other programs, or another service"
                " of this one, may have taken them all. Give all sources of a program the same"
                " service, or let more machines join the cluster",
            ),
        )

    def _disconnected(self) -> None:
        """Tells the readers that all workers are gone, and lets their calls fail."""
        self._alone_since = None
        with self._lock:
            self._driver = None
            names, self._names = self._names, {}
            self._borrowed.clear()
        self._far.clear()
        for worker in names:
            self._gone(worker, names[worker], "the connection to Ray is lost")
        self._calls.fail("the connection to Ray is lost")

    def _gone(self, worker: int, name: str, why: str) -> None:
        with self._lock:
            readers = list(self._joined.values())
            self._borrowed.pop(worker, None)
        self._far.discard(worker)
        for each in readers:
            if (dispatcher := each.dispatcher()) is not None:
                dispatcher.team.remove(name, why)
        self._calls.fail(why, worker)

    def _handle(self, driver: DriverProcess, message: dict[str, Any], body: np.ndarray) -> None:
        getattr(self, f"_on_{message.pop('kind')}")(driver, body, **message)

    def _on_connected(
        self, driver: DriverProcess, stores: np.ndarray, address: str, token: bool
    ) -> None:
        _log.info("service: connected to Ray at %s", address)
        self._said.discard("connection")
        self._alone_since = time.monotonic()
        if not token:
            self._warn_once(
                "token",
                error_message(
                    f"service {address}",
                    "the cluster takes orders from everybody who can reach its ports.",
                    RAY_AUTH_MODE=os.environ.get("RAY_AUTH_MODE"),
                    fix="set RAY_AUTH_MODE=token, run ray get-auth-token --generate, and copy"
                    " ~/.ray/auth_token to all machines before ray start",
                ),
            )
        self._stores.connected(json.loads(stores.tobytes()))
        with self._lock:
            self._driver = driver
            joined = list(self._joined.items())
        for key, each in joined:
            driver.send({"kind": "open", "key": key}, each.description)

    def _note_size(self, key: str, size: int) -> None:
        """Warns if what may be under way does not fit an object store: Ray then uses disks."""
        short = self._stores.shortage(key, size, len(self._far) * job.processes_here)
        if short is None:
            return
        store, needed = short
        self._warn_once(
            "store",
            error_message(
                f"service {self._where}",
                f"the object store of {store.node} has less room than what workers may have under"
                " way. Ray then writes to its disk.",
                store_bytes=store.size,
                needed=needed,
                fix=f"use ray start --object-store-memory={needed}, or"
                f" RayService(object_store_bytes={needed}) for a cluster that is started here",
            ),
        )

    def _placed(self, worker: int, name: str, key: str) -> tuple[str, _Joined | None]:
        """Notes the name of a worker, and returns it with the reader that it was asked to open.

        Machine and process are no name of their own in containers, where both may be equal.
        """
        self._alone_since = None
        with self._lock:
            if worker not in self._names:
                taken = name in self._names.values()
                self._names[worker] = f"{name}, worker {worker}" if taken else name
            return self._names[worker], self._joined.get(key)

    def _on_opened(
        self, driver: DriverProcess, _body: Any, worker: int, key: str, name: str, facts: Any
    ) -> None:
        name, joined = self._placed(worker, name, key)
        dispatcher = None if joined is None else joined.dispatcher()
        if joined is None or dispatcher is None:
            return
        executor = _RayExecutor(self, driver, worker, key, joined.stored_numbers)
        considered = dispatcher.consider(name, executor, facts)

        def tell(decided: Future[str | None]) -> None:
            if decided.cancelled():
                return
            if (why := decided.result()) is not None:
                driver.send({"kind": "forget", "key": key, "worker": worker}, why)
                return
            with self._lock:
                there = driver is self._driver and worker in self._names
            # It may have ended while it was compared, when the team did not have it yet.
            if not there and (dispatcher := joined.dispatcher()) is not None:
                dispatcher.team.remove(name, "it ended while it was admitted")

        considered.add_done_callback(tell)

    def _on_unable(
        self, driver: DriverProcess, _body: Any, worker: int, key: str, name: str, why: str
    ) -> None:
        name, joined = self._placed(worker, name, key)
        dispatcher = None if joined is None else joined.dispatcher()
        if dispatcher is not None:
            dispatcher.refuse(name, why)
        driver.send({"kind": "forget", "key": key, "worker": worker}, why)

    def _on_gone(self, _driver: DriverProcess, _body: Any, worker: int, why: str) -> None:
        with self._lock:
            name = self._names.pop(worker, None)
        if name is None:
            self._warn_once(why, f"service: a worker could not start: {why}")
        else:
            _log.warning("service: worker %s has died, and is replaced: %s", name, why)
            self._gone(worker, name, why)
            if not self._names:
                self._alone_since = time.monotonic()

    def _on_rows(self, _driver: DriverProcess, body: np.ndarray, number: int) -> None:
        if (call := self._calls.get(number)) is not None:
            self._far.add(call.worker)
            self._note_size(call.key, len(body))
        self._calls.answer(number, lambda: read(body))

    def _on_lent(
        self,
        driver: DriverProcess,
        _body: Any,
        number: int,
        loan: list[Any],
        pid: int,
        descriptor: int,
    ) -> None:
        if (call := self._calls.get(number)) is None:
            return  # the worker is gone, and its file with it
        with self._lock:
            borrowed = self._borrowed[call.worker]
        lent = Loan(*loan)
        try:
            body = borrowed.borrow(lent, lambda: opened_in(pid, descriptor, lent.token))
        except OSError as error:  # as with processes that run in containers of their own
            _log.info("service: rows of process %d come through Ray: %s", pid, error)
            driver.send({"kind": "far", "worker": call.worker}, None)
            self._ask(driver, number, call, [])
            return
        self._calls.answer(number, lambda: read(body))

    def _on_failed(self, _driver: DriverProcess, _body: Any, number: int, why: str) -> None:
        self._calls.answer_error(number, why)

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            _log.warning("%s", message)


@functools.cache
def engine_of(service: RayService) -> RayEngine:
    """The engine of a service, which all readers of this process share."""
    return RayEngine(service)
