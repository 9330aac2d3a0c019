"""Connections that break: who is told, what still arrives, what is counted; and that nothing is left over."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from hitlessd.model import Timeouts
from hitlessd.table import Column
from tests.support.relay import Clock, Farm, Lab, Peer, gauges, make_config


@pytest.fixture
def lab(farm: Farm) -> Iterator[Lab]:
    with Lab(make_config(farm.servers(), timeouts=Timeouts(5, 60, 60)), clock=Clock()) as made:
        yield made
        made.until(lambda: not made.worker.connections)
        made.turn()
        assert gauges(made.table) == {} and made.worker.pipes.lent == 0 and not len(made.worker.wheel)
        assert not [text for severity, text in made.logged if severity != "info"]


def reset(peer: Peer) -> None:
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def is_dead(peer: Peer) -> bool:
    """Whether its peer has closed or reset it both ways."""
    for _ in range(2):
        try:
            peer.sock.send(b"x")
        except (ConnectionResetError, BrokenPipeError):
            return True
    return False


def termination(lab: Lab) -> str:
    return lab.lines[-1].split()[6]


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_becomes_a_reset(lab: Lab, farm: Farm, who: str) -> None:
    client, server = lab.pair(farm)
    client.send(b"x")
    lab.until(lambda: server.read() == b"x")
    one, other = (client, server) if who == "client" else (server, client)
    reset(one)
    lab.until(lambda: other.read() is not None and other.eof)
    assert isinstance(other.error, ConnectionResetError)
    other.close()
    lab.until(lambda: not lab.worker.connections)
    lab.turn()
    assert termination(lab) == ("CD" if who == "client" else "SD")
    aborts, innocent = (Column.CLI_ABRT, Column.SRV_ABRT)[:: 1 if who == "client" else -1]
    assert [lab.value(row, aborts) for row in ("frontend", "backend", "s1")] == [1, 1, 1]
    assert [lab.value(row, innocent) for row in ("frontend", "backend", "s1")] == [0, 0, 0]


def test_what_is_buffered_for_the_client_arrives_before_the_end(lab: Lab, farm: Farm) -> None:
    """The server's last words, more than the kernel takes at once, then its reset."""
    client, server = lab.pair(farm)
    data = bytes(range(256)) * 4096
    sent = 0
    # A send may be short by any number of bytes: the next goes on where it ended.
    while step := server.send((data + data)[sent % len(data) :][: len(data)]):
        sent += step
        lab.settle()
    lab.settle()
    (conn,) = lab.worker.connections
    assert conn.client.blocked
    # What still lies in the server's own buffer is lost with the reset, as without a relay.
    assert conn.server is not None
    taken = conn.server.received
    reset(server)
    lab.settle()
    lab.until(lambda: client.read() is not None and client.eof, "the end")
    assert len(client.got) >= taken and client.got == (data * 100)[: len(client.got)]
    # A clean end while the kernel had bytes left to deliver, a reset if the client was quicker.
    assert client.error is None or isinstance(client.error, ConnectionResetError)
    client.close()


def test_a_server_that_refuses_the_rest_is_still_heard(lab: Lab, farm: Farm) -> None:
    """As a web server that answers 413 and closes while the client still uploads."""
    client, server = lab.pair(farm)
    client.send(b"x" * 100_000)
    lab.settle()
    server.send(b"413 too large")
    # Unread data makes this close a reset.
    server.close()
    lab.until(lambda: client.read() == b"413 too large" or client.eof)
    with contextlib.suppress(OSError):
        for _ in range(5):
            client.send(b"x" * 100_000)
            lab.settle()
    lab.until(lambda: client.read() is not None and client.eof)
    assert client.got == b"413 too large"
    client.close()


def test_writing_to_a_server_that_has_closed(lab: Lab, farm: Farm) -> None:
    """FIN first, then, as the client goes on, a reset: the client hears of it."""
    client, server = lab.pair(farm)
    server.close()
    lab.until(lambda: client.read() == b"" and client.eof)
    client.send(b"too late")
    lab.settle()
    with contextlib.suppress(OSError):
        client.send(b"much too late")
    lab.until(lambda: not lab.worker.connections)
    assert is_dead(client)


def test_a_survivor_that_does_not_leave_is_not_waited_for(lab: Lab, farm: Farm) -> None:
    """Tarrying has an end, whether the survivor reads or not."""
    client, server = lab.pair(farm)
    while server.send(b"x" * 100_000):
        lab.settle()
    reset(server)
    lab.settle()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    while lab.worker.connections and next(iter(lab.worker.connections)).state != "tarrying":
        client.read()
        lab.turn()
    lab.pass_time(61)
    lab.pass_time(6)
    lab.until(lambda: not lab.worker.connections)
    client.close()


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_after_a_half_close(lab: Lab, farm: Farm, who: str) -> None:
    client, server = lab.pair(farm)
    one, other = (client, server) if who == "client" else (server, client)
    one.sock.shutdown(socket.SHUT_WR)
    lab.until(lambda: other.read() == b"" and other.eof)
    reset(one)
    lab.until(lambda: not lab.worker.connections)
    assert is_dead(other)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_in_a_spliced_flow(lab: Lab, farm: Farm, who: str) -> None:
    client, server = lab.pair(farm)
    data = b"z" * 500_000
    for _ in range(10):
        client.send(data)
        lab.turn()
        server.read()
    reset(client if who == "client" else server)
    other = server if who == "client" else client
    lab.until(lambda: other.read() is not None and not lab.worker.connections)
    other.close()


def test_both_reset_at_once(lab: Lab, farm: Farm) -> None:
    client, server = lab.pair(farm)
    client.send(b"x" * 1000)
    server.send(b"y" * 1000)
    reset(client)
    reset(server)
    lab.until(lambda: not lab.worker.connections)
    lab.turn()
    assert lab.value("frontend", Column.CLI_ABRT) + lab.value("frontend", Column.SRV_ABRT) == 1


def test_a_bug_ends_one_connection_and_says_so(farm: Farm) -> None:
    with Lab(make_config(farm.servers())) as lab:
        client, server = lab.pair(farm)
        other, other_server = lab.pair(farm)
        (first, _) = lab.worker.connections
        first.client.worker = None  # type: ignore[assignment]
        client.send(b"x")
        lab.until(lambda: len(lab.worker.connections) == 1)
        errors = [text for severity, text in lab.logged if severity == "err"]
        assert len(errors) == 1 and "Traceback" in errors[0]
        assert lab.lines[-1].split()[6] == "ID"
        other.send(b"alive")
        lab.until(lambda: other_server.read() == b"alive")
        for peer in (client, server, other, other_server):
            peer.close()
        lab.until(lambda: not lab.worker.connections)
        lab.turn()
        assert gauges(lab.table) == {}
