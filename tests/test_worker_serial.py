"""The serial form: every state has one that says everything, and another worker goes on from it."""

from __future__ import annotations

import hashlib
import json
import random
import select
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hitlessd.errors import PeerError
from hitlessd.model import InetAddress, Server, Timeouts
from hitlessd.table import Column
from hitlessd.worker.connection import Connection, State, _unsent
from hitlessd.worker.form import SerialConnection, SerialSide
from hitlessd.worker.serial import Frozen, freeze, resume, to_serial
from tests.support.relay import Farm, Lab, Peer, gauges, listen, make_config, make_table, migrate

TIMES = Timeouts(connect=5, client=60, server=50, queue=7)


@pytest.fixture(params=["by hand", "over a way"])
def farm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    """Servers; and every test runs with a connection taken over by hand, and as at a reload."""
    if request.param == "over a way":
        monkeypatch.setattr(Move, "go", Move.over_a_way)
    made = Farm()
    yield made
    made.close()


class Move:
    """Two workers of two generations; `go` takes the connection from the first to the second, by way of JSON."""

    def __init__(self, farm: Farm, servers: list[Server] | None = None, **options: object) -> None:
        config = make_config(servers or farm.servers(), timeouts=TIMES, **options)  # type: ignore[arg-type]
        self.old = Lab(config)
        self.new = Lab(config, table=make_table(config, generation=2), accept=False)
        self.new.clock.now = 5000.0
        self.new.turn()

    def __enter__(self) -> Move:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self.old.clients:
            peer.close()
        table = self.new.table
        self.new.__exit__()
        self.old.__exit__()
        table.close()

    def go(self) -> Connection:
        (conn,) = self.old.worker.connections
        before = to_serial(conn)
        frozen = freeze(conn)
        self.old.turn()
        assert gauges(self.old.table) == {} and not len(self.old.worker.wheel)
        assert self.old.worker.pipes.lent == 0
        assert SerialConnection.from_dict(frozen.serial.as_dict()) == frozen.serial
        form = json.loads(json.dumps(frozen.serial.as_dict()))
        moved = Frozen(
            SerialConnection.from_dict(form), frozen.client, frozen.server, frozen.to_server, frozen.to_client
        )
        resumed = resume(self.new.worker, moved)
        # What it is there is what it was here, but for where it is.
        assert without_place(to_serial(resumed)) == without_place(before)
        return resumed

    def over_a_way(self) -> Connection:
        """As go(), but as at a reload."""
        report = migrate(self.old, self.new)
        assert report == {"moved": 1, "kept": {}, "lost": 0}
        assert gauges(self.old.table) == {} and self.old.worker.pipes.lent == 0
        (resumed,) = self.new.worker.connections
        return resumed


def without_place(serial: SerialConnection) -> dict[str, object]:
    form = {"age": 0.0, "due_in": 0.0, "expires_in": 0.0, **serial.as_dict()}
    for name in ("generation", "worker", "number", "accepted_at", "accounted_in", "accounted_out"):
        form.pop(name, None)
    return json.loads(json.dumps(form), parse_float=lambda text: round(float(text), 6))  # type: ignore[no-any-return]


def goes_on(move: Move, client: Peer, server: Peer, to_server: bytes = b"", to_client: bytes = b"") -> None:
    """What was on its way arrives, more passes both ways, and the end is orderly."""
    client.send(b"more")
    server.send(b"answer")
    move.new.until(lambda: len(server.read()) >= len(to_server) + 4 and len(client.read()) >= len(to_client) + 6)
    assert server.got == to_server + b"more" and client.got == to_client + b"answer"
    client.sock.shutdown(socket.SHUT_WR)
    move.new.until(lambda: server.read() and server.eof)
    server.close()
    move.new.until(lambda: client.read() and client.eof)
    assert client.error is None
    finished(move)


