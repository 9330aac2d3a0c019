"""The HTTP servers behind a proxy under test, in an asyncio loop: they do what a request's query says, and keep books.

`GET /?id=7&size=1000&frame=chunked` is answered with the 1,000 bytes that belong to number 7, in chunks, with a hash.
Each number may be served once only; the body of a request must have the hash that its field Body-Hash says.

| in the query | what the server does |
|---|---|
| `id=N` | counts N, and answers with the body pattern(N, size), unless the path is a page's. Others are counted apart |
| `size=N` | bytes of the answer's body, 0 by default |
| `frame=length`, `chunked`, `close` | how it is framed; `close` ends by closing the connection |
| `trailer=1` | ends a chunked body with the field Body-Hash |
| `status=N` | the status, 200 by default |
| `interim=N` | N interim responses 103 before it |
| `delay=MS` | answers so many milliseconds later |
| `pause=MS` | between the two halves of the body |
| `echo=1` | answers with the request's body |
| `end=close`, `silent` | closes after the answer, with `Connection: close`, or without a word |
| `end=drop`, `cut` | closes instead of the answer, or in the middle of it |
| `fault=corrupt`, `wrong` | alters a byte of the body; answers with the body of another number |
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Sequence
from typing import Any, Final

from tests.support.http_messages import BODY_HASH, Malformed, Message, Reader, chunked, digest, head, pattern

__all__ = ["Books", "HttpServer"]

_TYPES: Final = {
    b".html": b"text/html; charset=utf-8",
    b".js": b"text/javascript",
    b".css": b"text/css",
    b".svg": b"image/svg+xml",
}
_DONE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_EARLY: Final = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"


class Books:
    """What all servers of a process have seen."""

    def __init__(self) -> None:
        self.connections = self.open = 0
        self.requests = 0  # with a number
        self.duplicates = 0  # of them: the number was served before
        self.others = 0  # without a number
        self.corrupt = 0  # a body that has not the hash that was promised
        self.malformed = 0  # connections on which something came that is no HTTP
        self.short = 0  # connections that were closed or reset in the middle of a request or before its answer
        self.reset = 0  # connections that were reset
        self.reused = 0  # requests that were not the first of their connection
        self.seen: set[int] = set()
        self.tags: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []

    def problem(self, kind: str, detail: str) -> None:
        """Count something wrong, and keep the first words about it."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.problems) < 20:
            self.problems.append(f"{kind}: {detail}")

    def as_dict(self) -> dict[str, Any]:
        """For a line of JSON."""
        plain = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        return plain | {"unique": len(self.seen), "tags": dict(self.tags), "problems": self.problems}


class HttpServer:
    """Listeners of one process. `report` is given the body of each POST to /report; `pages` are files by path."""

    def __init__(
        self,
        *,
        pages: dict[str, bytes] | None = None,
        report: Callable[[bytes], None] = lambda body: None,
        keep_alive: float = 0.0,
        requests: int = 0,
        sick: Sequence[int] = (),
    ) -> None:
        """`keep_alive`: seconds after which an idle connection is closed. `requests`: on a connection, before it is.
        `sick`: tags of servers that answer 503 to requests without a number."""
        self.books = Books()
        self.pages = {path.encode(): body for path, body in (pages or {}).items()}
        self.report = report
        self.keep_alive = keep_alive
        self.requests = requests
        self.sick = set(map(str, sick))
        self.addresses: list[str] = []
        self._servers: list[asyncio.Server] = []

    async def listen(self, addresses: Sequence[str]) -> None:
        """Open the listeners, each HOST:PORT."""
        loop = asyncio.get_running_loop()
        for index, address in enumerate(addresses, 1):
            host, _, port = address.rpartition(":")
            server = await loop.create_server(
                lambda tag=str(index): _Connection(self, tag),  # type: ignore[misc]
                host.strip("[]"),
                int(port),
                backlog=4096,
            )
            self._servers.append(server)
            self.addresses.append(f"{host}:{server.sockets[0].getsockname()[1]}")

    def close(self) -> None:
        for server in self._servers:
            server.close()


