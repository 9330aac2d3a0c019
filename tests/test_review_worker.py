"""What load brings out in a worker: ends behind short reads, backlogs that never empty, failures amid registration."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from hitlessd.balance import RoundRobin
from hitlessd.main.limits import plan
from hitlessd.model import Config, InetAddress, Server, Timeouts
from hitlessd.ranking import MANY
from hitlessd.table import Column
from hitlessd.worker.connection import Connection
from hitlessd.worker.pipes import BUDGET, PipePool
from hitlessd.worker.relay import Side, ignore
from tests.support.processes import Deadline
from tests.support.relay import Farm, Lab, gauges, make_config

TIMES = Timeouts(connect=30, client=60, server=60)


@pytest.fixture
def farm() -> Iterator[Farm]:
    made = Farm(1)
    yield made
    made.close()


@pytest.mark.parametrize("tail", [1, 100, 20_000])
def test_an_end_behind_a_blocked_write_is_seen(farm: Farm, tail: int) -> None:
    """Data and FIN come in one event; the first recv cannot be passed on in full, the next one is short."""
    for sock in farm.listeners:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with Lab(make_config(farm.servers(), timeouts=TIMES)) as lab:
        client, server = lab.pair(farm)
        (conn,) = lab.worker.connections
        assert conn.server is not None
        conn.server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        size = (64 << 10) + tail
        data = memoryview(os.urandom(size))
        client.sock.setblocking(True)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        client.sock.sendall(data)
        client.sock.shutdown(socket.SHUT_WR)
        lab.until(lambda: server.read() and server.eof, "the server sees all and the end")
        assert server.got == data


class _Popular:
    """A listening socket at which the next client stands before the last one is in."""

    def __init__(self, lab: Lab, sock: Any, most: int) -> None:
        self._lab, self._sock, self.left = lab, sock, most

    def _accept(self) -> Any:
        if self.left:
            self.left -= 1
            self._lab.connect()
        return self._sock._accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.mark.parametrize("order", ["stop", "sweep"])
def test_a_backlog_that_never_empties_holds_no_order_up(farm: Farm, order: str) -> None:
    """Who came before is accepted; those who come now have woken somebody else."""
    with Lab(make_config(farm.servers(), timeouts=TIMES)) as lab:
        (listener,) = lab.worker.frontends["www"].listeners
        before = [lab.connect() for _ in range(3)]
        listener.sock = popular = _Popular(lab, listener.sock, 200)  # type: ignore[assignment]
        lab.main.setblocking(True)
        lab.main.send(b'{"do":"%s"}' % order.encode())
        lab.turn()
        assert popular.left > 150
        assert lab.value("frontend", Column.STOT) >= len(before)


def test_a_listener_that_somebody_has_shut_down_does_not_spin(farm: Farm) -> None:
    """A foreign process may hold the same socket and shut it down: accept(2) then says EINVAL, for ever."""
    with Lab(make_config(farm.servers(), timeouts=TIMES)) as lab:
        lab.listener.shutdown(socket.SHUT_RD)
        lab.turn()
        assert lab.turn() == 0
        assert lab.logged == []  # it may have been done by an operator, which main is about to tell
        lab.pass_time(2.0)
        lab.turn()
        assert [severity for severity, _ in lab.logged] == ["err"]
        (listener,) = lab.worker.frontends["www"].listeners
        assert listener.accept() == 0


def test_claims_that_fail_raise_no_maximum(farm: Farm) -> None:
    with Lab(make_config([farm.server(0, maxconn=2)], timeouts=TIMES), accept=False) as lab:
        for _ in range(8):
            lab.connect()
        lab.worker.accepting = True
        (listener,) = lab.worker.frontends["www"].listeners
        listener.accept()
        lab.worker.settle()
        assert lab.value("s1", Column.SCUR) == 2
        assert lab.value("s1", Column.SMAX) == 2


def test_a_repeated_attempt_is_counted_at_once() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        refusing = Server("s1", InetAddress("127.0.0.1", bound.getsockname()[1]))
        with Lab(make_config([refusing], timeouts=TIMES, retries=3)) as lab:
            lab.connect()
            lab.until(lambda: any(c.state == "paused" for c in lab.worker.connections))
            assert lab.value("s1", Column.WRETR) == 1
            assert lab.value("backend", Column.WRETR) == 1


@pytest.mark.parametrize("connect", [30.0, None])
def test_a_timeout_shorter_than_connecting_counts_after_a_second_attempt(connect: float | None) -> None:
    times = Timeouts(connect=connect, server=0.25)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        refusing = Server("s1", InetAddress("127.0.0.1", bound.getsockname()[1]))
        with Lab(make_config([refusing], timeouts=times, retries=3)) as lab:
            lab.connect()
            lab.until(lambda: any(c.state == "paused" for c in lab.worker.connections))
            bound.listen()
            lab.pass_time(0.5)
            lab.pass_time(0.6)
            lab.until(lambda: any(c.state == "established" for c in lab.worker.connections))
            lab.pass_time(0.4)
            assert not lab.worker.connections


class _Scarce:
    """An epoll set that takes only so many registrations more: fs.epoll.max_user_watches is used up."""

    def __init__(self, epoll: select.epoll, left: int) -> None:
        self._epoll, self.left = epoll, left

    def register(self, fd: int, events: int) -> None:
        if not self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= 1
        self._epoll.register(fd, events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


@pytest.mark.parametrize("left", [0, 1])
def test_a_registration_that_fails_leaks_nothing(farm: Farm, left: int) -> None:
    with Lab(make_config(farm.servers(), timeouts=TIMES)) as lab:
        before = set(os.listdir("/proc/self/fd"))
        epoll = lab.worker.epoll
        client = lab.connect()
        lab.worker.epoll = _Scarce(epoll, left)  # type: ignore[assignment]
        lab.until(lambda: client.read() is not None and client.eof, "the client is turned away")
        lab.worker.epoll = epoll
        lab.turn()
        client.close()
        assert gauges(lab.table) == {}
        assert not lab.worker.connections
        assert set(os.listdir("/proc/self/fd")) == before


def test_pipes_keep_within_the_descriptors_planned_for_them() -> None:
    """With everybody there that maxconn allows, all of them bulky, a socket can still be had for each."""
    pool = PipePool(BUDGET)
    pipes = []
    deadline = Deadline(20.0)
    while pipe := pool.take():
        deadline.check("the end of the pipes")
        pipes.append(pipe)
    for pipe in pipes:
        pool.give(pipe)
    pool.close()
    nofile, listeners = 2000, 3
    limits = plan(Config(), 1, listeners, nofile)
    others = 16  # standard streams, epoll, channel, eventfds, table, log
    assert 2 * limits.share + 2 * len(pipes) + listeners + others < nofile


@pytest.mark.parametrize("count", [10, 100])
def test_a_change_of_weights_is_paid_for_as_it_is_used(count: int) -> None:
    """The turn of a hundred servers is thousands of steps."""
    weights = [81] * (count - 1) + [82]
    turn = RoundRobin(weights, start=1)
    assert len(turn._cycle) == (1 if count < MANY else 0)
    once = [turn.choose(b"", lambda _: 0) for _ in range(sum(weights))]
    assert [once.count(position) for position in range(count)] == weights
    assert [turn.choose(b"", lambda _: 0) for _ in range(sum(weights))] == once


def test_a_bug_that_comes_after_a_change_of_handlers_ends_its_connection(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(conn: Connection, side: Side) -> None:
        conn.worker.handlers[side.fd] = ignore
        raise RuntimeError("a bug")

    with Lab(make_config(farm.servers())) as lab:
        client, server = lab.pair(farm)
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "at_eof", bug)
            client.close()
            lab.until(lambda: not lab.worker.connections, "no connections")
        assert any("because of a bug" in text for _, text in lab.logged)
        lab.until(lambda: server.read() == b"" and server.eof, "the end at the server")
