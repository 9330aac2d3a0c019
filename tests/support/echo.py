"""A small threaded echo server for tests that need a server and no load: it sends back what it gets, until the end."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Threaded:
    """Listens on 127.0.0.1 while the `with` block lasts; _converse() serves each client in a thread. Port 0: a free
    one."""

    def __init__(self, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._serving: set[threading.Thread] = set()
        self.accepted = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # shutdown() wakes the thread in accept(); close() alone would not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            serving = list(self._serving)
        # Or descriptors would come to be closed while the next test counts its own.
        for thread in serving:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            with self._lock:
                self.accepted += 1
                self._open.add(sock)
                self._serving.add(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock:
                self._converse(sock)
        except OSError:
            return
        finally:
            with self._lock:
                self._open.discard(sock)
                self._serving.discard(threading.current_thread())

    def _converse(self, sock: socket.socket) -> None:
        raise NotImplementedError


class Echo(Threaded):
    """`greeting` is sent to each client first."""

    def __init__(self, greeting: bytes = b"") -> None:
        super().__init__()
        self._greeting = greeting

    def _converse(self, sock: socket.socket) -> None:
        sock.sendall(self._greeting)
        while data := sock.recv(65536):
            sock.sendall(data)


def exchange(port: int, text: bytes = b"hello", timeout: float = 10.0) -> bytes:
    """One connection: send, half-close, read to the end."""
    with socket.create_connection(("127.0.0.1", port), timeout) as sock:
        sock.sendall(text)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while data := sock.recv(65536):
            answer += data
        return answer
