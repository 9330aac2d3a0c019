"""What goes in comes out: order, half-closes, backpressure, bulk, on real sockets and both families of listeners."""

from __future__ import annotations

import hashlib
import os
import random
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hitlessd.model import InetAddress, Timeouts
from hitlessd.table import Column
from hitlessd.worker import relay
from hitlessd.worker.relay import SCRATCH
from tests.support.processes import free_port
from tests.support.relay import Farm, Lab, Peer, gauges, listen, make_config

BIG = random.Random(1).randbytes(6 << 20)


@pytest.fixture
def lab(farm: Farm) -> Iterator[Lab]:
    with Lab(make_config(farm.servers())) as made:
        yield made
        made.settle()
        assert gauges(made.table) == {}
        assert made.worker.pipes.lent == 0
        assert not [text for severity, text in made.logged if severity != "info"]


def end(lab: Lab, *peers: Peer) -> None:
    for peer in peers:
        peer.close()
    lab.until(lambda: not lab.worker.connections, "the end of the connection")


def pump(source: Peer, target: Peer, data: bytes, chunk: int = 200_000) -> Iterator[bool]:
    """Send all of `data` and half-close; read the other side meanwhile. Yields until the reader has seen the end."""
    at = 0
    while not target.eof:
        if at < len(data):
            at += source.send(memoryview(data)[at : at + chunk])
            if at == len(data):
                source.sock.shutdown(socket.SHUT_WR)
        target.read()
        yield False
    yield True


def test_bytes_pass_both_ways_in_order(lab: Lab, farm: Farm) -> None:
    client, server = lab.pair(farm)
    client.send(b"ping")
    lab.until(lambda: server.read() == b"ping")
    server.send(b"pong")
    lab.until(lambda: client.read() == b"pong")
    for number in range(50):
        client.send(b"%d," % number)
        server.send(b"%d;" % number)
        lab.turn()
    lab.until(lambda: server.read().endswith(b"49,") and client.read().endswith(b"49;"))
    assert server.got == b"ping" + b"".join(b"%d," % n for n in range(50))
    end(lab, client, server)
    assert lab.value("frontend", Column.BIN) == len(server.got)
    assert lab.value("s1", Column.BOUT) == len(client.got)


def test_what_the_client_says_before_the_server_is_there_is_kept(lab: Lab, farm: Farm) -> None:
    client = lab.connect()
    client.send(b"early")
    server = lab.until(farm.accept)
    lab.until(lambda: server.read() == b"early")
    end(lab, client, server)


def test_a_server_may_speak_first(lab: Lab, farm: Farm) -> None:
    client = lab.connect()
    server = lab.until(farm.accept)
    server.send(b"220 ready\r\n")
    lab.until(lambda: client.read() == b"220 ready\r\n")
    end(lab, client, server)


def test_a_client_may_half_close_at_once_and_still_hear_the_server(lab: Lab, farm: Farm) -> None:
    client = lab.connect()
    client.sock.shutdown(socket.SHUT_WR)
    server = lab.until(farm.accept)
    lab.until(lambda: server.read() == b"" and server.eof)
    server.send(b"banner")
    server.close()
    lab.until(lambda: client.read() and client.eof)
    assert client.got == b"banner" and client.error is None
    end(lab, client)


@pytest.mark.parametrize("first", ["client", "server"])
def test_half_closes_are_kept_in_both_directions(lab: Lab, farm: Farm, first: str) -> None:
    client, server = lab.pair(farm)
    one, other = (client, server) if first == "client" else (server, client)
    one.send(b"all I have")
    one.sock.shutdown(socket.SHUT_WR)
    lab.until(lambda: other.read() == b"all I have" and other.eof)
    for _ in range(3):
        other.send(b"more ")
        lab.settle()
    lab.until(lambda: one.read() == b"more more more ")
    assert not one.eof and len(lab.worker.connections) == 1
    other.sock.shutdown(socket.SHUT_WR)
    lab.until(lambda: one.read() and one.eof)
    lab.until(lambda: not lab.worker.connections)
    assert one.error is None and other.error is None
    end(lab, client, server)
    assert lab.lines[-1].split()[6] == "--"


