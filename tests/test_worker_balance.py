"""Balancing in a worker: states, backups, slowstart, cookies, keys, queues. The rules: docs/balancing.md."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from hitlessd.hashing import MapBased, source_hash, text_hash
from hitlessd.http.cookies import from_client
from hitlessd.model import Config, Cookie, InetAddress, Server, Timeouts
from hitlessd.table import Column, Health, HealthRecord, RowKey, ServerState, Table
from hitlessd.worker.backend import LiveBackend
from hitlessd.worker.connection import Connection
from tests.support.relay import Farm, Lab, Peer, gauges, make_config, make_table

TIMES = Timeouts(connect=30, client=60, server=60, queue=10)


@pytest.fixture
def farm() -> Iterator[Farm]:
    made = Farm(3)
    yield made
    made.close()


def configure(servers: Sequence[Server], timeouts: Timeouts = TIMES, **options: Any) -> Config:
    """With these options of the backend."""
    config = make_config(servers, timeouts=timeouts)
    return replace(config, backends=(replace(config.backends[0], **options),))


def backend_of(lab: Lab) -> LiveBackend:
    return lab.worker.backends["app"]


def row(table: Table, server: str) -> int:
    return table.index[RowKey("server", "app", server)]


def connect(lab: Lab, host: int = 1) -> socket.socket:
    """A client from 127.0.0.HOST, as far as it gets."""
    sock = socket.socket()
    sock.bind((f"127.0.0.{host}", 0))
    sock.connect(lab.address)
    lab.clients.append(Peer(sock))
    lab.settle()
    return sock


def scur(lab: Lab) -> list[int]:
    return [lab.value(server.name, Column.SCUR) for server in backend_of(lab).servers]


def qcur(lab: Lab) -> list[int]:
    """Who waits for any server, for s1, for s2, ..."""
    return [lab.value(name, Column.QCUR) for name in ("backend", *(s.name for s in backend_of(lab).servers))]


class Times:
    """What health checks say in the table, and since when."""

    def comes_back(self, lab: Lab, server: str, seconds_ago: int = 0) -> None:
        self.goes_down(lab, server)
        up_since = int(time.time()) - seconds_ago
        lab.table.set_health(row(lab.table, server), HealthRecord(Health.UP, up_since=up_since))
        lab.turn()

    def goes_down(self, lab: Lab, server: str) -> None:
        lab.table.set_health(row(lab.table, server), HealthRecord(Health.DOWN))
        lab.turn()


@pytest.fixture
def times() -> Times:
    return Times()


@dataclass
class Request:
    target: bytes = b"/"
    fields: dict[bytes, list[bytes]] | None = None

    def values(self, name: bytes) -> list[bytes]:
        return (self.fields or {}).get(name, [])


# -- states ----------------------------------------------------------------------------------------------------------


def test_a_server_that_is_down_gets_nothing(farm: Farm, times: Times) -> None:
    with Lab(configure(farm.servers())) as lab:
        times.goes_down(lab, "s2")
        for _ in range(6):
            connect(lab)
        assert scur(lab) == [3, 0, 3]
        times.comes_back(lab, "s2")
        for _ in range(3):
            connect(lab)
        assert scur(lab) == [4, 1, 4]


def test_only_the_first_usable_backup_counts(farm: Farm, times: Times) -> None:
    servers = [farm.server(0), farm.server(1, backup=True), farm.server(2, backup=True)]
    with Lab(configure(servers)) as lab:
        connect(lab)
        assert scur(lab) == [1, 0, 0]
        times.goes_down(lab, "s1")
        connect(lab)
        connect(lab)
        assert scur(lab) == [1, 2, 0]
        lab.table.set_state(row(lab.table, "s2"), ServerState.DRAIN, 1, 0)
        lab.turn()
        connect(lab)
        assert scur(lab) == [1, 2, 1]
        times.comes_back(lab, "s1")
        connect(lab)
        assert scur(lab) == [2, 2, 1]


def test_weights_of_the_table_count_at_once_unless_the_algorithm_is_static(farm: Farm) -> None:
    for balance, expected in (("roundrobin", [3, 1, 0]), ("static-rr", [2, 2, 0])):
        servers = [farm.server(0), farm.server(1), farm.server(2, weight=0)]
        with Lab(configure(servers, balance=balance)) as lab:
            lab.table.set_state(row(lab.table, "s1"), ServerState.READY, 3, 0)
            lab.turn()
            for _ in range(4):
                connect(lab)
            assert scur(lab) == expected
            # But none is none.
            lab.table.set_state(row(lab.table, "s1"), ServerState.READY, 0, 0)
            lab.turn()
            connect(lab)
            assert scur(lab)[0] == expected[0]


def test_several_workers_count_together(farm: Farm) -> None:
    """leastconn and first see the connections of all workers."""
    for balance, expected in (("leastconn", [2, 2, 2]), ("first", [3, 3, 0])):
        config = configure(farm.servers(maxconn=3), balance=balance)
        table = make_table(config, workers=2)
        wake = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        with Lab(config, table=table, wake=wake) as one, Lab(config, table=table, index=1, wake=wake) as two:
            for _ in range(3):
                connect(one)
                connect(two)
            assert scur(one) == expected
        table.close()
        for fd in wake:
            os.close(fd)


# -- slowstart -------------------------------------------------------------------------------------------------------


def part(lab: Lab) -> float:
    """The weight of s1 as a part of its full one, where s2 has the same full weight; what balancing makes of it."""
    backend = backend_of(lab)
    (_, own), (_, other) = backend._made_of
    algorithm = backend._chooser
    assert algorithm is not None
    chosen = Counter(algorithm.choose(b"", lambda _: 0) for _ in range(own + other))
    assert chosen[0] * other == chosen[1] * own
    return own / other


def test_slowstart_grows_from_a_tenth_in_steps(farm: Farm, times: Times) -> None:
    with Lab(configure([farm.server(0, slowstart=20.0), farm.server(1)])) as lab:
        assert part(lab) == 1  # not when we start
        times.goes_down(lab, "s1")
        times.comes_back(lab, "s1")
        assert part(lab) == pytest.approx(0.1)
        seen = []
        for _ in range(22):
            seen.append(part(lab))
            lab.pass_time(1.0)
            lab.turn()
        assert seen == sorted(seen)
        assert seen[10] == pytest.approx(0.5, abs=0.06)
        assert len(set(seen)) > 15
        assert seen[-1] == 1
        assert not backend_of(lab)._warming.bucket


def test_slowstart_is_about_weights_of_any_size(farm: Farm, times: Times) -> None:
    with Lab(configure([farm.server(0, slowstart=20.0, weight=256), farm.server(1, weight=256)])) as lab:
        times.comes_back(lab, "s1", seconds_ago=10)
        assert part(lab) == pytest.approx(0.5, abs=0.06)


def test_slowstart_limits_maxconn_too(farm: Farm, times: Times) -> None:
    with Lab(configure([farm.server(0, slowstart=20.0, maxconn=10)], Timeouts())) as lab:
        times.comes_back(lab, "s1")
        for _ in range(12):
            connect(lab)
        assert (scur(lab)[0], qcur(lab)[0]) == (1, 11)
        lab.pass_time(10.2)
        lab.settle()
        assert (scur(lab)[0], qcur(lab)[0]) == (5, 7)
        lab.pass_time(8)
        lab.pass_time(3)
        lab.settle()
        assert (scur(lab)[0], qcur(lab)[0]) == (10, 2)


def test_slowstart_goes_on_in_another_worker(farm: Farm, times: Times) -> None:
    """As after a reload: the age is that of the server's return."""
    with Lab(configure([farm.server(0, slowstart=20.0), farm.server(1)])) as lab:
        times.comes_back(lab, "s1", seconds_ago=10)
        backend = LiveBackend(lab.worker, lab.config.backends[0])
        assert [weight for _, weight in backend._made_of] in ([10, 20], [11, 20])
        lab.worker.wheel.remove(backend._warming)


