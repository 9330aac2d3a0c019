"""A worker parks what it serves, and another one goes on with it after its death: exactly, or not at all."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hitlessd import channel
from hitlessd.model import Config, Server, Timeouts
from hitlessd.parking.book import SlotState, mark_of
from hitlessd.parking.park import PARTS, Park
from hitlessd.table import PROCESS, Column
from hitlessd.worker.connection import Connection, State
from tests.support.relay import Farm, Lab, Peer, gauges, listen, make_config, make_park, make_table, migrate, take_over

TIMES = Timeouts(connect=5, client=60, server=50, queue=7)


class Death:
    """Two workers of two generations: the first one dies, the second one goes on with what was parked."""

    def __init__(
        self, farm: Farm, config: Config | None = None, after: Config | None = None, **options: object
    ) -> None:
        config = config or make_config(farm.servers(), timeouts=TIMES, **options)  # type: ignore[arg-type]
        self.old = Lab(config, park=make_park("1-0"))
        after = after or config
        self.new = Lab(after, table=make_table(after, generation=2), accept=False, park=make_park("2-0", generation=2))
        self.new.clock.now = 5000.0
        self.new.turn()

    def __enter__(self) -> Death:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self.old.clients:
            peer.close()
        table = self.new.table
        self.new.__exit__()
        self.old.__exit__()
        table.close()

    @property
    def park(self) -> Park:
        assert self.old.park
        return self.old.park

    def age(self, seconds: float = 2.0) -> None:
        """Let all that are there come of age, and be parked."""
        self.old.pass_time(seconds)
        self.old.pass_time(1.0)

    def die(self, **expected: object) -> dict[str, object]:
        self.old.die()
        report = take_over(self.old, self.new, cold=True)
        told = {name: report[name] for name in ("resumed", "ended", "lost")}
        if expected:
            assert told == {"resumed": 0, "ended": 0, "lost": {}} | expected
        return told

    @property
    def conn(self) -> Connection:
        (conn,) = self.new.worker.connections
        return conn


@pytest.fixture
def death(farm: Farm) -> Iterator[Death]:
    with Death(farm) as made:
        yield made


def _talk(lab: Lab, one: Peer, other: Peer, words: bytes) -> None:
    before = len(other.got)
    one.send(words)
    lab.until(lambda: other.read()[before:] == words, f"{words!r}")


def _end(lab: Lab, *peers: Peer) -> None:
    for peer in peers:
        peer.close()
    lab.until(lambda: not lab.worker.connections, "no connections")


# --- parking


def test_only_who_is_established_and_old_enough_is_parked(death: Death, farm: Farm) -> None:
    old, table = death.old, death.old.table
    client, server = old.pair(farm)
    parking = table.index[PROCESS]
    old.pass_time(0.9)
    assert table.value(parking, Column.PARKED) == 0
    old.pass_time(0.5)
    old.until(lambda: table.value(parking, Column.PARKED) == 1, "parked")
    assert death.park.book.held() == 1
    young, youngs_server = old.pair(farm)
    assert table.value(parking, Column.PARKED) == 1
    _talk(old, client, server, b"hello")
    _end(old, client, server, young, youngs_server)
    assert table.value(parking, Column.PARKED) == 0
    assert death.park.book.empty()


def test_it_sleeps_when_all_are_parked_but_for_a_sign_of_life(death: Death, farm: Farm) -> None:
    death.old.pair(farm)
    death.age()
    worker = death.old.worker
    death.old.pass_time(0.2)
    assert worker.parking.asleep
    due = worker.wheel.next() - worker.now
    assert 0.5 < due <= 1.1
    assert death.park.book.silence < 60


def test_a_worker_without_connections_sleeps_for_ever(death: Death, farm: Farm) -> None:
    client, server = death.old.pair(farm)
    death.age()
    _end(death.old, client, server)
    for _ in range(5):
        death.old.pass_time(1.0)
    assert death.old.worker.wheel.next() == float("inf")


def test_thousands_that_come_and_go_leave_a_short_queue(farm: Farm) -> None:
    config = make_config(farm.servers(), timeouts=Timeouts(5, 3600, 3600))
    with Death(farm, config) as death:
        _come_and_go(death, farm)


def _come_and_go(death: Death, farm: Farm) -> None:
    old = death.old
    most = 0
    stay = [old.pair(farm) for _ in range(20)]
    for _ in range(40):
        pairs = [old.pair(farm) for _ in range(60)]
        death.age()
        for client, server in pairs:
            client.close()
            server.close()
        old.until(lambda: len(old.worker.connections) == 20, "they have left")
        most = max(most, old.worker.parking.queue.in_flight)
    assert most < 2500
    for _ in range(10):
        old.pass_time(1.0)
    assert old.worker.parking.queue.in_flight <= 4 * 20 + 1008
    old.die()
    assert take_over(old, death.new)["resumed"] == 20
    for number, (client, server) in enumerate(stay):
        _talk(death.new, client, server, b"%d" % number)
    _end(death.new, *(peer for each in stay for peer in each))


def test_main_is_answered_while_many_come_back(farm: Farm) -> None:
    """Each batch brings more events than a turn takes: what else waits must not wait behind all of them."""
    config = make_config(farm.servers(), timeouts=Timeouts(5, 3600, 3600))
    with Death(farm, config) as death:
        pairs = [death.old.pair(farm) for _ in range(800)]
        for _ in range(4):
            death.age()
        death.old.die()
        new = death.new
        assert death.old.park
        parts = death.old.park.parts()
        order = {"do": "resume-parked", "name": death.old.park.name, "cold": False, "r": 1}
        channel.send(new.main, order, [parts[part] for part in PARTS])
        new.until(lambda: len(new.worker.connections) >= 3 * 126, "three batches have come")
        channel.send(new.main, {"do": "ping", "n": 1})
        answer = new.until(lambda: _said(new), "an answer")
        assert answer["did"] == "ping"
        assert len(new.worker.connections) < len(pairs)
        assert new.until(lambda: _said(new), "the report")["resumed"] == len(pairs)


def _said(lab: Lab) -> dict[str, Any] | None:
    with contextlib.suppress(BlockingIOError):
        return channel.receive(lab.main)
    return None


def test_beyond_its_limit_it_serves_and_says_so_once(farm: Farm) -> None:
    with Lab(make_config(farm.servers(), timeouts=TIMES), park=make_park(), park_limit=6) as lab:
        pairs = [lab.pair(farm) for _ in range(5)]
        for _ in range(10):
            lab.pass_time(1.0)
        assert lab.table.value(lab.table.index[PROCESS], Column.PARKED) == 3
        said = [text for severity, text in lab.logged if severity == "warning"]
        assert said == [
            "cannot park more than 3 connections of this worker:"
            " at most 6 descriptors of a worker may be parked (LimitNOFILE=)"
        ]
        for client, server in pairs:
            _talk(lab, client, server, b"served")
        for pair in pairs:
            for peer in pair:
                peer.close()
        lab.until(lambda: not lab.worker.connections, "no connections")


def test_a_queue_that_is_full_or_a_book_costs_nothing_but_survival(farm: Farm) -> None:
    tiny = make_park(slots=2)
    with Lab(make_config(farm.servers(), timeouts=TIMES), park=tiny) as lab:
        pairs = [lab.pair(farm) for _ in range(4)]
        for _ in range(4):
            lab.pass_time(1.0)
        assert [text for severity, text in lab.logged if severity == "warning"] == [
            "cannot park more than 2 connections of this worker: its book is full"
        ]
        for client, server in pairs:
            _talk(lab, client, server, b"served")
        _end(lab, *(peer for pair in pairs for peer in pair))
    full = make_park()
    full.writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)
    with contextlib.suppress(BlockingIOError):
        while True:
            full.writer.send(b"x" * 1512)
    with Lab(make_config(farm.servers(), timeouts=TIMES), park=full) as lab:
        client, server = lab.pair(farm)
        for _ in range(9):
            lab.pass_time(1.0)
        assert [text for severity, text in lab.logged if severity == "warning"] == [
            "cannot park more than 0 connections of this worker: the queue is full (net.core.wmem_max)"
        ]
        assert full.book.empty()
        _talk(lab, client, server, b"served")
        _end(lab, client, server)


def test_off_nothing_is_parked_but_at_the_end(farm: Farm) -> None:
    with Death(farm, crash_proof=False) as death:
        client, server = death.old.pair(farm)
        death.age()
        assert death.park.book.empty()
        assert death.old.worker.parking.freeze() == (1, {})
        death.die(resumed=1)
        _talk(death.new, client, server, b"on")
        _end(death.new, client, server)


# --- a crash


def test_an_idle_one_goes_on_with_its_number_times_and_counters(death: Death, farm: Farm) -> None:
    old, new = death.old, death.new
    client, server = old.pair(farm)
    _talk(old, client, server, b"0123456789")
    _talk(old, server, client, b"01234")
    death.age()
    (conn,) = old.worker.connections
    conn.account()
    old.turn()
    number, port = conn.number, client.sock.getsockname()[1]
    assert (old.value("frontend", Column.BIN), old.value("frontend", Column.BOUT)) == (10, 5)
    death.die(resumed=1)
    assert (death.conn.number, death.conn.address[1]) == (number, port)
    assert (new.value("frontend", Column.SCUR), new.value("s1", Column.SCUR)) == (1, 1)
    assert (new.value("frontend", Column.STOT), new.value("frontend", Column.BIN)) == (0, 0)
    _talk(new, client, server, b"more")
    _end(new, client, server)
    # What was counted before it died counts once; the log line tells of the whole.
    assert (new.value("frontend", Column.BIN), new.value("frontend", Column.BOUT)) == (4, 0)
    assert f"127.0.0.1:{port} [" in new.lines[-1]
    assert "www app/s1" in new.lines[-1]
    assert gauges(new.table) == {}
    assert death.park.book.empty()


def test_bytes_kept_for_a_slow_reader_come_first(death: Death, farm: Farm) -> None:
    old, new = death.old, death.new
    client, server = old.pair(farm)
    death.age()
    data = bytes(i % 251 for i in range(1 << 20))
    sent = 0
    (conn,) = old.worker.connections
    assert conn.server
    while not conn.server.blocked:
        sent += client.send(data[sent % 251 : sent % 251 + 9000])
        old.settle()
    assert conn.server.out is not None and conn.server.kept >= 0
    old.worker.view[:] = b"\xee" * len(old.worker.view)  # others have used the scratch since
    death.die(resumed=1)
    new.until(lambda: len(server.read()) == sent, "all of it")
    assert server.got == bytes(i % 251 for i in range(sent))
    assert death.conn.server
    assert not death.conn.server.blocked and death.conn.server.kept < 0
    _end(new, client, server)


def _shift(old: Lab, conn: Connection, client: Peer, taken: bytes, added: bytes) -> None:
    """Take something out of what the client sends, and add something for the server; by hand."""
    assert conn.server
    if taken:
        client.send(taken)
        select.select([conn.client.sock], [], [], 10)
        assert conn.client.sock.recv(len(taken)) == taken
        conn.client.received += len(taken)
    conn.server.sock.send(added)
    conn.client.shift += len(added) - len(taken)


@pytest.mark.parametrize(("taken", "added"), [(b"", b"added"), (b"a longer one", b"less"), (b"taken", b"")])
@pytest.mark.parametrize("parked", [False, True])
def test_what_was_added_or_taken_out_is_no_hole(
    death: Death, farm: Farm, taken: bytes, added: bytes, parked: bool
) -> None:
    """Before it was parked, or afterwards, when the book must learn of it."""
    old, new = death.old, death.new
    client, server = old.pair(farm)
    (conn,) = old.worker.connections
    if parked:
        death.age()
    _shift(old, conn, client, taken, added)
    if parked:
        old.worker.parking.shifted(conn.client)
    else:
        death.age()
    assert conn.slot >= 0 and conn.counted
    data = bytes(i % 251 for i in range(1 << 20))
    sent = 0
    assert conn.server
    while not conn.server.blocked:
        sent += client.send(data[sent % 251 : sent % 251 + 9000])
        old.settle()
    _talk(old, server, client, b"an answer")
    old.worker.view[:] = b"\xee" * len(old.worker.view)
    death.die(resumed=1)
    assert death.conn.client.shift == len(added) - len(taken)
    new.until(lambda: len(server.read()) == len(added) + sent, "all of it")
    assert server.got == added + bytes(i % 251 for i in range(sent))
    _end(new, client, server)


def test_a_shift_goes_along_when_a_connection_moves(death: Death, farm: Farm) -> None:
    old, new = death.old, death.new
    client, server = old.pair(farm)
    (conn,) = old.worker.connections
    _shift(old, conn, client, b"taken out", b"put in")
    death.age()
    assert migrate(old, new)["moved"] == 1
    assert death.conn.slot >= 0 and death.conn.counted
    third = Lab(death.old.config, table=make_table(death.old.config, generation=3), accept=False, park=make_park("3-0"))
    client.send(b"hello")
    new.die()
    assert take_over(new, third)["resumed"] == 1
    third.until(lambda: server.read() == b"put inhello", "what was added, and then the client's")
    _end(third, client, server)
    table = third.table
    third.__exit__()
    table.close()


def test_without_the_check_those_bytes_would_be_missing(
    death: Death, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that cannot fail proves nothing."""
    monkeypatch.setenv("HITLESSD_UNCHECKED_RESUME", "1")
    old, new = death.old, death.new
    client, server = old.pair(farm)
    death.age()
    (conn,) = old.worker.connections
    sent = 0
    data = bytes(i % 251 for i in range(1 << 20))
    assert conn.server
    while not conn.server.blocked:
        sent += client.send(data[sent % 251 : sent % 251 + 9000])
        old.settle()
    assert conn.server.out is not None
    missing = len(conn.server.out)
    death.die(resumed=1)
    new.until(lambda: len(server.read()) == sent - missing, "what the kernel had")
    client.send(b"\xff")
    new.until(lambda: server.read()[-1:] == b"\xff", "what comes next")
    assert server.got[:-1] != bytes(i % 251 for i in range(sent))
    _end(new, client, server)


