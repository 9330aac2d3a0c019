"""Servers with a maxconn: the limit holds over all workers, waiting is fair, and a freed slot finds who waits."""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections.abc import Iterator

import pytest

from hitlessd.model import InetAddress, Server, Timeouts
from hitlessd.table import Column, RowKey, ServerState
from tests.support.processes import poll_until
from tests.support.relay import Clock, Farm, Forked, Lab, gauges, listen, make_config, make_table

TIMES = Timeouts(connect=30, client=60, server=60)


@pytest.fixture
def farm() -> Iterator[Farm]:
    made = Farm(2)
    yield made
    made.close()


def test_first_come_first_served(farm: Farm) -> None:
    with Lab(make_config([farm.server(0, maxconn=1)], timeouts=TIMES)) as lab:
        clients = []
        for number in range(5):
            client = lab.connect()
            client.send(b"%d" % number)
            clients.append(client)
            lab.until(lambda n=number: len(lab.worker.connections) == n + 1)  # type: ignore[misc]
        assert lab.value("backend", Column.QCUR) == 4
        assert lab.value("s1", Column.SCUR) == 1
        served = b""
        for number in range(5):
            server = lab.until(farm.accept)
            lab.settle()
            assert farm.accept() is None
            lab.until(server.read)
            served += server.got
            clients[number].close()
            server.close()
            lab.until(lambda n=number: len(lab.worker.connections) == 4 - n)  # type: ignore[misc]
        lab.turn()
        assert served == b"01234"
        assert gauges(lab.table) == {}
        assert lab.value("backend", Column.QMAX) == 4 and lab.value("s1", Column.SMAX) == 1
        assert [line.split()[-1] for line in lab.lines] == ["0/0", "0/1", "0/2", "0/3", "0/4"]


def test_nobody_overtakes_the_queue(farm: Farm) -> None:
    """A newcomer who arrives in the very turn that frees a slot waits behind the others."""
    with Lab(make_config([farm.server(0, maxconn=1)], timeouts=TIMES)) as lab:
        first, server = lab.pair(farm)
        second = lab.connect()
        second.send(b"second")
        lab.until(lambda: lab.value("backend", Column.QCUR) == 1)
        first.close()
        server.close()
        third = lab.connect()
        third.send(b"third")
        server = lab.until(farm.accept)
        lab.until(lambda: server.read() == b"second")


def test_full_servers_are_passed_over_before_anybody_waits(farm: Farm) -> None:
    with Lab(make_config([farm.server(0, maxconn=1), farm.server(1, maxconn=3)], timeouts=TIMES)) as lab:
        for _ in range(6):
            lab.connect()
        lab.until(lambda: len(lab.worker.connections) == 6)
        lab.settle()
        assert [lab.value(name, Column.SCUR) for name in ("s1", "s2")] == [1, 3]
        assert lab.value("backend", Column.QCUR) == 2


def test_a_client_that_leaves_the_queue_is_forgotten(farm: Farm) -> None:
    with Lab(make_config([farm.server(0, maxconn=1)], timeouts=TIMES)) as lab:
        lab.pair(farm)
        waiting = lab.connect()
        lab.until(lambda: lab.value("backend", Column.QCUR) == 1)
        waiting.close()
        lab.until(lambda: lab.value("backend", Column.QCUR) == 0)
        assert lab.lines[-1].split()[6] == "CQ"
        assert lab.value("backend", Column.CLI_ABRT) == 1