def finished(move: Move) -> None:
    move.new.until(lambda: not move.new.worker.connections)
    move.new.turn()
    assert gauges(move.new.table) == {} and not len(move.new.worker.wheel) and move.new.worker.pipes.lent == 0


def test_established(farm: Farm) -> None:
    with Move(farm) as move:
        client, server = move.old.pair(farm)
        client.send(b"hello")
        move.old.until(lambda: server.read() == b"hello")
        server.send(b"hi")
        move.old.until(lambda: client.read() == b"hi")
        move.old.clock.now += 3
        move.old.turn()
        conn = move.go()
        # The time on the way counts, too.
        assert conn.started == pytest.approx(move.new.worker.now - 3, abs=1)
        assert conn.deadline() == pytest.approx(move.new.worker.now + 47, abs=1)
        assert move.new.value("s1", Column.SCUR) == 1  # at once, for others decide by it
        move.new.turn()
        assert [move.new.value(row, Column.SCUR) for row in ("process", "frontend", "backend", "s1")] == [1, 1, 1, 1]
        goes_on(move, client, server, b"hello", b"hi")
        # Each byte is counted once, by the worker that moved it, and the session only where it began.
        assert [lab.value("frontend", Column.BIN) for lab in (move.old, move.new)] == [5, 4]
        assert [lab.value("s1", Column.BOUT) for lab in (move.old, move.new)] == [2, 6]
        assert [lab.value("frontend", Column.STOT) for lab in (move.old, move.new)] == [1, 0]
        # The log tells of the whole.
        line = move.new.lines[-1].split("] ")[1].split()
        assert line[:2] == ["www", "app/s1"] and line[3:5] == ["8", "--"]
        # Three seconds on the clock, and what the way took by the machine's.
        assert line[2].startswith("0/0/") and 3000 <= int(line[2].split("/")[2]) < 4000


def test_data_that_comes_between_two_workers_is_not_lost(farm: Farm) -> None:
    with Move(farm) as move:
        client, server = move.old.pair(farm)
        client.send(b"before")
        server.send(b"before")
        move.go()
        goes_on(move, client, server, b"before", b"before")


@pytest.mark.parametrize("who", ["client", "server"])
def test_half_closed(farm: Farm, who: str) -> None:
    with Move(farm) as move:
        client, server = move.old.pair(farm)
        one, other = (client, server) if who == "client" else (server, client)
        one.send(b"last words")
        one.sock.shutdown(socket.SHUT_WR)
        move.old.until(lambda: other.read() == b"last words" and other.eof)
        conn = move.go()
        side = conn.client if who == "client" else conn.server
        assert side is not None and side.eof and side.peer.shut and not side.shut
        other.send(b"and yet")
        other.close()
        move.new.until(lambda: one.read() == b"and yet" and one.eof)
        assert one.error is None
        finished(move)


@pytest.mark.parametrize("pipes", [True, False])
@pytest.mark.parametrize("fin", [True, False])
def test_with_bytes_on_their_way_both_ways(farm: Farm, pipes: bool, fin: bool) -> None:
    """In the scratch's remainder or in pipes, with and without a FIN behind them."""
    with Move(farm) as move:
        if not pipes:
            move.old.worker.pipes._budget = 0
        client, server = move.old.pair(farm)
        data = random.Random(5).randbytes(1 << 20)
        sent = {client: 0, server: 0}
        idle = 0
        while idle < 3:
            before = sum(sent.values())
            for peer in sent:
                at = sent[peer] % len(data)
                sent[peer] += peer.send(memoryview(data)[at : at + 300_000])
            move.old.settle()
            idle = idle + 1 if sum(sent.values()) == before else 0
        (conn,) = move.old.worker.connections
        assert conn.client.blocked and conn.server is not None and conn.server.blocked
        assert bool(conn.client.pipe) == bool(conn.server.pipe) == pipes
        if fin:
            for peer in sent:
                peer.sock.shutdown(socket.SHUT_WR)
            move.old.settle()
        move.go()
        expect = {peer: (data * 100)[:total] for peer, total in ((client, sent[server]), (server, sent[client]))}
        move.new.until(lambda: all(len(peer.read()) >= len(expect[peer]) for peer in expect), "the rest", 30)
        for peer in expect:
            assert hashlib.sha256(peer.got).digest() == hashlib.sha256(expect[peer]).digest()
        if not fin:
            goes_on(move, client, server, expect[server], expect[client])
        else:
            move.new.until(lambda: all(peer.read() and peer.eof for peer in expect))
            finished(move)