@pytest.mark.parametrize("old_enough", [True, False])
def test_bytes_in_a_pipe_come_along(death: Death, farm: Farm, old_enough: bool) -> None:
    """Whether it had the pipe before it was parked, or got it afterwards."""
    old, new = death.old, death.new
    client, server = old.pair(farm)
    if old_enough:
        death.age()
    (conn,) = old.worker.connections
    sent = 0
    data = bytes(i % 251 for i in range(1 << 20))
    while not (conn.server and conn.server.blocked and conn.client.pipe):
        sent += client.send(data[sent % 251 :])
        old.settle()
    for _ in range(5):
        old.settle()
    if not old_enough:
        death.age()
    pipe = conn.client.pipe
    assert pipe.fill and pipe.place >= 0
    assert death.park.book.owners()[pipe.place] == (pipe.stamp >> 32, mark_of(conn.slot, False))
    death.die(resumed=1)
    new.until(lambda: len(server.read()) == sent, "all of it")
    assert server.got == bytes(i % 251 for i in range(sent))
    _end(new, client, server)


def test_what_was_read_and_not_yet_sent_is_in_the_scratch(death: Death, farm: Farm) -> None:
    """Killed between recv and send: what the relay does up to there, by hand."""
    old, new = death.old, death.new
    client, server = old.pair(farm)
    _talk(old, client, server, b"before")
    death.age()
    (conn,) = old.worker.connections
    client.send(b"0123456789")
    select.select([conn.client.sock], [], [], 10)
    conn.client.label()
    assert conn.client.sock.recv_into(old.worker.scratch) == 10
    assert conn.server
    conn.server.sock.send(b"012")
    death.die(resumed=1)
    new.until(lambda: server.read() == b"before0123456789", "all of it")
    _end(new, client, server)


