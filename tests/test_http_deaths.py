"""What becomes of HTTP when whoever serves it is killed: who is idle notices nothing, a counted body goes on, any other
request that dies with its worker fails so that its client knows, and none is served twice or altered."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.http_backend import HttpBackend
from tests.support.http_messages import Message, Reader, digest, head, pattern
from tests.support.load import Load
from tests.support.processes import free_port, poll_until
from tests.support.restartable import Restartable

IDLE = 200
CLIENTS = 30
HALVES = 4
"""Downloads, and as many uploads, that are under way."""
BULK = 16 << 20
DEATHS = 12
CRASHES = 3
"""Every so many deaths, it is main that is killed."""


class Visitor:
    """A kept connection by a blocking socket. Its answers are checked to the byte."""

    def __init__(self, port: int, numbers: Iterator[int]) -> None:
        self._numbers = numbers
        self._reader = Reader(responses=True)
        self._sock = socket.socket()
        self._sock.settimeout(15)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # So that most of a long answer is still to come while it is read slowly.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self._sock.connect(("127.0.0.1", port))
        self._number = self._size = 0
        self._rest = memoryview(b"")  # of a request

    def ask(self, size: int = 300, body: int = 0) -> None:
        """A whole exchange: so many bytes come back, so many go with the request."""
        self.begin(size, body)
        self.finish()

    def begin(self, size: int, body: int) -> None:
        """Send the head alone."""
        self._number, self._size = next(self._numbers), size
        method = b"POST" if body else b"GET"
        sent = pattern(self._number, body)
        fields = (b"Host: test.example", b"Content-Length: %d" % body, b"Body-Hash: " + digest(sent))
        self._rest = memoryview(sent)
        self._reader.expect(method)
        target = b"/?id=%d&size=%d" % (self._number, size)
        self._sock.sendall(head(method + b" " + target + b" HTTP/1.1", *fields))

    def go_on(self, size: int) -> None:
        """Send or take so many bytes of the bodies."""
        if self._rest:
            self._sock.sendall(self._rest[:size])
            self._rest = self._rest[size:]
            return
        while size > 0:
            data = self._hear(size)
            assert not self._reader.feed(data), "there should be more"
            size -= len(data)

    def finish(self) -> None:
        self._sock.sendall(self._rest)
        messages: list[Message] = []
        while not messages:
            messages = self._reader.feed(self._hear(1 << 20))
        (message,) = messages
        assert (message.status, message.fields[b"number"]) == (200, b"%d" % self._number)
        assert message.body == pattern(self._number, self._size)
        assert message.persistent

    def _hear(self, size: int) -> bytes:
        data = self._sock.recv(size)
        assert data, "closed"
        return data

    def close(self) -> None:
        self._sock.close()


@contextlib.contextmanager
def serving(directory: Path, backend: HttpBackend) -> Iterator[tuple[Restartable, int]]:
    """A hitlessd of two workers that parks connections as early as it can, and its port."""
    port = free_port()
    lines = "".join(f"server s{index} = {address}\n" for index, address in enumerate(backend.addresses, 1))
    text = f"[listen web]\nmode = http\nbind = 127.0.0.1:{port}\n{lines}"
    with Restartable(directory, text, more="park-after = 0") as service:
        yield service, port


def kill_worker(service: Restartable, index: int) -> None:
    """And wait until there is another in its place."""
    dead = service.kill_worker(index)
    service.wait(lambda: len(service.workers()) == 2 and dead not in service.workers(), 15, "another worker")


def deaths(service: Restartable) -> list[Callable[[], object]]:
    """Each kind of end."""
    return [lambda: kill_worker(service, 0), lambda: kill_worker(service, 1), service.crash, service.restart]


@contextlib.contextmanager
def visitors(port: int, count: int) -> Iterator[list[Visitor]]:
    numbers = itertools.count(1)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Visitor(port, numbers))) for _ in range(count)]


def test_idle_connections_outlive_workers_and_main(tmp_path: Path) -> None:
    with (
        HttpBackend(3) as backend,
        serving(tmp_path, backend) as (service, port),
        visitors(port, IDLE) as every,
    ):

        def all_ask() -> None:
            for index, visitor in enumerate(every):
                visitor.ask(index, index % 2 * 1000)
            service.wait_number("CurrParked", IDLE)
            # To a worker an exchange is not over when the client has its answer, but a few instructions later. By the
            # turn in which it answers us, it is.
            assert service.daemon.ask("show sess")

        all_ask()
        for death in deaths(service):
            death()
            service.wait_number("CurrParked", IDLE)
            all_ask()
        assert service.number("CumLost") == 0
        assert backend.spotless()["unique"] == 5 * IDLE


def test_counted_bodies_outlive_workers_and_main(tmp_path: Path) -> None:
    """In the middle, both ways: they go on with the next byte."""
    with (
        HttpBackend(3) as backend,
        serving(tmp_path, backend) as (service, port),
        visitors(port, 2 * HALVES) as every,
    ):
        for visitor in every:
            visitor.ask()
        for index, visitor in enumerate(every):
            visitor.begin(*((BULK, 0) if index < HALVES else (300, BULK)))
        for visitor in every:
            visitor.go_on(BULK // 8)
        # One that was parked before is parked with its server at the next beat, a second later at most. Two have passed
        # for sure when the clock has begun the third.
        then = service.number("Uptime_sec")
        service.wait(lambda: service.number("Uptime_sec") > then + 2, 15, "more than a second has passed")
        for death in deaths(service):
            service.wait_number("CurrParked", len(every))
            death()
            for visitor in every:
                visitor.go_on(BULK // 8)
        for visitor in every:
            visitor.finish()
            visitor.ask()
        assert service.number("CumLost") == 0
        assert backend.spotless()["unique"] == 3 * len(every)


def test_no_request_is_served_twice_or_altered_when_workers_are_killed_under_load(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """At any moment, of any kind of request: of those under way some fail, and all of their clients know."""
    dice = random.Random(7)
    with (
        HttpBackend(3) as backend,
        serving(tmp_path, backend) as (service, port),
        Load(f"127.0.0.1:{port}", mode="http", mix="all", clients=CLIENTS, timeout=20) as load,
    ):

        def answered(more: int) -> None:
            enough = load.progress.get("requests", 0) + more
            poll_until(lambda: load.progress.get("requests", 0) >= enough, 30, f"{more} more answers")

        for number in range(1, DEATHS + 1):
            answered(dice.randrange(1, 150))
            if number % CRASHES:
                kill_worker(service, dice.randrange(2))
            else:
                service.crash()
        answered(500)
        result, books = load.stop(), backend.counters()
        poll_until(lambda: service.number("CurrConns") == 0, 10, "all ends are counted")
    failures = result["failures"]
    record_property("requests", f"{result['requests']} of {books['unique']}; failed: {failures}")
    assert (result["unfinished"], result["hung_up"]) == (0, 0)
    assert failures["reset"] + failures["short"] == result["failed"], result["errors"]
    # Each death ends what is under way at most, and what was served is known to whom it was served for, or has failed.
    assert 0 < result["failed"] <= DEATHS * CLIENTS
    assert (books["duplicates"], books["corrupt"], books["malformed"]) == (0, 0, 0), books["problems"]
    assert result["requests"] <= books["unique"] <= result["requests"] + result["failed"]
