"""Main's part of changes at run time, with workers that answer as a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hitlessd.changes import Change, Changes, Item
from hitlessd.loop import Loop
from hitlessd.main.administration import Administration
from hitlessd.main.checks import Checks
from hitlessd.main.limits import Limits
from hitlessd.main.office import Office
from hitlessd.main.standing import Standing, limited
from hitlessd.main.store import Store
from hitlessd.model import Backend, Config, Frontend, Global, InetAddress, Server
from hitlessd.table import RowKey, ServerState, Table, row_keys

HOST = "127.0.0.1"
SERVERS = (Server("s", InetAddress(HOST, 1), 1, weight=10), Server("gone", InetAddress(HOST, 2), 2, disabled=True))
CONFIG = Config(Global(maxconn=100), (Frontend("f", 2, (), "b"),), (Backend("b", 3, SERVERS),))
GONE = Item("server-deleted", "b", "gone")


@dataclass
class Pool:
    """Workers that do at once what they are told, or say why not."""

    loop: Loop
    orders: list[tuple[str, Any]] = field(default_factory=list)
    whys: dict[str, str] = field(default_factory=dict)  # by kind
    config: Config = CONFIG
    share: int = 0

    def ask(self, order: str, done: Callable[[list[Any]], object], **more: Any) -> None:
        self.orders.append((str(more.get("kind", order)), more.get("value")))
        why = self.whys.pop(str(more.get("kind")), "")
        self.loop.call_soon(lambda: done([{}, None, {"why": why} if why else {}]))

    def reconfigure(self, config: Config, share: int) -> None:
        self.config, self.share = config, share


class Bench:
    def __init__(self, changes: Changes | None = None) -> None:
        self.lines: list[str] = []
        self.kept: list[list[Any]] = []
        self.dropped: list[str] = []
        self.said: list[str] = []
        self.reloading = False
        self.loop = Loop(_raise)
        self.table = Table.create(row_keys(CONFIG), 2, 1, spare=1)
        for server in SERVERS:
            state = ServerState.MAINT if server.disabled else ServerState.READY
            self.table.set_state(self.table.index[RowKey("server", "b", server.name)], state, server.weight, 1)
        self.pool = Pool(self.loop)
        limits = Limits(100, 50, 1000, 1, 1, "")
        equipment = SimpleNamespace(table=self.table, pool=self.pool, limits=limits, planned=limits, listeners=[])
        self.office = cast(
            Office,
            SimpleNamespace(config=CONFIG, generation=1, equipment=equipment, stopping=False, tables=self._tables),
        )

        def log(_severity: str, message: str, /, **_fields: object) -> None:
            self.lines.append(message)

        standing = Standing(limited(self.loop, log), self.table, self._tables, lambda _backend, _server: None)
        checks = Checks(self.loop, CONFIG, self.table, self._tables, standing)
        self.administration = Administration(
            self.loop,
            log,
            cast(Store, self),
            self.office,
            CONFIG,
            changes or Changes(),
            checks,
            standing,
            lambda: self.reloading,
            lambda everything, done: self.pool.ask("clear-maxima", done, value=everything),
        )

    def _tables(self) -> list[Table]:
        return [self.table]

    # As the store

    def keep_changes(self, generation: int, serial: int, record: list[Any]) -> str:
        self.kept.append(record)
        return f"changes-{generation}-{serial}"

    def forget(self, names: list[str]) -> None:
        self.dropped += names

    def administer(self, *changes: Change) -> list[str]:
        """All in one turn of the loop; what was answered."""
        self.said = []
        for change in changes:
            self.administration.administer(change, self.said.append)
        for _ in range(6):
            self.loop.turn(0.0)
        return self.said

    def servers(self) -> list[str]:
        return [server.name for server in self.office.config.backends[0].servers]


def _raise(_what: str, error: BaseException) -> None:
    raise error


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.loop.close()
    bench.table.close()


def test_a_server_that_a_worker_still_needs_is_there_again(bench: Bench) -> None:
    bench.pool.whys["server-deleted"] = "1 connections of it are left"
    assert bench.administer(Change(GONE, True)) == ["Server still has connections attached to it, cannot remove it."]
    (kind, value) = bench.pool.orders[-1]
    assert (kind, value["record"]["name"], value["row"]) == (
        "server-added",
        "gone",
        bench.table.index[RowKey("server", "b", "gone")],
    )
    assert bench.servers() == ["s", "gone"] and bench.pool.config is bench.office.config
    assert not bench.administration.changes.items and bench.dropped == ["changes-1-1"] and len(bench.kept) == 1
    assert bench.administer(Change(GONE, True)) == [""] and bench.servers() == ["s"]
    assert bench.administer(Change(GONE, True)) == ["No such server."]


def test_changes_of_one_turn_are_kept_once_and_the_new_entry_before_the_old_one_goes(bench: Bench) -> None:
    weight, maxconn = Item("server-weight", "b", "s"), Item("server-maxconn", "b", "s")
    assert bench.administer(Change(weight, 5), Change(maxconn, 7)) == ["", ""]
    assert bench.kept == [[["server-weight", "b", "s", 5, 10], ["server-maxconn", "b", "s", 7, 0]]]
    assert bench.pool.orders == [("server-maxconn", 7)] and bench.table.weight(2 + 1) == 5
    assert bench.administration.facts()["changes_name"] == "changes-1-1" and not bench.dropped
    assert bench.administer(Change(maxconn, 0)) == [""]
    assert bench.dropped == ["changes-1-1"] and bench.kept[-1] == [["server-weight", "b", "s", 5, 10]]
    # What the configuration says is no change, and nothing need be kept.
    assert bench.administer(Change(weight, 10)) == [""]
    assert len(bench.kept) == 2 and bench.dropped == ["changes-1-1", "changes-1-2"]
    assert bench.office.config == CONFIG


def test_what_cannot_be_is_refused_and_changes_nothing(bench: Bench) -> None:
    added = Item("server-added", "b", "n")
    for change in (
        Change(Item("server-weight", "b", "s"), 257),
        Change(Item("server-weight", "b", "nobody"), 1),
        Change(Item("frontend-maxconn", "nobody"), 1),
        Change(added, "host:80"),
        Change(added, "127.0.0.1:80 nonsense"),
    ):
        (said,) = bench.administer(change)
        assert said.startswith("cannot "), change
    bench.reloading = True
    assert bench.administer(Change(GONE, True)) == [
        "cannot delete server b/gone: a reload is running; try again when it is over"
    ]
    bench.reloading = False
    assert bench.administer(Change(added, "127.0.0.1:80")) == [""]
    # There is one spare row only.
    (said,) = bench.administer(Change(Item("server-added", "b", "more"), "127.0.0.1:80"))
    assert "all 1 spare rows of the shared table are taken; a reload makes room" in said
    assert bench.servers() == ["s", "gone", "n"] and [kind for kind, _ in bench.pool.orders] == ["server-added"]
    bench.administration.retire(True)
    (said,) = bench.administer(Change(Item("server-weight", "b", "s"), 1))
    assert said.startswith("cannot change anything: another generation has taken over")
    bench.administration.retire(False)
    assert bench.administer(Change(Item("server-weight", "b", "s"), 1)) == [""]


def test_limits_are_shared_out(bench: Bench) -> None:
    assert bench.administer(Change(Item("global-maxconn"), 41)) == [""]
    assert bench.pool.orders == [("global-maxconn", 21)] and bench.pool.share == 21
    assert bench.office.equipment.limits.maxconn == 41
    assert bench.administer(Change(Item("global-maxconn"), 100)) == [""]
    assert (bench.pool.orders[-1], bench.pool.share) == (("global-maxconn", 50), 50)


def test_what_a_predecessor_changed_since_its_offer_is_caught_up_with(bench: Bench) -> None:
    late = [["server-weight", "b", "s", 3, 10], ["server-added", "b", "n", "127.0.0.1:9 id 3", None]]
    late += [["server-maxconn", "b", "s", 3, 99], ["server-deleted", "b", "gone", True, f"{HOST}:2"]]
    bench.administration.begin(late, "changes-0-7", [])
    assert bench.servers() == ["s", "n"] and bench.table.weight(bench.table.index[RowKey("server", "b", "s")]) == 3
    assert bench.dropped == ["changes-0-7"] and len(bench.kept) == 1 and len(bench.kept[0]) == 3
    assert "maxconn of server b/s is what the configuration says again: it has changed there" in bench.lines


@pytest.mark.parametrize("late", [None, 5, [5], [[1, 2]], [[[], "b", "s", 1, 1]], [["x", "b", "s", 1, 1]]])
def test_what_makes_no_sense_is_left_out(bench: Bench, late: object) -> None:
    bench.administration.begin(late, "", [])
    assert bench.office.config == CONFIG and not bench.pool.orders