def test_what_is_nowhere_is_a_reset_and_not_an_end(death: Death, farm: Farm) -> None:
    """Read by somebody who did not label it."""
    old, new = death.old, death.new
    client, server = old.pair(farm)
    death.age()
    (conn,) = old.worker.connections
    client.send(b"0123456789")
    select.select([conn.client.sock], [], [], 10)
    conn.client.sock.recv(5)
    death.die(lost={"bytes that were on their way died with the process": 1})
    for peer in (client, server):
        new.until(lambda peer=peer: peer.read() is not None and peer.eof, "the end")  # type: ignore[misc]
        assert isinstance(peer.error, ConnectionResetError)
    assert death.park.book.empty()


@pytest.mark.parametrize("from_client", [True, False])
@pytest.mark.parametrize("passed_on", [True, False])
def test_half_closed_ones_go_on(death: Death, farm: Farm, from_client: bool, passed_on: bool) -> None:
    old, new = death.old, death.new
    client, server = old.pair(farm)
    death.age()
    one, other = (client, server) if from_client else (server, client)
    one.send(b"last words")
    one.sock.shutdown(socket.SHUT_WR)
    if passed_on:
        old.until(lambda: other.read() == b"last words" and other.eof, "the end")
    death.die(resumed=1)
    new.until(lambda: other.read() == b"last words" and other.eof, "the end")
    _talk(new, other, one, b"and an answer")
    other.close()
    new.until(lambda: not new.worker.connections, "its end")
    one.read()
    assert one.eof and one.error is None


