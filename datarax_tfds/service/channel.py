"""Sends messages and arrays between this process and the one that talks to Ray.

A message is a JSON object, and may come with a body of bytes. A large body is in a file in memory
that only the two processes have, so that it is written once, and is read where it lies.
"""

import json
import select
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from datarax_tfds.service.lent_files import BorrowedFiles, LentFiles, Loan, views

_MAX_MESSAGE = 64 << 10  # Linux sends messages of up to 200 KiB
_MAX_INLINE = 16 << 10  # bytes of a body that is sent within the message


class Channel:
    """One end of the connection. Any thread may send; one receives. Cannot be copied, like sockets.

    Args:
        connection: A socket that keeps messages apart: of type `SOCK_SEQPACKET`.
        send_limit_s: The longest that the other end may leave a full connection unread, in whole
            seconds. By default, `send` waits for it.
    """

    def __init__(self, connection: socket.socket, *, send_limit_s: int = 0):
        self._socket = connection
        limit = struct.pack("@ll", send_limit_s, 0)  # a timeval; 0 is no limit
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._sending = threading.Lock()
        self._lent, self._borrowed = LentFiles(), BorrowedFiles()
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Two connected sockets."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send(self, message: dict[str, Any], body: Sequence[Any] = ()) -> None:
        """Sends a message, with the bytes of these buffers as its body.

        Raises:
            BlockingIOError: The other end has read nothing for `send_limit_s`.
            OSError: The other end is closed.
        """
        buffers = views(body)
        size = sum(map(len, buffers))
        envelope = {"message": message, "read": self._borrowed.read()}
        if size <= _MAX_INLINE:
            self._send(envelope, b"".join(buffers))
            return
        file = self._lent.lend(buffers)
        descriptors = [file.descriptor] if file.is_new else []
        self._send(envelope | {"loan": file.loan}, descriptors=descriptors)

    def _send(
        self, envelope: dict[str, Any], body: bytes = b"", descriptors: Sequence[int] = ()
    ) -> None:
        packet = json.dumps(envelope).encode() + b"\n" + body
        assert len(packet) <= _MAX_MESSAGE  # what is large is in the body
        with self._sending:
            socket.send_fds(self._socket, [packet], descriptors)

    def wait(self, timeout_s: float) -> bool:
        """Waits until there is a message, or the connection has ended. Returns False if neither
        happens for `timeout_s` seconds.
        """
        return bool(self._readable.poll(timeout_s * 1000))

    def receive(self) -> tuple[dict[str, Any], np.ndarray] | None:
        """The next message, and its body as uint8, whose memory is used again after the last view
        of it.

        Raises:
            OSError: The connection is broken.

        Returns:
            None if the other end is closed.
        """
        packet, descriptors, _, _ = socket.recv_fds(self._socket, 2 * _MAX_MESSAGE, 1)
        if not packet:
            return None
        header, _, inline = packet.partition(b"\n")
        envelope = json.loads(header)
        self._lent.take_back(envelope["read"])
        if "loan" in envelope:
            body = self._borrowed.borrow(Loan(*envelope["loan"]), iter(descriptors).__next__)
        else:
            body = np.frombuffer(inline, np.uint8)
        return envelope["message"], body

    def close(self) -> None:
        """Ends the connection, for both."""
        self._socket.close()
        self._lent.close()
