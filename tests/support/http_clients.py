"""The HTTP connections of the load generator: kept alive or not, pipelined or not, every answer checked to the byte.

What it talks to is http_server.py, by way of the proxy under test.
"""

from __future__ import annotations

import collections
import socket
import time
from dataclasses import dataclass
from typing import Final

from tests.support.engine import GONE, Client, Engine, Target
from tests.support.http_messages import BODY_HASH, Malformed, Message, Reader, chunked, digest, head, pattern

__all__ = ["KINDS", "HttpClient"]

_BUFFER: Final = 1 << 18
_NEVER: Final = float("inf")
_BIG: Final = 64
_SPLIT: Final = 0.005
"""Seconds between the two parts of a request that is sent in two."""


@dataclass(frozen=True)
class Kind:
    """A kind of request: method, what the server is to do, and how the request goes out."""

    name: str
    method: bytes = b"GET"
    order: str = ""
    framing: str = ""  # of the request's body: length or chunked
    big: bool = False
    split: bool = False  # in two parts
    expect: bool = False  # waits for 100 (Continue)


KINDS: Final = {
    "plain": (Kind("get"),),
    "all": (
        Kind("get"),
        Kind("chunked", order="&frame=chunked"),
        Kind("post", b"POST", "&echo=1", "length"),
        Kind("post chunked", b"POST", "&echo=1", "chunked"),
        Kind("head", b"HEAD"),
        Kind("no content", order="&status=204"),
        Kind("trailers", order="&frame=chunked&trailer=1"),
        Kind("post in two", b"POST", "&echo=1&frame=chunked", "length", split=True),
        Kind("interim", order="&interim=2"),
        Kind("until close", order="&frame=close"),
        Kind("expect", b"PUT", "&echo=1", "length", expect=True),
        Kind("late", order="&delay=20"),
        Kind("big", big=True),
        Kind("big post", b"POST", "&echo=1", "length", big=True, split=True),
        Kind("closing server", order="&end=close"),
        Kind("head in two", split=True),
        Kind("big and slow", b"POST", "&echo=1&frame=chunked&pause=20", "chunked", big=True, split=True),
        Kind("not modified", order="&status=304"),
        Kind("delete", b"DELETE"),
    ),
}
"""What a load asks for, by the name of the mix."""


class _Asked:
    """A request that is to be answered."""

    __slots__ = ("asked", "body", "kind", "number", "status")

    def __init__(self, kind: Kind, number: int, body: bytes, status: int) -> None:
        self.kind = kind
        self.number = number
        self.body = body  # of the answer
        self.status = status
        self.asked = time.monotonic()