@pytest.mark.parametrize("from_client", [True, False])
def test_a_half_closed_one_whose_other_half_ends_at_once_ends_in_order(
    death: Death, farm: Farm, from_client: bool
) -> None:
    """The first FIN is read again; by then, both may have been said, and the other socket be no longer connected."""
    old, new = death.old, death.new
    client, server = old.pair(farm)
    death.age()
    one, other = (client, server) if from_client else (server, client)
    one.sock.shutdown(socket.SHUT_WR)
    old.until(lambda: not other.read() and other.eof, "the end")
    death.die(resumed=1)
    other.send(b"an answer")
    other.close()
    new.until(lambda: not new.worker.connections, "its end")
    assert one.read() == b"an answer"
    assert one.eof and one.error is None


def test_one_that_ended_meanwhile_ends(death: Death, farm: Farm) -> None:
    old, new = death.old, death.new
    pairs = [old.pair(farm) for _ in range(2)]
    death.age()
    reset = pairs[0][0]
    reset.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    reset.close()
    for peer in pairs[1]:
        peer.close()
    death.die(resumed=1, ended=1)
    new.until(lambda: not new.worker.connections, "the other one has ended in order")
    server = pairs[0][1]
    new.until(lambda: server.read() is not None and server.eof, "the end")
    assert isinstance(server.error, ConnectionResetError)