def test_slowstart_begins_when_maintenance_ends(farm: Farm) -> None:
    with Lab(configure([farm.server(0, slowstart=20.0), farm.server(1)])) as lab:
        number = row(lab.table, "s1")
        for state in (ServerState.MAINT, ServerState.READY):
            lab.table.set_state(number, state, 1, int(time.time()))
            lab.turn()
        assert part(lab) == pytest.approx(0.1)


def test_setting_the_time_of_day_makes_no_server_older(farm: Farm, times: Times) -> None:
    with Lab(configure([farm.server(0, slowstart=20.0), farm.server(1)])) as lab:
        times.comes_back(lab, "s1", seconds_ago=-3600)
        assert part(lab) == pytest.approx(0.1)
        lab.pass_time(10.5)
        assert part(lab) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("balance", ["static-rr", "source"])
def test_static_algorithms_know_no_slowstart(farm: Farm, times: Times, balance: str) -> None:
    with Lab(configure([farm.server(0, slowstart=20.0), farm.server(1)], balance=balance)) as lab:
        times.comes_back(lab, "s1")
        assert part(lab) == 1


# -- keys ------------------------------------------------------------------------------------------------------------


def test_source_goes_by_the_address(farm: Farm) -> None:
    with Lab(configure(farm.servers(), balance="source")) as lab:
        mapping = MapBased([1, 1, 1], source_hash)
        expected = [0, 0, 0]
        for host in range(1, 12):
            connect(lab, host)
            expected[mapping.position(bytes([127, 0, 0, host]))] += 1
            assert scur(lab) == expected


