"""HTTP connections that outlive their worker: between two exchanges, within counted bodies, as tunnels; and all of them
when the worker is told to end."""

from __future__ import annotations

import hashlib
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from hitlessd.http.answers import parse_errorfile
from hitlessd.model import Timeouts
from hitlessd.table import PROCESS, Column
from hitlessd.worker.http.connection import HttpConnection
from hitlessd.worker.http.state import HttpState
from tests.support.relay import Farm, Peer, make_park, make_table, take_over
from tests.support.web import Web

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Death:
    """Two workers of two generations: the first one dies, the second one goes on with what was parked."""

    def __init__(self, farm: Farm, slots: int = 1000, frontend: dict[str, Any] | None = None) -> None:
        self.old = Web(farm, park=make_park("1-0", slots), frontend=frontend)
        self.new = Web(
            farm,
            frontend=frontend,
            table=make_table(self.old.config, generation=2),
            accept=False,
            park=make_park("2-0", generation=2),
        )
        self.new.clock.now = 5000.0
        self.new.turn()

    def age(self) -> None:
        """Let all that are there come of age, and be parked."""
        for _ in range(3):
            self.old.pass_time(1.1)

    def parked(self) -> int:
        return self.old.table.value(self.old.table.index[PROCESS], Column.PARKED)

    def die(self, frozen: bool = False, **expected: object) -> None:
        report = self.fall(frozen)
        assert {name: report[name] for name in ("resumed", "ended", "lost")} == {
            "resumed": 0,
            "ended": 0,
            "lost": {},
        } | expected

    def fall(self, frozen: bool) -> dict[str, Any]:
        """It ends; the new one's report."""
        if frozen:
            self.old.worker.parking.freeze()
        for side in self.old.worker.idle_sides(lambda _: True):
            side.sock.close()
        for backend in self.old.worker.backends.values():
            for server in backend.servers:
                if server.pool is not None:
                    server.pool.idle.clear()
        self.old.die()
        return take_over(self.old, self.new, cold=True)

    def close(self) -> None:
        for peer in self.old.clients:
            peer.close()
        table = self.new.table
        self.new.__exit__()
        self.old.__exit__()
        table.close()


@pytest.fixture
def death(farm: Farm) -> Iterator[Death]:
    made = Death(farm)
    yield made
    made.close()


def begins_anew(web: Web, client: Peer) -> None:
    """The client's next request, which gets a connection of its own."""
    client.sock.sendall(GET)
    server = web.serve()
    web.gets(server, GET)
    server.sock.sendall(OK)
    web.gets(client, OK)


@pytest.mark.parametrize("frozen", [False, True])
def test_idle_client(death: Death, frozen: bool) -> None:
    client, server = death.old.served()
    death.age()
    assert death.parked() == 1
    for _ in range(3):
        death.old.exchange(client, server)  # it is not parked again for each
    death.die(frozen, resumed=1)
    begins_anew(death.new, client)


@pytest.mark.parametrize("frozen", [False, True])
def test_client_without_a_request_yet(death: Death, frozen: bool) -> None:
    client = death.old.connect()
    death.old.until(lambda: death.old.worker.connections)
    death.age()
    assert death.parked() == 1
    death.die(frozen, resumed=1)
    begins_anew(death.new, client)


def test_request_that_dies_with_its_worker(death: Death) -> None:
    """It is reset, so that nobody waits for it: half a request, or one whose answer had begun."""
    client, _ = death.old.served()
    death.age()
    client.sock.sendall(b"GET / HT")
    death.old.settle()
    death.die(lost={"a request died with the process": 1})
    client.read()
    assert isinstance(client.error, ConnectionResetError)


@pytest.mark.parametrize("at", [5, len(GET)])
def test_request_of_a_worker_that_is_told_to_end(death: Death, at: int) -> None:
    client, server = death.old.served()
    death.age()
    client.sock.sendall(GET[:at])
    death.old.settle()
    death.die(frozen=True, resumed=1)
    client.sock.sendall(GET[at:])
    if at < len(GET):
        begun = death.new.serve()
        death.new.gets(begun, GET)
        begun.sock.sendall(OK)
    else:
        death.new.gets(server, GET)
        server.sock.sendall(OK)
    death.new.gets(client, OK)


