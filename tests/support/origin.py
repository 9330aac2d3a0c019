"""An HTTP server for comparisons: what it answers is in the path, and it remembers all that it was sent.

| path | what happens |
|---|---|
| `/status/N` | N, with a body of some bytes where one is allowed |
| `/chunked`, `/close` | a body in chunks; one that ends with the connection |
| `/interim` | 103 before 200 |
| `/quit` | 200 with `Connection: close` |
| `/old` | a response of HTTP/1.0 |
| `/cookie` | 200 that sets a cookie `SRV` of its own |
| `/big`, `/huge` | a body of a million bytes, of 32 million, which no buffer holds |
| `/drop`, `/cut` | the connection is closed instead of an answer; in the middle of the body |
| `/garbage` | what is no response |
| `/hang` | nothing until release() |
| `/halt` | half of a body, and no more until release() |
| `/switch` | 101, then an echo; so does CONNECT, with 200 |
| any other | 200 with a body that says who answers |
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from typing import NamedTuple

from tests.support.processes import Deadline, DeadlineExpired

__all__ = ["Origin", "Seen"]

_V2 = b"\r\n\r\n\0\r\nQUIT\n"


class Seen(NamedTuple):
    """A request as it came."""

    connection: int  # from 1
    head: bytes
    body: bytes  # chunks as they were
    proxy: bytes  # header of the PROXY protocol before the first request of the connection

    @property
    def line(self) -> bytes:
        return self.head.partition(b"\r\n")[0]

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """Names in lower case, in order."""
        lines = self.head[:-4].split(b"\r\n")[1:]
        return [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]

    def values(self, name: bytes) -> list[bytes]:
        return [value for found, value in self.fields if found == name]


class Origin:
    """One server, in threads of this process; `stop()` and `start()` make it refuse connections and take them again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[Seen] = []
        self.connections = 0
        self._changed = threading.Condition()
        self._released = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._serve()

    def wait(self, count: int, deadline: float = 10.0) -> list[Seen]:
        """The first requests, when there are so many."""
        limit = Deadline(deadline)
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.seen) >= count, limit.left):
                raise DeadlineExpired(f"{self.name} has seen {len(self.seen)} requests, not {count}")
            return self.seen[:count]

    def wait_closed(self, deadline: float = 10.0) -> None:
        """Wait until nobody is connected."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._open, Deadline(deadline).left):
                raise DeadlineExpired(f"{len(self._open)} connections to {self.name} are open")

    def release(self) -> None:
        """Let everybody go on who hangs."""
        self._released.set()

    def stop(self) -> None:
        """Nobody listens, and all connections end."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._released.set()
        with self._changed:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._threads.clear()

    def start(self) -> None:
        """Again, after stop()."""
        self._released.clear()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._serve()

    def _serve(self) -> None:
        thread = threading.Thread(target=self._accept, args=(self._listener,))
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with self._changed:
                self.connections += 1
                self._open.add(sock)
            thread = threading.Thread(target=self._connection, args=(sock, self.connections))
            self._threads.append(thread)
            thread.start()

    def _connection(self, sock: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            self._requests(sock, number)
        with self._changed:
            self._open.discard(sock)
            sock.close()
            self._changed.notify_all()

    def _requests(self, sock: socket.socket, number: int) -> None:
        data = proxy = b""
        while True:
            while b"\r\n\r\n" not in data.removeprefix(_V2):
                piece = sock.recv(65536)
                if not piece:
                    return
                data += piece
            if data.startswith(_V2):
                size = 16 + int.from_bytes(data[14:16], "big")
                proxy, data = data[:size], data[size:]
                continue
            if data.startswith(b"PROXY "):
                proxy, _, data = data.partition(b"\r\n")
                continue
            head, _, data = data.partition(b"\r\n\r\n")
            head += b"\r\n\r\n"
            if b"expect: 100-continue" in head.lower():
                sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = b""
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            chunked = b"transfer-encoding: chunked" in head.lower()
            while (length and len(data) < int(length[1])) or (chunked and not data.endswith(b"0\r\n\r\n")):
                piece = sock.recv(65536)
                if not piece:
                    return
                data += piece
            if length:
                body, data = data[: int(length[1])], data[int(length[1]) :]
            elif chunked:
                body, data = data, b""
            with self._changed:
                self.seen.append(Seen(number, head, body, proxy))
                self._changed.notify_all()
            if not self._answer(sock, head, data):
                return

    def _answer(self, sock: socket.socket, head: bytes, rest: bytes) -> bool:
        """Whether the connection goes on."""
        method, target, _ = head.partition(b"\r\n")[0].split(b" ", 2)
        path = re.sub(rb"^http://[^/]*", b"", target).partition(b"?")[0]
        own = b"X-Origin: " + self.name.encode() + b"\r\n"
        body = self.name.encode() * 10
        if method == b"CONNECT" or path == b"/switch":
            switch = (
                b"101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo" if path == b"/switch" else b"200 OK"
            )
            sock.sendall(b"HTTP/1.1 " + switch + b"\r\n\r\n" + rest)
            while data := sock.recv(65536):
                sock.sendall(data)
            return False
        if path == b"/drop":
            return False
        if path == b"/hang":
            self._released.wait(60)
        if path == b"/garbage":
            sock.sendall(b"What do you want?\r\n\r\n")
            return False
        status = path.removeprefix(b"/status/") + b" Such" if path.startswith(b"/status/") else b"200 OK"
        if path == b"/interim":
            sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        if path == b"/cookie":
            own += b"Set-Cookie: SRV=own; path=/\r\n"
        if path == b"/quit":
            own += b"Connection: close\r\n"
        if path == b"/big":
            body = b"0123456789" * 100_000
        if path == b"/huge":
            body = b"0123456789" * 3_200_000
        if path == b"/chunked":
            framing = b"Transfer-Encoding: chunked\r\n"
            body = b"%x\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(body), body)
        elif path == b"/close":
            framing = b""
        else:
            framing = b"Content-Length: %d\r\n" % len(body)
        if status[:3] in (b"204", b"304"):
            framing = body = b""
        if method == b"HEAD":
            body = b""
        version = b"HTTP/1.0 " if path == b"/old" else b"HTTP/1.1 "
        answer = version + status + b"\r\nServer: origin\r\n" + own + framing + b"\r\n"
        if path in (b"/cut", b"/halt"):
            sock.sendall(answer + body[:5])
            if path == b"/cut":
                return False
            self._released.wait(60)
            sock.sendall(body[5:])
        else:
            sock.sendall(answer + body)
        return path not in (b"/close", b"/quit", b"/old")
