"""A worker with many servers, backends and frontends does what one with few does, and looks at few of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hitlessd.model import Backend, Config, Server, Timeouts
from hitlessd.ranking import MANY
from hitlessd.table import Column, RowKey, ServerState
from hitlessd.worker.loop import Worker
from tests.support.relay import Farm, Lab, farm, make_config, make_table

COUNT = MANY + 4
TIMES = Timeouts(connect=30, client=60, server=60, queue=10)


def many(farm: Farm, maxconn: int = 0, count: int = COUNT) -> list[Server]:
    """Servers that are one in truth."""
    address = farm.server(0).address
    return [Server(f"s{n}", address, n + 1, maxconn=maxconn) for n in range(count)]


def sessions(lab: Lab) -> list[int]:
    return [lab.value(f"s{number}", Column.SCUR) for number in range(COUNT)]


def test_leastconn_notes_who_has_fewer() -> None:
    with farm() as servers, Lab(make_config(many(servers), balance="leastconn", timeouts=TIMES)) as lab:
        pairs = [lab.pair(servers) for _ in range(2 * COUNT)]
        assert sessions(lab) == [2] * COUNT
        for peer in (*pairs[5], *pairs[5 + COUNT], *pairs[9]):
            peer.close()
        lab.until(lambda: sum(sessions(lab)) == 2 * COUNT - 3, "three ended")
        for expected in (1, 1, 2):  # of two with as many, the other has waited longer
            lab.pair(servers)
            assert sessions(lab)[5] == expected
        assert sessions(lab) == [2] * COUNT


def test_leastconn_counts_with_other_workers() -> None:
    with farm() as servers:
        config = make_config(many(servers), balance="leastconn", timeouts=TIMES)
        table = make_table(config, workers=2)
        with Lab(config, table=table) as one, Lab(config, table=table, index=1, wake=one.wake) as other:
            for _ in range(COUNT // 2):
                one.pair(servers)
                other.pair(servers)
            assert sessions(one) == [1] * COUNT
        table.close()


def test_who_finds_all_of_many_full_waits_for_the_first_that_is_free() -> None:
    with farm() as servers, Lab(make_config(many(servers, 1), timeouts=TIMES)) as lab:
        pairs = [lab.pair(servers) for _ in range(COUNT)]
        lab.connect()
        lab.settle()
        assert lab.value("backend", Column.QCUR) == 1 and lab.worker.queueing == {lab.worker.backends["app"]}
        for peer in pairs[COUNT - 1]:
            peer.close()
        lab.until(lambda: not lab.value("backend", Column.QCUR), "served")
        assert sessions(lab) == [1] * COUNT and not lab.worker.queueing


def test_the_one_that_is_not_full_is_found() -> None:
    with farm() as servers:
        config = make_config([*many(servers, 1), *many(servers, 0, COUNT + 1)[COUNT:]], timeouts=TIMES)
        with Lab(config) as lab:
            for _ in range(COUNT + 6):
                lab.pair(servers)
            assert sessions(lab) == [1] * COUNT
            assert lab.value(f"s{COUNT}", Column.SCUR) == 6


def _two_backends(servers: Farm) -> Config:
    config = make_config(many(servers, count=2), timeouts=TIMES)
    second = Backend("other", 4, tuple(many(servers, count=2)), "roundrobin", TIMES)
    return replace(config, backends=(*config.backends, second))


def test_a_change_of_state_concerns_its_backend_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with farm() as servers, Lab(_two_backends(servers)) as lab:
        looked = []
        for backend in lab.worker.backends.values():
            monkeypatch.setattr(backend, "arrange", None)
            before = backend.refresh

            def refresh(rows: set[int], name: str = backend.name, before: object = before) -> None:
                looked.append((name, rows))
                before(rows)  # type: ignore[operator]

            monkeypatch.setattr(backend, "refresh", refresh)
        row = lab.table.index[RowKey("server", "other", "s1")]
        lab.table.set_state(row, ServerState.MAINT, 1, 0)
        lab.turn()
        assert looked == [("other", {row})]
        assert [server.name for server in lab.worker.backends["other"].usable] == ["s0"]
        assert len(lab.worker.backends["app"].usable) == 2


def test_what_changes_while_a_worker_begins_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with farm() as servers:
        config = _two_backends(servers)
        table = make_table(config)
        row = table.index[RowKey("server", "app", "s0")]
        with monkeypatch.context() as patch:
            real = Worker._default

            def late(worker: Worker, frontend: object) -> object:
                table.set_state(row, ServerState.MAINT, 1, 0)  # when its backends have been made
                return real(worker, frontend)  # type: ignore[arg-type]

            patch.setattr(Worker, "_default", late)
            lab = Lab(config, table=table)
        with lab:
            lab.turn()
            assert [server.name for server in lab.worker.backends["app"].usable] == ["s1"]
        table.close()


def test_the_limit_of_a_frontend_concerns_its_listeners_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with farm() as servers, Lab(make_config(many(servers), timeouts=TIMES, maxconn=1)) as lab:
        monkeypatch.setattr(Worker, "arm", None)  # what looks at all
        first = lab.pair(servers)
        second = lab.connect()
        lab.settle()
        assert len(lab.worker.connections) == 1 and lab.worker.throttled
        for peer in first:
            peer.close()
        lab.until(lambda: lab.value("frontend", Column.STOT) == 2, "the second is let in")
        for peer in (second, lab.until(servers.accept, "its server")):
            peer.close()
        lab.until(lambda: not lab.worker.connections, "both gone")
        assert not lab.worker.throttled


def test_the_limit_of_a_worker_concerns_all() -> None:
    with farm() as servers, Lab(make_config(many(servers), timeouts=TIMES), maxconn=1) as lab:
        first = lab.pair(servers)
        lab.connect()
        lab.settle()
        listener = lab.worker.frontends["www"].listeners[0]
        assert lab.worker.throttled and not listener.armed
        for peer in first:
            peer.close()
        lab.until(lambda: lab.value("frontend", Column.STOT) == 2, "the second is let in")
