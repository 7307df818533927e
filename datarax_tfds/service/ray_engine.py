"""Keeps the workers of Ray for all readers of this process that use the same service."""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import pickle
import platform
import queue
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from datarax_tfds.config.ray_service import RayService
from datarax_tfds.decoding.decoder import MAX_CHUNK
from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.runtime.threads import decoding_threads
from datarax_tfds.service.channel import Channel
from datarax_tfds.service.dispatcher import Dispatcher
from datarax_tfds.service.executor import Rows
from datarax_tfds.service.lent_files import BorrowedFiles, Loan, opened_in
from datarax_tfds.service.ray_worker import CALLS
from datarax_tfds.service.rows_format import read
from sharding.checks import error_message

_log = logging.getLogger(__name__)

_LOOK_S = 0.5  # how often it looks for readers that nobody uses any more
_DRIVER = (sys.executable, "-m", "datarax_tfds.service.ray_driver")
_MAX_SHOWN = 500  # characters of what Ray says
_START_S = 180.0  # the longest that Ray may take to start
_AGAIN_S, _AGAIN_MAX_S = 1.0, 15.0  # before it connects again

StoredNumbers = Callable[[np.ndarray], np.ndarray]


class Described(Protocol):
    """Describes what workers open. It is sent to them by pickle, and they call `opened`."""

    def opened(self) -> Any:
        """Returns an object with `read`, as of a `RecordReader`, and what `facts_of` needs."""
        ...


@dataclasses.dataclass
class _Joined:
    """A reader that uses the workers."""

    dispatcher: "weakref.ref[Dispatcher]"
    description: Described
    stored_numbers: StoredNumbers | None


@dataclasses.dataclass
class _Call:
    """A call that is not answered yet."""

    worker: int
    key: str
    values: tuple[np.ndarray, np.ndarray | None]
    future: Future[Rows] = dataclasses.field(default_factory=Future)


