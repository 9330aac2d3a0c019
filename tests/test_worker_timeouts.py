"""Every timeout, on a clock that the tests move."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from hitlessd.model import Timeouts
from hitlessd.table import Column
from hitlessd.worker.timers import NEVER
from tests.support.relay import Farm, Lab, Peer, gauges, make_config


def start(farm: Farm, **timeouts: float) -> Lab:
    return Lab(make_config(farm.servers(), timeouts=replace(Timeouts(), **timeouts)))


def is_closed(lab: Lab, *peers: Peer) -> str:
    """That both sides have heard of the end; the termination state."""
    lab.until(lambda: not lab.worker.connections)
    lab.turn()
    for peer in peers:
        lab.until(lambda peer=peer: peer.read() is not None and peer.eof)  # type: ignore[misc]
    assert gauges(lab.table) == {} and not len(lab.worker.wheel)
    return lab.lines[-1].split()[6]


def stays(lab: Lab, seconds: float) -> None:
    lab.pass_time(seconds)
    lab.settle()
    assert len(lab.worker.connections) == 1


@pytest.mark.parametrize(("client", "server", "blamed"), [(10, 20, "cD"), (20, 10, "sD"), (10, 10, "cD")])
def test_an_idle_connection_ends(farm: Farm, client: float, server: float, blamed: str) -> None:
    with start(farm, client=client, server=server) as lab:
        peers = lab.pair(farm)
        stays(lab, 9.9)
        lab.pass_time(0.2)
        assert is_closed(lab, *peers) == blamed
        by_client = Column.CLI_ABRT if blamed == "cD" else Column.SRV_ABRT
        assert [lab.value(row, by_client) for row in ("frontend", "backend", "s1")] == [1, 1, 1]


def test_without_timeouts_nothing_ends_and_nothing_wakes(farm: Farm) -> None:
    with start(farm) as lab:
        client, server = lab.pair(farm)
        assert lab.worker.wheel.next() == NEVER
        stays(lab, 1e6)
        client.send(b"still here")
        lab.until(lambda: server.read() == b"still here")


@pytest.mark.parametrize("sender", ["client", "server"])
def test_activity_of_either_side_counts_for_both(farm: Farm, sender: str) -> None:
    """One who only takes is not idle: what it acknowledges is a sign of life, as with HAProxy."""
    with start(farm, client=10, server=10) as lab:
        client, server = lab.pair(farm)
        one, other = (client, server) if sender == "client" else (server, client)
        for number in range(1, 6):
            stays(lab, 8)
            one.send(b"x")
            lab.until(lambda n=number: len(other.read()) == n)  # type: ignore[misc]
        lab.pass_time(10.1)
        is_closed(lab, client, server)


def test_only_a_nearer_deadline_moves_a_timer(farm: Farm) -> None:
    """An active connection is looked at once a timeout, however much it says."""
    with start(farm, client=10, server=10) as lab:
        client, server = lab.pair(farm)
        lab.pass_time(1)
        armed = next(iter(lab.worker.connections)).bucket
        for _ in range(20):
            client.send(b"x")
            lab.settle()
        assert next(iter(lab.worker.connections)).bucket == armed
        server.read()


@pytest.mark.parametrize(("stuck", "blamed"), [("client", "cD"), ("server", "sD")])
def test_one_who_takes_nothing_is_the_one_at_fault(farm: Farm, stuck: str, blamed: str) -> None:
    """The other side is held up by our backpressure only, whatever its own timeout."""
    times = {"client": 30.0, "server": 5.0} if stuck == "client" else {"client": 5.0, "server": 30.0}
    with start(farm, **times) as lab:
        client, server = lab.pair(farm)
        sender = server if stuck == "client" else client
        while sender.send(b"x" * 500_000):
            lab.settle()
        lab.settle()
        while sender.send(b"x" * 500_000):
            lab.settle()
        stays(lab, 29)
        lab.pass_time(1.1)
        lab.until(lambda: not lab.worker.connections)
        assert lab.lines[-1].split()[6] == blamed


def test_a_clock_that_stood_still_starts_anew(farm: Farm) -> None:
    """Once the slow reader reads again, the sender has all of its time."""
    with start(farm, client=100, server=5) as lab:
        client, server = lab.pair(farm)
        sent = 0
        for _ in range(3):
            while step := server.send(b"x" * 500_000):
                sent += step
                lab.settle()
        stays(lab, 60)
        lab.until(lambda: len(client.read()) == sent)
        stays(lab, 4.8)
        lab.pass_time(0.4)
        assert is_closed(lab, client, server) == "sD"


def test_tunnel_replaces_both(farm: Farm) -> None:
    with start(farm, client=10, server=10, tunnel=100) as lab:
        peers = lab.pair(farm)
        stays(lab, 99)
        lab.pass_time(1.2)
        is_closed(lab, *peers)


def test_tunnel_does_not_count_before_there_is_one(farm: Farm) -> None:
    with Lab(make_config([farm.server(0, maxconn=1)], timeouts=Timeouts(queue=50, client=20, tunnel=2))) as lab:
        busy, server = lab.pair(farm)
        lab.connect()
        lab.until(lambda: lab.value("backend", Column.QCUR) == 1)
        for number in range(1, 6):
            lab.pass_time(1.9)
            busy.send(b"x")
            lab.until(lambda n=number: len(server.read()) == n)  # type: ignore[misc]
        assert lab.value("backend", Column.QCUR) == 1


@pytest.mark.parametrize(
    ("closer", "option", "blamed"), [("client", "client_fin", "cD"), ("server", "server_fin", "sD")]
)
def test_fin_timeouts_count_once_a_side_is_half_closed(farm: Farm, closer: str, option: str, blamed: str) -> None:
    """The one who has sent FIN, and still takes data, has this long between two bytes; the other one its own time."""
    with start(farm, client=50, server=50, **{option: 3}) as lab:
        client, server = lab.pair(farm)
        one, other = (client, server) if closer == "client" else (server, client)
        one.sock.shutdown(socket.SHUT_WR)
        lab.until(lambda: other.read() == b"" and other.eof)
        # It waits for nothing but the other's words, so the other's clock runs.
        stays(lab, 20)
        while other.send(b"x" * 500_000):
            lab.settle()
        lab.settle()
        while other.send(b"x" * 500_000):
            lab.settle()
        stays(lab, 2.8)
        lab.pass_time(0.4)
        lab.until(lambda: not lab.worker.connections)
        assert lab.lines[-1].split()[6] == blamed


@pytest.mark.parametrize(
    ("closer", "option", "blamed"), [("client", "server_fin", "sD"), ("server", "client_fin", "cD")]
)
def test_one_who_got_a_fin_and_goes_on_has_the_fin_timeout(farm: Farm, closer: str, option: str, blamed: str) -> None:
    with start(farm, client=50, server=50, **{option: 3}) as lab:
        client, server = lab.pair(farm)
        one, other = (client, server) if closer == "client" else (server, client)
        stays(lab, 40)
        other.send(b"x")
        lab.until(lambda: one.read() == b"x")
        one.sock.shutdown(socket.SHUT_WR)
        lab.until(lambda: other.read() == b"" and other.eof)
        for number in range(2, 6):
            stays(lab, 2.8)
            other.send(b"x")
            lab.until(lambda n=number: len(one.read()) == n)  # type: ignore[misc]
        lab.pass_time(3.2)
        assert is_closed(lab, client, server) == blamed


def test_without_fin_timeouts_tunnel_counts_for_half_closed_ones(farm: Farm) -> None:
    with start(farm, client=5, server=5, tunnel=100) as lab:
        client, server = lab.pair(farm)
        client.sock.shutdown(socket.SHUT_WR)
        lab.until(lambda: server.read() == b"" and server.eof)
        stays(lab, 99)
        lab.pass_time(1.2)
        assert is_closed(lab, client, server) == "sD"


def test_client_timeout_counts_while_connecting(farm: Farm) -> None:
    with Lab(make_config([farm.server(0, maxconn=1)], timeouts=Timeouts(connect=50, client=3, queue=50))) as lab:
        first, server = lab.pair(farm)
        lab.pass_time(2)
        second = lab.connect()
        lab.until(lambda: len(lab.worker.connections) == 2)
        first.send(b"x")
        lab.settle()
        lab.pass_time(2)
        first.send(b"x")
        lab.settle()
        assert len(lab.worker.connections) == 2
        lab.pass_time(1.2)
        lab.until(lambda: second.read() is not None and second.eof)
        assert lab.lines[0].split()[6] == "cQ"
        assert server


@pytest.mark.parametrize(("times", "limit"), [(Timeouts(connect=9, queue=4), 4), (Timeouts(connect=4), 4)])
def test_queue_timeout_or_else_connect(farm: Farm, times: Timeouts, limit: float) -> None:
    with Lab(make_config([farm.server(0, maxconn=1)], timeouts=times)) as lab:
        lab.pair(farm)
        waiting = lab.connect()
        lab.until(lambda: lab.value("backend", Column.QCUR) == 1)
        lab.pass_time(limit - 0.2)
        assert lab.value("backend", Column.QCUR) == 1
        lab.pass_time(0.4)
        lab.until(lambda: waiting.read() is not None and waiting.eof)
        lab.turn()
        assert lab.value("backend", Column.QCUR) == 0
        assert lab.value("backend", Column.QTIMEOUT) == 1 and lab.value("backend", Column.ECON) == 1
        line = lab.lines[-1].split("] ")[1].split()
        assert line[1] == "app/<NOSRV>" and line[4] == "sQ"
        assert line[2].split("/")[0] == line[2].split("/")[2] and line[2].split("/")[1] == "-1"


def test_the_loop_sleeps_until_something_is_due(farm: Farm) -> None:
    with start(farm, client=10, server=20) as lab:
        assert lab.worker.wheel.next() == NEVER
        lab.pair(farm)
        due = lab.worker.wheel.next()
        assert lab.clock.now + 9.9 <= due <= lab.clock.now + 10.2
