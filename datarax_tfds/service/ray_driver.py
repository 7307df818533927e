"""The process that talks to Ray, for the one that trains.

Ray ends a process whose cluster is gone, takes over its handlers of signals, and knows one cluster
at a time. None of that may happen to a training program, so this process stands between. Whatever
goes wrong here ends it, and the engine starts another one. It does not import JAX, which takes
2.4 s of a core at each start: descriptions of readers stay pickled here.
"""

import functools
import json
import os
import pickle
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NAMESPACE = "datarax_tfds"
_CONNECT_S = 5.0
_LOOK_S = 1.0  # how often it looks whether cluster and parent are there
_ANSWER_S = 20.0  # the longest that the cluster may take for that
_AGAIN_S, _AGAIN_MAX_S = 1.0, 30.0  # before a worker that died is started again


def require_answer(address: str) -> None:
    """Raises an `OSError` unless something listens there: Ray itself would wait for minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or _recorded_address()
    host, separator, port = address.rpartition(":")
    if separator:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


def _recorded_address() -> str:
    """The address of the cluster that `ray start` has started last on this machine, if any."""
    record = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")  # noqa: S108
    return record.read_text().strip() if record.exists() else ""


class Driver:
    """Starts workers, passes calls to them, and sends what they return.

    All is done by one thread, in the order of events; the callbacks of Ray only queue them.

    Args:
        channel: The connection to the process that trains.
        settings: How to connect: see `main`.
    """

    def __init__(self, channel: Any, settings: dict[str, Any]):
        self._channel = channel
        self._settings = settings
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._workers: dict[int, Any] = {}
        self._readers: dict[str, bytes] = {}  # descriptions by key, pickled
        self._names: dict[int, str] = {}
        # The processes of workers on this machine, from whose memory rows are read without Ray.
        self._near: dict[int, int] = {}
        self._asked: set[int] = set()  # workers that have not said yet whether they are there
        self._failures = 0
        self._wanted = 0
        self._started = 0
        self._answered: float | None = None  # when the cluster did last, once connected

    def run(self) -> None:
        """Connects, and works until the connection to either side ends."""
        threading.Thread(target=self._look, daemon=True).start()
        start = self._settings["address"] is None
        if start:
            # A cluster of this process alone. Nobody else can know its token. Ray reads both when
            # it is imported.
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            where: dict[str, Any] = {
                # Without it, Ray looks for a cluster that `ray start` has started on this machine.
                "address": "local",
                "num_cpus": self._settings["workers"],
                "object_store_memory": self._settings["object_store_bytes"],
                "include_dashboard": False,
            }
        else:
            require_answer(self._settings["address"])
            where = {"address": self._settings["address"]}
        import ray

        ray.init(
            **where,
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
        )
        self._answered = time.monotonic()  # not before, as a busy machine connects in 30 s
        self._channel.send(
            {
                "kind": "connected",
                "address": ray.get_runtime_context().gcs_address,
                "token": os.environ.get("RAY_AUTH_MODE", "").lower() == "token",
            },
            [json.dumps(self._stores()).encode()],  # of a thousand machines, too long for a message
        )
        threading.Thread(target=self._receive, daemon=True).start()
        threading.Thread(target=self._ask, daemon=True).start()
        while True:
            self._events.get()()

    def _stores(self) -> list[tuple[str, int, int, bool]]:
        """The object stores of the cluster: see `Store`."""
        import ray

        here = ray.get_runtime_context().get_node_id()
        resources = {
            (node["NodeManagerHostname"], node["NodeID"] == here): node["Resources"]
            for node in ray.nodes()
            if node["Alive"]
        }
        return [
            (name, int(each.get("object_store_memory", 0)), int(each.get("CPU", 0)), is_here)
            for (name, is_here), each in resources.items()
        ]

    def _receive(self) -> None:
        while (received := self._channel.receive()) is not None:
            message, body = received
            handle = getattr(self, f"_on_{message.pop('kind')}")
            event = functools.partial(handle, **message, body=body.tobytes())
            self._events.put(event)
        self._events.put(self._end)

    def _look(self) -> None:
        """Ends this process when the cluster or the parent is gone, which neither may announce."""
        parent = self._settings["parent"]
        while os.getppid() == parent:
            if self._answered is not None and time.monotonic() - self._answered > _ANSWER_S:
                os._exit(1)  # a shutdown would wait for the cluster that does not answer
            time.sleep(_LOOK_S)
        if self._answered is None:
            os._exit(1)  # the system then ends what Ray has started for this process alone
        self._events.put(self._end)

    def _ask(self) -> None:
        import ray

        while True:
            cores = ray.cluster_resources().get("CPU", 0.0)
            self._answered = time.monotonic()
            self._events.put(lambda cores=cores: self._grow(int(cores)))
            time.sleep(_LOOK_S)

    def _end(self) -> None:
        import ray

        ray.shutdown()
        os._exit(0)

    def _grow(self, cores: int) -> None:
        """Starts workers, as many as the cluster has room for."""
        wanted = self._settings["workers"] or max(1, cores // self._settings["processes"])
        while self._wanted < wanted:
            self._wanted += 1
            self._start_worker()
        self._look_after_workers()

    def _look_after_workers(self) -> None:
        """Notices that a worker has died that nobody has called."""
        for number in self._names.keys() & self._workers.keys() - self._asked:
            self._asked.add(number)
            self._when_done(
                self._workers[number].place.remote(),
                number,
                lambda worker, _: self._asked.discard(worker),
            )

    def _start_worker(self) -> None:
        import ray

        from datarax_tfds.service.ray_worker import THREADS, RayWorker

        number, self._started = self._started, self._started + 1
        started_by = self._settings["started_by"]
        actor: Any = ray.remote(RayWorker)
        worker = actor.options(
            num_cpus=1,
            max_concurrency=THREADS,
            name=f"{started_by} {number} {secrets.token_hex(4)}",
        ).remote(started_by)
        self._workers[number] = worker
        self._when_done(worker.place.remote(), number, self._placed)

    def _when_done(self, reference: Any, worker: int, use: Callable[[int, Any], None]) -> None:
        """Calls `use(worker, result)`; if the worker has died, starts another one."""

        def done(future: Any) -> None:
            self._events.put(lambda: self._finished(future, worker, use))

        reference.future().add_done_callback(done)

    def _finished(self, future: Any, worker: int, use: Callable[[int, Any], None]) -> None:
        from ray.exceptions import RayActorError

        error = future.exception()
        if isinstance(error, RayActorError):
            self._died(worker, error)
        use(worker, error if error is not None else future.result())

    def _died(self, worker: int, error: Exception) -> None:
        if self._workers.pop(worker, None) is None:
            return  # known already
        self._names.pop(worker, None)
        self._near.pop(worker, None)
        self._channel.send({"kind": "gone", "worker": worker, "why": _shown(error)})
        self._failures += 1
        again_s = min(_AGAIN_S * 2 ** min(self._failures - 1, 8), _AGAIN_MAX_S)
        timer = threading.Timer(again_s, lambda: self._events.put(self._start_worker))
        timer.daemon = True
        timer.start()

    def _placed(self, worker: int, place: Any) -> None:
        import ray

        if isinstance(place, Exception):
            return
        self._names[worker] = f"{place['node']}, pid {place['pid']}"
        if place["ray_node"] == ray.get_runtime_context().get_node_id():
            self._near[worker] = place["pid"]
        self._failures = 0
        for key in self._readers:
            self._open(worker, key)

    def _open(self, worker: int, key: str) -> None:
        opened = self._workers[worker].open.remote(key, self._readers[key])

        def use(worker: int, facts: Any) -> None:
            if worker not in self._workers:
                return
            message = {"worker": worker, "key": key, "name": self._names[worker]}
            if isinstance(facts, Exception):
                self._channel.send({"kind": "unable", "why": _shown(facts), **message})
            else:
                self._channel.send({"kind": "opened", "facts": facts, **message})

        self._when_done(opened, worker, use)

    def _on_open(self, key: str, body: bytes) -> None:
        self._readers[key] = body
        for worker in self._names.keys() & self._workers.keys():
            self._open(worker, key)

    def _on_forget(self, key: str, body: bytes, worker: int | None = None) -> None:
        """Lets workers close a reader. `body` is the reason for which it was refused, or None."""
        refusal = pickle.loads(body)  # noqa: S301  # of our parent
        if worker is None:
            self._readers.pop(key, None)
        for number in self._workers if worker is None else {worker} & self._workers.keys():
            self._workers[number].forget.remote(key, refusal)

    def _on_far(self, worker: int, **_: Any) -> None:
        """Lets rows of a worker come through Ray, because the parent cannot read its memory."""
        self._near.pop(worker, None)

    def _on_call(
        self, number: int, worker: int, key: str, returned: Sequence[int], body: bytes
    ) -> None:
        from datarax_tfds.service.rows_format import written

        def use(_: int, answer: Any) -> None:
            if isinstance(answer, Exception):
                self._channel.send({"kind": "failed", "number": number, "why": _shown(answer)})
            elif isinstance(answer, list):
                self._channel.send({"kind": "rows", "number": number}, written(*answer))
            else:
                loan, descriptor = answer
                place = {"pid": near, "descriptor": descriptor}
                self._channel.send({"kind": "lent", "number": number, "loan": loan, **place})

        if worker not in self._workers:
            self._channel.send({"kind": "failed", "number": number, "why": "the worker has died"})
            return
        numbers, keys = pickle.loads(body)  # noqa: S301  # of our parent
        near = self._near.get(worker)
        if near is None:
            called = self._workers[worker].read.remote(key, numbers, keys)
        else:
            called = self._workers[worker].lend.remote(key, numbers, keys, returned)
        self._when_done(called, worker, use)


def _shown(error: Exception) -> str:
    """An error without the traceback of the worker, and without Ray's advice after a death."""
    from ray.exceptions import RayActorError

    cause = getattr(error, "cause", None) or error
    text = str(cause).partition("\n")[0] if isinstance(cause, RayActorError) else str(cause)
    return f"{type(cause).__name__}: {text[:2000]}"


def main() -> None:
    """Runs the driver. The command line has the descriptor of a socket, and settings as JSON."""
    # Ray then ends this process soon after its cluster is gone, and the engine learns of it.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
    from datarax_tfds.service.channel import Channel

    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    Driver(channel, json.loads(sys.argv[2])).run()


if __name__ == "__main__":
    main()
