"""What operators change at run time, in a worker: each order, what it does to connections, and to those that move."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hitlessd.model import Backend, Check, Config, Cookie, InetAddress, Server, Timeouts, UnixAddress
from hitlessd.records import dump_server, load_server, parse_address
from hitlessd.table import Column, RowKey, ServerState
from hitlessd.worker.http.state import HttpState
from hitlessd.worker.serial import to_serial
from tests.support.descriptors import no_leak
from tests.support.relay import Farm, Lab, Peer, gauges, listen, make_config, make_park, make_table, migrate, take_over
from tests.support.web import TIMES, Web, web_config

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def farm() -> Iterator[Farm]:
    with no_leak():
        made = Farm(3)
        yield made
        made.close()


def change(lab: Lab, kind: str, server: str = "", value: Any = True, proxy: str = "") -> str:
    """Make a change, twice as fits an order that may be repeated; why it is refused, or ""."""
    proxy = proxy or ("app" if kind.startswith("server") else "www" if kind.startswith("frontend") else "")
    answers = [lab.order("change", kind=kind, proxy=proxy, server=server, value=value) for _ in range(2)]
    assert answers[0] == answers[1]
    return str(answers[0].get("why", ""))


def add(lab: Lab, server: Server, state: ServerState = ServerState.READY) -> str:
    """As main does: a row first, then the state, then the order."""
    row = lab.table.add_row(RowKey("server", "app", server.name))
    lab.table.set_state(row, state, server.weight, 0)
    return change(lab, "server-added", server.name, {"row": row, "record": dump_server(replace(server, added=True))})


def with_added(config: Config, *servers: Server) -> Config:
    """The configuration that later workers get."""
    backend = config.backends[0]
    added = tuple(replace(server, added=True) for server in servers)
    return replace(config, backends=(replace(backend, servers=(*backend.servers, *added)),))


def first_of(farm: Farm) -> Farm:
    """Its first server alone."""
    return Farm(1, farm.listeners[:1], farm.peers)


def set_state(lab: Lab, server: str, to: ServerState) -> None:
    lab.table.set_state(lab.table.index[RowKey("server", "app", server)], to, 1, 0)


def meet(lab: Lab, farm: Farm) -> tuple[Peer, Peer, int]:
    """A client, its server, and which one of the farm that is."""
    client = lab.connect()
    found: list[tuple[Peer, int]] = []

    def accepted() -> bool:
        found.extend((peer, at) for at in range(farm.count) if (peer := farm.accept(at)))
        return bool(found)

    lab.until(accepted, "a connection to a server")
    return client, *found[0]


def talk(lab: Lab, client: Peer, server: Peer) -> None:
    """Bytes pass both ways."""
    before = len(server.read()), len(client.read())
    client.send(b"to")
    server.send(b"fro")
    lab.until(lambda: (len(server.read()), len(client.read())) == (before[0] + 2, before[1] + 3), "bytes both ways")


def state(lab: Lab, number: int) -> str:
    return str(list(lab.worker.connections)[number].state)


# -- records -------------------------------------------------------------------------------------------------------

WHOLE = Server(
    "s", InetAddress("::1", 80), 7, 0, True, True, True, True, 9, "host",
    check=Check(1.5, 0.5, None, 3, 4, UnixAddress("\0x"), 1), slowstart=2.5, cookie="c", send_proxy=2, observe="layer7",
    error_limit=3, on_error="mark-down", on_marked_down="shutdown-sessions", pool_max_conn=0, pool_purge_delay=1.5,
)  # fmt: skip


@pytest.mark.parametrize(
    "server",
    [Server("s", UnixAddress("/x")), Server("s", InetAddress("1.2.3.4", 0), check=Check()), WHOLE],
    ids=["unix", "inet", "whole"],
)
def test_a_server_is_the_same_after_its_journey(server: Server) -> None:
    assert load_server(dump_server(server)) == server
    # Of another version.
    assert load_server({**dump_server(server), "later": 1}) == server


@pytest.mark.parametrize("address", [InetAddress("1.2.3.4", 80), InetAddress("::1", 1), UnixAddress("/x@y:1")])
def test_an_address_is_read_as_it_is_written(address: InetAddress | UnixAddress) -> None:
    assert parse_address(str(address)) == address


def test_other_forms_of_addresses() -> None:
    assert parse_address("/x@y:1") == UnixAddress("/x@y:1")
    assert parse_address("abns@x:1") == UnixAddress("\0x:1")
    for wrong in ("", "host", ":1", "1.2.3.4:", "1.2.3.4:x", "unix@", "[::1]"):
        with pytest.raises(ValueError, match="is no address"):
            parse_address(wrong)


# -- orders that make no sense ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "why"),
    [
        (
            {"kind": "server-address", "server": "x", "value": "1.2.3.4:1"},
            "cannot change server app/x: this worker has",
        ),
        ({"kind": "server-maxconn", "proxy": "y", "server": "s1", "value": 1}, "cannot change backend y: this worker"),
        ({"kind": "frontend-state", "proxy": "y", "value": "on"}, "cannot change frontend y: this worker has none"),
        ({"kind": "frontend-state", "proxy": "www", "value": "perhaps"}, "cannot make a change of the kind"),
        ({"kind": "server-address", "server": "s1", "value": "nowhere"}, "cannot make a change of the kind"),
        ({"kind": "server-maxconn", "server": "s1", "value": "many"}, "cannot make a change of the kind"),
        ({"kind": "server-maxconn", "server": "s1"}, "cannot make a change of the kind"),
        ({"kind": "server-added", "server": "x", "value": {"row": 1}}, "cannot make a change of the kind"),
        ({"kind": "server-state", "server": "s1", "value": "ready"}, "cannot make a change of the kind 'server-state'"),
        ({}, "cannot make a change of the kind 'None': unknown"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(farm: Farm, order: dict[str, Any], why: str) -> None:
    with Lab(make_config(farm.servers())) as lab:
        before = lab.worker.backends["app"].config, lab.worker.frontends["www"].config
        answer = lab.order("change", **({"proxy": "app"} | order))
        assert answer["why"].startswith(why)
        assert (lab.worker.backends["app"].config, lab.worker.frontends["www"].config) == before
        assert lab.order("shut-frontend", proxy="y")["why"] == (
            "cannot change frontend y: this worker has none of that name"
        )
        lab.pair(farm)


def test_a_server_without_a_row_or_of_another_name_is_not_added(farm: Farm) -> None:
    with Lab(make_config(farm.servers())) as lab:
        record = dump_server(replace(farm.server(0), name="new"))
        assert "no row" in change(lab, "server-added", "new", {"row": 99, "record": record})
        assert "told of as new" in change(lab, "server-added", "other", {"row": 99, "record": record})
        assert len(lab.worker.backends["app"].servers) == 3


# -- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["inet", "unix"])
def test_new_connections_go_to_the_new_address_and_old_ones_stay(farm: Farm, family: str, tmp_path: Path) -> None:
    with Lab(make_config([farm.server(0)])) as lab:
        client, server = lab.pair(farm)
        if family == "unix":
            farm.listeners[1].close()
            farm.listeners[1] = listen(str(tmp_path / "s"))
        address = farm.server(1).address
        assert change(lab, "server-address", "s1", str(address)) == ""
        backend = lab.worker.backends["app"]
        assert backend.config.servers[0].address == backend.servers[0].config.address == address
        fresh = lab.pair(farm, 1)
        talk(lab, client, server)
        talk(lab, *fresh)
        assert farm.accept(0) is None
        for peer in (client, server, *fresh):
            peer.close()
        lab.until(lambda: not lab.worker.connections)
        lab.turn()
        assert gauges(lab.table) == {}


def test_who_waits_for_another_attempt_makes_it_at_the_new_address(farm: Farm) -> None:
    nobody = InetAddress("127.0.0.1", 1)
    config = make_config([Server("s1", nobody)], retries=3, timeouts=Timeouts(connect=5))
    with Lab(config) as lab:
        client = lab.connect()
        lab.until(lambda: lab.worker.connections and state(lab, 0) == "paused")
        change(lab, "server-address", "s1", str(farm.server(0).address))
        lab.pass_time(1.1)
        server = lab.until(farm.accept)
        talk(lab, client, server)


@pytest.mark.parametrize("plain", [True, False])
def test_kept_connections_to_the_old_address_are_closed(farm: Farm, plain: bool) -> None:
    """Those that wait, and those that come back from an exchange that was under way, whichever way that goes."""
    with Web(first_of(farm)) as web:
        idle, kept = web.served()
        waiting = web.connect()
        waiting.sock.sendall(GET)
        asked = web.serve()  # its first request gets a connection of its own
        web.gets(asked, GET)
        assert (web.worker.idle, web.worker.frontends["www"].direct) == (1, True)
        if not plain:
            asked.sock.sendall(OK[:10])
            web.until(lambda: any(conn.reply for conn in web.worker.connections if isinstance(conn, HttpState)))
        assert change(web, "server-address", "s1", str(farm.server(1).address)) == ""
        web.ends(kept)
        # The one under way ends where it began, and is of no use to others then.
        asked.sock.sendall(OK if plain else OK[10:])
        web.gets(waiting, OK)
        web.ends(asked)
        assert web.worker.idle == 0
        idle.sock.sendall(GET)
        fresh = web.until(lambda: farm.accept(1), "a connection to the new address")
        web.exchange_on(idle, fresh, GET)
        web.exchange(waiting, fresh, GET)
        assert web.worker.idle == 1


# -- limits of servers ---------------------------------------------------------------------------------------------


def test_a_greater_limit_serves_who_waits_and_a_smaller_one_cuts_nobody_off(farm: Farm) -> None:
    with Lab(make_config([farm.server(0, maxconn=1)], timeouts=Timeouts(queue=9))) as lab:
        clients = [lab.connect() for _ in range(4)]
        server = lab.worker.backends["app"].servers[0]
        lab.until(lambda: lab.value("backend", Column.QCUR) == 3)
        assert change(lab, "server-maxconn", "s1", 3) == ""
        lab.until(lambda: lab.value("backend", Column.QCUR) == 1 and server.sessions == 3)
        peers = [lab.until(farm.accept) for _ in range(3)]
        assert change(lab, "server-maxconn", "s1", 2) == ""
        lab.settle()
        assert (server.sessions, lab.value("backend", Column.QCUR), server.config.maxconn) == (3, 1, 2)
        for number, waiting in ((0, 1), (1, 0)):
            peers[number].close()
            clients[number].close()
            lab.until(lambda left=waiting: lab.value("backend", Column.QCUR) == left)  # type: ignore[misc]
        assert server.sessions == 2
        for _ in range(3):
            clients.append(lab.connect())
        lab.until(lambda: lab.value("backend", Column.QCUR) == 3)
        assert change(lab, "server-maxconn", "s1", 0) == ""
        lab.until(lambda: server.sessions == 5)
        assert not lab.worker.backends["app"].limited


def test_a_limit_that_was_not_there(farm: Farm) -> None:
    with Web(farm) as web:
        for name in ("s2", "s3"):
            set_state(web, name, ServerState.MAINT)
        client, server = web.served()
        client.sock.sendall(GET)
        web.gets(server, GET)
        change(web, "server-maxconn", "s1", 1)
        other = web.connect()
        other.sock.sendall(GET)
        web.until(lambda: web.value("backend", Column.QCUR) == 1)
        server.sock.sendall(OK)
        web.gets(client, OK)
        # An HTTP server's slot is free when the exchange is over: its connection serves the one who waits, who has made
        # no request before and gets a new one.
        web.exchange_on(other, web.serve(), GET)
        assert web.value("backend", Column.QCUR) == 0 and gauges(web.table).keys() <= {
            "process   SCUR", "frontend www  SCUR"
        }  # fmt: skip


# -- servers that come and go --------------------------------------------------------------------------------------


def test_a_server_that_is_added_gets_its_share_and_can_go_and_come_again(farm: Farm) -> None:
    with Lab(make_config([farm.server(0)])) as lab:
        assert add(lab, farm.server(1)) == ""
        met = [meet(lab, farm) for _ in range(4)]
        assert sorted(number for *_, number in met) == [0, 0, 1, 1]
        lab.settle()
        assert (lab.value("s1", Column.SCUR), lab.value("s2", Column.SCUR)) == (2, 2)
        assert [server.name for server in lab.worker.backends["app"].config.servers] == ["s1", "s2"]
        row = lab.table.index[RowKey("server", "app", "s2")]
        lab.table.set_state(row, ServerState.MAINT, 1, 0)
        assert change(lab, "server-deleted", "s2") == "cannot delete server app/s2: 2 connections of it are left"
        for client, server, number in met:
            talk(lab, client, server)
            if number:
                client.close()
                server.close()
        lab.until(lambda: len(lab.worker.connections) == 2)
        assert change(lab, "server-deleted", "s2") == ""
        assert [server.name for server in lab.worker.backends["app"].config.servers] == ["s1"]
        lab.pair(farm, 0)
        # The totals go on where they were.
        assert add(lab, replace(farm.server(2), name="s2")) == ""
        assert sorted(meet(lab, farm)[2] for _ in range(2)) == [0, 2]
        lab.turn()
        assert lab.table.index[RowKey("server", "app", "s2")] == row
        assert (lab.value("s2", Column.STOT), lab.value("s2", Column.SCUR)) == (3, 1)


def test_servers_that_were_added_stand_behind_the_others_by_number(farm: Farm) -> None:
    """In the order in which those who get them with their configuration have them: a hash must mean the same there."""
    with Lab(make_config([farm.server(0)], balance="source")) as lab:
        for name, sid in (("c", 3), ("d", 4)):
            add(lab, replace(farm.server(1), name=name, sid=sid))
        change(lab, "server-deleted", "c")
        add(lab, replace(farm.server(2), name="e", sid=3))
        assert [server.name for server in lab.worker.backends["app"].servers] == ["s1", "e", "d"]


def test_a_server_in_maintenance_waits_until_it_is_ready(farm: Farm) -> None:
    with Lab(make_config([])) as lab:
        client = lab.connect()
        lab.until(lambda: client.read() == b"" and client.eof)
        assert add(lab, farm.server(0), ServerState.MAINT) == ""
        client = lab.connect()
        lab.until(lambda: client.read() == b"" and client.eof)
        set_state(lab, "s1", ServerState.READY)
        talk(lab, *lab.pair(farm))


def test_a_server_with_a_limit_that_is_added_takes_who_waits(farm: Farm) -> None:
    with Lab(make_config([farm.server(0, maxconn=1)], timeouts=Timeouts(queue=9))) as lab:
        for _ in range(3):
            lab.connect()
        lab.until(lambda: lab.value("backend", Column.QCUR) == 2)
        add(lab, farm.server(1, maxconn=1))
        lab.until(lambda: lab.value("backend", Column.QCUR) == 1 and farm.accept(1))


def test_idle_connections_end_with_their_server(farm: Farm) -> None:
    with Web(farm) as web:
        client, server = web.served()
        web.turn()
        assert web.value("s1", Column.IDLE) == 1
        set_state(web, "s1", ServerState.DRAIN)
        assert change(web, "server-deleted", "s1") == ""
        web.ends(server)
        web.settle()
        assert (web.worker.idle, web.value("s1", Column.IDLE), web.value("s1", Column.FRESH)) == (0, 0, 0)
        frontend = web.worker.frontends["www"]
        assert all(account.name != "s1" for account in frontend.accounts)
        client.sock.sendall(GET)
        web.exchange_on(client, web.serve(1), GET)
        assert (web.value("s1", Column.REQ_TOT), web.value("backend", Column.REQ_TOT)) == (1, 2)


def test_requests_go_the_direct_way_as_long_as_every_server_lets_them(farm: Farm) -> None:
    with Web(first_of(farm)) as web:
        client, server = web.served()
        frontend = web.worker.frontends["www"]
        ways = [frontend.direct]
        client.sock.sendall(GET)
        web.gets(server, GET)
        assert add(web, farm.server(1, send_proxy=1)) == ""
        ways.append(frontend.direct)
        server.sock.sendall(OK)  # it was under way
        web.gets(client, OK)
        for _ in range(2):
            client.sock.sendall(GET)
            fresh = web.until(lambda: farm.accept(1) or (server.read() and server), "the request somewhere")
            if fresh is server:
                web.exchange_on(client, server, GET)
            else:
                assert web.hears(fresh, GET).startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")
                fresh.sock.sendall(OK)
                web.gets(client, OK)
        set_state(web, "s2", ServerState.MAINT)
        assert change(web, "server-deleted", "s2") == ""
        assert [*ways, frontend.direct] == [True, False, True]
        client.sock.sendall(GET)
        web.exchange_on(client, server, GET)


def test_a_cookie_names_a_server_as_long_as_that_is_there(farm: Farm) -> None:
    with Web(first_of(farm), backend={"cookie": Cookie("SRV")}, server={"cookie": "one"}) as web:
        add(web, replace(farm.server(1), cookie="two"))
        ask = b"GET / HTTP/1.1\r\nHost: a\r\nCookie: SRV=two\r\n\r\n"
        client = web.connect()
        client.sock.sendall(ask)
        server = web.until(lambda: farm.accept(1))
        web.exchange_on(client, server, ask)
        set_state(web, "s2", ServerState.MAINT)
        assert change(web, "server-deleted", "s2") == ""
        client.sock.sendall(ask)
        server = web.serve()
        web.hears(server, b"\r\n\r\n")
        server.sock.sendall(OK)
        assert b"Set-Cookie: SRV=one" in web.hears(client, b"\r\n\r\nok")


def test_who_waits_for_a_server_that_goes_gets_another(farm: Farm) -> None:
    servers = [farm.server(0, cookie="one", maxconn=1), farm.server(1, cookie="two", maxconn=1)]
    config = web_config(servers, backend={"cookie": Cookie("SRV")})
    with Lab(config) as lab:
        ask = b"GET / HTTP/1.1\r\nHost: a\r\nCookie: SRV=two\r\n\r\n"
        busy, waits = lab.connect(), lab.connect()
        busy.sock.sendall(ask)
        server = lab.until(lambda: farm.accept(1))
        lab.until(lambda: server.read().endswith(b"\r\n\r\n"))
        waits.sock.sendall(ask)
        lab.until(lambda: lab.value("s2", Column.QCUR) == 1)
        set_state(lab, "s2", ServerState.MAINT)
        # The state alone sends it elsewhere; the server can go when its last connection has.
        other = lab.until(lambda: farm.accept(0))
        assert "1 connections" in change(lab, "server-deleted", "s2")
        server.sock.sendall(OK)
        lab.until(lambda: busy.read().endswith(b"ok"))
        assert change(lab, "server-deleted", "s2") == ""
        lab.until(lambda: other.read().endswith(b"\r\n\r\n"))
        other.sock.sendall(OK)
        lab.until(lambda: waits.read().endswith(b"ok"))


# -- connections that move -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def next_generation(config: Config, lab: Lab, park: bool = False) -> Iterator[Lab]:
    """Another worker, whose table is laid out anew."""
    table = make_table(config, generation=2)
    with contextlib.ExitStack() as stack:
        stack.callback(table.close)
        new = stack.enter_context(
            Lab(config, table=table, accept=False, park=make_park("2-0", generation=2) if park else None)
        )
        new.clock.now = lab.clock.now
        yield new


def test_connections_of_an_added_server_move_to_the_successor(farm: Farm) -> None:
    config = make_config([])
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(Lab(config))
        add(old, farm.server(0))
        client, server = old.pair(farm)
        new = stack.enter_context(next_generation(with_added(config, farm.server(0)), old))
        assert migrate(old, new) == {"moved": 1, "kept": {}, "lost": 0}
        talk(new, client, server)
        (conn,) = new.worker.connections
        assert conn.target is new.worker.backends["app"].servers[0]
        assert new.value("s1", Column.SCUR) == 1
        # What the operator does there reaches it.
        assert "1 connections" in change(new, "server-deleted", "s1")


def test_a_server_that_the_configuration_has_lost_is_added_again_with_its_connections(farm: Farm) -> None:
    config = make_config([farm.server(0)])
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(Lab(config))
        client, server = old.pair(farm)
        new = stack.enter_context(next_generation(make_config([farm.server(1)]), old))
        assert migrate(old, new)["moved"] == 1
        (conn,) = new.worker.connections
        assert conn.target is not None and conn.target not in new.worker.backends["app"].servers
        # Elsewhere by now: its old connection stays where it is.
        assert add(new, replace(farm.server(2), name="s1")) == ""
        assert conn.target in new.worker.backends["app"].servers
        talk(new, client, server)
        new.turn()
        assert new.value("s1", Column.SCUR) == 1
        new.order("accept")
        late = [meet(new, farm) for _ in range(2)]
        assert sorted(number for *_, number in late) == [1, 2]
        new.until(lambda: new.value("s1", Column.SCUR) == 2)
        for peer in (client, server, *(peer for one, other, _ in late for peer in (one, other))):
            peer.close()
        new.until(lambda: not new.worker.connections)
        new.turn()
        assert gauges(new.table) == {}
        assert change(new, "server-deleted", "s1") == ""


@pytest.mark.parametrize("heir", ["told", "forked", "ignorant"])
@pytest.mark.parametrize("frozen", [False, True])
def test_connections_of_an_added_server_outlive_their_worker(farm: Farm, heir: str, frozen: bool) -> None:
    """Whoever comes after it has got the order too, or was forked with the server; and even if not."""
    config = make_config([farm.server(0)], timeouts=Timeouts(client=60, server=60))
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(Lab(config, park=make_park()))
        first = old.pair(farm)  # the notes of the park tell of the backend from here on
        old.pass_time(1.1)
        add(old, farm.server(1))
        set_state(old, "s1", ServerState.DRAIN)
        client, server = old.pair(farm, 1)
        for _ in range(3):
            old.pass_time(1.1)
        assert old.table.value(0, Column.PARKED) == 2
        if frozen:
            old.worker.parking.freeze()
        old.die()
        later = with_added(config, farm.server(1)) if heir == "forked" else config
        new = stack.enter_context(next_generation(later, old, park=True))
        if heir == "told":
            add(new, farm.server(1))
        report = take_over(old, new, cold=True)
        assert (report["resumed"], report["ended"], report["lost"]) == (2, 0, {})
        talk(new, client, server)
        talk(new, *first)
        targets = {conn.target.name: conn.target for conn in new.worker.connections if conn.target}
        assert sorted(targets) == ["s1", "s2"]
        assert (targets["s2"] in new.worker.backends["app"].servers) is (heir != "ignorant")
        assert {to_serial(conn).server for conn in new.worker.connections} == targets.keys()


def test_an_exchange_with_an_added_server_moves_and_so_does_its_kept_connection(farm: Farm) -> None:
    config = web_config([])
    later = with_added(config, farm.server(0))
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(Lab(config))
        add(old, farm.server(0))
        clients = [old.connect() for _ in range(2)]
        servers = []
        for client in clients:
            client.sock.sendall(GET)
            servers.append(old.until(farm.accept))
            old.until(lambda: servers[-1].read() == GET)
        servers[1].sock.sendall(OK)
        old.until(lambda: clients[1].read() == OK)
        assert old.worker.idle == 1
        new = stack.enter_context(next_generation(later, old))
        assert migrate(old, new) == {"moved": 2, "kept": {}, "lost": 0}
        assert new.worker.idle == 1
        servers[0].sock.sendall(OK)
        new.until(lambda: clients[0].read() == OK)
        clients[1].sock.sendall(GET)
        new.until(lambda: (servers[0].read(), servers[1].read()) in ((GET, 2 * GET), (2 * GET, GET)))
        assert all(isinstance(conn, HttpState) for conn in new.worker.connections)


# -- frontends -----------------------------------------------------------------------------------------------------


def test_a_frontend_that_is_off_lets_nobody_in_and_serves_who_is_there(farm: Farm) -> None:
    with Lab(make_config(farm.servers())) as lab:
        pair = lab.pair(farm)
        assert change(lab, "frontend-state", value="off") == ""
        late = lab.connect()
        for order in ("accept", "pause", "resume", "sweep", "stop", "accept"):
            lab.order(order)
            lab.settle()
            assert len(lab.worker.connections) == 1, order
        assert lab.turn() == 0  # it does not spin
        talk(lab, *pair)
        assert change(lab, "frontend-state", value="on") == ""
        talk(lab, late, lab.until(lambda: farm.accept(1)))


def test_a_frontend_that_is_off_from_the_beginning(farm: Farm) -> None:
    config = make_config(farm.servers())
    config = replace(config, frontends=(replace(config.frontends[0], disabled=True),))
    with Lab(config) as lab:
        lab.connect()
        lab.settle()
        assert not lab.worker.connections
        change(lab, "frontend-state", value="on")
        assert lab.until(farm.accept)


def test_a_frontend_is_shut_for_good(farm: Farm) -> None:
    with Lab(make_config(farm.servers())) as lab:
        pair = lab.pair(farm)
        waiting = lab.connect()
        assert lab.order("shut-frontend", proxy="www") == {"did": "shut-frontend"}
        assert len(lab.worker.connections) == 2  # who had come before is served
        lab.connect()
        assert lab.order("shut-frontend", proxy="www") == {"did": "shut-frontend"}
        assert change(lab, "frontend-state", value="off") == change(lab, "frontend-state", value="on") == ""
        lab.order("accept")
        lab.settle()
        assert len(lab.worker.connections) == 2
        talk(lab, *pair)
        talk(lab, waiting, lab.until(lambda: farm.accept(1)))


def test_a_frontend_that_is_off_is_shut_without_letting_anybody_in(farm: Farm) -> None:
    with Lab(make_config(farm.servers())) as lab:
        change(lab, "frontend-state", value="off")
        lab.connect()
        lab.order("shut-frontend", proxy="www")
        assert not lab.worker.connections


@pytest.mark.parametrize("kind", ["frontend-maxconn", "global-maxconn"])
def test_more_or_fewer_may_be_connected(farm: Farm, kind: str) -> None:
    with Lab(make_config(farm.servers(), maxconn=2), maxconn=2) as lab:
        other = "frontend-maxconn" if kind == "global-maxconn" else "global-maxconn"
        change(lab, other, value=0)
        clients = [lab.connect() for _ in range(6)]
        lab.settle()
        assert len(lab.worker.connections) == 2
        assert change(lab, kind, value=4) == ""
        lab.until(lambda: len(lab.worker.connections) == 4)
        assert change(lab, kind, value=1) == ""
        lab.settle()
        assert len(lab.worker.connections) == 4  # nobody is cut off
        for client in clients[:4]:
            client.close()
        for number in range(3):
            for _ in range(2):
                if peer := farm.accept(number):
                    peer.close()
        lab.until(lambda: len(lab.worker.connections) == 1)
        lab.settle()
        assert len(lab.worker.connections) == 1
        assert change(lab, kind, value=0) == ""
        lab.until(lambda: len(lab.worker.connections) == 2)
        assert lab.worker.frontends["www"].config.maxconn == 0


def test_kept_connections_beyond_a_smaller_limit_are_closed(farm: Farm) -> None:
    with Web(first_of(farm), maxconn=10) as web:
        clients = [web.connect() for _ in range(3)]
        servers = []
        for client in clients:
            client.sock.sendall(GET)
            servers.append(web.serve())
        for client, server in zip(clients, servers, strict=True):
            web.exchange_on(client, server, GET)
        assert web.worker.idle == 3
        change(web, "global-maxconn", value=4)
        assert web.worker.idle == 1
        change(web, "global-maxconn", value=1)
        assert web.worker.idle == 0
        assert len(web.worker.connections) == 3


# -- counters ------------------------------------------------------------------------------------------------------


def test_maxima_begin_anew(farm: Farm) -> None:
    with Lab(make_config([farm.server(0)])) as lab:
        pairs = [lab.pair(farm) for _ in range(3)]
        for peer in pairs[0]:
            peer.close()
        lab.until(lambda: len(lab.worker.connections) == 2)
        lab.turn()
        kinds = ("process", "frontend", "backend", "s1")
        assert [lab.value(kind, Column.SMAX) for kind in kinds] == [3] * 4
        last = lab.value("frontend", Column.LASTSESS)
        assert lab.order("clear-maxima") == {"did": "clear-maxima"}
        lab.settle()
        assert [lab.value(kind, Column.SMAX) for kind in kinds] == [0] * 4
        assert lab.value("frontend", Column.LASTSESS) == last > 0
        lab.pair(farm)
        lab.turn()
        # As with HAProxy, from the next session on.
        assert [lab.value(kind, Column.SMAX) for kind in kinds] == [3] * 4
        assert [lab.value(kind, Column.STOT) for kind in kinds] == [4] * 4
        lab.order("clear-maxima", all=True)
        assert lab.value("frontend", Column.LASTSESS) == lab.value("frontend", Column.SMAX) == 0
        assert [lab.value(kind, Column.SCUR) for kind in kinds] == [3] * 4


def test_what_retired_proxies_count_is_left_alone(farm: Farm) -> None:
    """Connections that came from a frontend that is gone know nothing of changes."""
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(Lab(make_config([farm.server(0)], timeouts=TIMES)))
        client, server = old.pair(farm)
        config = make_config([farm.server(1)], timeouts=TIMES)
        gone = replace(
            config,
            frontends=(replace(config.frontends[0], name="new", default_backend="b2"),),
            backends=(Backend("b2", 9, config.backends[0].servers),),
        )
        new = stack.enter_context(next_generation(gone, old))
        migrate(old, new)
        for kind, proxy, name, value in (
            ("server-maxconn", "b2", "s2", 1),
            ("frontend-state", "new", "", "off"),
            ("frontend-maxconn", "new", "", 1),
            ("global-maxconn", "", "", 1),
        ):
            assert change(new, kind, name, value, proxy) == ""
        new.order("shut-frontend", proxy="new")
        new.order("clear-maxima", all=True)
        talk(new, client, server)