def test_an_orderly_close_is_not_a_reset(lab: Lab, farm: Farm) -> None:
    client, server = lab.pair(farm)
    server.send(b"bye")
    server.close()
    lab.until(lambda: client.read() and client.eof)
    assert client.got == b"bye" and client.error is None
    end(lab, client)


def test_one_look_finds_the_last_bytes_and_the_end(lab: Lab, farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    client, server = lab.pair(farm)
    looks: list[int] = []

    def recv_into(sock: socket.socket, *rest: Any) -> int:
        looks.append(size := sock.recv_into(*rest))
        return size

    monkeypatch.setattr(relay, "_recv_into", recv_into)
    server.send(b"bye")
    server.close()
    lab.until(lambda: client.read() and client.eof)
    assert client.got == b"bye" and looks == [3]
    end(lab, client)


def test_descriptors_between_the_last_bytes_hide_none_of_them(tmp_path: Path) -> None:
    """A recv from a unix socket ends where descriptors came along, though more may be there, and the end."""
    farm = Farm(1, [listen(f"{tmp_path}/server")])
    try:
        with Lab(make_config(farm.servers())) as lab:
            client, server = lab.pair(farm)
            socket.send_fds(server.sock, [b"with "], [server.sock.fileno()])
            server.send(b"and without")
            server.sock.shutdown(socket.SHUT_WR)
            lab.until(lambda: client.read() and client.eof)
            assert client.got == b"with and without"
            end(lab, client, server)
    finally:
        farm.close()


@pytest.mark.parametrize("buffer", [None, 4096])
def test_big_transfers_both_ways_at_once(lab: Lab, farm: Farm, buffer: int | None) -> None:
    client, server = lab.pair(farm)
    conn = next(iter(lab.worker.connections))
    assert conn.server is not None
    if buffer:
        for sock in (client.sock, server.sock, conn.client.sock, conn.server.sock):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * buffer)
    up, down = (BIG[: 1 << 20], BIG[1 << 20 : 2 << 20]) if buffer else (BIG, BIG[::-1])
    streams = [pump(client, server, up), pump(server, client, down)]
    lab.until(lambda: all([next(stream, True) for stream in streams]), "both transfers", 60)
    assert hashlib.sha256(server.got).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(client.got).digest() == hashlib.sha256(down).digest()
    end(lab, client, server)
    lab.turn()
    assert lab.value("process", Column.BIN) == len(up)
    assert lab.value("process", Column.BOUT) == len(down)
    if not buffer:
        assert lab.value("process", Column.SPLICED) > len(up)


def test_bulk_without_pipes(farm: Farm) -> None:
    """An ordinary user's pipes may all be taken: then recv and send do."""
    with Lab(make_config(farm.servers())) as lab:
        lab.worker.pipes._budget = 0
        client, server = lab.pair(farm)
        streams = [pump(client, server, BIG), pump(server, client, BIG[::-1])]
        lab.until(lambda: all([next(stream, True) for stream in streams]), "both transfers", 60)
        assert server.got == BIG and client.got == BIG[::-1]
        end(lab, client, server)
        lab.turn()
        assert lab.value("process", Column.SPLICED) == 0


def test_a_flow_that_becomes_small_again_gives_its_pipe_back(lab: Lab, farm: Farm) -> None:
    client, server = lab.pair(farm)
    sent = 0
    while sent < len(BIG):
        sent += client.send(BIG[sent : sent + 300_000])
        lab.turn()
        server.read()
    lab.until(lambda: len(server.read()) == len(BIG))
    lab.settle()
    assert lab.worker.pipes.lent == 0
    for number in range(20):
        client.send(b"x" * 100)
        lab.until(lambda n=number: len(server.read()) == len(BIG) + 100 * (n + 1))  # type: ignore[misc]
    conn = next(iter(lab.worker.connections))
    assert conn.client.bulky == 0
    end(lab, client, server)