def test_again_and_again_in_the_middle_of_a_flow(farm: Farm) -> None:
    """A flow that is moved to and fro while it runs arrives whole."""
    config = make_config(farm.servers(), timeouts=TIMES)
    data = random.Random(6).randbytes(8 << 20)
    with Lab(config) as one, Lab(config) as two:
        client, server = one.pair(farm)
        labs, sent, rng = [one, two], 0, random.Random(7)
        while len(server.got) < len(data):
            if sent < len(data):
                sent += client.send(memoryview(data)[sent : sent + rng.choice((100, 70_000, 400_000))])
            for _ in range(rng.randrange(4)):
                labs[0].turn()
            if rng.random() < 0.7:
                server.read()
            if rng.random() < 0.3 and labs[0].worker.connections:
                (conn,) = labs[0].worker.connections
                labs.reverse()
                resume(labs[0].worker, freeze(conn))
        assert server.got == data
        client.close()
        server.close()
        labs[0].until(lambda: not labs[0].worker.connections)
        for lab in labs:
            lab.turn()
            assert gauges(lab.table) == {} and lab.worker.pipes.lent == 0 and not len(lab.worker.wheel)


def test_queued(farm: Farm) -> None:
    with Move(farm, [farm.server(0, maxconn=1)]) as move:
        # Somebody else holds the only slot, in both.
        for lab in (move.old, move.new):
            for backend in lab.worker.backends.values():
                backend.servers[0].count(1)
        client = move.old.connect()
        client.send(b"patient")
        move.old.until(lambda: move.old.value("backend", Column.QCUR) == 1)
        move.old.clock.now += 2
        move.old.turn()
        (conn,) = move.old.worker.connections
        frozen = freeze(conn)
        move.old.turn()
        assert move.old.value("backend", Column.QCUR) == 0
        assert frozen.serial.state == "queued" and frozen.serial.due_in == 5 and frozen.server is None
        resumed = resume(move.new.worker, frozen)
        assert resumed.state is State.QUEUED and resumed.due == move.new.worker.now + 5
        move.new.turn()
        assert move.new.value("backend", Column.QCUR) == 1
        for lab in (move.old, move.new):
            for backend in lab.worker.backends.values():
                backend.servers[0].count(-1)
        move.new.pass_time(0.2)
        server = move.new.until(farm.accept)
        goes_on(move, client, server, b"patient")


def test_connecting(farm: Farm) -> None:
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
        with Move(farm, [Server("s1", InetAddress("127.0.0.1", sock.getsockname()[1]))]) as move:
            client = move.old.connect()
            client.send(b"early")
            move.old.until(lambda: move.old.worker.connections)
            move.old.clock.now += 1
            move.old.settle()
            conn = move.go()
            assert conn.state is State.CONNECTING and conn.due == pytest.approx(move.new.worker.now + 4, abs=0.5)
            move.new.turn()
            assert conn.state is State.CONNECTING
            move.new.pass_time(4.2)
            move.new.until(lambda: client.read() is not None and client.eof)
            finished(move)
            assert move.new.lines[-1].split()[6] == "sC"
        for extra in fill:
            extra.close()


