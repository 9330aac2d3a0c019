"""HTTP connections that outlive their worker: between two exchanges, within counted bodies, as tunnels; and all of them
when the worker is told to end."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest

from hitlessd.table import PROCESS, Column
from hitlessd.worker.http.state import HttpState
from tests.support.descriptors import no_leak
from tests.support.relay import Farm, Peer, make_park, make_table, take_over
from tests.support.web import Web

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Death:
    """Two workers of two generations: the first one dies, the second one goes on with what was parked."""

    def __init__(self, farm: Farm) -> None:
        self.old = Web(farm, park=make_park("1-0"))
        self.new = Web(
            farm,
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
        if frozen:
            self.old.worker.parking.freeze()
        for side in self.old.worker.idle_sides(lambda _: True):
            side.sock.close()
        for backend in self.old.worker.backends.values():
            for server in backend.servers:
                if server.pool is not None:
                    server.pool.idle.clear()
        self.old.die()
        report = take_over(self.old, self.new, cold=True)
        assert {name: report[name] for name in ("resumed", "ended", "lost")} == {
            "resumed": 0,
            "ended": 0,
            "lost": {},
        } | expected

    def close(self) -> None:
        for peer in self.old.clients:
            peer.close()
        table = self.new.table
        self.new.__exit__()
        self.old.__exit__()
        table.close()


@pytest.fixture
def farm() -> Iterator[Farm]:
    with no_leak():
        made = Farm()
        yield made
        made.close()


@pytest.fixture
def death(farm: Farm) -> Iterator[Death]:
    made = Death(farm)
    yield made
    made.close()


def served(web: Web) -> tuple[Peer, Peer]:
    client = web.connect()
    client.sock.sendall(GET)
    server = web.serve()
    web.gets(server, GET)
    server.sock.sendall(OK)
    web.gets(client, OK)
    return client, server


def begins_anew(web: Web, client: Peer) -> None:
    """The client's next request, which gets a connection of its own."""
    client.sock.sendall(GET)
    server = web.serve()
    web.gets(server, GET)
    server.sock.sendall(OK)
    web.gets(client, OK)


@pytest.mark.parametrize("frozen", [False, True])
def test_idle_client(death: Death, frozen: bool) -> None:
    client, server = served(death.old)
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
    client, _ = served(death.old)
    death.age()
    client.sock.sendall(b"GET / HT")
    death.old.settle()
    death.die(lost={"a request died with the process": 1})
    client.read()
    assert isinstance(client.error, ConnectionResetError)


@pytest.mark.parametrize("at", [5, len(GET)])
def test_request_of_a_worker_that_is_told_to_end(death: Death, at: int) -> None:
    client, server = served(death.old)
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
    client, server = served(death.old)
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
    client, server = served(old)
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
    client, server = served(death.old)
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
    client, server = served(death.old)
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
    client, server = served(death.old)
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
    client, server = served(death.old)
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
    client, server = served(death.old)
    client.sock.sendall(GET)
    death.old.gets(server, GET)
    death.age()
    server.sock.sendall(OK)
    death.old.gets(client, OK)
    death.old.pass_time(21)
    for _ in range(8):
        death.old.pass_time(5.1)
    assert death.old.ends(client) == b"" and death.old.ends(server) == b""
