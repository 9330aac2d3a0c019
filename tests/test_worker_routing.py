"""Where a TCP connection goes: by its addresses at once, by its server name as soon as it is known; who is let in."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hitlessd.model import (
    Acl,
    Backend,
    Bind,
    Condition,
    Config,
    Frontend,
    InetAddress,
    TcpRule,
    Term,
    Timeouts,
    UseBackend,
)
from hitlessd.table import Column, RowKey
from hitlessd.worker.connection import State
from hitlessd.worker.gate import pause
from tests.support.descriptors import no_leak
from tests.support.relay import Farm, Lab, Peer, gauges, make_park, make_table, migrate, take_over

TIMES = Timeouts(connect=5, client=60, server=50, queue=7)
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.9 56324 443\r\n"


def hello(name: str | None) -> bytes:
    """What a TLS client says first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


HELLO = hello("a.test")


def rule(backend: str, criterion: str, *values: str) -> UseBackend:
    return UseBackend(backend, Condition(((Term((Acl(criterion, values=values),)),),)))


SNI = (rule("a", "req.ssl_sni", "a.test"), rule("b", "req.ssl_sni", "b.test"))


def make(
    farm: Farm,
    rules: tuple[UseBackend, ...] = SNI,
    *,
    default: str = "c",
    delay: float = 5.0,
    accept_proxy: bool = False,
    timeouts: Timeouts = TIMES,
    **options: Any,
) -> Config:
    """One frontend; backends a, b and c with a server each."""
    frontend = Frontend(
        "www",
        2,
        (Bind(InetAddress("127.0.0.1", 0), accept_proxy=accept_proxy),),
        default,
        timeouts,
        tcplog=True,
        use_backend=rules,
        inspect_delay=delay,
        **options,
    )
    backends = [Backend(name, 3 + at, (farm.server(at),), timeouts=timeouts) for at, name in enumerate("abc")]
    return Config(frontends=(frontend,), backends=tuple(backends))


@pytest.fixture
def farm() -> Iterator[Farm]:
    with no_leak():
        made = Farm(3)
        yield made
        made.close()


def _value(lab: Lab, kind: str, name: str, column: Column) -> int:
    return lab.table.value(lab.table.index[RowKey(kind, name)], column)


def _end(lab: Lab, *peers: Peer) -> None:
    for peer in peers:
        peer.close()
    lab.until(lambda: not lab.worker.connections, "no connections")
    lab.turn()
    assert gauges(lab.table) == {}
    assert lab.park or not len(lab.worker.wheel)


def _heir(lab: Lab, config: Config | None = None, generation: int = 2) -> Lab:
    config = config or lab.config
    table = make_table(config, generation=generation)
    heir = Lab(config, table=table, accept=False, park=make_park(f"{generation}-0", generation=generation))
    heir.clock.now = lab.clock.now + 5000.0
    heir.turn()
    return heir


def _finish(lab: Lab, heir: Lab, *peers: Peer) -> None:
    _end(heir, *peers)
    table = heir.table
    heir.__exit__()
    table.close()
    lab.__exit__()


# --- by server name


@pytest.mark.parametrize(("name", "number"), [("a.test", 0), ("b.test", 1), ("c.test", 2), (None, 2)])
@pytest.mark.parametrize("by_the_byte", [False, True])
def test_the_server_name_decides_and_the_server_gets_the_whole_hello(
    farm: Farm, name: str | None, number: int, by_the_byte: bool
) -> None:
    data = hello(name)
    with Lab(make(farm)) as lab:
        client = lab.connect()
        for piece in [data[i : i + 1] for i in range(len(data))] if by_the_byte else [data]:
            client.send(piece)
            lab.turn()
        server = lab.until(lambda: farm.accept(number), "a connection to the server")
        lab.until(lambda: server.read() == data, "the hello")
        server.send(b"answer")
        lab.until(lambda: client.read() == b"answer", "the answer")
        backend = "abc"[number]
        assert _value(lab, "backend", backend, Column.SCUR) == 1
        _end(lab, client, server)
        assert f" www {backend}/s{number + 1} " in lab.lines[-1]
        assert _value(lab, "backend", backend, Column.STOT) == 1
        assert _value(lab, "backend", backend, Column.BIN) == len(data)
        assert _value(lab, "frontend", "www", Column.BIN) == len(data)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.0\r\n\r\n", b"\x16\x02", b"SSH-2.0-x\r\n"])
