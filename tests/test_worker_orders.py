"""What main tells a worker over the channel, and what becomes of listeners that others share."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
from pathlib import Path

import pytest

from hitlessd import channel
from hitlessd.errors import PeerError
from hitlessd.model import InetAddress, Server, Timeouts
from hitlessd.table import Column
from hitlessd.worker.form import SerialConnection
from hitlessd.worker.timers import NEVER
from tests.support.echo import Echo, exchange
from tests.support.processes import poll_until
from tests.support.relay import Clock, Farm, Forked, Lab, address_of, gauges, listen, make_config, make_table


def pending(sock: socket.socket) -> int:
    """Connections in the backlog (tcpi_unacked of a listener, tcp(7))."""
    return int.from_bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[24:28], "little")


def sleeps(pid: int) -> int:
    """How often a process has gone to sleep, now that it sleeps (proc(5))."""

    def found() -> int:
        fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(fields["voluntary_ctxt_switches"]) if fields["State"].startswith("S") else 0

    return poll_until(found, 10, "it sleeps")


# -- the channel ---------------------------------------------------------------------------------------------------


def test_the_channel_carries_objects() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            channel.receive(other)
        channel.send(one, {"do": "ping", "n": 1})
        channel.send(one, {"text": "ä" * 5000})
        assert channel.receive(other) == {"do": "ping", "n": 1}
        assert channel.receive(other) == {"text": "ä" * 5000}
        for garbage in (b"{", b"[]", b"\xff\xfe", b"1", b"x" * (channel.LONGEST + 1)):
            one.send(garbage)
            with pytest.raises(PeerError, match="cannot read the channel"):
                channel.receive(other)
        with pytest.raises(ValueError, match="limit"):
            channel.send(one, {"x": "y" * channel.LONGEST})
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                channel.send(one, {"x": "y" * 10_000})
        one.close()
        while channel.receive(other) is not None:
            pass


# -- orders --------------------------------------------------------------------------------------------------------


def test_a_worker_starts_without_accepting(farm: Farm) -> None:
    with Lab(make_config(farm.servers()), accept=False) as lab:
        lab.connect()
        lab.settle()
        assert not lab.worker.connections and pending(lab.listener) == 1
        lab.order("accept")
        assert lab.until(farm.accept)
        assert lab.order("accept") == {"did": "accept"}


def test_ping_says_how_many_sessions_there_are(farm: Farm) -> None:
    with Lab(make_config(farm.servers())) as lab:
        lab.pair(farm)
        assert lab.order("ping", n=7) == {"did": "ping", "n": 7, "sessions": 1}


def test_stop_takes_all_that_wait_and_no_more(farm: Farm) -> None:
    with Lab(make_config(farm.servers())) as lab:
        clients = [lab.connect() for _ in range(100)]
        lab.order("stop")
        assert len(lab.worker.connections) == 100 and pending(lab.listener) == 0
        clients.append(lab.connect())
        lab.settle()
        assert len(lab.worker.connections) == 100 and pending(lab.listener) == 1
        # They are served as any other.
        for _ in range(100):
            server = lab.until(farm.accept)
            server.send(b"served")
            server.close()
        for client in clients[:100]:
            lab.until(lambda c=client: c.read() == b"served" and c.eof)  # type: ignore[misc]
            client.close()
        lab.until(lambda: not lab.worker.connections)
        lab.order("accept")
        assert lab.until(farm.accept)


def test_stop_is_above_the_limits(farm: Farm) -> None:
    """Nobody may be left behind in a backlog that we were woken for."""
    with Lab(make_config(farm.servers(), maxconn=3), maxconn=5) as lab:
        for _ in range(10):
            lab.connect()
        lab.settle()
        assert len(lab.worker.connections) == 3
        lab.order("stop")
        assert len(lab.worker.connections) == 10


def test_pause_and_resume(farm: Farm) -> None:
    with Lab(make_config(farm.servers())) as lab:
        client, server = lab.pair(farm)
        assert lab.order("pause") == {"did": "pause"}
        lab.connect()
        lab.settle()
        assert len(lab.worker.connections) == 1 and pending(lab.listener) == 1
        client.send(b"goes on")
        lab.until(lambda: server.read() == b"goes on")
        assert lab.order("resume") == {"did": "resume"}
        assert lab.until(farm.accept)


def test_sweep_accepts_what_waits_if_accepting(farm: Farm) -> None:
    with Lab(make_config(farm.servers()), accept=False) as lab:
        for _ in range(50):
            lab.connect()
        lab.order("sweep")
        assert not lab.worker.connections
        lab.order("accept")
        channel.send(lab.main, {"do": "sweep"})
        lab.until(lambda: len(lab.worker.connections) == 50)


def test_an_unknown_order_is_logged_and_ignored(farm: Farm) -> None:
    with Lab(make_config(farm.servers())) as lab:
        channel.send(lab.main, {"do": "dance"})
        lab.main.send(b"not json")
        assert lab.order("ping", n=1)["n"] == 1
        lab.settle()
        assert [severity for severity, _ in lab.logged] == ["err", "err"]


def test_answers_wait_for_a_main_that_does_not_read(farm: Farm) -> None:
    with Lab(make_config(farm.servers())) as lab:
        sent = 0
        for number in range(2000):
            try:
                channel.send(lab.main, {"do": "ping", "n": number})
            except BlockingIOError:
                break
            sent += 1
            lab.turn()
        lab.settle()
        answers: list[dict[str, object] | None] = []
        while len(answers) < sent:
            lab.turn()
            try:
                answers.append(channel.receive(lab.main))
            except BlockingIOError:
                continue
        assert [answer["n"] for answer in answers if answer] == list(range(sent))
        assert lab.worker.orders.answered
        assert lab.turn() == 0


def test_sessions_are_shown_in_pages_that_fit_into_a_message(farm: Farm) -> None:
    with Lab(make_config(farm.servers())) as lab:
        for _ in range(300):
            lab.connect()
        lab.until(lambda: sum(c.state == "established" for c in lab.worker.connections) == 300)
        numbers: list[int] = []
        more, room = True, channel.LONGEST
        while more:
            answer = lab.order("show-sessions", after=numbers[-1] if numbers else 0, room=room)
            assert 0 < len(answer["sessions"]) <= 100
            assert len(json.dumps(answer, separators=(",", ":"))) <= room
            assert all(SerialConnection.from_dict(form).frontend == "www" for form in answer["sessions"])
            numbers += [form["number"] for form in answer["sessions"]]
            more, room = answer["more"], 5000  # at least one, however little room there is
        assert numbers == [conn.number for conn in lab.worker.connections]
        assert [form["number"] for form in lab.order("show-sessions", only=numbers[7])["sessions"]] == [numbers[7]]
        assert lab.order("shutdown-session", only=numbers[7])["closed"] == 1
        assert lab.order("shutdown-session", only=numbers[7])["closed"] == 0
        assert lab.order("shutdown-session", server=["app", "s1"])["closed"] == 299
        assert lab.lines and all(" KD " in line for line in lab.lines)


def test_drain_ends_the_process_with_the_last_connection() -> None:
    with Echo() as echo:
        config = make_config([Server("s1", InetAddress("127.0.0.1", echo.port))])
        table = make_table(config)
        listener = listen()
        with Forked(config, [listener], table) as worker:
            worker.order("accept")
            client = socket.create_connection(listener.getsockname(), 10)
            client.sendall(b"a")
            assert client.recv(1) == b"a"
            late = socket.create_connection(listener.getsockname(), 10)
            worker.order("drain")
            assert worker.order("ping", n=1)["sessions"] == 2
            for sock in (late, client):
                sock.sendall(b"b")
                assert sock.recv(1) == b"b"
                sock.close()
            assert worker.wait() == 0
        assert gauges(table) == {}
        listener.close()
        table.close()


@pytest.mark.parametrize("order", ["quit", "hurry"])
def test_quit_and_hurry_close_everything_now(order: str) -> None:
    with Echo() as echo:
        config = make_config([Server("s1", InetAddress("127.0.0.1", echo.port))])
        table = make_table(config)
        listener = listen()
        with Forked(config, [listener], table) as worker:
            worker.order("accept")
            client = socket.create_connection(listener.getsockname(), 10)
            client.sendall(b"a")
            assert client.recv(1) == b"a"
            worker.tell(order)
            assert worker.wait() == 0
            assert client.recv(1) == b""
            client.close()
            logged = worker.log()
        assert gauges(table) == {}
        assert any("KD" in text for _, text in logged)
        assert any("1 connections" in text for _, text in logged) == (order == "hurry")
        listener.close()
        table.close()


def test_a_worker_without_main_ends_at_once(farm: Farm) -> None:
    config = make_config(farm.servers())
    table = make_table(config)
    listener = listen()
    with Forked(config, [listener], table) as worker:
        worker.order("accept")
        worker.main.close()
        assert worker.wait() == 1
    listener.close()
    table.close()


def test_pings_are_answered_under_full_load() -> None:
    with Echo() as echo:
        config = make_config([Server("s1", InetAddress("127.0.0.1", echo.port))], tcplog=False)
        table = make_table(config)
        listener = listen()
        with Forked(config, [listener], table) as worker:
            worker.order("accept")
            clients = [socket.create_connection(listener.getsockname(), 10) for _ in range(8)]
            for sock in clients:
                sock.setblocking(False)
            data = bytes(1 << 20)
            for number in range(200):
                for sock in clients:
                    with contextlib.suppress(BlockingIOError):
                        sock.send(data)
                    with contextlib.suppress(BlockingIOError):
                        sock.recv(1 << 20)
                if number % 20 == 0:
                    assert worker.order("ping", n=number)["n"] == number
            for sock in clients:
                sock.close()
            worker.tell("quit")
            assert worker.wait() == 0
        listener.close()
        table.close()


# -- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["global", "frontend"])
def test_maxconn_leaves_the_rest_in_the_backlog(farm: Farm, where: str) -> None:
    limits = {"maxconn": 3} if where == "global" else {}
    config = make_config(farm.servers(), maxconn=3 if where == "frontend" else 0)
    with Lab(config, **limits) as lab:  # type: ignore[arg-type]
        clients = [lab.connect() for _ in range(6)]
        lab.settle()
        assert len(lab.worker.connections) == 3 and pending(lab.listener) == 3
        # At the limit the loop sleeps: a listener that is readable must not wake it for nothing.
        assert lab.turn() == 0 and lab.worker.wheel.next() == NEVER
        clients[0].close()
        lab.until(farm.accept).close()
        lab.until(lambda: pending(lab.listener) == 2)
        assert len(lab.worker.connections) == 3
        assert lab.value("frontend", Column.SMAX) == 3
        lab.order("pause")
        for client in clients:
            client.close()
        while peer := farm.accept():
            peer.close()
        lab.until(lambda: not lab.worker.connections)
        assert pending(lab.listener) == 2
        lab.order("resume")
        lab.until(lambda: pending(lab.listener) == 0)


def test_a_frontends_limit_is_shared_by_the_workers(farm: Farm) -> None:
    config = make_config(farm.servers(), maxconn=5)
    table = make_table(config, workers=3)
    with Lab(config, table=table) as lab:
        assert lab.worker.frontends["www"].limit == 2
    table.close()


def test_out_of_descriptors_accepting_rests_and_says_so(farm: Farm) -> None:
    with Lab(make_config(farm.servers(), timeouts=Timeouts(connect=5)), clock=Clock()) as lab:
        client = lab.connect()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        fill = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limit[1]))
        try:
            while True:
                try:
                    fill.append(os.dup(2))
                except OSError:
                    break
            lab.turn()
            assert lab.worker.resting and not lab.worker.frontends["www"].listeners[0].armed
            # Neither spinning nor shouting.
            assert lab.turn() == 0
            for _ in range(5):
                lab.pass_time(0.15)
                lab.turn()
            errors = [text for severity, text in lab.logged if severity == "err"]
            assert errors == ["cannot accept on www: Too many open files"]
            lab.pass_time(30.0)
            lab.turn()
            told = [text for _, text in lab.logged]
            assert len(told) == 2 and told[1].startswith(f"{told[0]} (") and "similar messages suppressed" in told[1]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            for fd in fill:
                os.close(fd)
        lab.pass_time(0.2)
        server = lab.until(farm.accept)
        client.send(b"at last")
        lab.until(lambda: server.read() == b"at last")


# -- listeners that several share ----------------------------------------------------------------------------------


def test_a_listener_closed_in_one_worker_is_no_ghost_there() -> None:
    """Its duplicates live on in other workers and in main: new connections must reach those, and wake nobody else."""
    with Echo() as echo:
        config = make_config([Server("s1", InetAddress("127.0.0.1", echo.port))], tcplog=False)
        old_table, new_table = make_table(config, workers=2), make_table(config, workers=2, generation=2)
        listener = listen()
        wake = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        port = listener.getsockname()[1]
        old = [Forked(config, [listener], old_table, index, wake) for index in range(2)]
        new = [Forked(config, [listener], new_table, index, wake) for index in range(2)]
        try:
            for worker in old:
                worker.order("accept")
            for _ in range(20):
                assert exchange(port) == b"hello"
            # Connections that keep each of the old generation alive while it does not accept any more.
            held = []
            for worker in old:
                worker.order("pause")
                held += [socket.create_connection(("127.0.0.1", port), 10) for _ in range(2)]
                for sock in held[-2:]:
                    sock.sendall(b"x")
                    assert sock.recv(1) == b"x"
                worker.order("accept")
            for worker in new:
                worker.order("accept")
            for worker in old:
                worker.order("stop")
            before = old_table.value(0, Column.STOT)
            for _ in range(200):
                assert exchange(port) == b"hello"
            assert old_table.value(0, Column.STOT) == before
            # A busy worker keeps its counters to itself for a moment.
            poll_until(lambda: new_table.value(0, Column.STOT) == 200, 10, "all are counted")
            for worker in old:
                worker.order("drain")
            for _ in range(200):
                assert exchange(port) == b"hello"
            # One of the new workers stops, one dies: the last one takes all.
            new[0].order("pause")
            asleep = [sleeps(worker.pid) for worker in (*old, new[0])]
            for _ in range(200):
                assert exchange(port) == b"hello"
            assert [sleeps(worker.pid) for worker in (*old, new[0])] == asleep
            new[0].tell("quit")
            assert new[0].wait() == 0
            for _ in range(50):
                assert exchange(port) == b"hello"
            assert old_table.value(0, Column.STOT) == before
            for sock in held:
                sock.close()
            for worker in old:
                assert worker.wait() == 0
        finally:
            for worker in (*old, *new):
                if worker.status is None:
                    worker.tell("quit")
                worker.__exit__()
        assert gauges(old_table) == gauges(new_table) == {}
        listener.close()
        old_table.close()
        new_table.close()
        for fd in wake:
            os.close(fd)


def test_many_listeners_of_one_frontend(farm: Farm) -> None:
    config = make_config(farm.servers())
    table = make_table(config)
    listeners = [listen() for _ in range(20)]
    with Forked(config, listeners, table) as worker:
        worker.order("accept")
        socks = [socket.create_connection(each.getsockname()) for each in listeners]
        accepted = [poll_until(farm.accept, what="a connection") for _ in listeners]
        assert len(accepted) == 20
        for sock in socks:
            sock.close()
        worker.tell("quit")
        assert worker.wait() == 0
    for each in listeners:
        assert address_of(each)
        each.close()
    table.close()
