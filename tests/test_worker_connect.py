"""Finding a server: failures, retries, redispatch, states and weights; the log line and the counters of each ending."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import select
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hitlessd.model import InetAddress, Server, Timeouts, UnixAddress
from hitlessd.table import Column, RowKey, ServerState
from tests.support.relay import Clock, Farm, Lab, Peer, gauges, listen, make_config

TIMES = Timeouts(connect=5, client=60, server=60)


@pytest.fixture
def farm() -> Iterator[Farm]:
    made = Farm(3)
    yield made
    made.close()


@pytest.fixture
def bound() -> Iterator[socket.socket]:
    """A socket that has an address and does not listen: connecting is refused until it does."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


@pytest.fixture
def refusing(bound: socket.socket) -> InetAddress:
    """Its address."""
    return InetAddress("127.0.0.1", bound.getsockname()[1])


@pytest.fixture
def silent() -> Iterator[InetAddress]:
    """An address where connecting never ends: the backlog is full."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        fill = []
        while True:
            extra = socket.socket()
            extra.setblocking(False)
            fill.append(extra)
            extra.connect_ex(sock.getsockname())
            if not select.select([], [extra], [], 0.05)[1]:
                break
        yield InetAddress("127.0.0.1", sock.getsockname()[1])
        for extra in fill:
            extra.close()


def clean(lab: Lab) -> None:
    lab.until(lambda: not lab.worker.connections)
    lab.turn()
    assert gauges(lab.table) == {} and not lab.worker.closing
    assert not len(lab.worker.wheel)


def fields(lab: Lab) -> list[str]:
    """The fields of the last log line, from the frontend's name on."""
    return lab.lines[-1].split("] ")[1].split()


def gone(lab: Lab, peer: Peer) -> None:
    lab.until(lambda: peer.read() is not None and peer.eof, "the end of the client")


def test_the_log_line_is_haproxys(farm: Farm) -> None:
    with Lab(make_config(farm.servers()[:1], timeouts=TIMES)) as lab:
        client, server = lab.pair(farm)
        port = client.sock.getsockname()[1]
        client.send(b"x" * 10)
        lab.until(lambda: len(server.read()) == 10)
        server.send(b"y" * 212)
        lab.until(lambda: len(client.read()) == 212)
        lab.clock.now += 5.0075
        client.close()
        server.close()
        clean(lab)
        assert re.fullmatch(
            rf"127\.0\.0\.1:{port} \[\d\d/[A-Z][a-z]{{2}}/\d{{4}}:\d\d:\d\d:\d\d\.\d{{3}}\] "
            r"www app/s1 0/0/5007 212 -- 1/1/0/0/0 0/0",
            lab.lines[-1],
        )


@pytest.mark.parametrize(("dontlognull", "said", "lines"), [(True, b"", 0), (True, b"x", 1), (False, b"", 1)])
def test_dontlognull_leaves_out_those_who_said_nothing(farm: Farm, dontlognull: bool, said: bytes, lines: int) -> None:
    with Lab(make_config(farm.servers()[:1], dontlognull=dontlognull)) as lab:
        client, server = lab.pair(farm)
        client.send(said)
        lab.settle()
        client.close()
        server.close()
        clean(lab)
        assert len(lab.lines) == lines


def test_without_tcplog_nothing_is_logged(farm: Farm) -> None:
    with Lab(make_config(farm.servers()[:1], tcplog=False)) as lab:
        for peer in lab.pair(farm):
            peer.close()
        clean(lab)
        assert lab.logged == []


def test_a_refusal_is_retried_on_the_same_server_after_a_second(refusing: InetAddress) -> None:
    config = make_config([Server("s1", refusing)], timeouts=TIMES, retries=2)
    with Lab(config) as lab:
        client = lab.connect()
        (conn,) = lab.until(lambda: list(lab.worker.connections))
        for attempt in (1, 2):
            lab.until(lambda: conn.state == "paused")
            assert conn.retries == attempt
            assert lab.value("s1", Column.SCUR) == 1
            lab.pass_time(0.9)
            assert conn.state == "paused"
            lab.pass_time(0.2)
        gone(lab, client)
        clean(lab)
        assert fields(lab)[1] == "app/s1" and fields(lab)[4] == "SC" and fields(lab)[5].endswith("/2")
        assert fields(lab)[2].split("/")[1] == "-1"
        assert [lab.value(row, Column.WRETR) for row in ("s1", "backend")] == [2, 2]
        assert [lab.value(row, Column.ECON) for row in ("s1", "backend")] == [1, 1]
        assert [lab.value(row, Column.STOT) for row in ("s1", "backend", "frontend", "process")] == [1, 1, 1, 1]