def test_connected_on_the_way(farm: Farm) -> None:
    with Move(farm) as move:
        client = move.old.connect()
        client.send(b"early")
        move.old.worker.turn(5)
        (conn,) = move.old.worker.connections
        assert conn.state is State.CONNECTING
        resumed = move.go()
        server = move.new.until(farm.accept)
        move.new.until(lambda: resumed.state is State.ESTABLISHED)
        goes_on(move, client, server, b"early")


def test_paused_before_a_retry(farm: Farm) -> None:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    with Move(farm, [Server("s1", InetAddress("127.0.0.1", bound.getsockname()[1]))], retries=3) as move:
        client = move.old.connect()
        client.send(b"x")
        move.old.until(lambda: [c for c in move.old.worker.connections if c.state == "paused"])
        conn = move.go()
        assert conn.retries == 1
        bound.listen()
        move.new.pass_time(1.1)
        sock, _ = bound.accept()
        goes_on(move, client, Peer(sock), b"x")
        assert move.new.lines[-1].split()[7].endswith("/1")
        sock.close()
    bound.close()


def test_tarrying(farm: Farm) -> None:
    """All is written to the client's socket, whose kernel does not take it: the dead server's last words wait there."""
    with Move(farm) as move:
        client, server = move.old.pair(farm)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        (conn,) = move.old.worker.connections
        data = random.Random(8).randbytes(1 << 20)
        sent = 0
        while _unsent(conn.client) < 20_000:
            sent += server.send(data[sent : sent + 10_000])
            move.old.settle()
            assert not conn.client.blocked
        server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        server.close()
        move.old.until(lambda: conn.state is State.TARRYING, "tarrying")
        move.old.pass_time(2)
        resumed = move.go()
        assert resumed.state is State.TARRYING and resumed.dead is resumed.server
        # The time that this may take goes on.
        assert resumed.due == pytest.approx(move.new.worker.now + 3, abs=0.5)
        move.new.until(lambda: client.read() == data[:sent] and client.eof)
        assert client.error is None
        client.close()
        finished(move)


def test_tarrying_does_not_last(farm: Farm) -> None:
    with Move(farm) as move:
        client, server = move.old.pair(farm)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        (conn,) = move.old.worker.connections
        while _unsent(conn.client) < 20_000:
            server.send(b"x" * 10_000)
            move.old.settle()
        server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        server.close()
        move.old.until(lambda: conn.state is State.TARRYING, "tarrying")
        move.go()
        move.new.pass_time(5.2)
        finished(move)


def test_a_dying_connection_still_delivers(farm: Farm) -> None:
    """The server is dead, the client slow, and the connection moves in between."""
    with Move(farm) as move:
        client, server = move.old.pair(farm)
        for _ in range(3):
            while server.send(b"x" * 300_000):
                move.old.settle()
        (conn,) = move.old.worker.connections
        assert conn.server is not None and conn.client.blocked
        server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        taken = conn.server.received
        server.close()
        move.old.settle()
        assert conn.state is State.ESTABLISHED
        move.go()
        move.new.until(lambda: client.read() and client.eof)
        # Whether the end is a FIN or, everything having been delivered by then, a reset, is a matter of timing.
        assert len(client.got) >= taken
        client.close()
        finished(move)


def test_unix_sockets(tmp_path: Path) -> None:
    farm = Farm(1, [listen(str(tmp_path / "server"))])
    front = listen(str(tmp_path / "front"))
    config = make_config(farm.servers(), timeouts=TIMES)
    with Lab(config, listener=front) as one, Lab(config) as two:
        client, server = one.pair(farm)
        client.send(b"x")
        one.until(lambda: server.read() == b"x")
        (conn,) = one.worker.connections
        shown = to_serial(conn, names=True)
        assert shown.client_address is None
        assert shown.server_address == f"unix@{tmp_path}/server"
        frozen = freeze(conn)
        resume(two.worker, frozen)
        client.send(b"y")
        two.until(lambda: server.read() == b"xy")
        client.close()
        server.close()
        two.until(lambda: not two.worker.connections)
        assert two.lines[-1].startswith("unix:1 [")
    front.close()
    farm.close()


