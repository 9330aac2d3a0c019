"""HTTP: requests and responses between clients and servers, one after the other, whole and in pieces."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import pytest

from hitlessd.model import ForwardFor
from hitlessd.table import Column
from tests.support.relay import Farm, Peer, gauges
from tests.support.web import Web

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def web(farm: Farm) -> Iterator[Web]:
    with Web(farm) as made:
        yield made


# -- messages ----------------------------------------------------------------------------------------------------------


def test_one_after_the_other_on_the_same_connections(web: Web) -> None:
    client = web.connect()
    client.sock.sendall(GET)
    server = web.serve()
    web.gets(server, GET)
    server.sock.sendall(OK)
    web.gets(client, OK)
    for number in range(5):
        web.exchange(client, server, b"GET /%d HTTP/1.1\r\nHost: a\r\nX-Odd-CASE:  v \r\n\r\n" % number)
    assert web.farm.accept() is None
    assert web.value("frontend", Column.STOT) == 1
    assert web.value("backend", Column.STOT) == web.value("s1", Column.STOT) == 6


@pytest.mark.parametrize("size", [1, 7])
def test_in_pieces(web: Web, size: int) -> None:
    """One byte at a time gives the same as all at once."""
    request = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nTr: 1\r\n\r\n"
    response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n"
    client = web.connect()
    server = None
    for _ in range(2):
        for at in range(0, len(request), size):
            client.sock.sendall(request[at : at + size])
            web.turn()
        server = server or web.serve()
        web.gets(server, request)
        for at in range(0, len(response), size):
            server.sock.sendall(response[at : at + size])
            web.turn()
        web.gets(client, response)


def test_pipeline(web: Web) -> None:
    """All at once, answered in order, each after the one before."""
    client = web.connect()
    requests = [b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (n, n, b"b" * n) for n in range(20)]
    client.sock.sendall(b"".join(requests))
    server = web.serve()
    for number, request in enumerate(requests):
        web.gets(server, request)
        server.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n%02d" % number)
    web.hears(client, b"19")
    assert web.farm.accept() is None


@pytest.mark.parametrize(
    ("method", "response"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n"),
    ],
)
def test_no_body(web: Web, method: bytes, response: bytes) -> None:
    client = web.connect()
    request = method + b" / HTTP/1.1\r\nHost: a\r\n\r\n"
    client.sock.sendall(request)
    server = web.serve()
    web.gets(server, request)
    server.sock.sendall(response)
    web.gets(client, response)
    web.exchange(client, server)


def test_interim_responses(web: Web) -> None:
    client = web.connect()
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    client.sock.sendall(head)
    server = web.serve()
    web.gets(server, head)
    for interim in (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"):
        server.sock.sendall(interim)
        web.gets(client, interim)
    client.sock.sendall(b"abc")
    web.gets(server, b"abc")
    server.sock.sendall(b"HTTP/1.1 102 Processing\r\n\r\n" + OK)
    web.gets(client, b"HTTP/1.1 102 Processing\r\n\r\n" + OK)
    web.exchange(client, server)


def test_until_close(web: Web) -> None:
    client = web.connect()
    client.sock.sendall(GET)
    server = web.serve()
    web.gets(server, GET)
    server.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nall that ")
    server.sock.sendall(b"comes")
    server.close()
    assert web.ends(client).endswith(b"\r\n\r\nall that comes")
    assert gauges(web.table) == {}


def test_client_that_closes(web: Web) -> None:
    client = web.connect()
    client.sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    server = web.serve()
    web.until(lambda: server.read().endswith(b"\r\n\r\n"))
    server.sock.sendall(OK)
    assert web.ends(client).endswith(b"ok")
    web.settle()
    assert not server.read().endswith(b"close\r\n\r\n") and not server.eof  # it is kept for others
    assert gauges(web.table) == {} and web.worker.idle == 1


def test_half_closed_client(web: Web) -> None:
    """As `printf ... | nc` does: it wants its answer."""
    client = web.connect()
    client.sock.sendall(GET)
    client.sock.shutdown(1)
    server = web.serve()
    web.gets(server, GET)
    server.sock.sendall(OK)
    assert web.ends(client).endswith(b"ok")


@pytest.mark.parametrize(
    ("framing", "upwards"),
    [("length", False), ("chunked", False), ("close", False), ("length", True), ("chunked", True)],
)
def test_bulky_bodies(web: Web, framing: str, upwards: bool) -> None:
    """They go through a pipe, and end where they end."""
    data = random.Random(5).randbytes(3 << 20)
    if framing == "chunked":
        body = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (data[: 2 << 20], data[2 << 20 :])) + b"0\r\n\r\n"
        header = b"Transfer-Encoding: chunked\r\n"
    else:
        body = data
        header = b"Content-Length: %d\r\n" % len(data) if framing == "length" else b""
    client = web.connect()
    head = b"POST / HTTP/1.1\r\nHost: a\r\n" + header + b"\r\n" if upwards else GET
    client.sock.sendall(head)
    server = web.serve()
    web.gets(server, head)
    if upwards:
        assert web.fills(client, body, server) == hashlib.sha256(body).digest()
        server.sock.sendall(OK)
        web.gets(client, OK)
    else:
        answer = b"HTTP/1.1 200 OK\r\n" + header + b"\r\n"
        server.sock.sendall(answer)
        web.until(lambda: client.read().endswith(b"\r\n\r\n"))
        client.got = b""
        assert web.fills(server, body, client) == hashlib.sha256(body).digest()
    if framing == "close":
        server.close()
        web.ends(client)
    else:
        web.exchange(client, server)
    web.settle()
    assert web.value("frontend", Column.SPLICED) > 1 << 20
    assert web.worker.pipes.lent == 0


@pytest.mark.parametrize("upwards", [False, True])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_reader_that_reads_when_nothing_moves(web: Web, framing: str, upwards: bool) -> None:
    """It gets all that waits in sockets and pipes, though none of them has anything new to tell."""
    total = 64 << 20
    size = b"Transfer-Encoding: chunked" if framing == "chunked" else b"Content-Length: %d" % total
    head = (b"POST / HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n" % size) if upwards else GET
    client = web.connect()
    client.sock.sendall(head)
    server = web.serve()
    web.gets(server, head)
    source, sink = (client, server) if upwards else (server, client)
    if not upwards:
        answer = b"HTTP/1.1 200 OK\r\n%s\r\n\r\n" % size
        server.sock.sendall(answer)
        web.gets(client, answer)
    if framing == "chunked":
        source.sock.sendall(b"%x\r\n" % total)
        web.gets(sink, b"%x\r\n" % total)
    sent, part, piece = 0, 1, memoryview(bytes(1 << 20))
    while part:
        part = source.send(piece)
        sent += part
        web.settle()
    assert 0 < sent < total
    got = 0

    def some() -> bool:
        nonlocal got
        try:
            got += len(sink.sock.recv(1 << 19))
        except BlockingIOError:
            return False
        web.settle()
        return got >= sent

    web.until(some, f"{sent} bytes")
    assert got == sent
    server.close()
    client.close()
    web.until(lambda: not web.worker.connections)


def test_slow_reader_holds_its_server(web: Web) -> None:
    """Memory is bounded: what the client does not read, the server cannot send."""
    client = web.connect()
    client.sock.sendall(GET)
    server = web.serve()
    web.gets(server, GET)
    total = 64 << 20
    server.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
    sent = 0
    chunk = memoryview(bytes(1 << 20))
    for _ in range(200):
        sent += server.send(chunk)
        web.turn()
    assert sent < total // 2
    (conn,) = web.worker.connections
    assert conn.client.blocked and (conn.client.out is None or len(conn.client.out) <= 64 << 10)
    client.close()
    web.until(lambda: not web.worker.connections)
    assert web.worker.pipes.lent == 0 and gauges(web.table) == {}


def test_upgrade(web: Web) -> None:
    client = web.connect()
    head = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    client.sock.sendall(head)
    server = web.serve()
    web.gets(server, head)
    answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    server.sock.sendall(answer + b"\x81\x01a")
    web.gets(client, answer + b"\x81\x01a")
    for number in range(10):
        client.sock.sendall(b"up %d" % number)
        web.gets(server, b"up %d" % number)
        server.sock.sendall(b"down %d" % number)
        web.gets(client, b"down %d" % number)
    client.sock.shutdown(1)
    web.until(lambda: server.read() == b"" and server.eof)
    server.sock.sendall(b"bye")
    server.close()
    assert web.ends(client) == b"bye"
    assert gauges(web.table) == {}


def test_upgrade_that_is_refused(web: Web) -> None:
    client = web.connect()
    head = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    client.sock.sendall(head)
    server = web.serve()
    web.gets(server, head)
    server.sock.sendall(OK)
    web.gets(client, OK)
    web.exchange(client, server)


def test_connect(web: Web) -> None:
    client = web.connect()
    head = b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"
    client.sock.sendall(head + b"early")
    server = web.serve()
    web.gets(server, head)
    server.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    web.gets(client, b"HTTP/1.1 200 OK\r\n\r\n")
    web.gets(server, b"early")
    server.sock.sendall(b"bytes")
    web.gets(client, b"bytes")


# -- connections to servers --------------------------------------------------------------------------------------------


def test_first_request_gets_a_fresh_connection(web: Web) -> None:
    """http-reuse safe: whether a kept connection still lives is tried only with what the client may repeat."""
    one, other = web.connect(), web.connect()
    servers: list[Peer] = []
    for client in (one, other):
        client.sock.sendall(GET)
        servers.append(web.serve())
        web.gets(servers[-1], GET)
    for client, server in zip((one, other), servers, strict=True):
        server.sock.sendall(OK)
        web.gets(client, OK)
    web.exchange(one, servers[1])  # the latest is taken first
    web.exchange(other, servers[1])
    assert web.worker.idle == 2


@pytest.mark.parametrize("direct", [True, False])
def test_no_more_are_kept_than_are_needed(farm: Farm, direct: bool) -> None:
    """Clients that ask once find no use for what others have left, nor do those that are idle."""
    forwardfor = None if direct else ForwardFor()
    with Web(farm, frontend={"forwardfor": forwardfor}) as web:
        kept: Peer | None = None
        for close in (True, False, True, False):
            client = web.connect()
            client.sock.sendall(GET.replace(b"Host", b"Connection: close\r\nHost") if close else GET)
            server = web.serve()
            web.hears(server, b"\r\n\r\n")
            server.sock.sendall(OK)
            if close:
                assert web.ends(client).endswith(b"ok")
            else:
                web.gets(client, OK)
            web.turn()
            assert web.worker.idle == 1
            if kept is not None:
                assert web.ends(server) == b""
            kept = kept or server
        clients = [web.connect() for _ in range(3)]
        servers = []
        for client in clients:
            client.sock.sendall(GET)
            servers.append(web.serve())
        for client, server in zip(clients, servers, strict=True):
            web.hears(server, b"\r\n\r\n")
            server.sock.sendall(OK)
            web.gets(client, OK)
            client.sock.close()
        web.settle()
        assert web.worker.idle == 3, "as many as there were requests at once"


def test_refused_by_a_server_that_is_near(farm: Farm) -> None:
    """send(2) tells of it, nobody waits for the event that would."""
    with Web(farm) as web:
        farm.listeners[0].close()
        client = web.connect()
        client.sock.sendall(GET)
        web.is_told(client, 503)
        assert web.value("s1", Column.ECON) == 1
        assert web.value("s1", Column.SCUR) == web.worker.idle == 0


def test_always_reuses(farm: Farm) -> None:
    with Web(farm, backend={"http_reuse": "always"}) as web:
        server = None
        for _ in range(3):
            client = web.connect()
            client.sock.sendall(GET)
            server = server or web.serve()
            web.gets(server, GET)
            server.sock.sendall(OK)
            web.gets(client, OK)
        assert farm.accept() is None


def test_aggressive_reuses_what_was_reused_before(farm: Farm) -> None:
    with Web(farm, backend={"http_reuse": "aggressive"}) as web:
        (one, kept), other = web.served(), web.connect()
        other.sock.sendall(GET)
        fresh = web.serve()  # for what is kept has served one request only
        web.exchange_on(other, fresh, GET)
        assert web.ends(fresh) == b""  # one is enough for clients that ask one after the other
        web.exchange(one, kept)
        web.exchange(web.connect(), kept)
        assert farm.accept() is None


def test_never_reuses(farm: Farm) -> None:
    with Web(farm, backend={"http_reuse": "never"}) as web:
        client = web.connect()
        for _ in range(3):
            client.sock.sendall(GET)
            server = web.serve()
            web.hears(server, b"\r\n\r\n")
            server.sock.sendall(OK)
            web.hears(client, b"ok")
            assert web.ends(server) == b""


def test_kept_connection_that_its_server_has_closed(web: Web) -> None:
    client = web.connect()
    client.sock.sendall(GET)
    server = web.serve()
    web.gets(server, GET)
    server.sock.sendall(OK)
    web.gets(client, OK)
    server.close()
    web.until(lambda: not web.worker.idle)
    client.sock.sendall(GET)
    fresh = web.serve()
    web.gets(fresh, GET)
    fresh.sock.sendall(OK)
    web.gets(client, OK)


@pytest.mark.parametrize(("method", "again"), [(b"GET", True), (b"POST", False)])
def test_server_that_closes_while_the_request_is_on_its_way(web: Web, method: bytes, again: bool) -> None:
    """What has effects is never sent twice."""
    client = web.connect()
    client.sock.sendall(GET)
    server = web.serve()
    web.gets(server, GET)
    server.sock.sendall(OK)
    web.gets(client, OK)
    request = method + b" / HTTP/1.1\r\nHost: a\r\n" + (b"Content-Length: 0\r\n" if not again else b"") + b"\r\n"
    client.sock.sendall(request)
    web.gets(server, request)
    server.close()
    if again:
        fresh = web.serve()
        web.gets(fresh, request)
        fresh.sock.sendall(OK)
        web.gets(client, OK)
    else:
        web.is_told(client, 502)
        assert web.farm.accept() is None


def test_idle_connections_are_purged(web: Web) -> None:
    clients = [web.connect() for _ in range(8)]
    servers = []
    for client in clients:
        client.sock.sendall(GET)
        servers.append(web.serve())
        web.gets(servers[-1], GET)
    for client, server in zip(clients, servers, strict=True):
        server.sock.sendall(OK)
        web.gets(client, OK)
    assert web.worker.idle == 8
    web.pass_time(5.1)
    web.pass_time(5.1)
    assert web.worker.idle < 8
    for _ in range(10):
        web.pass_time(5.1)
    assert web.worker.idle == 0
    assert not len(web.worker.wheel) or web.worker.connections


# -- errors ------------------------------------------------------------------------------------------------------------


def test_no_sound_request(web: Web) -> None:
    client = web.connect()
    client.sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
    web.is_told(client, 400)
    assert web.farm.accept() is None and web.value("frontend", Column.EREQ) == 1
    client.close()
    web.until(lambda: not web.worker.connections)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n"])
def test_request_that_does_not_come(web: Web, sent: bytes) -> None:
    client = web.connect()
    client.sock.sendall(sent)
    web.settle()
    web.pass_time(9)
    assert web.worker.connections
    web.pass_time(2)
    web.is_told(client, 408)


def test_idle_client_is_closed_without_a_word(farm: Farm) -> None:
    with Web(farm, server={"pool_purge_delay": 1000.0}) as web:
        client = web.connect()
        client.sock.sendall(GET)
        server = web.serve()
        web.gets(server, GET)
        server.sock.sendall(OK)
        web.gets(client, OK)
        web.pass_time(19)
        web.exchange(client, server)
        web.pass_time(19)
        assert web.worker.connections
        web.pass_time(2)
        assert web.ends(client) == b""


def test_server_that_does_not_answer(web: Web) -> None:
    client = web.connect()
    client.sock.sendall(GET)
    server = web.serve()
    web.gets(server, GET)
    web.pass_time(49)
    assert client.read() == b""
    web.pass_time(2)
    web.is_told(client, 504)
    client.close()
    web.until(lambda: not web.worker.connections)
    assert gauges(web.table) == {}


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 20", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n"])
def test_server_that_answers_nothing_sound(web: Web, said: bytes) -> None:
    client = web.connect()
    client.sock.sendall(GET)
    server = web.serve()
    web.gets(server, GET)
    server.sock.sendall(said)
    server.close()
    web.is_told(client, 502)
    assert web.value("backend", Column.ERESP) == web.value("s1", Column.ERESP) == 1


def test_no_server(farm: Farm) -> None:
    with Web(farm) as web:
        farm.listeners.pop().close()
        client = web.connect()
        client.sock.sendall(GET)
        web.is_told(client, 503)


def test_response_that_breaks_off(web: Web) -> None:
    """The client can tell that something is missing."""
    client = web.connect()
    client.sock.sendall(GET)
    server = web.serve()
    web.gets(server, GET)
    server.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    server.close()
    assert web.ends(client).endswith(b"\r\n\r\nabc")
    assert web.value("s1", Column.SRV_ABRT) == 1


def test_answer_before_the_end_of_the_request(web: Web) -> None:
    client = web.connect()
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
    client.sock.sendall(head + b"x" * 1000)
    server = web.serve()
    web.until(lambda: len(server.read()) == len(head) + 1000)
    server.sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    web.until(lambda: client.read().endswith(b"\r\n\r\n"))
    assert client.got.startswith(b"HTTP/1.1 413 ")
    server.close()  # it might have gone on reading
    web.ends(client)
    client.close()
    web.until(lambda: not web.worker.connections)
    assert gauges(web.table) == {}


def test_client_that_goes(web: Web) -> None:
    client = web.connect()
    client.sock.sendall(GET)
    server = web.serve()
    web.gets(server, GET)
    client.sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER: close() resets
    client.close()
    web.until(lambda: not web.worker.connections)
    assert web.ends(server) == b"" and gauges(web.table) == {}
    assert web.value("frontend", Column.CLI_ABRT) == 1


def test_who_has_waited_too_long_for_a_server_is_forgotten(farm: Farm) -> None:
    """And told so, and may ask again; those behind it get the slot."""
    with Web(farm, server={"maxconn": 1}) as web:
        busy, late, later = web.connect(), web.connect(), web.connect()
        busy.sock.sendall(GET)
        server = web.serve()
        web.gets(server, GET)
        late.sock.sendall(GET)
        web.until(lambda: web.value("backend", Column.QCUR) == 1)
        web.pass_time(5)
        later.sock.sendall(GET)
        web.until(lambda: web.value("backend", Column.QCUR) == 2)
        web.pass_time(3)
        web.is_told(late, 503)
        assert web.value("backend", Column.QCUR) == 1
        server.sock.sendall(OK)
        web.gets(busy, OK)
        web.exchange_on(later, web.serve(), GET)
        web.exchange(late, server, GET)
        assert not any("bug in hitlessd" in line for _, line in web.logged)


@pytest.mark.parametrize("abort", [False, True])
def test_client_that_leaves_with_its_request(farm: Farm, abort: bool) -> None:
    """FIN comes with the request, so that no event tells of it later."""
    with Web(farm, backend={"abortonclose": abort}, server={"maxconn": 1}) as web:
        busy, client = web.connect(), web.connect()
        busy.sock.sendall(GET)
        server = web.serve()
        web.gets(server, GET)
        client.sock.sendall(GET)
        client.sock.shutdown(1)
        if abort:
            assert web.ends(client) == b""
            assert web.value("backend", Column.QCUR) == 0
        server.sock.sendall(OK)
        web.gets(busy, OK)
        if not abort:
            web.gets(web.serve(), GET)


def test_redispatched_request() -> None:
    """It is counted with the server that answers it, to which no request had gone before."""
    two = Farm(2)
    with contextlib.closing(two), Web(two, backend={"redispatch": True, "retries": 3}) as web:
        two.listeners[0].close()
        client = web.connect()
        client.sock.sendall(GET)
        server = web.serve(1)
        web.gets(server, GET)
        server.sock.sendall(OK)
        web.gets(client, OK)
        web.settle()
        assert [web.value(name, Column.HRSP_2XX) for name in ("s1", "s2")] == [0, 1]
        assert not any("bug in hitlessd" in line for _, line in web.logged)
