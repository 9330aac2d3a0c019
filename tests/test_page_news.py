"""What open pages are told: made once a second for all of them, and no more than what has changed."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from hitlessd.changes import Change, Item
from hitlessd.model import Backend, Config, Global, InetAddress, Server
from hitlessd.runtime.stat import StatFilter, show_stat
from hitlessd.table import Column, Health, HealthRecord, RowKey, ServerState, Table, row_keys
from hitlessd.web.page.board import FIELDS, Board
from hitlessd.web.page.news import News, Viewer
from hitlessd.web.page.sections import Sections
from tests.support.showcase import control_of, showcase_control
from tests.test_runtime_harness import FakeControl

APP1 = RowKey("server", "app", "app1")


class Newsroom:
    """Of a backend of two servers; time goes on when it is told to."""

    def __init__(self, control: FakeControl, clock: list[float]) -> None:
        self.control, self.clock = control, clock
        board = Board(control)
        self.news = News(board, Sections(control, board), lambda: clock[0])
        self.looks = 0
        tables = control.tables

        def counted() -> Sequence[Table]:
            self.looks += 1
            return tables()

        control.tables = counted  # type: ignore[method-assign]

    def viewer(self) -> Viewer:
        return Viewer(self.news, {"token": "t"})

    def later(self, seconds: float = 1.0) -> None:
        self.clock[0] += seconds

    def set(self, key: RowKey, record: HealthRecord) -> None:
        self.control.table.set_health(self.control.table.index[key], record)


@pytest.fixture
def room() -> Iterator[Newsroom]:
    with control_of("app1", "app2") as (control, clock):
        yield Newsroom(control, clock)


def events(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def fields(row: list[Any]) -> dict[str, Any]:
    return {FIELDS[at]: value for at, value in zip(row[1::2], row[2::2], strict=True)}


# -- deltas ------------------------------------------------------------------------------------------------------------


def test_first_everything_then_what_has_changed(room: Newsroom) -> None:
    viewer = room.viewer()
    text = viewer.next()
    assert text.startswith("retry: 1000\n")
    greeting, whole = events(text)
    assert greeting == {"token": "t"}
    assert whole["all"] == room.news.board.layout
    assert [row[0] for row in whole["r"]] == [0, 1, 2, 3]
    assert set(whole["h"]) == {"summary", "changes", "generations", "reloads"}
    assert viewer.next() == ""  # nothing is newer
    room.later()
    [nothing] = events(viewer.next())
    assert nothing["r"] == []
    assert "h" not in nothing and "all" not in nothing
    room.control.table.add(APP1, Column.SCUR, 3)
    room.later()
    [change] = events(viewer.next())
    [row] = change["r"]
    assert (row[0], fields(row)) == (1, {"scur": 3})


def test_all_pages_cost_one_look_a_second(room: Newsroom) -> None:
    viewers = [room.viewer() for _ in range(50)]
    for second in range(1, 4):
        texts = {viewer.next() for viewer in viewers}
        assert len(texts) == 1
        assert room.looks == second
        room.later()


def test_who_has_missed_something_hears_everything(room: Newsroom) -> None:
    slow, quick = room.viewer(), room.viewer()
    for viewer in (slow, quick):
        viewer.next()
    for _ in range(2):
        room.later()
        assert "all" not in events(quick.next())[0]
    assert "all" in events(slow.next())[0]
    room.later()
    assert slow.next() == quick.next()


def test_a_server_that_goes_down_is_told_everywhere(room: Newsroom) -> None:
    viewer = room.viewer()
    viewer.next()
    for name in ("app1", "app2"):
        room.set(RowKey("server", "app", name), HealthRecord(Health.DOWN, 1_700_000_500, 0, 4))
    room.later()
    [told] = events(viewer.next())
    found = {row[0]: fields(row) for row in told["r"]}
    assert found[1]["state"] == found[3]["state"] == "DOWN"
    assert found[1]["why"] == "Layer4 connection problem"
    assert found[1]["since"] == 1_700_000_500
    assert found[3]["usable"] == 0
    assert list(told["h"]) == ["summary"]
    assert "2 of 2 servers are down" in told["h"]["summary"]


def test_checks_that_find_the_same_are_no_news(room: Newsroom) -> None:
    viewer = room.viewer()
    viewer.next()
    room.set(APP1, HealthRecord(Health.UP, 1_700_000_000, 4, 2, checked_at=1_700_000_999_000, next_at=1))
    room.later()
    assert events(viewer.next())[0]["r"] == []


def test_reloads_and_changes_are_told(room: Newsroom) -> None:
    with showcase_control() as other:
        outcomes = list(other.history)
    viewer = room.viewer()
    viewer.next()
    room.control.history += outcomes
    room.control.last_reload = outcomes[-1]
    room.later()
    [told] = events(viewer.next())
    assert set(told["h"]) == {"summary", "reloads"}
    change = Change(Item("server-weight", "app", "app1"), 5, 1)
    room.control.changes.items[change.item] = change
    room.later()
    [told] = events(viewer.next())
    assert told["all"] != ""  # rows are marked: the page loads its tables again
    assert "weight 5, configured 1" in told["h"]["changes"]


def test_another_configuration_is_another_layout(room: Newsroom) -> None:
    viewer = room.viewer()
    before = events(viewer.next())[1]
    control = room.control
    backend = control.config.backends[0]
    control.config = replace(control.config, backends=(replace(backend, servers=backend.servers[:1]),))
    room.later()
    [after] = events(viewer.next())
    assert after["all"] != before["all"]
    assert len(after["r"]) == 3
    # The same one in another generation is the same.
    again = Board(control)
    again.refresh()
    assert again.layout == after["all"]


# -- values ------------------------------------------------------------------------------------------------------------


def test_values_are_those_of_show_stat() -> None:
    """Over two generations, one of which lacks a server."""
    with showcase_control() as control:
        less = replace(
            control.config,
            backends=(replace(control.config.backends[0], servers=control.config.backends[0].servers[:2]),),
        )
        older = Table.create(row_keys(less), 1, 6)
        try:
            for at, column in enumerate(Column):
                older.slot(0)[older.index[RowKey("server", "app", "app1")] * older.columns + column] = 100 + at
                older.slot(0)[older.index[RowKey("backend", "app")] * older.columns + column] = 7 * at
            mine = control.table
            control.tables = lambda: [mine, older]  # type: ignore[method-assign]
            board = Board(control)
            board.refresh()
            text = show_stat(control, StatFilter(), time.time()).removeprefix("# ")
            rows = {(row["pxname"], row["svname"]): row for row in csv.DictReader(io.StringIO(text))}
            for row, value in list(zip(board.rows, board.values, strict=True))[1:]:
                theirs = rows[row.key.proxy, row.key.server or row.key.kind.upper()]
                assert value.state == theirs["status"], row.key
                for name in ("scur", "smax", "qcur", "stot", "bin", "bout"):
                    assert str(getattr(value, name)) == (theirs[name] or "0"), (row.key, name)
                if row.http:
                    for ours, name in (("h2", "hrsp_2xx"), ("h3", "hrsp_3xx"), ("h4", "hrsp_4xx"), ("h5", "hrsp_5xx")):
                        assert str(getattr(value, ours)) == theirs[name], (row.key, name)
                if row.backend:
                    assert str(value.weight) == theirs["weight"]
                    assert value.check.partition("/")[0] == theirs["check_status"], row.key
            app1 = next(value for row, value in zip(board.rows, board.values, strict=True) if row.key == APP1)
            assert app1.smax == 101  # the greatest
            assert app1.scur == 112
        finally:
            older.close()


def test_what_is_disabled_is_said_to_be() -> None:
    with showcase_control() as control:
        config = control.config
        control.config = replace(config, frontends=(replace(config.frontends[0], disabled=True), config.frontends[1]))
        board = Board(control)
        board.refresh()
        states = {row.key: value for row, value in zip(board.rows, board.values, strict=True)}
        assert states[RowKey("frontend", "www")].state == "PAUSED"
        assert states[RowKey("frontend", "www")].admin == "off"
        assert states[RowKey("frontend", "postgres")].state == "OPEN"
        control.stopping = True
        board.refresh()
        assert board.values[1].state == "STOP"


def test_a_server_that_main_has_not_written_of_is_as_configured() -> None:
    servers = (
        Server("a", InetAddress("127.0.0.1", 1), 1, weight=7),
        Server("b", InetAddress("127.0.0.1", 1), 2, disabled=True),
        Server("c", InetAddress("127.0.0.1", 1), 3, drain=True),
    )
    with control_of() as (control, _):
        control.table.close()
        control.config = Config(Global(), (), (Backend("app", 2, servers),))
        control.table = Table.create(row_keys(control.config), 1, 7)
        board = Board(control)
        board.refresh()
        assert [(value.state, value.weight, value.admin) for value in board.values[1:4]] == [
            ("no check", 7, "ready"),
            ("MAINT", 1, "maint"),
            ("DRAIN", 1, "drain"),
        ]
        assert board.values[4].usable == 1
        control.table.set_state(control.table.index[RowKey("server", "app", "a")], ServerState.READY, 0, 1)
        board.refresh()
        assert board.values[4].state == "DOWN"


def test_many_servers_are_few_bytes() -> None:
    """Of two thousand, those that changed are told."""
    with control_of(*(f"s{number}" for number in range(2000))) as (control, clock):
        room = Newsroom(control, clock)
        viewer = room.viewer()
        viewer.next()
        for number in range(0, 2000, 100):
            control.table.add(RowKey("server", "app", f"s{number}"), Column.SCUR, 1)
        room.later()
        text = viewer.next()
        assert len(events(text)[0]["r"]) == 20
        assert len(text) < 1000
