"""The connections of the load generator, one class a way of talking. Each checks every byte that it receives."""

import os
import socket
import time
from typing import Final

from tests.support import exchange as wire
from tests.support.engine import DIRECTIONS, GONE, Client, Engine, Target
from tests.support.http_clients import HttpClient

_BUFFER: Final = 1 << 16
_BULK: Final = 1 << 18
_NEVER: Final = float("inf")

_SENDING, _RESTING, _PARKED, _CLOSING = range(4)
_STATES: Final = ("waiting for the answer", "between requests", "idle", "waiting for the end")

_BULK_BUFFER: Final = bytearray(_BULK)
_ANSWERED: Final = memoryview(wire.ANSWERED)


class Requester(Client):
    """Sends one request (connect), many in a row (keepalive), or one at the beginning and one at the end (idle)."""

    __slots__ = ("asked", "close", "count", "got", "head", "parts", "phase", "place", "size", "want")

    def __init__(self, engine: Engine, target: Target) -> None:
        super().__init__(engine, target)
        self.phase = _SENDING
        self.count = 0  # answers
        self.asked = self.began
        self.close = wire.CLOSE_CLIENT
        self.parts: list[bytes] = []  # of the answer
        self.got = self.want = 0  # its bytes

    def opening(self) -> None:
        if self.engine.settings.mode == "keepalive" and not self.engine.take_request():
            # Another connection took the last request after this one was begun.
            self.engine.tally.started -= 1
            self._leave()
            return
        self.ask()

    def ask(self) -> None:
        """Send a request."""
        engine = self.engine
        self.ident = ident = engine.new_ident()
        self.size = size = engine.sizes[ident & 4095]
        self.place = place = wire.position(ident)
        if engine.settings.mode == "connect":
            self.close = engine.closes[ident % len(engine.closes)]
        self.head = wire.pack_answer_head(wire.OK, wire.EXCHANGE, size, ident)
        self.want = wire.ANSWER_SIZE + size
        self.got = 0
        self.parts = []
        self.phase = _SENDING
        header = wire.pack_request(wire.EXCHANGE, self.close, engine.delay, size, ident)
        if self.send(header + wire.ASKED[place : place + size]) and self.close == wire.CLOSE_HALF:
            self.sock.shutdown(socket.SHUT_WR)

    def ask_again(self) -> None:
        if self.over or self.phase == _CLOSING:
            return
        if self.engine.settings.mode == "keepalive" and not self.engine.take_request():
            self.close_down()
            return
        self.asked = time.monotonic()
        self.deadline = self.asked + self.engine.settings.timeout
        try:
            self.ask()
        except OSError as error:
            self.broken(error)

    def ready(self, mask: int) -> None:
        if self.unsent is not None and self.send(self.unsent) and self.close == wire.CLOSE_HALF:
            self.sock.shutdown(socket.SHUT_WR)
        recv, tally = self.sock.recv, self.engine.tally
        while not self.over:
            try:
                data = recv(_BUFFER)
            except BlockingIOError:
                return
            size = len(data)
            if not size:
                self.ended()
                return
            tally.bytes_in += size
            if self.phase != _SENDING:
                self.fail("corrupt", f"{size} bytes too many, {self.state()}")
                return
            self.got += size
            if self.got >= self.want:
                if self.parts:
                    self.parts.append(data)
                    data = b"".join(self.parts)
                if not self.right(data):
                    return
                self.answered()
            else:
                self.parts.append(data)
            # A short read has drained the socket, unless the end has come along with the data.
            if size < _BUFFER and not mask & GONE:
                return

    def right(self, answer: bytes) -> bool:
        """Whether this is the answer to our request, and all of it; fails if not."""
        if (
            len(answer) == self.want
            and answer.startswith(self.head)
            and answer[wire.ANSWER_SIZE :] == wire.ANSWERED[self.place : self.place + self.size]
            and self.engine.tally.count(answer[wire.ANSWER_HEAD : wire.ANSWER_SIZE])
        ):
            return True
        if not self.judge_header(answer):
            if len(answer) > self.want:
                self.fail("corrupt", f"{len(answer) - self.want} bytes too many")
            else:
                self.fail("corrupt", f"a body of {self.size} bytes arrived altered")
        return False

    def judge_header(self, answer: bytes) -> bool:
        """Fail because of the header, if it is worth it."""
        if len(answer) < wire.ANSWER_SIZE or answer.startswith(self.head):
            return False
        found = wire.unpack_answer(answer)
        if found is None:
            self.fail("corrupt", f"no header of an answer: {answer[: wire.ANSWER_SIZE].hex()}")
        elif found.status != wire.OK:
            self.fail("corrupt", "the request arrived altered")
        elif found.ident != self.ident:
            self.fail("wrong", f"the answer to #{found.ident & 0xFFFFFFFF}")
        else:
            self.fail("corrupt", f"an answer of {found.length} bytes instead of {self.size}")
        return True

    def answered(self) -> None:
        """The right answer is here: go on as the mode says."""
        engine, tally = self.engine, self.engine.tally
        now = time.monotonic()
        tally.requests += 1
        tally.latencies.append(now - self.asked)
        self.count += 1
        mode, settings = engine.settings.mode, engine.settings
        if mode == "connect" or (mode == "idle" and self.count == 2):
            self.close_down()
        elif mode == "idle":
            engine.one_ready()
            self.rest()
            if engine.finishing:
                self.ask_again()
        elif engine.finishing or self.count == settings.requests:
            self.close_down()
        elif engine.interval:
            self.phase = _RESTING
            self.deadline = _NEVER
            engine.later(engine.interval, self.ask_again)
        else:
            self.ask_again()

    def rest(self) -> None:
        """Be silent until ask_again()."""
        self.phase = _PARKED
        self.deadline = _NEVER

    @property
    def resting(self) -> bool:
        return self.phase == _PARKED

    def close_down(self) -> None:
        """No more requests: see to an orderly end."""
        self.phase = _CLOSING
        if self.deadline == _NEVER:
            self.deadline = time.monotonic() + self.engine.settings.timeout
        if self.close == wire.CLOSE_CLIENT:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                self.broken(error)

    def ended(self) -> None:
        """The other side has closed."""
        if self.phase == _CLOSING:
            self.done()
        elif not self.judge_header(b"".join(self.parts)):
            self.fail("short", f"closed {self.state()}")

    def finish(self) -> None:
        if self.phase == _PARKED:
            self.ask_again()
        elif self.phase == _RESTING:
            self.close_down()

    def expire(self) -> None:
        if not self.judge_header(b"".join(self.parts)):
            super().expire()

    def state(self) -> str:
        if self.watched == 0:
            return "connecting"
        missing = f" ({self.got} of {self.want} bytes)" if self.phase == _SENDING else ""
        return _STATES[self.phase] + missing