def test_what_is_no_hello_is_not_waited_for(farm: Farm, data: bytes) -> None:
    with Lab(make(farm)) as lab:
        client = lab.connect()
        client.send(data)
        server = lab.until(lambda: farm.accept(2), "a connection to the default backend")
        lab.until(lambda: server.read() == data, "the data")
        _end(lab, client, server)


@pytest.mark.parametrize("data", [b"", HELLO[:100]], ids=["nothing", "a part"])
def test_after_the_delay_the_default_counts(farm: Farm, data: bytes) -> None:
    with Lab(make(farm)) as lab:
        client = lab.connect()
        client.send(data)
        lab.until(lambda: lab.worker.connections, "a connection")
        lab.settle()
        lab.pass_time(4.9)
        assert [conn.state for conn in lab.worker.connections] == [State.CONTENT]
        lab.pass_time(0.2)
        server = lab.until(lambda: farm.accept(2), "a connection to the default backend")
        client.send(HELLO[len(data) :])
        lab.until(lambda: server.read() == HELLO, "what came before and after")
        _end(lab, client, server)


def test_without_a_delay_nothing_is_waited_for(farm: Farm) -> None:
    with Lab(make(farm, delay=0.0)) as lab:
        client = lab.connect()
        server = lab.until(lambda: farm.accept(2), "a connection to the default backend")
        server.send(b"220 ready")
        lab.until(lambda: client.read() == b"220 ready", "its greeting")
        _end(lab, client, server)


def test_timeout_client_counts_meanwhile(farm: Farm) -> None:
    with Lab(make(farm, timeouts=Timeouts(5, 3, 60))) as lab:
        client = lab.connect()
        lab.until(lambda: lab.worker.connections, "a connection")
        lab.pass_time(3.2)
        _end(lab, client)
        assert " www www/<NOSRV> -1/-1/3200 0 cR 1/1/0/0/0 0/0" in lab.lines[-1]


@pytest.mark.parametrize("data", [HELLO, HELLO[:50], b""], ids=["all", "a part", "nothing"])
def test_an_end_is_the_last_that_comes(farm: Farm, data: bytes) -> None:
    with Lab(make(farm)) as lab:
        client = lab.connect()
        client.send(data)
        client.sock.shutdown(socket.SHUT_WR)
        server = lab.until(lambda: farm.accept(0 if data == HELLO else 2), "a connection to the server")
        lab.until(lambda: server.read() == data and server.eof, "data and end")
        server.send(b"answer")
        server.close()
        lab.until(lambda: client.read() == b"answer" and client.eof, "the answer")
        _end(lab, client)


def test_a_reset_meanwhile_ends_it(farm: Farm) -> None:
    with Lab(make(farm)) as lab:
        client = lab.connect()
        client.send(HELLO[:50])
        lab.until(lambda: lab.worker.connections, "a connection")
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _end(lab, client)
        assert " www www/<NOSRV> -1/-1/0 0 CR " in lab.lines[-1]


# --- by addresses


def test_addresses_decide_at_once_and_in_order(farm: Farm) -> None:
    mine = rule("b", "src", "127.0.0.0/8")
    with Lab(make(farm, (rule("c", "src", "192.0.2.0/24"), mine, *SNI))) as lab:
        client = lab.connect()
        server = lab.until(lambda: farm.accept(1), "a connection to the server")
        server.send(b"220 ready")
        lab.until(lambda: client.read() == b"220 ready", "its greeting")
        _end(lab, client, server)
    with Lab(make(farm, (SNI[0], mine))) as lab:
        client = lab.connect()
        lab.until(lambda: lab.worker.connections, "a connection")
        lab.settle()
        assert not farm.accept(1)
        client.send(b"no hello")
        server = lab.until(lambda: farm.accept(1), "a connection to the server")
        _end(lab, client, server)


def test_the_address_of_a_proxy_header_counts(farm: Farm) -> None:
    rules = (rule("a", "src", "127.0.0.0/8"), rule("b", "dst_port", "443"))
    with Lab(make(farm, rules, accept_proxy=True)) as lab:
        client = lab.connect()
        client.send(V1)
        server = lab.until(lambda: farm.accept(1), "a connection to the server")
        _end(lab, client, server)


@pytest.mark.parametrize("pieces", [[V1 + HELLO], [V1, HELLO], [V1 + HELLO[:9], HELLO[9:]], [V1[:9], V1[9:] + HELLO]])
def test_header_first_and_then_the_hello(farm: Farm, pieces: list[bytes]) -> None:
    with Lab(make(farm, accept_proxy=True)) as lab:
        client = lab.connect()
        for piece in pieces:
            client.send(piece)
            lab.settle()
        server = lab.until(lambda: farm.accept(0), "a connection to the server")
        lab.until(lambda: server.read() == HELLO, "the hello")
        _end(lab, client, server)


