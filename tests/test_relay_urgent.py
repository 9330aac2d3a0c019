"""Urgent data (tcp(7), MSG_OOB): it is forwarded in line and stalls nothing, for small flows and for spliced ones."""

from __future__ import annotations

import random
import socket

import pytest

from hitlessd.table import Column
from tests.support.relay import Farm, Lab, Peer, gauges, make_config


def finish(lab: Lab, *peers: Peer) -> None:
    for peer in peers:
        peer.close()
    lab.until(lambda: not lab.worker.connections)
    lab.turn()
    assert gauges(lab.table) == {} and lab.worker.pipes.lent == 0


@pytest.mark.parametrize("sender", ["client", "server"])
def test_urgent_bytes_arrive_in_line(farm: Farm, sender: str) -> None:
    with Lab(make_config(farm.servers())) as lab:
        client, server = lab.pair(farm)
        one, other = (client, server) if sender == "client" else (server, client)
        other.sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        expected = b""
        for number in range(10):
            one.send(b"before%d" % number)
            one.sock.send(b"!", socket.MSG_OOB)
            one.send(b"after")
            expected += b"before%d!after" % number
            lab.until(lambda: other.read() == expected, f"round {number}")  # noqa: B023
        finish(lab, client, server)


def test_an_urgent_byte_alone_is_an_event(farm: Farm) -> None:
    with Lab(make_config(farm.servers())) as lab:
        client, server = lab.pair(farm)
        client.sock.send(b"!", socket.MSG_OOB)
        lab.until(lambda: server.read() == b"!")
        client.send(b"more")
        lab.until(lambda: server.read() == b"!more")
        finish(lab, client, server)


def test_urgent_data_while_connecting(farm: Farm) -> None:
    with Lab(make_config(farm.servers())) as lab:
        client = lab.connect()
        client.send(b"a")
        client.sock.send(b"!", socket.MSG_OOB)
        client.send(b"b")
        server = lab.until(farm.accept)
        lab.until(lambda: server.read() == b"a!b")
        finish(lab, client, server)


@pytest.mark.parametrize("seed", range(4))
def test_urgent_marks_do_not_stall_a_spliced_flow(farm: Farm, seed: int) -> None:
    rng = random.Random(seed)
    with Lab(make_config(farm.servers())) as lab:
        client, server = lab.pair(farm)
        expected = b""
        sent = 0
        block = rng.randbytes(1 << 20)
        while sent < 12 << 20:
            part = block[: rng.choice((1, 500, 70_000, 400_000, 1 << 20))]
            at = 0

            def step(part: bytes = part) -> bool:
                nonlocal at
                at += client.send(part[at:])
                server.read()
                return at == len(part)

            lab.until(step)
            sent += len(part)
            expected += part
            if rng.random() < 0.6:
                # Sent even when the buffer is full: like any byte, it then has to wait.
                lab.until(lambda: (server.read(), _send_urgent(client))[1])
                expected += b"!"
        client.sock.shutdown(socket.SHUT_WR)
        lab.until(lambda: server.read() and server.eof, "everything", 30)
        assert server.got == expected
        finish(lab, client, server)
        assert lab.value("process", Column.SPLICED) > 2 << 20


def _send_urgent(peer: Peer) -> bool:
    try:
        return bool(peer.sock.send(b"!", socket.MSG_OOB))
    except BlockingIOError:
        return False


def test_an_urgent_byte_right_before_the_end(farm: Farm) -> None:
    """At a mark with a FIN behind it, splice says that this was the end; it is not."""
    with Lab(make_config(farm.servers())) as lab:
        client, server = lab.pair(farm)
        data = bytes(1 << 20)
        for _ in range(4):
            lab.until(lambda: (server.read(), client.send(data))[1])
        lab.until(lambda: (server.read(), _send_urgent(client))[1])
        client.sock.shutdown(socket.SHUT_WR)
        lab.until(lambda: server.read() and server.eof)
        assert server.got.endswith(b"\0!")
        finish(lab, client, server)