def test_a_failed_connection_frees_its_slot(farm: Farm) -> None:
    """Those behind it get their turn, one after the other, even when the server refuses them all."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        refusing = Server("s1", InetAddress("127.0.0.1", bound.getsockname()[1]), maxconn=1)
        with Lab(make_config([refusing], timeouts=TIMES)) as lab:
            clients = [lab.connect() for _ in range(20)]
            lab.until(lambda: all(c.read() is not None and c.eof for c in clients))
            lab.until(lambda: not lab.worker.connections)
            lab.turn()
            assert gauges(lab.table) == {}
            assert lab.value("s1", Column.ECON) == 20


def test_a_server_that_becomes_ready_serves_the_queue(farm: Farm) -> None:
    config = make_config([farm.server(0, maxconn=1), farm.server(1, disabled=True)], timeouts=TIMES)
    with Lab(config) as lab:
        lab.pair(farm)
        lab.connect().send(b"x")
        lab.until(lambda: lab.value("backend", Column.QCUR) == 1)
        lab.table.set_state(lab.table.index[RowKey("server", "app", "s2")], ServerState.READY, 1, 0)
        assert lab.until(lambda: farm.accept(1))


def test_a_source_client_waits_for_its_own_server(farm: Farm) -> None:
    """And does not keep those behind it, whose server has a slot, from going."""
    config = make_config([farm.server(0, maxconn=1), farm.server(1, maxconn=1)], timeouts=TIMES, balance="source")
    with Lab(config) as lab:

        def connect(host: int) -> None:
            sock = socket.socket()
            sock.bind((f"127.0.0.{host}", 0))
            sock.connect(lab.address)
            socks.append(sock)
            lab.settle()

        socks: list[socket.socket] = []
        homes: dict[str, list[int]] = {}
        (backend,) = lab.worker.backends.values()
        for host in range(1, 30):
            assert backend._chooser is not None
            position = backend._chooser.choose(bytes([127, 0, 0, host]), lambda _: 0)
            assert position is not None
            homes.setdefault(backend.usable[position].name, []).append(host)
        connect(homes["s1"][0])
        connect(homes["s1"][1])
        # As with HAProxy, it is counted in its server's queue.
        assert (lab.value("s1", Column.QCUR), lab.value("backend", Column.QCUR)) == (1, 0)
        assert lab.value("s2", Column.SCUR) == 0
        connect(homes["s2"][0])
        lab.settle()
        assert lab.value("s1", Column.QCUR) == 1
        assert lab.value("s2", Column.SCUR) == 1
        for sock in socks:
            sock.close()


def test_a_slot_freed_in_one_worker_wakes_the_queue_of_another(farm: Farm) -> None:
    config = make_config([farm.server(0, maxconn=1)], timeouts=TIMES)
    table = make_table(config, workers=2)
    wake = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    with (
        Lab(config, table=table, index=0, wake=wake, clock=Clock()) as one,
        Lab(config, table=table, index=1, wake=wake, clock=Clock()) as two,
    ):
        client, server = one.pair(farm)
        two.connect().send(b"hello")
        two.until(lambda: table.value(table.index[RowKey("backend", "app")], Column.QCUR) == 1)
        two.settle()
        assert farm.accept() is None
        # Two's clock stands still, so it is the wake-up and not a second look that helps.
        client.close()
        server.close()
        one.until(lambda: not one.worker.connections)
        server = two.until(farm.accept)
        two.until(lambda: server.read() == b"hello")
        assert [worker.worker.slots[0][0] for worker in (one, two)] == [0, 0]
    table.close()
    for fd in wake:
        os.close(fd)


def test_a_lost_wake_up_is_made_good_by_a_second_look(farm: Farm) -> None:
    config = make_config([farm.server(0, maxconn=1)], timeouts=TIMES)
    table = make_table(config, workers=2)
    wake = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    with Lab(config, table=table, index=1, wake=wake) as lab:
        at = table.index[RowKey("server", "app", "s1")] * table.columns + Column.SCUR
        other = table.slot(0)
        other[at] = 1
        lab.connect()
        lab.until(lambda: lab.value("backend", Column.QCUR) == 1)
        other[at] = 0
        other.release()
        lab.settle()
        lab.pass_time(0.2)
        assert lab.until(farm.accept)
    table.close()
    for fd in wake:
        os.close(fd)


@pytest.mark.parametrize("limit", [1, 3])
def test_the_limit_holds_over_two_worker_processes(limit: int) -> None:
    """80 clients over two processes: the server never sees more than its limit at once, and everybody is served."""
    backend = socket.create_server(("127.0.0.1", 0), backlog=100)
    farm = Farm(1, [backend])
    config = make_config(farm.servers(maxconn=limit), timeouts=TIMES, tcplog=False)
    table = make_table(config, workers=2)
    wake = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    listeners = [listen(), listen()]
    lock = threading.Lock()
    seen: list[int] = []
    now = 0

    def serve() -> None:
        nonlocal now
        while True:
            try:
                sock, _ = backend.accept()
            except OSError:
                return
            with lock:
                now += 1
                seen.append(now)
            with sock:
                sock.recv(10)
                # From here on the worker may count it as gone.
                with lock:
                    now -= 1
                sock.sendall(b"y")

    threads = [threading.Thread(target=serve) for _ in range(8)]
    with Forked(config, [listeners[0]], table, 0, wake) as one, Forked(config, [listeners[1]], table, 1, wake) as two:
        for worker in (one, two):
            worker.order("accept")
        clients = []
        for number in range(80):
            sock = socket.create_connection(listeners[number % 2].getsockname())
            sock.sendall(b"x")
            clients.append(sock)
        for thread in threads:
            thread.start()
        with selectors.DefaultSelector() as selector:
            for sock in clients:
                selector.register(sock, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(20)
                assert ready, f"{len(selector.get_map())} clients wait for ever"
                for key, _ in ready:
                    selector.unregister(key.fd)
                    sock = clients[[c.fileno() for c in clients].index(key.fd)]
                    assert sock.recv(10) == b"y"
                    sock.close()
        poll_until(lambda: gauges(table) == {}, what="gauges at zero")
        for worker in (one, two):
            worker.order("drain")
            assert worker.wait() == 0
    backend.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    assert max(seen) <= limit and len(seen) == 80
    for sock in listeners:
        sock.close()
    backend.close()
    table.close()
    for fd in wake:
        os.close(fd)