def test_one_that_was_being_closed_is_closed(death: Death, farm: Farm) -> None:
    """Killed between the mark and the end, and between the two ends."""
    old, new = death.old, death.new
    pairs = [old.pair(farm) for _ in range(2)]
    death.age()
    first, second = old.worker.connections
    death.park.book.set_state(first.slot, SlotState.ENDING)
    second.client.sock.shutdown(socket.SHUT_RDWR)
    death.die(ended=2)
    for pair in pairs:
        for peer in pair:
            new.until(lambda peer=peer: peer.read() is not None and peer.eof, "the end")  # type: ignore[misc]
            assert peer.error is None


def test_idle_time_goes_on_and_does_not_begin_again(farm: Farm) -> None:
    times = Timeouts(connect=5, client=3600, server=3600)
    with Death(farm, make_config(farm.servers(), timeouts=times)) as death:
        client, server = death.old.pair(farm)
        death.age()
        death.die(resumed=1)
        conn, now = death.conn, death.new.worker.now
        # The kernel knows how long nothing has come or gone, whatever our clock says.
        assert 0 <= now - conn.client.last < 20
        assert now - conn.started >= 1.9
        _end(death.new, client, server)


def test_nobody_resumes_them_in_time(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    with Death(farm, park_timeout=0.001) as death:
        client, server = death.old.pair(farm)
        death.age()
        select.select([], [], [], 0.01)
        death.die(lost={"nobody went on with them within park-timeout (0.001 s)": 1})
        for peer in (client, server):
            peer.sock.settimeout(10)
            with pytest.raises(ConnectionResetError):
                peer.sock.recv(1)


def test_what_kills_its_heirs_is_given_up(death: Death, farm: Farm) -> None:
    client, _server = death.old.pair(farm)
    death.age()
    for _ in range(20):
        death.park.book.attempt()
    death.die(lost={"20 processes died over them": 1})
    client.sock.settimeout(10)
    with pytest.raises(ConnectionResetError):
        client.sock.recv(1)


def test_unix_sockets_outlive_an_orderly_end_and_no_crash(tmp_path: Path) -> None:
    for orderly in (True, False):
        farm = Farm(1, [listen(str(tmp_path / f"server{orderly}"))])
        with Death(farm) as death:
            client, server = death.old.pair(farm)
            _talk(death.old, client, server, b"before")
            death.age()
            assert death.park.book.empty()
            assert not [text for severity, text in death.old.logged if severity in ("err", "warning")]
            if orderly:
                assert death.old.worker.parking.freeze() == (1, {})
                death.die(resumed=1)
                _talk(death.new, client, server, b"after")
                _end(death.new, client, server)
            else:
                death.die()
                death.new.until(lambda server=server: server.read() and server.eof, "its end")  # type: ignore[misc]
        farm.close()


# --- an orderly end: every state


def test_young_ones_are_frozen_and_go_on(death: Death, farm: Farm) -> None:
    old, new = death.old, death.new
    client, server = old.pair(farm)
    client.send(b"unread")
    assert old.worker.parking.freeze() == (1, {})
    death.die(resumed=1)
    new.until(lambda: server.read() == b"unread", "what came before")
    _end(new, client, server)
    assert gauges(new.table) == {}


def test_one_that_waits_for_a_slot_goes_on_waiting(farm: Farm) -> None:
    with Death(farm, make_config(farm.servers(maxconn=1), timeouts=TIMES)) as death:
        old, new = death.old, death.new
        first, server = old.pair(farm)
        second = old.connect()
        second.send(b"me too")
        old.until(lambda: len(old.worker.connections) == 2, "two")
        death.age()
        assert old.worker.parking.freeze() == (2, {})
        death.die(resumed=2)
        assert sorted(conn.state for conn in new.worker.connections) == [State.ESTABLISHED, State.QUEUED]
        first.close()
        server.close()
        other = new.until(farm.accept, "a connection for the second one")
        new.until(lambda: other.read() == b"me too", "its words")
        _end(new, second, other)


def test_one_that_is_connecting_goes_on_connecting(farm: Farm) -> None:
    """To a server whose backlog is full, so that its SYN is dropped."""
    full = listen(backlog=0)
    stuffing = [socket.socket() for _ in range(3)]
    for sock in stuffing:
        sock.setblocking(False)
        sock.connect_ex(full.getsockname())
    with Death(Farm(1, [full])) as death:
        client = death.old.connect()
        death.old.until(lambda: death.old.worker.connections, "a connection")
        death.old.settle()
        assert [conn.state for conn in death.old.worker.connections] == [State.CONNECTING]
        assert death.old.worker.parking.freeze() == (1, {})
        death.die(resumed=1)
        assert death.conn.state is State.CONNECTING
        death.new.pass_time(6.0)
        death.new.until(lambda: not death.new.worker.connections, "timeout connect")
        client.close()
    for sock in (*stuffing, full):
        sock.close()


def test_one_whose_server_has_died_lets_the_client_have_the_rest(death: Death, farm: Farm) -> None:
    old, new = death.old, death.new
    client, server = old.pair(farm)
    death.age()
    (conn,) = old.worker.connections
    data = bytes(i % 251 for i in range(1 << 20))
    sent = 0
    while not conn.client.blocked:
        sent += server.send(data[sent % 251 : sent % 251 + 9000])
        old.settle()
    taken = conn.server.received if conn.server else 0
    server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.close()
    client.send(b"and you?")
    old.until(lambda: conn.dead is not None, "the server is known to be dead")
    assert old.worker.parking.freeze() == (1, {})
    death.die(resumed=1)
    new.until(lambda: client.read() is not None and client.eof, "the end")
    assert len(client.got) >= taken
    assert client.got == bytes(i % 251 for i in range(len(client.got)))
    # Where the kernel still held some of it (6.1 does, 6.12 has been told of its arrival), its end is waited for.
    client.close()
    new.until(lambda: not new.worker.connections, "no connections")


def test_who_cannot_be_parked_at_the_end_is_reset(farm: Farm) -> None:
    with Lab(make_config(farm.servers(), timeouts=TIMES), park=make_park(), park_limit=2) as lab:
        pairs = [lab.pair(farm) for _ in range(3)]
        assert lab.worker.parking.freeze() == (1, {"they could not be parked": 2})
        ends = 0
        for client, _ in pairs:
            if lab.worker.connections and not select.select([client.sock], [], [], 0.2)[0]:
                continue
            with pytest.raises(ConnectionResetError):
                client.sock.recv(1)
            ends += 1
        assert ends == 2


# --- a configuration that has changed, heirs that die, generations


def test_names_that_are_no_longer_configured_live_on(farm: Farm) -> None:
    config = make_config(farm.servers(), timeouts=TIMES)
    front, back = config.frontends[0], config.backends[0]
    other = make_config([Server("other", farm.servers()[0].address)], timeouts=TIMES)
    renamed = Config(
        frontends=tuple(
            type(f)("new", f.iid, f.binds, "newer", f.timeouts) for f in other.frontends
        ),
        backends=tuple(type(b)("newer", b.iid, b.servers) for b in other.backends),
    )  # fmt: skip
    with Death(farm, config, renamed) as death:
        client, server = death.old.pair(farm)
        death.age()
        death.die(resumed=1)
        conn = death.conn
        assert (conn.frontend.name, conn.frontend.backend.name) == (front.name, back.name)
        assert conn.target and conn.target.name == "s1"
        _talk(death.new, client, server, b"as before")
        # And again, from the park of the second one.
        death.new.pass_time(3.0)
        third = Lab(renamed, table=make_table(renamed, generation=3), accept=False, park=make_park("3-0"))
        death.new.die()
        assert take_over(death.new, third)["resumed"] == 1
        _talk(third, client, server, b"once more")
        _end(third, client, server)
        table = third.table
        third.__exit__()
        table.close()


def test_shutdown_on_reload_holds_here_too(farm: Farm) -> None:
    config = make_config(farm.servers(), timeouts=TIMES)
    front = config.frontends[0]
    closing = Config(
        frontends=(type(front)(front.name, 2, front.binds, "app", TIMES, tcplog=True, shutdown_on_reload=True),),
        backends=config.backends,
    )
    with Death(farm, config, closing) as death:
        client, _ = death.old.pair(farm)
        death.age()
        death.die(resumed=1)
        assert not death.new.worker.connections
        death.new.until(lambda: client.read() is not None and client.eof, "the end")
        assert " KD " in death.new.lines[-1]


def test_who_has_moved_away_is_not_resumed_here(death: Death, farm: Farm) -> None:
    old, new = death.old, death.new
    client, server = old.pair(farm)
    death.age()
    assert migrate(old, new)["moved"] == 1
    assert new.park and new.park.book.held() == 1
    assert death.park.book.empty()
    death.die()
    _talk(new, client, server, b"in one place")
    _end(new, client, server)


def test_one_on_its_way_counts_only_where_nobody_can_have_it(death: Death, farm: Farm) -> None:
    old, new = death.old, death.new
    client, server = old.pair(farm)
    death.age()
    (conn,) = old.worker.connections
    death.park.book.set_state(conn.slot, SlotState.MOVING)
    old.die()
    assert take_over(old, new, cold=False)["resumed"] == 0
    assert take_over(old, new, cold=True)["resumed"] == 1
    _talk(new, client, server, b"on")
    _end(new, client, server)


def test_an_end_is_seen_although_an_older_queue_still_holds_the_sockets(death: Death, farm: Farm) -> None:
    """Moved to a worker that does not park: close(2) alone would show nobody anything."""
    old = death.old
    client, server = old.pair(farm)
    death.age()
    config = make_config(farm.servers(), timeouts=TIMES, crash_proof=False)
    heir = Lab(config, table=make_table(config, generation=2), accept=False, park=make_park("2-1"))
    others = death.park.peek(0)
    assert migrate(old, heir)["moved"] == 1
    heir.order("shutdown-session", only=next(iter(heir.worker.connections)).number)
    for peer in (client, server):
        heir.until(lambda peer=peer: peer.read() is not None and peer.eof, "the end")  # type: ignore[misc]
    for fd in others:
        os.close(fd)
    table = heir.table
    heir.__exit__()
    table.close()


def test_rubbish_in_a_slot_costs_that_connection_only(death: Death, farm: Farm) -> None:
    old, new = death.old, death.new
    pairs = [old.pair(farm) for _ in range(3)]
    death.age()
    first = next(
        conn for conn in old.worker.connections if conn.client.sock.getpeername() == pairs[0][0].sock.getsockname()
    )
    death.park.book.write(first.slot, SlotState.LIVE, first.number, b'{"lane": 99}', (0, 0))
    death.die(resumed=2, lost={"what was parked of them makes no sense": 1})
    assert [text for severity, text in new.logged if severity == "err"]
    pairs[0][0].sock.settimeout(10)
    with pytest.raises(ConnectionResetError):
        pairs[0][0].sock.recv(1)
    for client, server in pairs[1:]:
        _talk(new, client, server, b"on")
    for pair in pairs[1:]:
        for peer in pair:
            peer.close()
    new.until(lambda: not new.worker.connections, "no connections")


def test_unknown_fields_are_ignored_and_missing_ones_have_defaults(death: Death, farm: Farm) -> None:
    client, server = death.old.pair(farm)
    death.age()
    (conn,) = death.old.worker.connections
    book = death.park.book
    text = b'{"lane":0,"number":%d,"server_side":{},"client":{"novelty":[1]},"of_later":{"x":1}}' % conn.number
    book.write(conn.slot, SlotState.LIVE, conn.number, text, (0, 0))
    death.die(resumed=1)
    _talk(death.new, client, server, b"on")
    _end(death.new, client, server)


def test_rubbish_in_the_queue_costs_nothing(death: Death, farm: Farm) -> None:
    death.park.writer.send(b"rubbish")
    client, server = death.old.pair(farm)
    death.age()
    death.die(resumed=1)
    (said,) = [text for severity, text in death.new.logged if severity == "err"]
    assert said == "cannot understand 1 of the messages that park connections in 1-0: a message of 7 bytes"
    _talk(death.new, client, server, b"on")
    _end(death.new, client, server)
