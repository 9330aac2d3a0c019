"""HTTP: what attackers, broken servers and bad timing do, and what must not come of it."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator

import pytest

from hitlessd.model import Timeouts
from hitlessd.table import Column
from hitlessd.worker.http.connection import HttpConnection
from hitlessd.worker.relay import SCRATCH
from tests.support.relay import Farm, Peer, gauges
from tests.support.web import Web, forget

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@pytest.fixture
def web(farm: Farm) -> Iterator[Web]:
    with Web(farm) as made:
        yield made
        assert not [line for line in made.logged if "bug" in line[1]]


def served(web: Web) -> tuple[Peer, Peer]:
    client = web.connect()
    client.sock.sendall(GET)
    server = web.serve()
    web.gets(server, GET)
    server.sock.sendall(OK)
    web.gets(client, OK)
    return client, server


def stuff(web: Web, client: Peer, server: Peer, size: int) -> None:
    """Have the server answer with more than the client's socket takes, while the client does not read."""
    client.sock.sendall(GET)
    web.gets(server, GET)
    server.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    view = memoryview(bytes(size))

    def all_sent() -> bool:
        nonlocal view
        if view:
            view = view[server.send(view) :]
        return not view

    web.until(all_sent, "a body in the sockets")
    web.settle()


def small(web: Web) -> Peer:
    """A client whose socket takes little."""
    peer = Peer(socket.socket(), blocking=True)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    web.clients.append(peer)
    peer.sock.connect(web.address)
    peer.sock.setblocking(False)
    return peer


def only(web: Web) -> HttpConnection:
    """The one client that is there."""
    (conn,) = web.worker.connections
    assert isinstance(conn, HttpConnection)
    return conn


def shrink(web: Web) -> None:
    for conn in web.worker.connections:
        conn.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


# -- one message must not be taken for another's ----------------------------------------------------------------------


def test_words_of_a_server_that_nobody_has_asked(web: Web) -> None:
    """They lie in a kept connection when a request comes, in the same turn: nobody's answer."""
    client, server = served(web)
    client.sock.sendall(GET)
    server.sock.sendall(EVIL)
    fresh = web.serve()
    web.gets(fresh, GET)
    fresh.sock.sendall(OK)
    web.gets(client, OK)
    assert web.ends(server) in (b"", GET)


def test_words_behind_a_response_for_a_client_that_does_not_read(web: Web) -> None:
    """They come when the response has come but could not be passed on: not the next one's answer."""
    client = small(web)
    client.sock.sendall(GET)
    server = web.serve()
    shrink(web)
    size = 60000
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
    web.gets(server, GET)
    server.sock.sendall(response)
    web.settle()
    conn = only(web)
    assert conn.client.blocked and conn.server is not None and conn.server.body.done
    server.sock.sendall(EVIL)
    web.settle()
    web.gets(client, response)
    client.sock.sendall(GET)
    fresh = web.serve()
    web.gets(fresh, GET)
    fresh.sock.sendall(OK)
    web.gets(client, OK)


@pytest.mark.parametrize("size", [SCRATCH - 39, 3 << 20])
def test_reused_after_a_large_response(web: Web, size: int) -> None:
    """Nothing lies behind it, so the connection is good."""
    client, server = served(web)
    stuff_head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    client.sock.sendall(GET)
    web.gets(server, GET)
    web.fills(server, stuff_head + bytes(size), client)
    web.exchange(client, server)
    assert web.farm.accept() is None


@pytest.mark.parametrize("near", [True, False])
def test_body_behind_a_head_of_the_first_moment(web: Web, near: bool) -> None:
    """Its head came in the same moment as the connection, on which its request is sent at once, or is not."""
    (target,) = web.worker.backends["app"].servers
    target.near = near
    client = web.connect()
    client.sock.sendall(GET)
    while not web.worker.connections or only(web).state != ("exchanging" if near else "connecting"):
        web.turn()
    assert select.select(web.farm.listeners, [], [], 10)[0]
    server = web.farm.accept()
    assert server is not None
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 + len(EVIL[1:]))
    server.sock.sendall(head + b"ok")
    web.gets(client, head + b"ok")
    assert only(web).exchange is not None
    web.gets(server, GET)
    server.sock.sendall(EVIL[1:])
    web.gets(client, EVIL[1:])
    web.exchange(client, server)


