"""A server for checks: what it does to whom can be changed while it runs, and it tells checks from requests."""

from __future__ import annotations

import socket
import struct
import threading

from tests.support.echo import Threaded
from tests.support.processes import Deadline, poll_until

_RESET = struct.pack("ii", 1, 0)
CHECK = b"/health"  # a request whose first bytes name this is a check

OK = b"HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX-State: good, better\r\n\r\nhello"
SICK = b"HTTP/1.1 503 Sick\r\nContent-Length: 0\r\n\r\n"


class Sick(Threaded):
    """Listens on 127.0.0.1 while the `with` block lasts.

    `answer` is what checks get before the connection is closed; None: nothing, and it stays open. Others are sent back
    what they send. `reset`: checks are cut off.
    """

    def __init__(self, answer: bytes | None = OK, port: int = 0, *, drip: bool = False, reset: bool = False) -> None:
        super().__init__(port)
        self.answer = answer
        self.drip = drip
        self.reset = reset
        self.checks = self.requests = 0
        self.heard: list[bytes] = []  # the first bytes of each connection
        self.changed = threading.Condition()

    def wait_checks(self, more: int = 1, deadline: float = 10.0) -> None:
        """Wait until so many more checks have come."""
        with self.changed:
            wanted = self.checks + more
            assert self.changed.wait_for(lambda: self.checks >= wanted, deadline), "nobody checks"

    def settle(self, deadline: float = 10.0) -> None:
        """Return when all who came before this call have been heard and are gone."""
        limit = Deadline(deadline)
        # Nobody is accepted before those who came earlier are.
        with socket.create_connection(("127.0.0.1", self.port), limit.left) as last:
            last.sendall(b"last")
            assert last.recv(4) == b"last"
        poll_until(lambda: not self._open, limit, "all are gone")

    def _converse(self, sock: socket.socket) -> None:
        data = sock.recv(65536)
        if not data:
            return  # nobody asked for anything
        check = CHECK in data
        with self.changed:
            self.heard.append(data)
            self.checks += check
            self.requests += not check
            self.changed.notify_all()
        if not check:
            while data:
                sock.sendall(data)
                data = sock.recv(65536)
            return
        if self.reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            return
        answer = self.answer
        if answer is None or self.drip:
            for byte in answer or b"":
                sock.sendall(bytes([byte]))
            while sock.recv(65536):
                continue
            return
        sock.sendall(answer)
