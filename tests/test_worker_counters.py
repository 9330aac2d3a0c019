"""When counters are written, and that what they say does not depend on it."""

from __future__ import annotations

import itertools

import pytest

from hitlessd.model import Server, Timeouts
from hitlessd.ranking import MANY
from hitlessd.table import PROCESS, Column, RowKey, Table
from hitlessd.worker import changes
from hitlessd.worker.counters import Account, Ledger, Tally
from tests.support.relay import Farm, Lab, farm, make_config, make_park

TIMES = Timeouts(connect=30, client=60, server=60)
#: Longer than a busy worker keeps counters to itself.
LONG = 0.02


def _half_closed(lab: Lab, servers: Farm, count: int) -> None:
    """So many connections that end as soon as their clients close; the worker has shown all its counters."""
    for _, server in [lab.pair(servers) for _ in range(count)]:
        server.close()
    lab.settle()
    lab.worker.lazy = True
    assert lab.value("process", Column.SCUR) == count


def test_a_busy_worker_shows_its_counters_before_it_sleeps() -> None:
    with farm() as servers, Lab(make_config([servers.server(0)], timeouts=TIMES)) as lab:
        _half_closed(lab, servers, 2)
        for client in lab.clients:
            client.close()
        assert lab.turn() == 2 and not lab.worker.connections
        assert lab.value("process", Column.SCUR) == 2
        assert lab.turn() == 0
        assert [lab.value(kind, Column.SCUR) for kind in ("process", "frontend", "backend", "s1")] == [0, 0, 0, 0]


def test_a_worker_that_has_little_to_do_shows_them_at_once() -> None:
    with farm() as servers, Lab(make_config([servers.server(0)], timeouts=TIMES)) as lab:
        _half_closed(lab, servers, 2)
        lab.clients[0].close()
        assert lab.turn() == 1
        assert lab.value("process", Column.SCUR) == 1


def test_a_worker_that_is_always_busy_shows_them_now_and_then() -> None:
    with farm() as servers, Lab(make_config([servers.server(0)], timeouts=TIMES)) as lab:
        _half_closed(lab, servers, 6)
        for expected, late in ((6, 0.0), (6, 0.0), (0, LONG)):
            for client in lab.clients[:2]:
                client.close()
            del lab.clients[:2]
            lab.clock.now += late
            assert lab.turn() == 2
            assert lab.value("process", Column.SCUR) == expected


def test_orders_find_all_written() -> None:
    with farm() as servers, Lab(make_config([servers.server(0)], timeouts=TIMES)) as lab:
        _half_closed(lab, servers, 2)
        for client in lab.clients:
            client.close()
        assert lab.turn() == 2 and lab.value("process", Column.SMAX) == 2
        lab.order("clear-maxima", all=False)
        assert lab.value("process", Column.SCUR) == lab.value("process", Column.SMAX) == 0


def test_others_see_what_a_new_limit_is_about() -> None:
    with farm() as servers, Lab(make_config([servers.server(0)], timeouts=TIMES)) as lab:
        _half_closed(lab, servers, 1)
        lab.clients[0].send(b"so that it is busy")
        lab.connect()
        assert lab.turn() == 2 and len(lab.worker.connections) == 2
        assert lab.value("s1", Column.SCUR) == 1
        # Not by an order over the channel, whose turn may write anyway.
        assert not changes.change(lab.worker, {"kind": "server-maxconn", "proxy": "app", "server": "s1", "value": 1})
        assert lab.value("s1", Column.SCUR) == 2


def test_leastconn_knows_at_once_who_has_fewer() -> None:
    """However long its counters are kept back."""
    with farm() as servers:
        many = [Server(f"s{n}", servers.server(0).address, n + 1) for n in range(MANY)]
        with Lab(make_config(many, balance="leastconn", timeouts=TIMES)) as lab:
            _half_closed(lab, servers, 2 * MANY)
            for client in (lab.clients[3], lab.clients[3 + MANY]):
                client.close()
            assert lab.turn() == 2 and lab.value("process", Column.SCUR) == 2 * MANY
            backend = lab.worker.backends["app"]
            (conn, *_) = lab.worker.connections
            chosen = [backend.choose(conn) for _ in range(2)]
            assert [server.name for server in chosen if server is not None] == ["s3", "s3"]


KEYS = [PROCESS, RowKey("frontend", "f"), RowKey("backend", "b"), *(RowKey("server", "b", f"s{n}") for n in range(3))]


@pytest.mark.parametrize("every", [1, 2, 7, 100])
def test_what_exchanges_add_up_to_does_not_depend_on_how_often_it_is_written(every: int) -> None:
    table = Table.create(KEYS, 1, 1)
    ledger = Ledger(table, 0)
    front, back, *servers = tallies = [Tally(ledger, ledger.row(key), []) for key in KEYS[1:]]
    for tally in tallies:
        tally.codes = [0] * 10
    accounts = [Account(front, back, server) for server in servers]
    for number, account in zip(range(100), itertools.cycle(accounts), strict=False):
        if not account.dirty:
            account.dirty = True
            ledger.accounts.append(account)
        account.opened += 1
        account.bin += 10
        account.bout += number
        account.classes[2 + number % 3] += 1
        account.reused += number % 2
        if number % every == every - 1:
            ledger.write(1234.5)
    ledger.write(1234.5)
    columns = (Column.STOT, Column.BIN, Column.BOUT, Column.REQ_TOT, Column.HRSP_2XX, Column.HRSP_3XX, Column.HRSP_4XX)
    found = {
        key.server or key.kind: [table.value(row, column) for column in columns] for key, row in table.index.items()
    }
    whole = [100, 1000, 4950, 100, 34, 33, 33]
    assert found["backend"] == whole
    assert found["frontend"] == [0, *whole[1:]]  # it has no requests but sessions, which are counted as they come
    assert [found[f"s{n}"] for n in range(3)] == [
        [34, 340, 1683, 34, 34, 0, 0],
        [33, 330, 1617, 33, 0, 33, 0],
        [33, 330, 1650, 33, 0, 0, 33],
    ]
    assert [table.value(row, Column.REUSE) for row in range(3, 6)] == [17, 17, 16]
    assert table.value(3, Column.LASTSESS) == 1234
    ledger.slot.release()
    table.close()


def test_what_is_parked_is_told_together_with_what_there_is() -> None:
    """Should the worker die then, the difference is how many connections are lost."""
    with farm() as servers, Lab(make_config([servers.server(0)], timeouts=TIMES), park=make_park()) as lab:
        pairs = [lab.pair(servers) for _ in range(3)]
        lab.clock.now += 5.0
        lab.until(lambda: lab.value("process", Column.PARKED) == 3)
        lab.pair(servers)
        lab.settle()
        lab.worker.lazy = True
        for peer in itertools.chain(*pairs):
            peer.close()
        assert lab.turn() == 6 and len(lab.worker.connections) == 1
        assert lab.value("process", Column.SCUR) == 4
        lab.worker.now += 5.0
        lab.worker.parking.expired()
        assert (lab.value("process", Column.PARKED), lab.table.unparked(0)) == (1, 0)
