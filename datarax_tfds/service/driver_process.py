"""Runs the process that talks to Ray for this one, and the connection to it."""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.service.channel import Channel

_DRIVER = (sys.executable, "-m", "datarax_tfds.service.ray_driver")
_MAX_SHOWN = 500  # characters of what Ray says
_SEND_LIMIT_S = 2  # one of its threads only reads, so a busy machine does not need more
_END_S = 30.0  # the longest that Ray may take to end


@not_copied
class DriverProcess:
    """The driver of Ray, as a process of its own. It ends when the connection or this process does.

    Args:
        settings: How to connect, in JSON types: see `datarax_tfds/service/ray_driver.py`.
    """

    def __init__(self, settings: dict[str, Any]):
        ours, theirs = Channel.pair()
        self._channel = Channel(ours, send_limit_s=_SEND_LIMIT_S)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # `end` closes it
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # our own module
                [
                    *_DRIVER,
                    str(theirs.fileno()),
                    json.dumps(settings | {"parent": os.getpid()}),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                env=os.environ | _environment(),
                # A Ctrl-C is for the program that trains, which may save before it ends.
                start_new_session=True,
            )

    def send(self, message: dict[str, Any], values: Any) -> None:
        """Sends a message, and values by pickle.

        Nothing is raised if the connection is broken: `receive` tells. A process that reads nothing
        any more is killed, because calls to its workers would wait for it.
        """
        try:
            self._channel.send(message, [pickle.dumps(values)])
        except BlockingIOError:
            self._process.kill()
        except OSError:
            pass

    def wait(self, timeout_s: float) -> bool:
        """Waits for a message: see `Channel.wait`."""
        return self._channel.wait(timeout_s)

    def receive(self) -> tuple[dict[str, Any], np.ndarray] | None:
        """The next message, and its body as uint8; None at the end of the connection."""
        try:
            return self._channel.receive()
        except OSError:
            return None

    def end(self) -> str:
        """Ends the connection, and waits until the process ends; returns why it did."""
        self._channel.close()
        with self._errors:
            try:
                self._process.wait(timeout=_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return "".join(last)[:_MAX_SHOWN] or f"exit status {self._process.returncode}"


def _environment() -> dict[str, str]:
    """Of the process that talks to Ray: it must find this package, and needs no accelerator."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}