@pytest.mark.parametrize(
    ("options", "request_", "key"),
    [
        ({"balance": "uri"}, Request(b"/a?b"), b"/a"),
        ({"balance": "uri", "balance_uri_whole": True}, Request(b"/a?b"), b"/a?b"),
        ({"balance": "uri", "balance_uri_len": 3}, Request(b"/abcd"), b"/ab"),
        ({"balance": "uri", "balance_uri_depth": 1}, Request(b"/a/b"), b"/a"),
        ({"balance": "hdr", "balance_header": "X-Key"}, Request(fields={b"x-key": [b"v , w", b"z"]}), b"v"),
        ({"balance": "hdr", "balance_header": "X-Key"}, Request(fields={b"x-key": [b"", b"z"]}), b""),
        ({"balance": "hdr", "balance_header": "X-Key"}, Request(), b""),
        ({"balance": "hdr", "balance_header": "X-Key"}, None, b""),
        ({"balance": "uri"}, None, b""),
    ],
)
def test_requests_have_keys(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], request_: Request | None, key: bytes
) -> None:
    monkeypatch.setattr(Connection, "request", request_)
    with Lab(configure(farm.servers(), **options)) as lab:
        for _ in range(3):
            connect(lab)
        if key:
            expected = [0, 0, 0]
            expected[MapBased([1, 1, 1], text_hash).position(key)] = 3
            assert scur(lab) == expected
        else:
            assert scur(lab) == [1, 1, 1]  # in turn


def home_hosts(count: int) -> dict[int, list[int]]:
    """Last bytes of addresses by the position of their server among `count` of weight 1."""
    mapping = MapBased([1] * count, source_hash)
    homes: dict[int, list[int]] = {}
    for host in range(1, 60):
        homes.setdefault(mapping.position(bytes([127, 0, 0, host])), []).append(host)
    return homes


def test_redispatch_leaves_the_server_of_the_hash(farm: Farm) -> None:
    homes = home_hosts(2)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        servers = [Server("s1", InetAddress("127.0.0.1", bound.getsockname()[1])), farm.server(1)]
        with Lab(configure(servers, balance="source", retries=2, redispatch=True)) as lab:
            connect(lab, homes[0][0])
            lab.until(lambda: [conn for conn in lab.worker.connections if conn.state == "paused"])
            lab.pass_time(1.1)
            lab.until(lambda: scur(lab) == [0, 1])
            assert lab.value("s1", Column.WREDIS) == lab.value("s1", Column.WRETR) == 1


