"""PROXY headers from clients and to servers: believed, refused, sent, and in no state a reason to lose a connection."""

from __future__ import annotations

import errno
import select
import socket
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hitlessd.model import Bind, Config, InetAddress, Server, Timeouts
from hitlessd.table import Column
from hitlessd.worker import connection
from hitlessd.worker.connection import State
from tests.support.relay import Farm, Lab, Peer, gauges, listen, make_config, make_park, make_table, migrate, take_over

TIMES = Timeouts(connect=5, client=60, server=50, queue=7)
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.9 56324 443\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V2 = (
    SIGNATURE + b"\x21\x11\0\x10" + bytes([192, 0, 2, 7, 198, 51, 100, 9]) + struct.pack("!HH", 56324, 443) + b"\4\0\1x"
)
LOCAL = SIGNATURE + b"\x20\0\0\0"


def config_of(servers: list[Server], accept_proxy: bool = True, **options: Any) -> Config:
    config = make_config(servers, **{"timeouts": TIMES} | options)
    bind = Bind(InetAddress("127.0.0.1", 0), accept_proxy=accept_proxy)
    return replace(config, frontends=(replace(config.frontends[0], binds=(bind,)),))


def _end(lab: Lab, *peers: Peer) -> None:
    for peer in peers:
        peer.close()
    lab.until(lambda: not lab.worker.connections, "no connections")
    lab.turn()
    assert gauges(lab.table) == {}
    assert not len(lab.worker.wheel)


def _heir(lab: Lab, generation: int = 2) -> Lab:
    table = make_table(lab.config, generation=generation)
    heir = Lab(lab.config, table=table, accept=False, park=make_park(f"{generation}-0", generation=generation))
    heir.clock.now = lab.clock.now + 5000.0
    heir.turn()
    return heir


def _close_heir(heir: Lab) -> None:
    heir.__exit__()
    heir.table.close()


# --- from clients