class HttpClient(Client):
    """A connection with one request after the other, or several at a time."""

    __slots__ = ("closing", "count", "held", "kinds", "pending", "reader", "sent")

    def __init__(self, engine: Engine, target: Target) -> None:
        super().__init__(engine, target)
        self.reader = Reader(responses=True)
        self.pending: collections.deque[_Asked] = collections.deque()
        self.sent = self.count = 0  # requests, and answers to them
        self.held = b""  # the rest of a request, which waits for its time
        self.closing = False  # the last request of this connection is sent
        self.kinds = KINDS[engine.settings.mix]

    def opening(self) -> None:
        if self.target.family != socket.AF_UNIX:
            # As everybody's clients do: the second part of a request waits for no acknowledgement.
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ask()
        if not self.pending and not self.over:
            # Another connection took the last request after this one was begun.
            self.engine.tally.started -= 1
            self._leave()

    def ask(self) -> None:
        """Send requests, as many at a time as there may be."""
        engine, limit = self.engine, self.engine.settings.requests
        wire = b""
        while len(self.pending) < engine.settings.pipeline and not self.closing and not self.held:
            if not engine.take_request():
                break
            self.sent += 1
            self.closing = self.sent == limit
            wire += self._request()
        if wire and (self.unsent is None):
            self.send(wire)
        elif wire:
            self.unsent = memoryview(bytes(self.unsent or b"") + wire)
        self.deadline = time.monotonic() + engine.settings.timeout

    def _rest(self) -> None:
        """Be idle for a while, when all is answered."""
        if not self.pending:
            self.deadline = _NEVER
            self.engine.later(self.engine.interval, self._go_on)

    def _go_on(self) -> None:
        """The next request, or the end."""
        if self.over:
            return
        try:
            self.ask()
        except OSError as error:
            self.broken(error)
            return
        if not self.pending:
            self.done()

    def _request(self) -> bytes:
        """The bytes of another request that go out now."""
        engine = self.engine
        self.ident = number = engine.new_ident()
        # The lowest bits choose the size; the place in the mix must not depend on them.
        kind = self.kinds[(number >> 1) * 7919 % len(self.kinds)]
        size = engine.sizes[number & 4095] * (_BIG if kind.big else 1)
        body = pattern(number, size)
        status = 204 if "204" in kind.order else 304 if "304" in kind.order else 200
        self.pending.append(_Asked(kind, number, body, status))
        self.reader.expect(kind.method)
        fields = [b"Host: test.example"]
        if self.closing:
            fields.append(b"Connection: close")
        if kind.framing:
            fields += [b"Body-Hash: " + digest(body)]
            fields.append(b"Transfer-Encoding: chunked" if kind.framing == "chunked" else b"Content-Length: %d" % size)
        if kind.expect:
            fields.append(b"Expect: 100-continue")
        target = f"/?id={number}&size={size}{kind.order}".encode()
        first = head(kind.method + b" " + target + b" HTTP/1.1", *fields)
        rest = b"" if not kind.framing else chunked(body) if kind.framing == "chunked" else body
        if kind.expect:
            self.held = rest
            return first
        if kind.split:
            wire = first + rest
            place = number * 31 % (len(wire) - 1) + 1
            self.held = wire[place:]
            engine.later(_SPLIT, self._release)
            return wire[:place]
        return first + rest

    def _release(self) -> None:
        """Send what was held back."""
        rest, self.held = self.held, b""
        if self.over or not rest:
            return
        if self.unsent is not None:
            self.unsent = memoryview(bytes(self.unsent) + rest)
            return
        try:
            self.send(rest)
        except OSError as error:
            self.broken(error)

    def ready(self, mask: int) -> None:
        if self.unsent is not None:
            self.send(self.unsent)
        tally = self.engine.tally
        while not self.over:
            try:
                data = self.sock.recv(_BUFFER)
            except BlockingIOError:
                return
            if not data:
                self.ended()
                return
            tally.bytes_in += len(data)
            try:
                messages = self.reader.feed(data)
            except Malformed as error:
                self.fail("corrupt", f"{error}, {self.state()}")
                return
            if not all(map(self.answered, messages)):
                return
            if messages and not self.closing:
                if self.engine.interval and not self.engine.finishing:
                    self._rest()
                else:
                    self._go_on()
            if len(data) < _BUFFER and not mask & GONE:
                return

    def answered(self, message: Message) -> bool:
        """An answer is here: whether it is the right one; fails if not."""
        if not self.pending:
            self.fail("wrong", f"an answer {message.status} too many, {self.state()}")
            return False
        asked = self.pending[0]
        if message.status < 200:
            if message.status == 100 and asked.kind.expect:
                self._release()
            elif message.status != 103 or "interim" not in asked.kind.order:
                self.fail("wrong", f"an interim response {message.status}, {self.state()}")
                return False
            return True
        if not self._right(message, asked):
            return False
        tally = self.engine.tally
        self.pending.popleft()
        self.count += 1
        tally.requests += 1
        tally.latencies.append(time.monotonic() - asked.asked)
        tag = message.fields[b"server-tag"]
        tally.names[tag] = tally.names.get(tag, 0) + 1
        if not message.persistent or message.framing == "close":
            if self.pending:
                self.fail("short", f"the connection ends after an answer, {self.state()}")
                return False
            # Then ended() comes.
            tally.told_to_close += not self.closing
            self.closing = True
        return True

    def _right(self, message: Message, asked: _Asked) -> bool:
        """Whether this is the answer to our request; fails if not."""
        fields = message.fields
        if message.status != asked.status or b"server-tag" not in fields:
            self.fail("status", f"{message.status} {message.start[2].decode()} for {asked.kind.name}, {self.state()}")
        elif fields.get(b"number") != b"%d" % asked.number:
            self.fail("wrong", f"the answer to {fields.get(b'number')!r} for {asked.kind.name}, {self.state()}")
        elif self.held:
            self.fail("wrong", f"an answer to half a request for {asked.kind.name}, {self.state()}")
        else:
            bodiless = asked.kind.method == b"HEAD" or asked.status in (204, 304)
            wanted = b"" if bodiless else asked.body
            promised = fields.get(BODY_HASH)
            if message.body != wanted or promised != digest(asked.body):
                self.fail("corrupt", f"a body of {len(wanted)} bytes arrived altered as {len(message.body)}")
            elif "trailer" in asked.kind.order and message.trailers.get(BODY_HASH) != promised:
                self.fail("corrupt", f"trailers {message.trailers}")
            else:
                return True
        return False

    def ended(self) -> None:
        """The other side has closed."""
        try:
            message = self.reader.eof()
        except Malformed as error:
            self.fail("short", f"{error}, {self.state()}")
            return
        if message is not None and not self.answered(message):
            return
        if self.pending or self.held:
            self.fail("short", f"closed, {self.state()}")
        else:
            self.engine.tally.hung_up += not self.closing
            self.done()

    def finish(self) -> None:
        # What is under way is answered first.
        if not self.pending and not self.closing:
            self.done()

    def state(self) -> str:
        if self.watched == 0:
            return "connecting"
        kinds = ", ".join(asked.kind.name for asked in self.pending)
        return f"after {self.count} answers, waiting for {len(self.pending)} ({kinds})"