# -- queues of servers -------------------------------------------------------------------------------------------------


def test_who_must_have_a_server_waits_for_it_alone(farm: Farm) -> None:
    """Neither its queue nor its slots concern those who go to others."""
    homes = home_hosts(2)
    config = configure([farm.server(0, maxconn=1), farm.server(1, maxconn=2)], balance="source")
    with Lab(config) as lab:
        first = connect(lab, homes[0][0])
        for host in homes[0][1:4]:
            connect(lab, host)
        connect(lab, homes[1][0])
        assert (scur(lab), qcur(lab)) == ([1, 1], [0, 3, 0])
        connect(lab, homes[1][1])
        connect(lab, homes[1][2])
        assert (scur(lab), qcur(lab)) == ([1, 2], [0, 3, 1])
        first.close()
        server = farm.accept(0)
        assert server is not None
        server.close()
        lab.until(lambda: qcur(lab) == [0, 2, 1])
        assert scur(lab) == [1, 2]
        waiting = list(backend_of(lab).queue)
        assert [conn.queue_position for conn in waiting] == [2, 3, 1]


def test_those_whose_server_goes_down_go_to_another(farm: Farm, times: Times) -> None:
    homes = home_hosts(2)
    config = configure([farm.server(0, maxconn=1), farm.server(1, maxconn=3)], balance="source")
    with Lab(config) as lab:
        for host in homes[0][:4]:
            connect(lab, host)
        assert (scur(lab), qcur(lab)) == ([1, 0], [0, 3, 0])
        times.goes_down(lab, "s1")
        lab.settle()
        assert (scur(lab), qcur(lab)) == ([1, 3], [0, 0, 0])