class Streamer(Client):
    """Sends pieces at an interval, gets each back substituted, and measures how long it waits for what it is owed."""

    __slots__ = (
        "closing",
        "ended",
        "gap",
        "head",
        "in_place",
        "out_place",
        "owed_since",
        "received",
        "sent",
        "started",
    )

    def __init__(self, engine: Engine, target: Target) -> None:
        super().__init__(engine, target)
        self.head = b""
        self.sent = self.received = 0  # without headers
        self.gap = 0.0
        self.owed_since = self.began
        self.started = False  # the answer's header is here
        self.closing = False  # nothing more is to be sent
        self.ended = False  # our side is closed

    def opening(self) -> None:
        self.ident = self.engine.new_ident()
        self.in_place = self.out_place = wire.position(self.ident)
        self.send(wire.pack_request(wire.STREAM, wire.CLOSE_CLIENT, 0, 0, self.ident))
        if self.engine.interval:
            # Spread over the interval, or all would be due at once.
            self.engine.later(self.engine.interval * (self.ident % 64) / 64, self._tick)
        elif self.unsent is None:
            self._piece()

    def _tick(self) -> None:
        if self.over or self.closing:
            return
        if self.unsent is None:  # else the other side is slow, and the answers are late anyway
            try:
                self._piece()
            except OSError as error:
                self.broken(error)
                return
        self.engine.later(self.engine.interval, self._tick)

    def _piece(self) -> None:
        engine = self.engine
        size = engine.sizes[(self.sent + self.ident) & 4095]
        if self.sent == self.received and self.started:
            self.owed_since = time.monotonic()
            self.deadline = self.owed_since + engine.settings.timeout
        place = self.out_place
        self.out_place = (place + size) & (wire.CYCLE - 1)
        self.sent += size
        self.send(wire.ASKED[place : place + size])

    def ready(self, mask: int) -> None:
        if self.unsent is not None and self.send(self.unsent):
            if self.closing:
                self._end()
            elif not self.engine.interval and not self.sent:
                self._piece()
        while not self.over:
            try:
                data = self.sock.recv(_BUFFER)
            except BlockingIOError:
                return
            if not data:
                if self.ended and self.started and self.received == self.sent:
                    self.engine.tally.gaps.append(self.gap)
                    self.done()
                else:
                    self.fail("short", f"closed {self.state()}")
                return
            self._received(data)
            if len(data) < _BUFFER and not mask & GONE:
                return

    def _received(self, data: bytes) -> None:
        engine = self.engine
        engine.tally.bytes_in += len(data)
        now = time.monotonic()
        self.gap = max(self.gap, now - self.owed_since)
        self.owed_since = now
        if not self.started:
            self.head += data
            if len(self.head) < wire.ANSWER_SIZE:
                return
            answer, data = wire.unpack_answer(self.head), self.head[wire.ANSWER_SIZE :]
            if answer is None or answer.status != wire.OK:
                self.fail("corrupt", "no header of an answer" if answer is None else "the request arrived altered")
                return
            if answer.ident != self.ident:
                self.fail("wrong", f"the answer to #{answer.ident & 0xFFFFFFFF}")
                return
            self.started = True
            engine.tally.count(self.head[wire.ANSWER_HEAD : wire.ANSWER_SIZE])
        if not data:
            return
        if not wire.ANSWERED.startswith(data, self.in_place):
            self.fail("corrupt", f"bytes {self.received} to {self.received + len(data)} arrived altered")
            return
        if not self.received:
            engine.one_ready()
        self.in_place = (self.in_place + len(data)) & (wire.CYCLE - 1)
        self.received += len(data)
        if self.received > self.sent:
            self.fail("corrupt", f"{self.received - self.sent} bytes too many")
            return
        if self.received < self.sent or self.closing:
            self.deadline = now + engine.settings.timeout
            return
        engine.tally.requests += 1
        self.deadline = _NEVER
        if not engine.interval and self.unsent is None:
            self._piece()

    def finish(self) -> None:
        self.closing = True
        self.deadline = time.monotonic() + self.engine.settings.timeout
        if self.unsent is None:
            self._end()

    def _end(self) -> None:
        self.ended = True
        self.sock.shutdown(socket.SHUT_WR)

    def state(self) -> str:
        where = "at its end" if self.ended else "in the stream" if self.received else "at its beginning"
        return f"{where} ({self.received} of {self.sent} bytes came back)"


