"""Clusters of Ray on this machine for tests. They end with the tests, however these end.

As a program, it runs `ray start` with the given options until its parent has ended:

    python tests/ray_clusters.py PID_OF_PARENT --head --port=6379
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from datarax_tfds.cli import launching

STORE_BYTES = 100_000_000


class Node:
    """A machine of a cluster, as far as Ray knows.

    Attributes:
        process: Leads the process group of all that it runs.
    """

    def __init__(self, *options: str, cwd: Any = None, python_path: Any = None):
        path = {} if python_path is None else {"PYTHONPATH": str(python_path)}
        common = [
            "--node-ip-address=127.0.0.1", f"--object-store-memory={STORE_BYTES}", "--block",
            "--disable-usage-stats",
        ]  # fmt: skip
        self._start = functools.partial(
            subprocess.Popen,
            [sys.executable, __file__, str(os.getpid()), *options, *common],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=cwd,
            env=os.environ | path,
        )
        self.process = self._start()

    def keep(self) -> None:
        """Starts the node again if it has ended, as it does if another node chose the same port."""
        if self.process.poll() is not None:
            self.process = self._start()

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # all at once, as when a machine is lost
        self.process.wait()


class Cluster:
    """A cluster that is this test's alone.

    Args:
        directory: For its files.
        cores: How many workers its first node may run.
    """

    def __init__(self, directory: str, cores: int):
        port = launching.free_port()
        self.address = f"127.0.0.1:{port}"
        self._options = [
            "--head", f"--port={port}", f"--num-cpus={cores}", f"--temp-dir={directory}",
            "--include-dashboard=false", "--no-monitor",
        ]  # fmt: skip
        self._nodes: list[Node] = []

    def start(self) -> Node:
        self._nodes.append(Node(*self._options))
        return self._nodes[0]

    def join(self, **how: Any) -> Node:
        """Starts another node, for one worker."""
        self._nodes.append(Node(f"--address={self.address}", "--num-cpus=1", **how))
        return self._nodes[-1]

    def keep(self) -> None:
        """Starts those of its nodes again that have ended: see `Node.keep`."""
        for node in self._nodes:
            node.keep()

    def stop(self) -> None:
        while self._nodes:
            self._nodes.pop().stop()


@contextlib.contextmanager
def running(cores: int) -> Iterator[Cluster]:
    """A cluster with a token, which processes that start meanwhile find in their environment."""
    with (
        # Of a short name, because that of a socket has at most 107 bytes.
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", os.urandom(32).hex())
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster(directory, cores)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()


def main() -> None:
    parent, *options = sys.argv[1:]
    ray = subprocess.Popen([sys.executable, "-m", "ray.scripts.scripts", "start", *options])
    while os.getppid() == int(parent) and ray.poll() is None:
        time.sleep(0.2)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