def test_the_pause_is_no_longer_than_timeout_connect(refusing: InetAddress) -> None:
    config = make_config([Server("s1", refusing)], timeouts=Timeouts(connect=0.2), retries=1)
    with Lab(config) as lab:
        client = lab.connect()
        lab.until(lambda: [c for c in lab.worker.connections if c.state == "paused"])
        lab.pass_time(0.3)
        gone(lab, client)
        clean(lab)


def test_a_server_that_comes_back_gets_the_retry(bound: socket.socket, refusing: InetAddress) -> None:
    config = make_config([Server("s1", refusing)], timeouts=TIMES, retries=3)
    with Lab(config) as lab:
        client = lab.connect()
        client.send(b"patient")
        lab.until(lambda: [c for c in lab.worker.connections if c.state == "paused"])
        bound.listen()
        bound.setblocking(False)
        lab.pass_time(1.1)
        server = Peer(lab.until(lambda: _accept(bound)))
        lab.until(lambda: server.read() == b"patient")
        client.close()
        server.close()
        clean(lab)
        assert fields(lab)[5].endswith("/1")


def test_redispatch_goes_to_another_server_at_once(refusing: InetAddress, farm: Farm) -> None:
    """As with HAProxy, where the algorithm does not say which server it has to be."""
    servers = [Server("bad", refusing, 1), farm.server(0)]
    config = make_config(servers, timeouts=TIMES, retries=2, redispatch=True)
    with Lab(config) as lab:
        client = lab.connect()
        client.send(b"x")
        server = lab.until(farm.accept)
        lab.until(lambda: server.read() == b"x")
        client.close()
        server.close()
        clean(lab)
        assert fields(lab)[1] == "app/s1" and fields(lab)[5].endswith("/+1")
        assert [lab.value(row, Column.WREDIS) for row in ("bad", "s1", "backend")] == [1, 0, 1]
        assert [lab.value(row, Column.WRETR) for row in ("bad", "s1", "backend")] == [0, 0, 0]
        assert lab.value("bad", Column.SCUR) == 0


def test_redispatch_without_another_server_is_a_retry(refusing: InetAddress) -> None:
    config = make_config([Server("s1", refusing)], timeouts=TIMES, retries=1, redispatch=True)
    with Lab(config) as lab:
        client = lab.connect()
        lab.until(lambda: [c for c in lab.worker.connections if c.state == "paused"])
        lab.pass_time(1.1)
        gone(lab, client)
        clean(lab)
        assert lab.value("backend", Column.WREDIS) == 0


def test_a_server_that_does_not_answer(silent: InetAddress) -> None:
    config = make_config([Server("s1", silent)], timeouts=TIMES, retries=1)
    with Lab(config) as lab:
        client = lab.connect()
        (conn,) = lab.until(lambda: list(lab.worker.connections))
        lab.pass_time(4.9)
        assert conn.state == "connecting"
        lab.pass_time(0.2)
        assert conn.state == "paused"
        lab.pass_time(1.1)
        assert conn.state == "connecting"
        lab.pass_time(5.1)
        gone(lab, client)
        clean(lab)
        assert fields(lab)[4] == "sC"


def test_a_client_that_is_reset_while_connecting_is_noticed(silent: InetAddress) -> None:
    with Lab(make_config([Server("s1", silent)], timeouts=TIMES, retries=3)) as lab:
        client = lab.connect()
        lab.until(lambda: list(lab.worker.connections))
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        clean(lab)
        assert fields(lab)[4] == "CC"
        assert [lab.value(row, Column.CLI_ABRT) for row in ("frontend", "backend", "s1")] == [1, 1, 1]
        assert lab.value("s1", Column.ECON) == 0


def test_a_client_that_closes_while_connecting_is_soon_given_up(silent: InetAddress) -> None:
    with Lab(make_config([Server("s1", silent)], timeouts=TIMES, retries=3)) as lab:
        client = lab.connect()
        lab.until(lambda: list(lab.worker.connections))
        client.close()
        lab.settle()
        lab.pass_time(1.1)
        clean(lab)
        assert fields(lab)[4] == "CC" and lab.value("backend", Column.WRETR) == 0


def test_a_client_that_closes_between_retries_is_not_retried_for(refusing: InetAddress) -> None:
    with Lab(make_config([Server("s1", refusing)], timeouts=TIMES, retries=3)) as lab:
        client = lab.connect()
        lab.until(lambda: [c for c in lab.worker.connections if c.state == "paused"])
        client.close()
        clean(lab)
        assert fields(lab)[4] == "CC"


def test_a_client_that_said_something_and_closed_is_served(refusing: InetAddress, farm: Farm) -> None:
    servers = [Server("bad", refusing, 1), farm.server(0)]
    with Lab(make_config(servers, timeouts=TIMES, retries=1, redispatch=True)) as lab:
        client = lab.connect()
        client.send(b"a letter")
        client.close()
        server = lab.until(farm.accept)
        lab.until(lambda: server.read() == b"a letter" and server.eof)
        server.close()
        clean(lab)