def test_answer_that_is_long_in_coming(death: Death) -> None:
    """A request that waits for its answer is parked with its server."""
    client, server = death.old.served()
    death.age()
    client.sock.sendall(GET)
    death.old.gets(server, GET)
    death.age()
    assert death.parked() == 1
    death.die(resumed=1)
    server.sock.sendall(OK)
    death.new.gets(client, OK)
    death.new.exchange(client, server)


@pytest.mark.parametrize("framing", ["length", "close"])
@pytest.mark.parametrize("upwards", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("blocked", [False, True])
def test_within_a_body(death: Death, framing: str, upwards: bool, frozen: bool, blocked: bool) -> None:
    """What was on its way is found in the kernel, in pipes and in the book."""
    data = random.Random(3).randbytes(6 << 20)
    old, new = death.old, death.new
    client, server = old.served()
    header = b"" if framing == "close" and not upwards else b"Content-Length: %d\r\n" % len(data)
    head = b"POST / HTTP/1.1\r\nHost: a\r\n" + header + b"\r\n" if upwards else GET
    client.sock.sendall(head)
    old.gets(server, head)
    source, sink = (client, server) if upwards else (server, client)
    if not upwards:
        answer = b"HTTP/1.1 200 OK\r\n" + header + b"\r\n"
        server.sock.sendall(answer)
        old.gets(client, answer if header else answer[:-2] + b"Connection: close\r\n\r\n")
    death.age()
    assert death.parked() == 1
    view, digest, got = memoryview(data), hashlib.sha256(), 0

    def some(web: Web, read: bool) -> None:
        nonlocal view, got
        if view:
            view = view[source.send(view[: 1 << 18]) :]
        web.turn()
        if read:
            sink.read()
            digest.update(sink.got)
            got += len(sink.got)
            sink.got = b""

    def arrived(web: Web) -> bool:
        some(web, True)
        return got >= len(data)

    for _ in range(10):
        some(old, not blocked)
    death.die(frozen, resumed=1)
    new.until(lambda: arrived(new), "the rest")
    assert got == len(data) and digest.digest() == hashlib.sha256(data).digest()
    if not header:
        server.close()
        new.ends(client)
        return
    if upwards:
        server.sock.sendall(OK)
        new.gets(client, OK)
    new.exchange(client, server)
    new.settle()
    assert new.worker.pipes.lent == 0


@pytest.mark.parametrize("parked_anew", [False, True])
def test_body_of_an_answer_that_was_long_in_coming(death: Death, parked_anew: bool) -> None:
    """The request was parked while it waited; its answer is parked as any other."""
    client, server = death.old.served()
    death.age()
    client.sock.sendall(GET)
    death.old.gets(server, GET)
    death.age()
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab"
    server.sock.sendall(begun)
    death.old.gets(client, begun)
    if parked_anew:
        death.age()
        assert death.parked() == 1
        death.die(resumed=1)
        server.sock.sendall(b"cd")
        death.new.gets(client, b"cd")
        death.new.exchange(client, server)
    else:
        death.die()  # it is in no park, until the next look


def test_record_of_a_request_with_a_long_target(death: Death) -> None:
    """A slot has little room; what is for the log only makes way."""
    client, server = death.old.served()
    request = b"GET /" + 500 * b"x" + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    client.sock.sendall(request)
    death.old.gets(server, request)
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: 12345678901234\r\n\r\nab"
    server.sock.sendall(begun)
    death.old.gets(client, begun)
    # Like one that has been there for years.
    (conn,) = death.old.worker.connections
    assert isinstance(conn, HttpState)
    conn.started -= 1e9
    conn.idle_since -= 1e8
    death.age()
    assert death.parked() == 1
    death.die(resumed=1)
    server.sock.sendall(b"cd")
    death.new.gets(client, b"cd")


def test_chunked_body_is_reset_or_frozen(death: Death) -> None:
    client, server = death.old.served()
    client.sock.sendall(GET)
    death.old.gets(server, GET)
    begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"
    server.sock.sendall(begun)
    death.old.gets(client, begun)
    death.age()
    death.die(frozen=True, resumed=1)
    server.sock.sendall(b"cde\r\n0\r\n\r\n")
    death.new.gets(client, b"cde\r\n0\r\n\r\n")
    death.new.exchange(client, server)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("connect", [False, True])
def test_tunnel(death: Death, connect: bool, frozen: bool) -> None:
    client, server = death.old.served()
    if connect:
        head = b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"
        answer = b"HTTP/1.1 200 Established\r\n\r\n"
    else:
        head = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    client.sock.sendall(head)
    death.old.gets(server, head)
    server.sock.sendall(answer)
    death.old.gets(client, answer)
    death.age()
    assert death.parked() == 1
    client.sock.sendall(b"one")
    death.old.gets(server, b"one")
    server.sock.sendall(b"two, three")
    death.old.gets(client, b"two, three")
    death.die(frozen, resumed=1)
    client.sock.sendall(b"four")
    death.new.gets(server, b"four")
    server.sock.sendall(b"five")
    death.new.gets(client, b"five")


def test_parked_connections_end_for_their_peers(death: Death) -> None:
    """Duplicates lie in the park: close(2) alone would show nobody anything."""
    client, server = death.old.served()
    client.sock.sendall(GET)
    death.old.gets(server, GET)
    death.age()
    server.sock.sendall(OK)
    death.old.gets(client, OK)
    death.old.pass_time(21)
    for _ in range(8):
        death.old.pass_time(5.1)
    assert death.old.ends(client) == b"" and death.old.ends(server) == b""


def waiting_for_an_answer(death: Death) -> tuple[Peer, Peer]:
    """A request that is parked with its server."""
    client, server = death.old.served()
    client.sock.sendall(GET)
    death.old.gets(server, GET)
    death.age()
    (conn,) = death.old.worker.connections
    assert conn.server is not None and conn.server.mark
    return client, server


def test_kept_connection_has_no_part_in_what_was_parked(death: Death) -> None:
    """Else bytes of its later exchanges would be taken for those of whoever has that slot then."""
    client, server = waiting_for_an_answer(death)
    server.sock.sendall(OK)
    death.old.gets(client, OK)
    (side,) = death.old.worker.idle_sides(lambda _: True)
    assert side.mark == 0
    client.sock.sendall(GET)
    death.old.gets(server, GET)
    server.sock.sendall(OK.replace(b"OK", b"OK\r\nConnection: close"))
    death.old.until(lambda: client.read().endswith(b"ok"))
    client.got = b""
    (conn,) = death.old.worker.connections
    assert conn.client.mark == 0 and conn.server is None


def test_answer_of_our_own_to_a_parked_request(death: Death) -> None:
    """Its server is no part of it any more, whatever the queue is rolled for and whoever goes on."""
    old, new = death.old, death.new
    client, server = waiting_for_an_answer(death)
    (conn,) = old.worker.connections
    assert isinstance(conn, HttpConnection)
    conn.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    page = b"HTTP/1.1 504 Late\r\nContent-Length: 5000000\r\n\r\n" + bytes(5_000_000)
    conn.frontend.policy.errors[504] = parse_errorfile(504, page)
    old.pass_time(51)
    assert conn.client.blocked and conn.server is None
    old.ends(server)
    for _ in range(10):
        old.pass_time(1.1)
    assert not [line for line in old.logged if "bug" in line[1]]
    old.worker.parking.sweep()
    old.worker.parking.freeze()
    assert conn.slot >= 0
    death.die(resumed=1)
    new.until(lambda: len(client.read()) == len(page), "the page")
    assert client.got.startswith(b"HTTP/1.1 504 ") and client.got.endswith(page[100:])
    client.got = b""
    begins_anew(new, client)


@pytest.mark.parametrize("framing", ["length", "close"])
def test_answer_that_begins_late_and_takes_its_time(death: Death, framing: str) -> None:
    """It was parked while it waited, and is again while it comes."""
    client, server = waiting_for_an_answer(death)
    head = b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 4\r\n\r\n" if framing == "length" else b"\r\n")
    server.sock.sendall(head + b"ab")
    death.old.until(lambda: client.read().endswith(b"ab"))
    client.got = b""
    death.age()
    assert death.parked() == 1
    death.die(resumed=1)
    server.sock.sendall(b"cd")
    death.new.gets(client, b"cd")


def test_answer_that_was_over_when_its_worker_died(death: Death) -> None:
    """All of it had been passed on, but nothing else was done."""
    client, server = death.old.served()
    client.sock.sendall(GET)
    death.old.gets(server, GET)
    server.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
    death.old.until(lambda: client.read().endswith(b"ab"))
    client.got = b""
    death.age()
    assert death.parked() == 1
    (conn,) = death.old.worker.connections
    assert conn.server is not None
    sock = conn.server.sock
    server.sock.sendall(b"cd")
    assert sock.recv(9, socket.MSG_PEEK) == b"cd"
    conn.client.sock.send(sock.recv(9))
    death.die(resumed=1)
    death.new.gets(client, b"cd")
    death.new.exchange(client, server)


@pytest.mark.parametrize("others", [0, 3])
def test_slots_come_back(farm: Farm, others: int) -> None:
    """However often clients are parked alone and with a server in turn, also when there are few slots."""
    times = Timeouts(connect=5, client=60, server=50, http_keep_alive=10_000)
    with Web(farm, park=make_park("1-0", slots=8), general={"timeouts": times}) as web:
        client, server = web.served()
        for _ in range(others):
            web.served()
        server.close()
        web.until(lambda: not web.worker.idle)
        for _ in range(20):
            client.sock.sendall(GET)
            server = web.until(lambda: next((peer for peer in farm.peers if is_asked(peer)), None) or farm.accept())
            web.hears(server, GET)
            for _ in range(4):
                web.pass_time(1.1)
            server.sock.sendall(OK)
            web.gets(client, OK)
            for _ in range(4):
                web.pass_time(1.1)
        assert not [line for line in web.logged if "cannot park" in line[1]]


def is_asked(peer: Peer) -> bool:
    return peer.sock.fileno() >= 0 and peer.read().endswith(GET)


def test_told_to_end_with_as_many_clients_as_slots(farm: Farm) -> None:
    """All have an exchange, and were parked before without it."""
    many = 8
    made = Death(farm, slots=many)
    try:
        pairs = [made.old.served() for _ in range(many)]
        made.age()
        assert made.parked() == many
        for client, _ in pairs:
            client.sock.sendall(GET)
        made.old.settle()
        servers = [pairs[0][1], *(made.old.serve() for _ in range(many - 1))]  # one was kept
        made.die(frozen=True, resumed=many)
        for server in servers:
            made.new.until(lambda server=server: server.read() == GET)  # type: ignore[misc]
            server.sock.sendall(OK)
        for client, _ in pairs:
            made.new.gets(client, OK)
    finally:
        made.close()


def test_told_to_end_with_more_heads_than_the_book_takes(death: Death) -> None:
    """Whoever sends half a huge head costs nobody else the connection."""
    old = death.old
    hogs = [old.connect() for _ in range(4)]
    for hog in hogs:
        hog.sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"a" * 16000)
    client, _ = old.served()
    client.sock.sendall(GET[:9])
    old.settle()
    assert old.park
    while old.park.book.add_note({"http": 0, "form": "-" * 50_000}):
        pass  # room for two or three heads is left
    report = death.fall(frozen=True)
    assert [line[1] for line in old.logged if "cannot park" in line[1]]
    assert 1 <= report["resumed"] <= 4 and not report["lost"]
    client.sock.sendall(GET[9:])
    server = death.new.serve()
    death.new.gets(server, GET)
