"""A WebServer on a real loop that the test turns, with responders of the test's, and clients of it."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from hitlessd.loop import Loop
from hitlessd.model import StatsPage
from hitlessd.web.message import Feed, Grant, Reply, Request, Waiting
from hitlessd.web.server import WebServer

PATIENCE = 10.0  # seconds until a test gives up; never reached when all is well


class Clock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Site:
    """What there is: /echo, /big, /later, /feed, /fail; and what was asked for."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.grants: list[Grant] = []
        self.waiting: list[Callable[[Reply], object]] = []
        self.events: list[str] = []
        self.body = b"x" * (32 << 20)  # more than all buffers on the way

    def __call__(self, request: Request, grant: Grant) -> Reply | Feed | Waiting:
        self.requests.append(request)
        self.grants.append(grant)
        path = request.target.partition("?")[0]
        if path == "/echo":
            return Reply(200, f"{request.method} {request.target} ".encode() + request.body, headers=(("x-a", "b"),))
        if path == "/big":
            return Reply(200, self.body)
        if path == "/later":
            return Waiting(self.waiting.append)
        if path == "/feed":
            return Feed(lambda: self.events.pop(0) if self.events else "")
        if path == "/fail":
            raise RuntimeError("broken")
        return Reply(404, b"cannot find it\n")


class WebHarness:
    """Two servers on one loop, that clients can be handed over from one to the other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.errors: list[str] = []
        self.logged: list[tuple[str, str]] = []
        self.loop = Loop(lambda what, error: self.errors.append(f"{what}: {error!r}"), clock)
        self.site = Site()
        self.pages: dict[str, StatsPage] = {}
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.listener.setblocking(False)
        self.server = self.another()
        self.server.add_listener(self.listener, Grant("metrics"))

    def another(self) -> WebServer:
        responders = {"metrics": self.site, "page": self.site}
        return WebServer(self.loop, self._log, responders, self.pages.get)  # type: ignore[arg-type]

    def succeed(self) -> None:
        """Hand all clients and the listener over to a new server."""
        self.server.remove_listener(self.listener)
        states = self.server.export_clients(252)
        self.server.close()
        self.server = self.another()
        self.server.add_listener(self.listener, Grant("metrics"))
        for fd, state in states:
            self.server.import_client(fd, state)

    def _log(self, severity: str, message: str, **_fields: Any) -> None:
        self.logged.append((severity, message))

    def connect(self) -> Browser:
        browser = Browser(self, socket.create_connection(self.listener.getsockname(), PATIENCE))
        self.settle()
        return browser

    def passed(self, already: bytes, grant: Grant) -> Browser:
        """A client that a worker has passed on."""
        ours, theirs = socket.socketpair()
        self.server.adopt(theirs, already, grant)
        return Browser(self, ours)

    def settle(self) -> None:
        """Let everything happen that is ready."""
        for _ in range(20):
            self.loop.turn(0.0)

    def until(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"not in time: {what}"
            self.loop.turn(0.01)

    @contextlib.contextmanager
    def open(self) -> Iterator[WebHarness]:
        try:
            yield self
        finally:
            self.server.close()
            self.listener.close()
            self.loop.close()
        assert self.errors == []


class Browser:
    """A client that turns the loop while it waits."""

    def __init__(self, harness: WebHarness, sock: socket.socket) -> None:
        self.harness = harness
        self.sock = sock
        self.sock.setblocking(False)
        self.received = bytearray()
        self.ended = False

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, data: bytes) -> Browser:
        self.sock.sendall(data)
        self.harness.settle()
        return self

    def get(self, target: str, fields: str = "", method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """One exchange on this connection."""
        self.send(f"{method} {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n".encode())
        return self.response(method)

    def response(self, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """Status, fields and body of the next one, which must have a length."""
        self.harness.until(lambda: b"\r\n\r\n" in self.read() or self.ended, "a head")
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        length = 0 if method == "HEAD" else int(fields.get("content-length", 0))
        self.harness.until(lambda: len(self.read()) >= length or self.ended, "a body")
        body, self.received = self.received[:length], self.received[length:]
        assert len(body) == length, "the connection ended in the midst of a body"
        return int(first.split()[1]), fields, bytes(body)

    def read(self) -> bytearray:
        """Everything that has come and was not taken."""
        with contextlib.suppress(BlockingIOError):
            while data := self.sock.recv(1 << 20):
                self.received += data
            self.ended = True
        return self.received

    def wait(self, text: bytes) -> bytes:
        """Everything up to this text, which must come."""
        self.harness.until(lambda: text in self.read(), repr(text))
        before, _, self.received = self.received.partition(text)
        return bytes(before + text)

    def left(self) -> bytearray:
        """What was not taken, of a connection that the server has closed."""
        assert self.over
        return self.received

    @property
    def over(self) -> bool:
        """The server has closed it."""
        self.harness.settle()
        try:
            self.read()
        except ConnectionResetError:
            self.ended = True
        return self.ended