def test_without_a_default_whoever_no_rule_names_is_closed(farm: Farm) -> None:
    with Lab(make(farm, default="")) as lab:
        client = lab.connect()
        client.send(b"no hello")
        lab.until(lambda: client.read() == b"" and client.eof, "the end")
        _end(lab, client)
        assert " www www/<NOSRV> -1/-1/0 0 SC 1/1/0/0/0 0/0" in lab.lines[-1]
        other = lab.connect()
        other.send(HELLO)
        server = lab.until(lambda: farm.accept(0), "a connection to the server")
        _end(lab, other, server)


# --- moving and parking


@pytest.mark.parametrize("how", ["move", "freeze"])
@pytest.mark.parametrize("accept_proxy", [False, True])
def test_half_a_hello_moves_and_stays_in_the_kernel(farm: Farm, how: str, accept_proxy: bool) -> None:
    lab = Lab(make(farm, accept_proxy=accept_proxy), park=make_park())
    heir = _heir(lab)
    client = lab.connect()
    client.send(V1 * accept_proxy + HELLO[:50])
    lab.until(lambda: lab.worker.connections, "a connection")
    lab.settle()
    if how == "move":
        assert migrate(lab, heir)["moved"] == 1
    else:
        assert lab.worker.parking.freeze() == (1, {})
        lab.die()
        assert take_over(lab, heir, cold=True)["resumed"] == 1
    (conn,) = heir.worker.connections
    assert (conn.state, conn.client.received) == (State.CONTENT, len(V1) * accept_proxy)
    heir.settle()
    assert conn.state is State.CONTENT
    client.send(HELLO[50:])
    server = heir.until(lambda: farm.accept(0), "a connection to the server")
    heir.until(lambda: server.read() == HELLO, "all of it")
    _finish(lab, heir, client, server)


def test_the_delay_goes_on_elsewhere(farm: Farm) -> None:
    lab = Lab(make(farm))
    heir = _heir(lab)
    client = lab.connect()
    lab.until(lambda: lab.worker.connections, "a connection")
    lab.pass_time(4.0)
    assert migrate(lab, heir)["moved"] == 1
    heir.pass_time(0.5)
    assert not farm.accept(2)
    heir.pass_time(1.0)
    server = heir.until(lambda: farm.accept(2), "a connection to the default backend")
    _finish(lab, heir, client, server)


@pytest.mark.parametrize("default", ["b", "c", ""])
def test_rules_that_have_changed_count_for_whoever_is_undecided(farm: Farm, default: str) -> None:
    """Also where there are none any more, and where the default backend is another one."""
    lab = Lab(make(farm, default=default))
    after = make(farm, ())
    heir = _heir(lab, after)
    client = lab.connect()
    client.send(HELLO[:50])
    lab.until(lambda: lab.worker.connections, "a connection")
    lab.settle()
    assert migrate(lab, heir)["moved"] == 1
    server = heir.until(lambda: farm.accept(2), "a connection to the new default backend")
    client.send(HELLO[50:])
    heir.until(lambda: server.read() == HELLO, "all of it")
    _finish(lab, heir, client, server)


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("how", ["move", "die"])
def test_who_was_sent_somewhere_stays_there(farm: Farm, gone: bool, how: str) -> None:
    """Counted with its backend, unless that one is configured no more."""
    config = make(farm)
    lab = Lab(config, park=make_park())
    after = replace(config, frontends=(replace(config.frontends[0], use_backend=()),), backends=config.backends[1:])
    heir = _heir(lab, after if gone else None)
    client = lab.connect()
    client.send(HELLO)
    server = lab.until(lambda: farm.accept(0), "a connection to the server")
    lab.until(lambda: server.read() == HELLO, "the hello")
    lab.pass_time(2.0)
    lab.pass_time(1.0)
    if how == "move":
        assert migrate(lab, heir)["moved"] == 1
    else:
        lab.die()
        assert take_over(lab, heir, cold=True)["resumed"] == 1
    (conn,) = heir.worker.connections
    assert conn.backend.name == "a" and conn.slot >= 0
    heir.turn()
    assert _value(heir, "frontend", "www", Column.SCUR) == 1
    if not gone:
        assert _value(heir, "backend", "a", Column.SCUR) == 1
    client.send(b"more")
    heir.until(lambda: server.read() == HELLO + b"more", "more")
    _finish(lab, heir, client, server)