def test_a_pinned_client_and_one_without_a_cookie_share_slots_by_age(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot goes to whoever has waited longer, be it for this server or for any."""
    pins: dict[str, str] = {}

    def pinned(conn: Connection) -> Any:
        name = pins.get(conn.address[0])
        return next((server for server in conn.backend.servers if server.name == name), None)

    monkeypatch.setattr(Connection, "pinned", property(pinned))
    config = configure(farm.servers(maxconn=1)[:2], cookie=Cookie("SRV"), mode="http")
    pins |= {f"127.0.0.{host}": "s1" for host in (2, 4)}
    with Lab(config) as lab:
        busy = [connect(lab, 2), connect(lab, 1)]
        assert scur(lab) == [1, 1]
        servers = [farm.accept(0), farm.accept(1)]
        waiting = []
        for host in (3, 4, 5):
            waiting.append(connect(lab, host))
            lab.clock.now += 0.01
        assert qcur(lab) == [2, 1, 0]

        def end(number: int) -> None:
            server = servers[number]
            assert server is not None
            server.close()
            busy[number].close()
            servers[number] = lab.until(lambda: farm.accept(number), "a connection")

        end(0)
        assert sorted(conn.address[0] for conn in backend_of(lab).queue) == ["127.0.0.4", "127.0.0.5"]
        busy[0] = waiting[0]
        end(1)
        # s2's slot is nothing for the pinned one, who is older.
        assert [conn.address[0] for conn in backend_of(lab).queue] == ["127.0.0.4"]
        end(0)
        assert not backend_of(lab).queue


def test_a_cookie_leads_to_a_server_that_drains_but_not_to_one_that_is_down(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, times: Times
) -> None:
    monkeypatch.setattr(Connection, "pinned", property(lambda conn: conn.backend.servers[0]))
    with Lab(configure(farm.servers()[:2], cookie=Cookie("SRV"), mode="http")) as lab:
        lab.table.set_state(row(lab.table, "s1"), ServerState.DRAIN, 1, 0)
        lab.turn()
        connect(lab)
        assert scur(lab) == [1, 0]
        times.goes_down(lab, "s1")
        connect(lab)
        assert scur(lab) == [1, 1]
        times.comes_back(lab, "s1")
        lab.table.set_state(row(lab.table, "s1"), ServerState.MAINT, 1, 0)
        lab.turn()
        connect(lab)
        assert scur(lab) == [1, 2]


def test_servers_are_found_by_their_cookies(farm: Farm, times: Times) -> None:
    """Several may share one; the first that is running counts."""
    servers = [farm.server(0, cookie="a"), farm.server(1, cookie="a"), farm.server(2)]
    cookie = Cookie("SRV")
    with Lab(configure(servers, cookie=cookie, mode="http")) as lab:

        def named() -> tuple[str, str]:
            found = from_client(cookie, [b"SRV=a"], backend_of(lab).by_cookie, lambda server: server.running)
            return (found.server.name if found.server else "", found.letter)

        assert named() == ("s1", "V")
        times.goes_down(lab, "s1")
        assert named() == ("s2", "V")
        times.goes_down(lab, "s2")
        assert named() == ("", "D")


def test_a_freed_slot_wakes_only_a_worker_that_has_a_use_for_it(farm: Farm) -> None:
    homes = home_hosts(2)
    config = configure(farm.servers(maxconn=1)[:2], balance="source")
    table = make_table(config, workers=2)
    wake = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    with Lab(config, table=table, wake=wake) as one, Lab(config, table=table, index=1, wake=wake) as two:
        first = connect(one, homes[0][0])
        connect(one, homes[1][0])
        connect(one, homes[0][1])
        for host in homes[1][1:4]:
            connect(two, host)
        assert qcur(one) == [0, 1, 3]
        first.close()
        server = farm.accept(0)
        assert server is not None
        server.close()
        # One's clock stands still: had the other been woken in its place, it would wait on.
        one.until(lambda: qcur(one) == [0, 0, 3])
        two.settle()
        assert scur(one) == [1, 1]
    table.close()
    for fd in wake:
        os.close(fd)


def test_queue_timeout_of_one_who_waits_for_a_certain_server(farm: Farm) -> None:
    homes = home_hosts(2)
    config = configure(farm.servers(maxconn=1)[:2], balance="source")
    with Lab(config) as lab:
        connect(lab, homes[0][0])
        connect(lab, homes[0][1])
        lab.pass_time(10.2)
        lab.until(lambda: lab.lines)
        assert lab.lines[0].split()[6] == "sQ"
        assert qcur(lab) == [0, 0, 0]
        assert lab.value("backend", Column.QTIMEOUT) == 1
        assert [line for line in gauges(lab.table) if "QCUR" in line] == []


# -- clients that leave ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abort", [False, True])
@pytest.mark.parametrize("data", [b"", b"some"])
def test_abortonclose(farm: Farm, abort: bool, data: bytes) -> None:
    """A client that has sent something and then closed its half is served, unless `option abortonclose` is set."""
    with Lab(configure([farm.server(0, maxconn=1)], abortonclose=abort)) as lab:
        lab.pair(farm)
        waiting = connect(lab)
        waiting.sendall(data)
        waiting.shutdown(socket.SHUT_WR)
        lab.settle()
        if data and not abort:
            assert qcur(lab)[0] == 1
        else:
            lab.until(lambda: lab.lines)
            assert lab.lines[0].split()[6] == "CQ"
            assert qcur(lab)[0] == 0


@pytest.mark.parametrize("abort", [False, True])
def test_a_client_with_a_request_may_close_its_half(farm: Farm, monkeypatch: pytest.MonkeyPatch, abort: bool) -> None:
    monkeypatch.setattr(Connection, "request", Request())
    with Lab(configure([farm.server(0, maxconn=1)], abortonclose=abort)) as lab:
        lab.pair(farm)
        connect(lab).shutdown(socket.SHUT_WR)
        lab.settle()
        assert qcur(lab)[0] == int(not abort)