class _Connection(asyncio.Protocol):
    def __init__(self, server: HttpServer, tag: str) -> None:
        self._server = server
        self._books = server.books
        self._tag = tag
        self._reader = Reader(responses=False)
        self._waiting: collections.deque[Message] = collections.deque()
        self._busy = False  # an answer is under way
        self._count = 0
        self._continued: Message | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._books.connections += 1
        self._books.open += 1
        self._rest()

    def connection_lost(self, error: Exception | None) -> None:
        self._books.open -= 1
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(error, ConnectionError):
            self._books.reset += 1
        if not self._over and (self._busy or self._waiting or not self._reader.idle):
            what = f"{error}" if error else "closed"
            where = "before the answer" if self._busy or self._waiting else "in a request"
            self._books.problem("short", f"server {self._tag}: {what} {where}")
        self._over = True

    def eof_received(self) -> bool:
        # A half-closed connection is served to the end.
        return self._busy or bool(self._waiting)

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            self._waiting += self._reader.feed(data)
        except Malformed as error:
            self._books.problem("malformed", f"server {self._tag}: {error}")
            self._leave(abort=True)
            return
        current = self._reader.current
        if current is not None and current is not self._continued and b"expect" in current.fields:
            self._continued = current
            self._transport.write(_DONE)
        if not self._busy:
            self._next()

    def _rest(self) -> None:
        """Between requests."""
        if self._server.keep_alive and not self._over:
            self._timer = asyncio.get_running_loop().call_later(self._server.keep_alive, self._leave)

    def _leave(self, abort: bool = False) -> None:
        self._over = True
        if abort:
            self._transport.abort()
        else:
            self._transport.close()

    def _next(self) -> None:
        while self._waiting and not self._busy and not self._over:
            message = self._waiting.popleft()
            self._count += 1
            order = _query(message.start[1])
            self._check(message, order)
            if "delay" in order:
                self._busy = True
                loop = asyncio.get_running_loop()
                loop.call_later(int(order["delay"]) / 1000, self._late, message, order)
            else:
                self._answer(message, order)
        if not self._busy and self._reader.idle:
            self._rest()

    def _late(self, message: Message, order: dict[str, str]) -> None:
        if not self._over:
            self._busy = False
            self._answer(message, order)
            self._next()

    def _check(self, message: Message, order: dict[str, str]) -> None:
        books = self._books
        if "id" in order:
            number = int(order["id"])
            books.requests += 1
            books.tags[self._tag] += 1
            books.reused += self._count > 1
            if number in books.seen:
                books.problem("duplicates", f"server {self._tag}: number {number}")
            books.seen.add(number)
        else:
            books.others += 1
        promised = message.fields.get(BODY_HASH)
        if promised is not None and promised != digest(message.body):
            books.problem("corrupt", f"server {self._tag}: {message.start[1].decode()}: {len(message.body)} bytes")

    def _answer(self, message: Message, order: dict[str, str]) -> None:
        method, target, version = message.start
        number = int(order.get("id", "0")) + (order.get("fault") == "wrong")
        fields = [b"Server-Tag: " + self._tag.encode(), b"Number: %d" % number]
        path = target.partition(b"?")[0]
        page = self._server.pages.get(path)
        if page is not None:
            body = page
            fields.append(b"Content-Type: " + _TYPES[path[path.rfind(b".") :]])
        elif path == b"/report":
            self._server.report(message.body)
            body = b""
        else:
            body = message.body if "echo" in order else pattern(number, int(order.get("size", "0")))
        fields += [b"Cache-Control: no-store", b"Body-Hash: " + digest(body)]
        if order.get("fault") == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:]
        ending = order.get("end", "")
        frame = order.get("frame", "length")
        last = (
            frame == "close"
            or ending == "close"
            or not message.persistent
            or (self._server.requests and self._count >= self._server.requests)
        )
        if ending == "drop":
            self._leave(abort=True)
            return
        if last:
            fields.append(b"Connection: close")
        elif version == b"HTTP/1.0":
            fields.append(b"Connection: keep-alive")
        status = int(order.get("status", "200"))
        if "id" not in order and self._tag in self._server.sick:
            status = 503
        wire = self._framed(status, frame, body, fields, order)
        if method == b"HEAD":
            wire = wire[: wire.find(b"\r\n\r\n") + 4]
        wire = _EARLY * int(order.get("interim", "0")) + wire
        if ending == "cut":
            wire = wire[: -(len(body) // 2 + 1)]
        over = last or ending in ("silent", "cut")
        if "pause" in order:
            self._busy = True
            half = len(wire) - len(body) // 2
            self._transport.write(wire[:half])
            loop = asyncio.get_running_loop()
            loop.call_later(int(order["pause"]) / 1000, self._second, wire[half:], over)
            return
        self._transport.write(wire)
        if over:
            self._leave()

    def _second(self, rest: bytes, over: bool) -> None:
        if not self._over:
            self._busy = False
            self._transport.write(rest)
            if over:
                self._leave()
            else:
                self._next()

    def _framed(self, status: int, frame: str, body: bytes, fields: list[bytes], order: dict[str, str]) -> bytes:
        """Head and body."""
        start = b"HTTP/1.1 %d %b" % (status, b"OK" if status < 300 else b"Whatever")
        if status in (204, 304):
            return head(start, *fields)
        if frame == "chunked":
            trailers: tuple[bytes, ...] = ()
            if "trailer" in order:
                fields.append(b"Trailer: Body-Hash")
                trailers = (b"Body-Hash: " + digest(body),)
            return head(start, *fields, b"Transfer-Encoding: chunked") + chunked(body, 1000, trailers)
        if frame == "length":
            fields.append(b"Content-Length: %d" % len(body))
        return head(start, *fields) + body


def _query(target: bytes) -> dict[str, str]:
    """The parts of a query."""
    order: dict[str, str] = {}
    for part in target.partition(b"?")[2].decode("latin-1").split("&"):
        name, _, value = part.partition("=")
        if value:
            order[name] = value
    return order
