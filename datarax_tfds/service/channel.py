"""Sends messages and arrays between this process and the one that talks to Ray.

A message is a JSON object, and may come with a body: a file in memory that only the two processes
have. So arrays are written once, and are read where they lie.
"""

import json
import mmap
import os
import select
import socket
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

_MAX_HEADER = 64 << 10


class Channel:
    """One end of the connection. Any thread may send; one receives. Cannot be copied, like sockets.

    Args:
        connection: A socket that keeps messages apart: of type `SOCK_SEQPACKET`.
    """

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._sending = threading.Lock()
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Two connected sockets."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send(self, message: dict[str, Any], body: Sequence[Any] = ()) -> None:
        """Sends a message, with the bytes of these buffers as its body.

        Raises:
            OSError: The other end is closed.
        """
        header = json.dumps(message).encode()
        assert len(header) <= _MAX_HEADER  # what is large is in the body
        if not body:
            with self._sending:
                self._socket.send(header)
            return
        descriptor = os.memfd_create("datarax_tfds")
        try:
            for buffer in body:
                _write(descriptor, memoryview(buffer).cast("B"))
            with self._sending:
                socket.send_fds(self._socket, [header], [descriptor])
        finally:
            os.close(descriptor)

    def wait(self, timeout_s: float) -> bool:
        """Waits for a message, or for the end of the connection; returns whether one came."""
        return bool(self._readable.poll(timeout_s * 1000))

    def receive(self) -> tuple[dict[str, Any], np.ndarray] | None:
        """The next message, and its body as uint8, which is freed with the last view of it.

        Raises:
            OSError: The connection is broken.

        Returns:
            None if the other end is closed.
        """
        header, descriptors, _, _ = socket.recv_fds(self._socket, 2 * _MAX_HEADER, 1)
        if not header:
            return None
        body = np.empty(0, np.uint8)
        for descriptor in descriptors:
            try:
                if size := os.fstat(descriptor).st_size:
                    view = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
                    body = np.frombuffer(view, np.uint8)
            finally:
                os.close(descriptor)
        return json.loads(header), body

    def close(self) -> None:
        """Ends the connection, for both."""
        self._socket.close()


def _write(descriptor: int, buffer: memoryview) -> None:
    while buffer:
        buffer = buffer[os.write(descriptor, buffer) :]
