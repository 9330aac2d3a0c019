"""A server for checks: what it does to whom can be changed while it runs, and it tells checks from requests."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType

_RESET = struct.pack("ii", 1, 0)
CHECK = b"/health"  # a request whose first bytes name this is a check

OK = b"HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX-State: good, better\r\n\r\nhello"
SICK = b"HTTP/1.1 503 Sick\r\nContent-Length: 0\r\n\r\n"


class Sick:
    """Listens on 127.0.0.1 while the `with` block lasts.

    `answer` is what checks get before the connection is closed; None: nothing, and it stays open. Others are sent back
    what they send. `reset`: checks are cut off.
    """

    def __init__(self, answer: bytes | None = OK, port: int = 0, *, drip: bool = False, reset: bool = False) -> None:
        self.answer = answer
        self.drip = drip
        self.reset = reset
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.accepted = self.checks = self.requests = 0
        self.heard: list[bytes] = []  # the first bytes of each connection
        self.changed = threading.Condition()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Sick:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def wait_checks(self, more: int = 1, deadline: float = 10.0) -> None:
        """Wait until so many more checks have come."""
        with self.changed:
            wanted = self.checks + more
            assert self.changed.wait_for(lambda: self.checks >= wanted, deadline), "nobody checks"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.accepted += 1
                self._open.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock:
                self._converse(sock)
        except OSError:
            return
        finally:
            with self._lock:
                self._open.discard(sock)

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