class _RayExecutor:
    """A worker of Ray, for one reader."""

    capacity = CALLS

    def __init__(self, engine: "RayEngine", worker: int, key: str, stored: StoredNumbers | None):
        self._engine, self._worker, self._key, self._stored = engine, worker, key, stored

    def submit(self, numbers: np.ndarray, keys: np.ndarray | None, /) -> Future[Rows]:
        if self._stored is not None:
            numbers = self._stored(numbers)
        return self._engine.call(self._worker, self._key, numbers, keys)


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
        self._channel: Channel | None = None
        self._names: dict[int, str] = {}
        self._calls: dict[int, _Call] = {}
        self._numbers = 0
        self._borrowed: defaultdict[int, BorrowedFiles] = defaultdict(BorrowedFiles)  # by worker
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
            channel = self._channel
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve, name="datarax_tfds_ray", daemon=True
                )
                self._thread.start()
        if channel is not None:
            self._send(channel, {"kind": "open", "key": key}, description)

    def call(
        self, worker: int, key: str, numbers: np.ndarray, keys: np.ndarray | None
    ) -> Future[Rows]:
        """Asks a worker for records."""
        call = _Call(worker, key, (numbers, keys))
        with self._lock:
            channel = self._channel
            if channel is None:
                call.future.set_exception(ConnectionError("there is no connection to Ray"))
                return call.future
            number, self._numbers = self._numbers, self._numbers + 1
            self._calls[number] = call
            borrowed = self._borrowed[worker]
        self._ask(channel, number, call, borrowed.read())
        return call.future

    def _ask(self, channel: Channel, number: int, call: _Call, returned: list[int]) -> None:
        message = {"kind": "call", "number": number, "worker": call.worker, "key": call.key}
        self._send(channel, message | {"returned": returned}, call.values)

    def _send(self, channel: Channel, message: dict[str, Any], values: Any) -> None:
        # If the connection is broken, `_serve` learns of it, and lets the calls fail.
        with contextlib.suppress(OSError):
            channel.send(message, [pickle.dumps(values)])

    def _serve(self) -> None:
        """Connects again and again, as long as there are readers."""
        failures = 0
        while True:
            connected, why = self._connected()
            with self._lock:
                if not self._joined:
                    self._thread = None
                    return
            failures = 0 if connected else failures + 1
            self._warn_once(
                "connection",
                error_message(
                    f"service {self._where}",
                    "there is no connection to Ray, so this process decodes alone. It goes on"
                    " trying.",
                    reason=why,
                    fix="see with `ray status` whether the cluster runs and this machine belongs to"
                    " it; if not, run ray start --address=HOST:PORT --num-cpus=0 here",
                ),
            )
            pause = threading.Event()
            pause.wait(min(_AGAIN_S * 2 ** min(failures, 8), _AGAIN_MAX_S))

    @property
    def _where(self) -> str:
        return self._service.address or os.environ.get("RAY_ADDRESS") or "on this machine"

    def _connected(self) -> tuple[bool, str]:
        """Runs the process until it ends; returns whether it was connected, and why it ended."""
        ours, theirs = Channel.pair()
        channel = Channel(ours)
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(  # noqa: S603  # our own module
                [*_DRIVER, str(theirs.fileno()), json.dumps(self._settings())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=os.environ | _environment(),
            )
            theirs.close()
            connected = False
            try:
                while (received := self._next(channel)) is not None:
                    connected = True
                    self._handle(channel, *received)
            except OSError:  # as the end of the connection
                pass
            finally:
                self._disconnected()
                channel.close()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return connected, "".join(last)[:_MAX_SHOWN] or f"exit status {process.returncode}"

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

    def _next(self, channel: Channel) -> tuple[dict[str, Any], np.ndarray] | None:
        """The next message; None at the end of the connection, or if nobody needs it any more."""
        begun = time.monotonic()
        while True:
            self._forget_left(channel)
            starting = self._channel is None and time.monotonic() - begun > _START_S
            if not self._joined or starting:
                return None
            if channel.wait(_LOOK_S):
                return channel.receive()

    def _forget_left(self, channel: Channel) -> None:
        while not self._left.empty():
            key = self._left.get()
            with self._lock:
                self._joined.pop(key, None)
            self._send(channel, {"kind": "forget", "key": key}, None)

    def _disconnected(self) -> None:
        """Tells the readers that all workers are gone, and lets their calls fail."""
        with self._lock:
            self._channel = None
            names, self._names = self._names, {}
            self._borrowed.clear()
        for worker in names:
            self._gone(worker, names[worker], "the connection to Ray is lost")
        self._fail(lambda _: True, "the connection to Ray is lost")

    def _gone(self, worker: int, name: str, why: str) -> None:
        with self._lock:
            readers = list(self._joined.values())
            self._borrowed.pop(worker, None)
        for each in readers:
            if (dispatcher := each.dispatcher()) is not None:
                dispatcher.team.remove(name, why)
        self._fail(lambda of: of == worker, why)

    def _fail(self, concerns: Callable[[int], bool], why: str) -> None:
        with self._lock:
            numbers = [number for number, call in self._calls.items() if concerns(call.worker)]
            failed = [self._calls.pop(number) for number in numbers]
        for call in failed:
            call.future.set_exception(ConnectionError(why))

    def _handle(self, channel: Channel, message: dict[str, Any], body: np.ndarray) -> None:
        getattr(self, f"_on_{message.pop('kind')}")(channel, body, **message)

    def _on_connected(
        self, channel: Channel, _body: Any, address: str, token: bool, store_bytes: int
    ) -> None:
        _log.info("service: connected to Ray at %s", address)
        self._said.discard("connection")
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
        with self._lock:
            self._channel = channel
            joined = list(self._joined.items())
        self._check_store(store_bytes, joined)
        for key, each in joined:
            self._send(channel, {"kind": "open", "key": key}, each.description)

    def _check_store(self, store_bytes: int, joined: list[tuple[str, _Joined]]) -> None:
        """Warns if what may be under way does not fit an object store: Ray then uses disks."""
        needed = sum(
            MAX_CHUNK * dispatcher.record_bytes * CALLS
            for _, each in joined
            if (dispatcher := each.dispatcher()) is not None
        )
        if needed > store_bytes:
            self._warn_once(
                "store",
                error_message(
                    f"service {self._where}",
                    "an object store has less room than what a worker may have under way.",
                    store_bytes=store_bytes,
                    needed=needed,
                    fix=f"use ray start --object-store-memory={needed}, or"
                    f" RayService(object_store_bytes={needed}) for a cluster that is started here",
                ),
            )

    def _on_opened(
        self, channel: Channel, _body: Any, worker: int, key: str, name: str, facts: Any
    ) -> None:
        with self._lock:
            self._names[worker] = name
            joined = self._joined.get(key)
        dispatcher = None if joined is None else joined.dispatcher()
        if joined is None or dispatcher is None:
            return
        executor = _RayExecutor(self, worker, key, joined.stored_numbers)
        considered = dispatcher.consider(name, executor, facts)

        def tell(decided: Future[str | None]) -> None:
            if not decided.cancelled() and (why := decided.result()) is not None:
                self._send(channel, {"kind": "forget", "key": key, "worker": worker}, why)

        considered.add_done_callback(tell)

    def _on_unable(
        self, channel: Channel, _body: Any, worker: int, key: str, name: str, why: str
    ) -> None:
        with self._lock:
            self._names[worker] = name
            joined = self._joined.get(key)
        dispatcher = None if joined is None else joined.dispatcher()
        if dispatcher is not None:
            dispatcher.refuse(name, why)
        self._send(channel, {"kind": "forget", "key": key, "worker": worker}, why)

    def _on_gone(self, _channel: Channel, _body: Any, worker: int, why: str) -> None:
        with self._lock:
            name = self._names.pop(worker, None)
        if name is None:
            self._warn_once(why, f"service: a worker could not start: {why}")
        else:
            _log.warning("service: worker %s has died, and is replaced: %s", name, why)
            self._gone(worker, name, why)

    def _answered(self, number: int) -> Future[Rows] | None:
        """The future of a call, which is under way no more; None if the call has failed before."""
        with self._lock:
            call = self._calls.pop(number, None)
        return None if call is None else call.future

    def _on_rows(self, _channel: Channel, body: np.ndarray, number: int) -> None:
        if (future := self._answered(number)) is not None:
            try:
                rows = read(body)
            except Exception as error:  # of any kind, as the bytes come from elsewhere
                future.set_exception(error)
            else:
                future.set_result(rows)

    def _on_lent(
        self, channel: Channel, _body: Any, number: int, loan: list[Any], pid: int, descriptor: int
    ) -> None:
        with self._lock:
            call = self._calls.get(number)
            borrowed = None if call is None else self._borrowed[call.worker]
        if call is None or borrowed is None:
            return  # the worker is gone, and its file with it
        lent = Loan(*loan)
        try:
            body = borrowed.borrow(lent, lambda: opened_in(pid, descriptor, lent.token))
        except OSError as error:  # as with processes that run in containers of their own
            _log.info("service: rows of process %d come through Ray: %s", pid, error)
            self._send(channel, {"kind": "far", "worker": call.worker}, None)
            self._ask(channel, number, call, [])
            return
        self._on_rows(channel, body, number)

    def _on_failed(self, _channel: Channel, _body: Any, number: int, why: str) -> None:
        if (future := self._answered(number)) is not None:
            future.set_exception(RuntimeError(why))

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            _log.warning("%s", message)


def _environment() -> dict[str, str]:
    """Of the process that talks to Ray: it must find this package, and needs no accelerator."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}


@functools.cache
def engine_of(service: RayService) -> RayEngine:
    """The engine of a service, which all readers of this process share."""
    return RayEngine(service)