@pytest.mark.parametrize("header", [V1, V2])
@pytest.mark.parametrize("by_the_byte", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_the_client_is_who_the_header_says(farm: Farm, header: bytes, by_the_byte: bool, together: bool) -> None:
    with Lab(config_of(farm.servers())) as lab:
        client = lab.connect()
        first = header + (b"hello" if together else b"")
        for piece in [first[i : i + 1] for i in range(len(first))] if by_the_byte else [first]:
            client.send(piece)
            lab.turn()
        server = lab.until(farm.accept, "a connection to the server")
        if not together:
            lab.until(lambda: all(c.state is State.ESTABLISHED for c in lab.worker.connections), "established")
            client.send(b"hello")
        lab.until(lambda: server.read() == b"hello", "the data, and nothing else")
        server.send(b"welcome")
        lab.until(lambda: client.read() == b"welcome", "the answer")
        (conn,) = lab.worker.connections
        assert conn.address == ("192.0.2.7", 56324)
        assert conn.local() == ("198.51.100.9", 443)
        assert conn.source_key() == bytes([192, 0, 2, 7])
        _end(lab, client, server)
        # As with HAProxy, the header counts for nobody's data.
        assert (lab.value("frontend", Column.BIN), lab.value("s1", Column.BIN)) == (5, 5)
        assert lab.lines[-1].startswith("192.0.2.7:56324 [")


def test_a_server_that_speaks_first_is_not_kept_waiting(farm: Farm) -> None:
    with Lab(config_of(farm.servers())) as lab:
        client = lab.connect()
        client.send(V1)
        server = lab.until(farm.accept, "a connection to the server")
        server.send(b"220 ready")
        lab.until(lambda: client.read() == b"220 ready", "its greeting")
        _end(lab, client, server)


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN whatever\r\n", SIGNATURE + b"\x21\0\0\0"])
def test_without_an_address_in_it_the_connections_own_counts(farm: Farm, header: bytes) -> None:
    with Lab(config_of(farm.servers())) as lab:
        client = lab.connect()
        client.send(header)
        server = lab.until(farm.accept, "a connection to the server")
        (conn,) = lab.worker.connections
        assert conn.address == client.sock.getsockname()
        assert conn.local() == client.sock.getpeername()
        _end(lab, client, server)


def test_the_client_of_a_unix_socket_has_no_address(farm: Farm) -> None:
    with Lab(config_of(farm.servers())) as lab:
        client = lab.connect()
        client.send(SIGNATURE + b"\x21\x31\0\xd8" + b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0"))
        server = lab.until(farm.accept, "a connection to the server")
        (conn,) = lab.worker.connections
        assert (conn.source(), conn.local()) == (None, None)
        _end(lab, client, server)
        assert lab.lines[-1].startswith("unix:1 [")


def test_a_server_without_a_port_gets_that_of_the_header(farm: Farm) -> None:
    port = farm.listeners[0].getsockname()[1]
    with Lab(config_of([Server("s1", InetAddress("127.0.0.1", 0))])) as lab:
        client = lab.connect()
        client.send(b"PROXY TCP4 192.0.2.7 198.51.100.9 56324 %d\r\n" % port)
        server = lab.until(farm.accept, "a connection to the server")
        _end(lab, client, server)


@pytest.mark.parametrize(
    ("data", "fin", "why"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", False, "Received something which does not look like a PROXY protocol header"),
        (b"PROXY TCP4 1.2.3.4\r\n", False, "Received an invalid PROXY protocol header"),
        (SIGNATURE + b"\x25\x11\0\0", False, "Received an invalid PROXY protocol header"),
        (b"PROXY TCP4 1.2", True, "Truncated PROXY protocol header received"),
        (b"", True, "Connection closed while waiting for PROXY protocol header"),
    ],
)
@pytest.mark.parametrize("dontlognull", [False, True])
def test_whoever_does_not_begin_with_one_is_closed(
    farm: Farm, data: bytes, fin: bool, why: str, dontlognull: bool
) -> None:
    with Lab(config_of(farm.servers(), tcplog=False, dontlognull=dontlognull)) as lab:
        client = lab.connect()
        client.send(data)
        if fin:
            client.sock.shutdown(socket.SHUT_WR)
        lab.until(lambda: client.read() == b"" and client.eof, "the end")
        _end(lab, client)
        assert not farm.accept()
        said = [line for line in lab.lines if line.endswith(f"] www/1: {why}")]
        assert len(said) == len(lab.lines) == (not dontlognull or bool(data))
        assert all(line.startswith("127.0.0.1:") for line in said)


@pytest.mark.parametrize("data", [b"", b"PROXY "])
@pytest.mark.parametrize("dontlognull", [False, True])
def test_it_must_come_within_timeout_client(farm: Farm, data: bytes, dontlognull: bool) -> None:
    with Lab(config_of(farm.servers(), dontlognull=dontlognull)) as lab:
        client = lab.connect()
        client.send(data)
        lab.until(lambda: lab.worker.connections, "a connection")
        lab.settle()
        lab.pass_time(59.0)
        assert [conn.state for conn in lab.worker.connections] == [State.HEADER]
        lab.pass_time(1.5)
        _end(lab, client)
        expected = "] www/1: Timeout while waiting for PROXY protocol header"
        assert [line.endswith(expected) for line in lab.lines] == [True] * (not dontlognull or bool(data))


def test_a_reset_while_it_waits_ends_it(farm: Farm) -> None:
    with Lab(config_of(farm.servers())) as lab:
        client = lab.connect()
        client.send(b"PROXY ")
        lab.until(lambda: lab.worker.connections, "a connection")
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _end(lab, client)


def test_a_probe_of_header_and_end_is_not_worth_a_line(farm: Farm) -> None:
    with Lab(config_of(farm.servers(), dontlognull=True)) as lab:
        client = lab.connect()
        client.send(LOCAL)
        server = lab.until(farm.accept, "a connection to the server")
        _end(lab, client, server)
        assert not lab.lines


def test_a_header_with_an_end_behind_it_is_an_end(farm: Farm) -> None:
    with Lab(config_of(farm.servers())) as lab:
        client = lab.connect()
        client.send(V1 + b"all of it")
        client.sock.shutdown(socket.SHUT_WR)
        server = lab.until(farm.accept, "a connection to the server")
        lab.until(lambda: server.read() == b"all of it" and server.eof, "data and end")
        server.send(b"answer")
        server.close()
        lab.until(lambda: client.read() == b"answer" and client.eof, "the answer")
        _end(lab, client)


# --- to servers


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("client_first", [False, True])
def test_the_header_goes_first(farm: Farm, version: int, client_first: bool) -> None:
    with Lab(config_of(farm.servers(send_proxy=version), accept_proxy=False)) as lab:
        client = lab.connect()
        (host, port), (to_host, to_port) = client.sock.getsockname(), client.sock.getpeername()
        if version == 1:
            header = f"PROXY TCP4 {host} {to_host} {port} {to_port}\r\n".encode()
        else:
            header = SIGNATURE + b"\x21\x11\0\x0c" + 2 * bytes([127, 0, 0, 1]) + struct.pack("!HH", port, to_port)
        if client_first:
            client.send(b"hello")
        server = lab.until(farm.accept, "a connection to the server")
        if not client_first:
            lab.until(lambda: server.read() == header, "the header alone")
            server.send(b"220 ready")
            lab.until(lambda: client.read() == b"220 ready", "the server's greeting")
            client.send(b"hello")
        lab.until(lambda: server.read() == header + b"hello", "the header and the data")
        _end(lab, client, server)
        assert (lab.value("frontend", Column.BIN), lab.value("s1", Column.BIN)) == (5, 5)


@pytest.mark.parametrize(("incoming", "version"), [(V1, 1), (V1, 2), (V2, 1), (V2, 2)])
def test_what_came_with_the_client_is_told_on(farm: Farm, incoming: bytes, version: int) -> None:
    """Without the TLVs, as HAProxy does it."""
    with Lab(config_of(farm.servers(send_proxy=version))) as lab:
        client = lab.connect()
        client.send(incoming + b"data")
        server = lab.until(farm.accept, "a connection to the server")
        expected = V1 if version == 1 else V2[:15] + b"\x0c" + V2[16:28]
        lab.until(lambda: server.read() == expected + b"data", "the other header")
        (conn,) = lab.worker.connections
        assert conn.client.shift == len(expected) - len(incoming)
        _end(lab, client, server)


@pytest.mark.parametrize(("version", "expected"), [(1, b"PROXY UNKNOWN\r\n"), (2, LOCAL)])
def test_for_clients_of_unix_sockets_it_is_what_haproxy_sends(
    farm: Farm, tmp_path: Path, version: int, expected: bytes
) -> None:
    listener = listen(str(tmp_path / "front"))
    with Lab(config_of(farm.servers(send_proxy=version), accept_proxy=False), listener=listener) as lab:
        client = lab.connect()
        server = lab.until(farm.accept, "a connection to the server")
        lab.until(lambda: server.read() == expected, "the header")
        _end(lab, client, server)
    listener.close()


def test_one_attempt_after_another_it_is_sent_once(farm: Farm) -> None:
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        nobody = Server("nobody", InetAddress("127.0.0.1", refusing.getsockname()[1]), 1, send_proxy=1)
        servers = [nobody, replace(farm.server(0, send_proxy=1), sid=2, weight=1)]
        config = config_of(servers, retries=1, redispatch=True)
        with Lab(config) as lab:
            for _ in range(2):
                client = lab.connect()
                client.send(V1 + b"x")
                server = lab.until(farm.accept, "a connection to the server")
                lab.until(lambda server=server: server.read() == V1 + b"x", "one header")  # type: ignore[misc]
                (conn,) = lab.worker.connections
                assert conn.client.shift == 0
                _end(lab, client, server)


def _blocked(lab: Lab) -> bool:
    return any(conn.server and conn.server.out for conn in lab.worker.connections)


def test_a_server_that_takes_no_more_gets_the_rest_later(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the kernel does not do to a new connection; and parked meanwhile, and continued."""
    sends = iter([b"", V1[:3]])

    def send(sock: socket.SocketType, data: bytes) -> int:
        part = next(sends)
        if not part:
            raise BlockingIOError(errno.EAGAIN, "")
        return sock.send(part)

    monkeypatch.setattr(connection, "_send", send)
    for expected in (0, 3):
        lab = Lab(config_of(farm.servers(send_proxy=1), park_after=0), park=make_park())
        heir = _heir(lab)
        client = lab.connect()
        client.send(V1 + b"hello")
        lab.until(partial(_blocked, lab), "it waits")
        (conn,) = lab.worker.connections
        assert conn.server and conn.server.out is not None and len(conn.server.out) == len(V1) - expected
        lab.worker.epoll.unregister(conn.server.fd)  # so that it goes on waiting
        lab.pass_time(1.0)
        lab.pass_time(1.0)
        assert conn.slot >= 0
        server = lab.until(farm.accept, "a connection to the server")
        lab.worker.epoll.register(conn.server.fd, 0)
        lab.die()
        assert take_over(lab, heir, cold=True)["resumed"] == 1
        heir.until(lambda server=server: server.read() == V1 + b"hello", "all of it")  # type: ignore[misc]
        client.close()
        server.close()
        heir.until(lambda heir=heir: not heir.worker.connections, "its end")  # type: ignore[misc]
        _close_heir(heir)
        lab.__exit__()


def test_a_server_that_is_gone_already_is_no_bug(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(sock: socket.SocketType, data: bytes) -> int:
        raise BrokenPipeError(errno.EPIPE, "")

    monkeypatch.setattr(connection, "_send", send)
    with Lab(config_of(farm.servers(send_proxy=1), accept_proxy=False)) as lab:
        client = lab.connect()
        server = lab.until(farm.accept, "a connection to the server")
        server.send(b"go away")
        server.close()
        lab.until(lambda: client.read() == b"go away" and client.eof, "its last words")
        _end(lab, client)
        assert not [text for severity, text in lab.logged if severity == "err"]


# --- moving and parking


@pytest.mark.parametrize("how", ["move", "freeze"])
def test_half_a_header_moves_and_stays_in_the_kernel(farm: Farm, how: str) -> None:
    lab = Lab(config_of(farm.servers(send_proxy=1)), park=make_park())
    heir = _heir(lab)
    client = lab.connect()
    client.send(V1[:20])
    lab.until(lambda: lab.worker.connections, "a connection")
    lab.settle()
    if how == "move":
        assert migrate(lab, heir)["moved"] == 1
    else:
        assert lab.worker.parking.freeze() == (1, {})
        lab.die()
        assert take_over(lab, heir, cold=True)["resumed"] == 1
    (conn,) = heir.worker.connections
    assert (conn.state, conn.client.received) == (State.HEADER, 0)
    heir.settle()
    client.send(V1[20:] + b"hello")
    server = heir.until(farm.accept, "a connection to the server")
    heir.until(lambda: server.read() == V1 + b"hello", "all of it")
    assert conn.address == ("192.0.2.7", 56324)
    client.close()
    server.close()
    heir.until(lambda: not heir.worker.connections, "its end")
    heir.turn()
    assert gauges(heir.table) == {}
    _close_heir(heir)
    lab.__exit__()


def test_its_timeout_goes_on_elsewhere(farm: Farm) -> None:
    lab = Lab(config_of(farm.servers()), park=make_park())
    heir = _heir(lab)
    client = lab.connect()
    lab.until(lambda: lab.worker.connections, "a connection")
    lab.pass_time(50.0)
    assert migrate(lab, heir)["moved"] == 1
    heir.pass_time(8.0)
    assert heir.worker.connections
    heir.pass_time(3.0)
    assert not heir.worker.connections
    assert heir.lines[-1].endswith("Timeout while waiting for PROXY protocol header")
    client.close()
    _close_heir(heir)
    lab.__exit__()


def test_connecting_ones_move_with_what_they_are_to_tell(farm: Farm) -> None:
    full = listen(backlog=0)
    stuffing = [socket.socket() for _ in range(3)]
    for sock in stuffing:
        sock.setblocking(False)
        sock.connect_ex(full.getsockname())
    crowded = Farm(1, [full])
    lab = Lab(config_of(crowded.servers(send_proxy=2)))
    heir = _heir(lab)
    client = lab.connect()
    client.send(V1 + b"hello")
    lab.until(lambda: [c for c in lab.worker.connections if c.header], "the header was taken")
    lab.settle()
    assert [conn.state for conn in lab.worker.connections] == [State.CONNECTING]
    assert migrate(lab, heir)["moved"] == 1
    (conn,) = heir.worker.connections
    assert (conn.state, conn.address, conn.local()) == (
        State.CONNECTING,
        ("192.0.2.7", 56324),
        ("198.51.100.9", 443),
    )
    assert conn.client.shift == -len(V1) and not conn.said_something()
    for sock in stuffing:
        sock.close()
    expected = V2[:15] + b"\x0c" + V2[16:28] + b"hello"

    def arrived() -> bool:
        while crowded.accept():
            pass
        return any(peer.read() == expected for peer in crowded.peers)

    heir.until(arrived, "all of it")
    client.close()
    crowded.close()
    heir.until(lambda: not heir.worker.connections, "its end")
    _close_heir(heir)
    lab.__exit__()


@pytest.mark.parametrize(
    ("incoming", "version", "moved"),
    [(V1, 1, False), (V2, 0, False), (V2, 1, True), (LOCAL, 2, True), (V1, 2, False)],
)
def test_killed_with_bytes_in_flight_it_goes_on_exactly(farm: Farm, incoming: bytes, version: int, moved: bool) -> None:
    """A slow reader: what the worker had read and not sent is in a block or a pipe."""
    lab = Lab(config_of(farm.servers(send_proxy=version)), park=make_park())
    labs = [lab]
    client = lab.connect()
    client.send(incoming)
    server = lab.until(farm.accept, "a connection to the server")
    lab.until(lambda: all(c.state is State.ESTABLISHED for c in lab.worker.connections), "established")
    lab.pass_time(2.0)
    lab.pass_time(1.0)
    (conn,) = lab.worker.connections
    assert conn.slot >= 0
    if moved:
        labs.append(_heir(lab))
        assert migrate(lab, labs[-1])["moved"] == 1
        lab = labs[-1]
        (conn,) = lab.worker.connections
        assert conn.slot >= 0
    data = bytes(i % 251 for i in range(1 << 20))
    sent = 0
    assert conn.server
    while not conn.server.blocked:
        sent += client.send(data[sent % 251 : sent % 251 + 9000])
        lab.settle()
    server.send(b"meanwhile")
    lab.until(lambda: client.read() == b"meanwhile", "the other direction")
    lab.worker.view[:] = b"\xee" * len(lab.worker.view)
    heir = _heir(lab, 3)
    lab.die()
    assert take_over(lab, heir, cold=True)["resumed"] == 1
    (conn,) = heir.worker.connections
    header = conn.client.shift + len(incoming)
    heir.until(lambda: len(server.read()) == header + sent, "all of it")
    assert server.got[header:] == bytes(i % 251 for i in range(sent))
    assert bool(header) == bool(version)
    if incoming is not LOCAL:
        assert conn.address == ("192.0.2.7", 56324)
    client.send(b"more")
    heir.until(lambda: server.read()[-4:] == b"more", "and on")
    client.close()
    server.close()
    heir.until(lambda: not heir.worker.connections, "its end")
    for each in [heir, *reversed(labs)]:
        table = each.table
        own = each.own_table
        each.__exit__()
        if not own:
            table.close()


def test_killed_between_header_and_data_nothing_is_sent_twice(farm: Farm) -> None:
    lab = Lab(config_of(farm.servers(send_proxy=2)), park=make_park())
    client = lab.connect()
    client.send(V1)
    server = lab.until(farm.accept, "a connection to the server")
    lab.until(lambda: len(server.read()) == 28, "the header")
    lab.pass_time(2.0)
    lab.pass_time(1.0)
    (conn,) = lab.worker.connections
    client.send(b"0123456789")
    select.select([conn.client.sock], [], [], 10)
    conn.client.label()
    assert conn.client.sock.recv_into(lab.worker.scratch) == 10
    assert conn.server
    conn.server.sock.send(b"012")
    heir = _heir(lab)
    lab.die()
    assert take_over(lab, heir, cold=True)["resumed"] == 1
    heir.until(lambda: server.read()[28:] == b"0123456789", "all of it")
    client.close()
    server.close()
    heir.until(lambda: not heir.worker.connections, "its end")
    _close_heir(heir)
    lab.__exit__()