def test_no_usable_server(farm: Farm) -> None:
    config = make_config([farm.server(0, disabled=True), farm.server(1, weight=0)], timeouts=TIMES)
    with Lab(config) as lab:
        client = lab.connect()
        gone(lab, client)
        clean(lab)
        assert lab.lines[-1].split("] ")[1] == "www app/<NOSRV> -1/-1/0 0 SC 1/1/0/0/0 0/0"
        assert lab.value("backend", Column.ECON) == 1


def test_backup_servers_only_when_nothing_else_is_left(farm: Farm) -> None:
    config = make_config([farm.server(0), farm.server(1, backup=True), farm.server(2, backup=True)], timeouts=TIMES)
    with Lab(config) as lab:

        def served_by() -> int:
            client = lab.connect()
            number, server = lab.until(lambda: next(((n, s) for n in range(3) if (s := farm.accept(n))), None))
            client.close()
            server.close()
            lab.until(lambda: not lab.worker.connections)
            return int(number)

        def set_state(name: str, state: ServerState, weight: int = 1) -> None:
            lab.table.set_state(lab.table.index[RowKey("server", "app", name)], state, weight, 0)

        assert {served_by() for _ in range(4)} == {0}
        set_state("s1", ServerState.MAINT)
        assert {served_by() for _ in range(4)} == {1}
        set_state("s2", ServerState.DRAIN)
        assert {served_by() for _ in range(4)} == {2}
        set_state("s1", ServerState.READY, weight=0)
        assert {served_by() for _ in range(4)} == {2}
        set_state("s1", ServerState.READY)
        assert {served_by() for _ in range(4)} == {0}


def test_changed_weights_count_at_once(farm: Farm) -> None:
    with Lab(make_config(farm.servers()[:2])) as lab:

        def shares(count: int) -> list[int]:
            before = [lab.value(f"s{n}", Column.STOT) for n in (1, 2)]
            for _ in range(count):
                client = lab.connect()
                server = lab.until(lambda: farm.accept(0) or farm.accept(1))
                client.close()
                server.close()
                lab.until(lambda: not lab.worker.connections)
            lab.turn()
            return [lab.value(f"s{n}", Column.STOT) - was for n, was in zip((1, 2), before, strict=True)]

        assert shares(6) == [3, 3]
        lab.table.set_state(lab.table.index[RowKey("server", "app", "s1")], ServerState.READY, 2, 0)
        assert shares(6) == [4, 2]


@pytest.mark.parametrize("balance", ["roundrobin", "leastconn"])
def test_open_connections_spread(farm: Farm, balance: str) -> None:
    with Lab(make_config(farm.servers(), balance=balance)) as lab:  # type: ignore[arg-type]
        for _ in range(9):
            lab.connect()
        lab.until(lambda: sum(c.state == "established" for c in lab.worker.connections) == 9)
        assert [lab.value(f"s{n}", Column.SCUR) for n in (1, 2, 3)] == [3, 3, 3]
        assert [lab.value(f"s{n}", Column.LBTOT) for n in (1, 2, 3)] == [3, 3, 3]
        assert lab.value("backend", Column.LBTOT) == 9
        assert lab.value("process", Column.SMAX) == 9