# --- who is let in


def _tcp(action: Any, *source: str) -> TcpRule:
    return TcpRule(action, Condition(((Term((Acl("src", values=source),)),),)) if source else None)


def test_whom_a_rule_turns_away_is_closed_at_once_and_without_a_line(farm: Farm) -> None:
    rules = (_tcp("accept", "192.0.2.0/24"), _tcp("reject", "127.0.0.0/8"))
    with Lab(make(farm, (), tcp_rules=rules, accept_proxy=True)) as lab:
        client = lab.connect()
        client.send(V1)
        lab.until(lambda: client.read() == b"" and client.eof, "the end")
        lab.turn()
        assert not lab.lines and not lab.worker.connections
        assert _value(lab, "frontend", "www", Column.DCON) == 1
        assert _value(lab, "frontend", "www", Column.STOT) == 0
        # Numbers go on from the sessions that were counted, should the worker die.
        assert lab.worker.next_number() == lab.worker.setup.first_number


@pytest.mark.parametrize(
    "rules",
    [(_tcp("reject", "192.0.2.0/24"),), (_tcp("accept", "127.0.0.1"), _tcp("reject"))],
)
def test_whom_no_rule_turns_away_is_let_in(farm: Farm, rules: tuple[TcpRule, ...]) -> None:
    with Lab(make(farm, (), tcp_rules=rules)) as lab:
        client = lab.connect()
        server = lab.until(lambda: farm.accept(2), "a connection to the server")
        _end(lab, client, server)
        assert _value(lab, "frontend", "www", Column.DCON) == 0


@given(st.integers(1, 1000), st.integers(0, 3000), st.integers(0, 3000), st.floats(0.0, 0.999))
def test_after_the_pause_one_more_may_begin_and_not_much_before(limit: int, before: int, now: int, part: float) -> None:
    wait = pause(limit, before, now, part)
    assert 0.0 <= wait <= 2.01
    at = part + wait
    # What has come is of the second before, once this one is over.
    later = (limit, before, now, at) if at < 1.0 else (limit, now, 0, at - 1.0) if at < 2.0 else (limit, 0, 0, 0.0)
    assert pause(*later) == 0.0


def test_beyond_the_rate_they_wait_in_the_backlog(farm: Farm) -> None:
    with Lab(make(farm, (), rate_limit=5)) as lab:
        clients = [lab.connect() for _ in range(12)]
        lab.settle()
        assert len(lab.worker.connections) == 5
        assert lab.turn() == 0  # nothing spins
        lab.pass_time(0.5)
        assert len(lab.worker.connections) == 5
        history = []
        while len(lab.worker.connections) < 12:
            lab.pass_time(0.1)
            lab.settle()
            history.append(len(lab.worker.connections))
            assert len(history) < 40
        # Never more than 5 in a second, and as many as that in the long run.
        assert all(later - earlier <= 6 for earlier, later in zip(history, history[10:], strict=False))
        assert 12 <= len(history) <= 25
        for client in clients:
            client.close()
        servers = [peer for peer in iter(lambda: farm.accept(2), None)]
        lab.pass_time(35.0)  # what was suppressed of the log has been said
        _end(lab, *servers)
        lab.pass_time(5.0)
        assert not len(lab.worker.wheel)
        first, last = [text for severity, text in lab.logged if severity == "warning"]
        assert first == "frontend www lets in no more than 5 sessions a second: new clients wait"
        assert last.startswith(first)


def test_all_workers_share_the_rate(farm: Farm) -> None:
    config = make(farm, (), rate_limit=4)
    table = make_table(config, workers=2)
    with Lab(config, table=table) as one, Lab(config, table=table, index=1, clock=one.clock) as other:
        clients = [lab.connect() for lab in (one, other) for _ in range(4)]
        one.settle()
        other.settle()
        assert (len(one.worker.connections), len(other.worker.connections)) == (4, 0)
        for _ in range(3):
            for lab in (one, other):
                lab.turn()
            one.clock.now += 1.0
        for lab in (other, one):
            lab.settle()
        assert len(other.worker.connections) == 4
        for client in clients:
            client.close()
        for peer in iter(lambda: farm.accept(2), None):
            peer.close()
        for lab in (one, other):
            lab.until(lambda lab=lab: not lab.worker.connections, "no connections")  # type: ignore[misc]
    table.close()