# -- nothing may be left lying -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100_000, 1_000_000, 3_000_000])
def test_body_that_lies_in_the_socket_when_its_client_reads_again(web: Web, size: int) -> None:
    client, server = served(web)
    stuff(web, client, server, size)
    web.until(lambda: client.read().endswith(b"\r\n\r\n" + bytes(size)), "all of it", 5)
    forget(client)
    web.exchange(client, server)


@pytest.mark.parametrize("size", [1_000_000, 3_000_000])
def test_upload_that_lies_in_the_socket_when_its_server_reads_again(web: Web, size: int) -> None:
    client, server = served(web)
    client.sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
    view = memoryview(bytes(size))

    def all_sent() -> bool:
        nonlocal view
        if view:
            view = view[client.send(view) :]
        return not view

    web.until(all_sent, "a body in the sockets")
    web.settle()
    web.until(lambda: server.read().endswith(b"\r\n\r\n" + bytes(size)), "all of it", 5)
    forget(server)
    server.sock.sendall(OK)
    web.gets(client, OK)
    web.exchange(client, server)


def test_request_behind_one_whose_server_has_fallen_silent(web: Web) -> None:
    """Its server took not even all of the body; the next one is served for all that."""
    web.farm.listeners[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client = web.connect()
    size = 60_000
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
    client.sock.sendall(head)
    server = web.serve()
    web.gets(server, head)
    conn = only(web)
    assert conn.server is not None
    conn.server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client.sock.sendall(bytes(size) + GET)
    web.settle()
    assert conn.server.blocked and conn.buffer == GET
    web.pass_time(51)
    web.is_told(client, 504)
    fresh = web.serve()
    web.gets(fresh, GET)
    fresh.sock.sendall(OK)
    web.gets(client, OK)


def test_body_that_came_before_its_client_stopped_to_read(web: Web) -> None:
    """Spliced, blocked, and all of the rest in the socket already: no event tells of it again."""
    client, server = served(web)
    client.sock.sendall(GET)
    web.gets(server, GET)
    size = 30 << 20
    web.fills(server, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size), client)
    client.sock.sendall(GET)
    web.gets(server, GET)
    shrink(web)
    size = 3 << 20
    view = memoryview(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
    got = server.send(view)
    web.fills(server, view[got:].tobytes(), client, len(view))


def test_server_timeout_of_a_first_request_that_comes_late(farm: Farm) -> None:
    """However long its client might have waited with it."""
    times = Timeouts(connect=5, client=60, server=50, queue=70, http_request=300, http_keep_alive=20)
    with Web(farm, backend={"http_reuse": "always"}, general={"timeouts": times}) as web:
        late = web.connect()
        web.settle()
        web.pass_time(10)
        web.pass_time(30)  # by now it is only looked at when its time is over
        _, server = served(web)
        late.sock.sendall(GET)
        web.gets(server, GET)
        web.pass_time(51)
        web.is_told(late, 504)


def test_connect_timeout_of_a_later_request(farm: Farm) -> None:
    """However long the client might have been idle."""
    times = Timeouts(connect=5, client=60, server=50, queue=70, http_request=10, http_keep_alive=300)
    with Web(farm, general={"timeouts": times}) as web:
        client, server = served(web)
        server.close()
        web.until(lambda: not web.worker.idle)
        web.pass_time(20)  # by now it is only looked at when it has been idle for too long
        farm.listeners[0].listen(0)
        fill = [Peer(socket.socket()) for _ in range(3)]
        for peer in fill:
            peer.sock.connect_ex(farm.listeners[0].getsockname())
        client.sock.sendall(GET)
        web.settle()
        assert [conn.state for conn in web.worker.connections] == ["connecting"]
        web.pass_time(5.2)
        web.is_told(client, 503)
        for peer in fill:
            peer.close()


def test_connect_timeout_behind_a_queue(farm: Farm) -> None:
    times = Timeouts(connect=5, client=600, server=500, queue=200, http_request=100, http_keep_alive=300)
    with Web(farm, general={"timeouts": times}, server={"maxconn": 1}) as web:
        one, server = served(web)
        one.sock.sendall(GET)
        web.gets(server, GET)
        two = web.connect()
        two.sock.sendall(GET)
        web.settle()
        web.pass_time(20)
        farm.listeners[0].listen(0)
        fill = [Peer(socket.socket()) for _ in range(3)]
        for peer in fill:
            peer.sock.connect_ex(farm.listeners[0].getsockname())
        server.sock.sendall(OK.replace(b"OK", b"OK\r\nConnection: close"))
        web.settle()
        assert "connecting" in [conn.state for conn in web.worker.connections]
        web.pass_time(5.2)
        web.is_told(two, 503)
        for peer in fill:
            peer.close()


# -- what is broken off, and what is answered early ------------------------------------------------------------------


def test_upload_goes_on_behind_an_early_answer(web: Web) -> None:
    """As with HAProxy: a server may answer first and read on. Both connections stay."""
    client = web.connect()
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
    client.sock.sendall(head + b"x" * 1000)
    server = web.serve()
    web.gets(server, head + b"x" * 1000)
    server.sock.sendall(OK)
    web.gets(client, OK)
    client.sock.sendall(b"y" * 99000)
    web.gets(server, b"y" * 99000)
    web.exchange(client, server)
    web.settle()
    assert gauges(web.table) == {"process   SCUR": 1, "frontend www  SCUR": 1} or web.worker.idle == 1


@pytest.mark.parametrize("resets", [False, True])
def test_early_answer_reaches_a_client_that_still_sends(web: Web, resets: bool) -> None:
    """The server is gone: what the client still sends must not cost it the answer."""
    client = web.connect()
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
    client.sock.sendall(head + b"x" * 1000)
    server = web.serve()
    web.until(lambda: len(server.read()) == len(head) + 1000)
    server.sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    if resets:
        web.settle()
        server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    web.settle()
    client.sock.sendall(b"y" * 1000)
    web.settle()
    client.sock.sendall(b"y" * 1000)
    web.settle()
    assert web.ends(client) == b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n" and client.error is None
    client.close()
    web.until(lambda: not web.worker.connections)
    assert gauges(web.table) == {}


@pytest.mark.parametrize("reads", [False, True])
def test_until_close_by_a_server_that_is_reset(web: Web, reads: bool) -> None:
    """The client must not take it for a whole one."""
    client, server = served(web)
    client.sock.sendall(GET)
    web.gets(server, GET)
    server.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nall that ")
    web.settle()
    if reads:
        web.until(lambda: client.read().endswith(b"that "))
    server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    web.until(lambda: client.read() is not None and client.eof)
    assert isinstance(client.error, ConnectionResetError)
    web.settle()
    assert not web.worker.connections and gauges(web.table) == {}
    assert " SD " in web.lines[-1]


@pytest.mark.parametrize("size", [1000, 5_000_000])
def test_until_close_that_takes_too_long(web: Web, size: int) -> None:
    client = small(web)
    client.sock.sendall(GET)
    server = web.serve()
    shrink(web)
    web.gets(server, GET)
    server.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    view = memoryview(bytes(size))
    for _ in range(30):
        view = view[server.send(view) :] if view else view
        web.turn()
    web.pass_time(61)
    web.settle()
    assert not web.worker.connections
    web.until(lambda: client.read() is not None and client.eof)
    assert isinstance(client.error, ConnectionResetError)


def test_chunks_for_a_client_that_reads_none(web: Web) -> None:
    client = web.connect()
    client.sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
    server = web.serve()
    web.hears(server, b"\r\n\r\n")
    server.sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
    web.is_told(client, 502)


@pytest.mark.parametrize("size", [15_000, 20_000])
@pytest.mark.parametrize("pieces", [False, True])
def test_size_of_a_response_head(web: Web, size: int, pieces: bool) -> None:
    """The limit is the same however it comes."""
    client, server = served(web)
    client.sock.sendall(GET)
    web.gets(server, GET)
    response = b"HTTP/1.1 200 OK\r\nA: %s\r\nContent-Length: 2\r\n\r\nok" % (b"a" * size)
    if pieces:
        server.sock.sendall(response[:1000])
        web.settle()
        server.sock.sendall(response[1000:])
    else:
        server.sock.sendall(response)
    if size < 16384:
        web.gets(client, response)
    else:
        web.is_told(client, 502)


# -- attackers ---------------------------------------------------------------------------------------------------------


def test_flood_of_interim_responses(web: Web) -> None:
    """For a client that does not read: the server has to wait, and all come in order."""
    client = small(web)
    client.sock.sendall(GET)
    server = web.serve()
    shrink(web)
    web.gets(server, GET)
    flood = b"".join(b"HTTP/1.1 103 Early Hints\r\nLink: <%06d>\r\n\r\n" % n for n in range(50_000))
    view = memoryview(flood + OK)
    for _ in range(100):
        view = view[server.send(view) :] if view else view
        web.turn()
    conn = only(web)
    assert conn.client.blocked and len(conn.client.out or b"") <= SCRATCH
    got = b""

    def all_there() -> bool:
        nonlocal view, got
        view = view[server.send(view) :] if view else view
        got += client.read()
        forget(client)
        return len(got) == len(flood) + len(OK)

    web.until(all_there)
    assert got == flood + OK
    web.exchange(client, server)


# -- accounts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 20])
@pytest.mark.parametrize("others", [0, 20])
def test_bytes_of_a_tunnel(web: Web, before: int, others: int) -> None:
    """What its client and its server have said to others before, or to each other, is not the tunnel's."""
    client, server = served(web)
    sent, got = len(GET), len(OK)
    for _ in range(others):
        web.exchange(client, server, GET)
    sent, got = sent + others * len(GET), got + others * len(OK)
    client, second = served(web)
    assert web.ends(second) == b""  # the other one is kept already
    for _ in range(before):
        web.exchange(client, server, GET)
    sent, got = sent + (before + 1) * len(GET), got + (before + 1) * len(OK)
    client.sock.sendall(UPGRADE)
    web.gets(server, UPGRADE)
    server.sock.sendall(SWITCHING + b"hello")
    web.gets(client, SWITCHING + b"hello")
    client.sock.sendall(b"u" * 1000)
    web.gets(server, b"u" * 1000)
    server.sock.sendall(b"d" * 3000)
    web.gets(client, b"d" * 3000)
    web.pass_time(2)
    client.close()
    server.close()
    web.until(lambda: len(web.worker.connections) == 1)
    sent, got = sent + len(UPGRADE) + 1000, got + len(SWITCHING) + 5 + 3000
    web.settle()
    assert (web.value("frontend", Column.BIN), web.value("frontend", Column.BOUT)) == (sent, got)
    assert (web.value("s1", Column.BIN), web.value("s1", Column.BOUT)) == (sent, got)
    assert f" {len(SWITCHING) + 3005} -- " in web.lines[-1]


def test_aggressive_reuse_for_a_first_request(farm: Farm) -> None:
    """Only on a connection that has proved to be reusable."""
    with Web(farm, backend={"http_reuse": "aggressive"}) as web:
        one, two = web.connect(), web.connect()
        servers = []
        for client in (one, two):
            client.sock.sendall(GET)
            servers.append(web.serve())
        for client, server in zip((one, two), servers, strict=True):
            web.exchange_on(client, server, GET)
        server, fresh = servers
        web.exchange(two, fresh)
        third = web.connect()
        web.exchange(third, fresh)
        assert farm.accept() is None
        assert server.read() == b""