class Transfer(Client):
    """Moves a given number of bytes down, up, or both ways at once."""

    __slots__ = ("down_left", "head", "in_place", "kind", "out_place", "part", "tail", "up_left")

    def __init__(self, engine: Engine, target: Target) -> None:
        super().__init__(engine, target)
        self.kind = kind = DIRECTIONS[engine.settings.direction]
        size = engine.settings.size
        self.down_left = size if kind != wire.UP else 0
        self.up_left = size if kind != wire.DOWN else 0
        self.head = kind != wire.UP  # an answer's header has still to come before the bytes
        self.tail = kind != wire.DOWN  # and one after them
        self.part = b""  # of a header

    def opening(self) -> None:
        engine = self.engine
        if engine.cycle < 0:
            engine.cycle = os.memfd_create("cycle", os.MFD_CLOEXEC)
            os.write(engine.cycle, wire.ASKED)
        self.ident = engine.new_ident()
        self.in_place = self.out_place = wire.position(self.ident)
        if self.send(wire.pack_request(self.kind, wire.CLOSE_SERVER, 0, engine.settings.size, self.ident)):
            self._upload()
        if self.up_left and self.unsent is None:
            self.unsent = memoryview(b"")  # so that room to send is watched from the beginning

    def _upload(self) -> None:
        engine = self.engine
        while self.up_left:
            try:
                sent = os.sendfile(self.fd, engine.cycle, self.out_place, min(self.up_left, wire.CYCLE))
            except BlockingIOError:
                return
            self.out_place = (self.out_place + sent) & (wire.CYCLE - 1)
            self.up_left -= sent
            engine.tally.bytes_out += sent
            self.deadline = time.monotonic() + engine.settings.timeout

    def ready(self, mask: int) -> None:
        if self.unsent is None or self.send(self.unsent):
            self._upload()
        engine = self.engine
        while not self.over:
            header = self.head or (self.tail and not self.down_left)
            # When all is here one byte is asked for: there must be none.
            want = wire.ANSWER_SIZE - len(self.part) if header else min(_BULK, self.down_left) or 1
            try:
                size = self.sock.recv_into(_BULK_BUFFER, want)
            except BlockingIOError:
                return
            engine.tally.bytes_in += size
            self.deadline = time.monotonic() + engine.settings.timeout
            if not size:
                if self.head or self.down_left or self.tail or self.up_left:
                    self.fail("short", f"closed {self.state()}")
                else:
                    engine.tally.requests += 1
                    engine.tally.latencies.append(time.monotonic() - self.began)
                    self.done()
            elif header:
                self.part += _BULK_BUFFER[:size]
                if len(self.part) == wire.ANSWER_SIZE:
                    self._header(self.part)
                    self.part = b""
            elif not self.down_left:
                self.fail("corrupt", "bytes too many")
            elif _BULK_BUFFER.startswith(_ANSWERED[self.in_place : self.in_place + size]):
                self.in_place = (self.in_place + size) & (wire.CYCLE - 1)
                self.down_left -= size
            else:
                self.fail("corrupt", f"arrived altered, {self.state()}")

    def _header(self, data: bytes) -> None:
        answer = wire.unpack_answer(data)
        expected = self.engine.settings.size if self.head else 0
        if answer is None:
            self.fail("corrupt", "no header of an answer")
        elif answer.status != wire.OK:
            self.fail("corrupt", "the request arrived altered")
        elif answer.ident != self.ident:
            self.fail("wrong", f"the answer to #{answer.ident & 0xFFFFFFFF}")
        elif answer.length != expected:
            self.fail("corrupt", f"an answer of {answer.length} bytes instead of {expected}")
        elif self.head:
            self.head = False
            self.engine.tally.count(data[wire.ANSWER_HEAD :])
        else:
            self.tail = False

    def state(self) -> str:
        return f"{self.down_left} bytes still to come, {self.up_left} still to go"


CLIENTS: Final = {
    "connect": Requester,
    "keepalive": Requester,
    "idle": Requester,
    "stream": Streamer,
    "bulk": Transfer,
    "http": HttpClient,
}
"""The class of connection of every mode."""