@pytest.mark.parametrize("pipes", [True, False])
def test_a_slow_reader_stops_the_sender_and_grows_no_memory(lab: Lab, farm: Farm, pipes: bool) -> None:
    if not pipes:
        lab.worker.pipes._budget = 0
    client, server = lab.pair(farm)
    sent = idle = 0
    while idle < 3:
        step = server.send(BIG[:500_000])
        sent += step
        idle = 0 if step or lab.turn() or lab.worker.ready else idle + 1
        lab.settle()
        assert sent < 64 << 20, "the sender is never stopped"
    (conn,) = lab.worker.connections
    assert conn.server is not None
    assert len(conn.client.out or b"") <= SCRATCH
    assert conn.client.blocked and conn.server.held
    # What is in flight is bounded by the kernel's buffers, the pipe and the scratch; all of it arrives.
    lab.until(lambda: len(client.read()) == sent, "the rest")
    assert lab.worker.pipes.lent == 0
    end(lab, client, server)


def test_many_connections_share_the_turns(farm: Farm) -> None:
    """A bulky connection does not keep the loop from others: each turn does a bounded amount of work."""
    with Lab(make_config(farm.servers())) as lab:
        bulky, source = lab.pair(farm)
        client, server = lab.pair(farm)
        for number in range(30):
            source.send(BIG)
            client.send(b"%d" % number)
            lab.turn()
            lab.turn()
            bulky.read()
            server.read()
            assert server.got.endswith(b"%d" % number)
        end(lab, bulky, source, client, server)


@pytest.mark.parametrize("abstract", [False, True])
def test_unix_sockets_on_both_sides(tmp_path: Path, abstract: bool) -> None:
    """Stream sockets are stream sockets: small, bulky, half-closed, without TCP's options."""
    token = f"\0hitlessd-{os.getpid()}-{id(tmp_path)}-" if abstract else f"{tmp_path}/"
    farm = Farm(1, [listen(token + "server")])
    listener = listen(token + "front")
    try:
        with Lab(make_config(farm.servers(), timeouts=Timeouts(5, 5, 5)), listener=listener) as lab:
            client, server = lab.pair(farm)
            streams = [pump(client, server, BIG), pump(server, client, BIG[::-1])]
            lab.until(lambda: all([next(stream, True) for stream in streams]), "both transfers", 60)
            assert server.got == BIG and client.got == BIG[::-1]
            end(lab, client, server)
            lab.turn()
            assert lab.value("process", Column.SPLICED) > len(BIG)
            assert lab.lines[-1].startswith("unix:1 [")
            assert not [text for severity, text in lab.logged if severity != "info"]
            assert gauges(lab.table) == {}
    finally:
        listener.close()
        farm.close()


def test_ipv6(farm: Farm) -> None:
    farm6 = Farm(1, [listen(("::1", 0))])
    listener = listen(("::1", 0))
    with Lab(make_config(farm6.servers()), listener=listener) as lab:
        client, server = lab.pair(farm6)
        client.send(b"six")
        lab.until(lambda: server.read() == b"six")
        end(lab, client, server)
        assert lab.lines[-1].startswith("::1:")
    listener.close()
    farm6.close()


def test_a_server_without_a_port_gets_the_clients() -> None:
    """Port 0: the server is asked at the port that the client connected to."""
    port = free_port()
    listener = listen(("127.0.0.2", port))
    farm = Farm(1, [listen(("127.0.0.1", port))])
    server_config = farm.server(0)
    config = make_config([replace(server_config, address=InetAddress("127.0.0.1", 0))])
    with Lab(config, listener=listener) as lab:
        client, server = lab.pair(farm)
        client.send(b"same port")
        lab.until(lambda: server.read() == b"same port")
        end(lab, client, server)
    listener.close()
    farm.close()