def test_a_configuration_that_has_changed(farm: Farm) -> None:
    """An established connection goes on although its server is gone; one of which nothing is known stays ours."""
    config = make_config(farm.servers(), timeouts=TIMES)
    changed = make_config([Server("other", farm.servers()[0].address)], timeouts=TIMES)
    with Lab(config) as one, Lab(changed) as two:
        client, server = one.pair(farm)
        (conn,) = one.worker.connections
        frozen = freeze(conn)
        stranger = Frozen(replace(frozen.serial, frontend="elsewhere"), frozen.client, frozen.server)
        with pytest.raises(PeerError, match="elsewhere to app: these are not configured"):
            resume(two.worker, stranger)
        holes = replace(frozen.serial, client=replace(frozen.serial.client, piped=3))
        with pytest.raises(PeerError, match="pipe is missing"):
            resume(two.worker, Frozen(holes, frozen.client, frozen.server))
        assert not two.worker.connections and frozen.client.fileno() >= 0
        resumed = resume(two.worker, frozen)
        assert resumed.target is None
        client.send(b"x")
        two.until(lambda: server.read() == b"x")
        client.close()
        server.close()
        two.until(lambda: not two.worker.connections)
        two.turn()
        assert gauges(two.table) == {}


# -- the form itself -----------------------------------------------------------------------------------------------

sides = st.builds(
    SerialSide,
    received=st.integers(0, 1 << 62),
    idle=st.floats(0, 1e9),
    eof=st.booleans(),
    shut=st.booleans(),
    urgent=st.booleans(),
    bulky=st.integers(-64, 9),
    kept=st.sampled_from(["", "YWJj"]),
    piped=st.integers(0, 1 << 20),
)
forms = st.builds(
    SerialConnection,
    generation=st.integers(0, 1 << 40),
    number=st.integers(0, 1 << 60),
    frontend=st.text(max_size=8),
    backend=st.text(max_size=8),
    server=st.text(max_size=8),
    state=st.sampled_from([str(s) for s in State]),
    client_address=st.none() | st.tuples(st.just("::1"), st.integers(0, 65535)),
    age=st.floats(0, 1e9),
    due_in=st.none() | st.floats(-10, 1e9),
    cause=st.sampled_from(["", "CD", "sQ"]),
    dead=st.sampled_from(["", "client", "server"]),
    client=sides,
    server_side=st.none() | sides,
)


@given(forms)
def test_json_and_back(serial: SerialConnection) -> None:
    assert SerialConnection.from_dict(json.loads(json.dumps(serial.as_dict()))) == serial


@given(forms)
def test_fields_of_a_later_version_are_ignored(serial: SerialConnection) -> None:
    form = serial.as_dict()
    form["invented_later"] = {"x": 1}
    form.setdefault("client", {})["invented_later"] = 7
    assert SerialConnection.from_dict(form) == serial


def test_fields_of_a_later_version_that_are_missing_have_defaults() -> None:
    assert SerialConnection.from_dict({}) == SerialConnection()


@pytest.mark.parametrize(
    "form",
    [
        {"state": "asleep"},
        {"client": 7},
        {"client": {"kept": "not base64!"}},
        {"client_address": ["x"]},
        {"client_address": 5},
        {"server_side": [1]},
    ],
)
def test_what_cannot_be_a_connection_is_refused(form: dict[str, object]) -> None:
    with pytest.raises(PeerError, match="cannot read the serial form"):
        SerialConnection.from_dict(form)


def test_showing_leaves_out_what_passes_through(farm: Farm) -> None:
    with Lab(make_config(farm.servers())) as lab:
        client, server = lab.pair(farm)
        while server.send(b"secret" * 50_000):
            lab.settle()
        (conn,) = lab.worker.connections
        assert to_serial(conn, data=False).client.kept == ""
        client.read()