def test_source_keeps_a_client_with_its_server(farm: Farm) -> None:
    with Lab(make_config(farm.servers(), balance="source")) as lab:
        by_host: dict[str, set[str]] = {}
        for _ in range(3):
            for host in range(1, 13):
                sock = socket.socket()
                sock.bind((f"127.0.0.{host}", 0))
                sock.connect(lab.address)
                (conn,) = lab.until(lambda: [c for c in lab.worker.connections if c.target])
                assert conn.target is not None
                by_host.setdefault(str(host), set()).add(conn.target.name)
                sock.close()
                lab.until(lambda: farm.accept(0) or farm.accept(1) or farm.accept(2)).close()
                lab.until(lambda: not lab.worker.connections)
        assert all(len(names) == 1 for names in by_host.values())
        assert len(Counter(name for names in by_host.values() for name in names)) > 1


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """So many descriptors more, and no gaps."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    fill = []
    while (fd := os.dup(2)) < max(used):
        fill.append(fd)
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd + count, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        for each in fill:
            os.close(each)


MISSING = "cannot connect to server app/s1: too many open files (LimitNOFILE=, maxconn)"


def test_out_of_descriptors_for_a_server(farm: Farm) -> None:
    """Whoever was accepted tries again, and nobody else is accepted meanwhile, to share that fate."""
    with Lab(make_config(farm.servers()[:1], timeouts=TIMES, retries=3)) as lab:
        client, other = lab.connect(), lab.connect()
        client.send(b"x")
        with room_for(1):
            (conn,) = lab.until(lambda: [c for c in lab.worker.connections if c.state == "paused"])
            assert (conn.retries, lab.worker.resting) == (1, True)
            assert lab.logged[0] == ("err", MISSING)
        lab.pass_time(1.1)
        server = lab.until(lambda: farm.accept(0))
        lab.until(lambda: server.read() == b"x")
        assert lab.until(lambda: farm.accept(0)) and not other.eof
        assert lab.value("s1", Column.ECON) == 0


def test_out_of_descriptors_for_a_server_for_good(farm: Farm) -> None:
    with Lab(make_config(farm.servers()[:2], timeouts=TIMES, retries=2, redispatch=True)) as lab:
        client = lab.connect()
        client.send(b"x")
        with room_for(1):
            (conn,) = lab.until(lambda: list(lab.worker.connections))
            for retries in (1, 2):
                # On no other server, where it would be the same.
                assert (conn.state, conn.retries) == ("paused", retries)
                lab.pass_time(1.1)
        gone(lab, client)
        lab.pass_time(30.0)  # what the log says once only is held back so long
        clean(lab)
        assert fields(lab)[1] == "app/s1" and fields(lab)[4] == "RC"
        said = [text for severity, text in lab.logged if severity == "err"]
        assert said[0] == MISSING and all(text.startswith(MISSING) for text in said)


def test_a_server_whose_unix_backlog_is_full_is_retried(tmp_path: Path) -> None:
    listener = listen(str(tmp_path / "s"), backlog=0)
    fill = []
    while True:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        fill.append(sock)
        if sock.connect_ex(str(tmp_path / "s")):
            break
    with Lab(make_config([Server("s1", UnixAddress(str(tmp_path / "s")))], timeouts=TIMES, retries=3)) as lab:
        client = lab.connect()
        client.send(b"x")
        lab.until(lambda: [c for c in lab.worker.connections if c.state == "paused"])
        accepted = [listener.accept()[0] for _ in range(len(fill) - 1)]
        lab.pass_time(1.1)
        server = Peer(lab.until(lambda: _accept(listener)))
        lab.until(lambda: server.read() == b"x")
        client.close()
        server.close()
        clean(lab)
    for sock in (*fill, *accepted, listener):
        sock.close()


def _accept(listener: socket.socket) -> socket.socket | None:
    try:
        return listener.accept()[0]
    except BlockingIOError:
        return None


def test_a_unix_path_that_is_not_there(tmp_path: Path) -> None:
    with Lab(make_config([Server("s1", UnixAddress(str(tmp_path / "none")))], timeouts=TIMES)) as lab:
        client = lab.connect()
        gone(lab, client)
        clean(lab)
        assert fields(lab)[4] == "SC"


def test_no_local_port_left(silent: InetAddress) -> None:
    """What connect(2) says when net.ipv4.ip_local_port_range is used up: logged once, and nobody is left hanging."""
    with Lab(make_config([Server("s1", silent)], timeouts=TIMES, retries=3)) as lab:
        clients = [lab.connect() for _ in range(3)]
        lab.until(lambda: len(lab.worker.connections) == 3)
        for conn in list(lab.worker.connections):
            conn.connect_failed(errno.EADDRNOTAVAIL)
        for client in clients:
            gone(lab, client)
        lab.pass_time(35.0)  # what was suppressed of the log has been said
        clean(lab)
        errors = [text for severity, text in lab.logged if severity == "err"]
        assert "no local port" in errors[0]
        assert errors[1:] == [f"{errors[0]} (1 similar messages suppressed)"]
        assert lab.value("backend", Column.ECON) == 3
        assert fields(lab)[4] == "RC"


def test_counters_of_an_accepted_connection_are_there_before_its_answer(farm: Farm) -> None:
    with Lab(make_config(farm.servers()[:1])) as lab:
        lab.connect()
        lab.until(farm.accept)
        assert lab.value("frontend", Column.STOT) == lab.value("process", Column.SCUR) == 1
        assert lab.value("frontend", Column.LASTSESS) > 0


@pytest.mark.parametrize("data", [b"small", bytes(1 << 18)])
def test_bytes_of_a_long_connection_are_counted_before_its_end(farm: Farm, data: bytes) -> None:
    """At each look at its timers, and more often when there are many."""
    with Lab(make_config(farm.servers()[:1], timeouts=Timeouts(client=5, server=5)), clock=Clock()) as lab:
        client, server = lab.pair(farm)
        for _ in range(12):
            lab.pass_time(2)
            before = len(server.got)
            client.send(data)
            lab.until(lambda: len(server.read()) == before + len(data))  # noqa: B023
        lab.turn()
        assert lab.value("process", Column.BIN) >= 9 * len(data)
