"""Main's checks on a real loop against real servers, and what a generation knows of the one before."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import resource
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from hitlessd.health import Result, identity, moment
from hitlessd.loop import Loop
from hitlessd.main.attempt import Attempt, OutOfMeans
from hitlessd.main.checks import Checks
from hitlessd.main.standing import Standing, limited
from hitlessd.main.wellbeing import carry_over
from hitlessd.model import (
    Backend,
    Check,
    Config,
    Expectation,
    Frontend,
    HttpCheck,
    InetAddress,
    Server,
    Timeouts,
    UnixAddress,
)
from hitlessd.table import Column, Health, HealthRecord, RowKey, ServerState, Table, row_keys
from tests.support.descriptors import no_leak
from tests.support.processes import Deadline, free_port, poll_until
from tests.support.sick import OK, SICK, Sick

FAST = Check(inter=0.02, rise=2, fall=3)
HTTP = HttpCheck("GET", "/health")


def server(name: str = "s", port: int = 1, check: Check | None = FAST, **more: Any) -> Server:
    return Server(name, InetAddress("127.0.0.1", port), check=check, **more)


def backend(*servers: Server, **more: Any) -> Backend:
    # Answers may take long where others keep the machine busy.
    return Backend("b", 2, servers, **{"timeouts": Timeouts(connect=10, check=10), **more})


class Bench:
    """A loop, a table, and the checks of one backend."""

    def __init__(self, *backends: Backend, older: tuple[Table, ...] = (), frontends: tuple[Frontend, ...] = ()) -> None:
        self.errors: list[BaseException] = []
        self.lines: list[tuple[str, str]] = []
        self.shut: list[tuple[str, str]] = []
        self.loop = Loop(lambda _what, error: self.errors.append(error))
        self.config = Config(frontends=frontends, backends=backends)
        self.table = Table.create(row_keys(self.config), 1, 1)
        for each in backends:
            for one in each.servers:
                state = ServerState.MAINT if one.disabled else ServerState.READY
                self.table.set_state(self.row(one.name, each.name), state, one.weight, 1)

        def log(severity: str, message: str, /, **_fields: object) -> None:
            self.lines.append((severity, re.sub(r"duration: \d+ms", "duration: 0ms", message)))

        def tables() -> list[Table]:
            return [self.table, *older]

        said = limited(self.loop, log)
        self.standing = Standing(said, self.table, tables, lambda one, other: self.shut.append((one, other)))
        self.checks = Checks(self.loop, self.config, self.table, tables, self.standing)

    def __enter__(self) -> Bench:
        self.checks.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.checks.stop()
        self.loop.close()
        self.table.close()
        assert not self.errors, self.errors

    def row(self, name: str = "s", of: str = "b") -> int:
        return self.table.index[RowKey("server", of, name)]

    def health(self, name: str = "s") -> HealthRecord:
        return self.table.health(self.row(name))

    def number(self, column: Column, name: str = "s") -> int:
        return self.table.value(self.row(name), column)

    def until(self, condition: Callable[[], object], what: str = "a change", deadline: float = 10.0) -> None:
        limit = Deadline(deadline)
        while not condition():
            limit.check(what)
            self.loop.turn(0.05)

    def until_checked(self, times: int = 1, name: str = "s") -> HealthRecord:
        """Let so many more checks of a server end."""
        for _ in range(times):
            before = self.health(name)
            due = before.next_at
            self.until(lambda due=due: self.health(name).next_at != due, "a check")  # type: ignore[misc]
        return self.health(name)


@contextlib.contextmanager
def full() -> Iterator[int]:
    """A port at which a connection neither comes about nor fails."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


# One check


@pytest.mark.parametrize(
    ("answer", "more", "result", "code", "text"),
    [
        (OK, {}, Result.L7OK, 200, ""),
        (SICK, {}, Result.L7STS, 503, "Sick"),
        (b"garbage\r\n\r\n", {}, Result.L7RSP, 0, ""),
        (b"", {}, Result.L7RSP, 0, ""),
        (None, {}, Result.L7TOUT, 0, ""),
        (OK, {"drip": True}, Result.L7OK, 200, ""),
        (OK[:30], {"drip": True}, Result.L7TOUT, 0, ""),
        (OK, {"reset": True}, Result.SOCKERR, 0, "Connection reset by peer"),
        (OK * 1000, {}, Result.L7OK, 200, ""),
    ],
)
def test_http_checks(answer: bytes | None, more: dict[str, bool], result: Result, code: int, text: str) -> None:
    limit = Timeouts(connect=10, check=0.3 if result is Result.L7TOUT else 10)
    with (
        no_leak(),
        Sick(answer, **more) as sick,
        Bench(backend(server(port=sick.port), http_check=HTTP, timeouts=limit)) as bench,
    ):
        record = bench.until_checked()
        assert (Result(record.result), record.code, bench.table.check_text(bench.row())) == (result, code, text)
        assert record.health == (Health.UP if result.passed else Health.DOWN)
        assert record.counter == (4 if result.passed else 0)
        assert record.duration >= 290 or result is not Result.L7TOUT
        poll_until(lambda: sick.heard, 10, "the server has heard it")
        assert sick.heard[0] == b"GET /health HTTP/1.0\r\nConnection: close\r\n\r\n"


def test_a_tcp_check_is_a_handshake_and_no_connection_to_accept() -> None:
    with no_leak(), Sick() as sick, Bench(backend(server(port=sick.port))) as bench:
        assert bench.until_checked(5).result == Result.L4OK
        bench.checks.stop()
        # Who comes after them is the only one who has said anything.
        with socket.create_connection(("127.0.0.1", sick.port)) as sock:
            sock.sendall(b"hello")
            assert sock.recv(9) == b"hello"
        assert sick.heard == [b"hello"]


def test_nobody_listens() -> None:
    with no_leak(), Bench(backend(server(port=free_port()))) as bench:
        record = bench.until_checked()
        assert (record.result, record.health) == (Result.L4CON, Health.DOWN)
        assert bench.table.check_text(bench.row()) == "Connection refused"


def test_nobody_accepts() -> None:
    with no_leak(), full() as port, Bench(backend(server(port=port, check=Check(inter=0.1)))) as bench:
        record = bench.until_checked()
        assert (record.result, record.health) == (Result.L4TOUT, Health.DOWN)
        assert record.duration >= 90


def test_a_connection_takes_no_longer_than_its_own_limit() -> None:
    with no_leak(), full() as port:
        limits = Timeouts(connect=0.05, check=60)
        with Bench(backend(server(port=port, check=Check(inter=60)), timeouts=limits)) as bench:
            assert bench.until_checked().result == Result.L4TOUT


def test_a_unix_path(tmp_path: object) -> None:
    path = f"{tmp_path}/s"
    unix = Server("s", UnixAddress(path), check=FAST)
    with no_leak(), Bench(backend(unix)) as bench:
        bench.until_checked()
        assert bench.table.check_text(bench.row()) == "No such file or directory"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(100)
            bench.until(lambda: bench.health().health == Health.UP)
            assert bench.health().result == Result.L4OK


def test_another_address_and_a_proxy_header() -> None:
    with no_leak(), Sick() as sick:
        check = replace(FAST, address=InetAddress("127.0.0.1", sick.port), send_proxy=2)
        with Bench(backend(server(port=free_port(), check=check), http_check=HTTP)) as bench:
            assert bench.until_checked().result == Result.L7OK
            assert sick.heard[0].startswith(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET /health")


def test_expectations_reach_the_probe() -> None:
    http = replace(HTTP, expect=(Expectation("string", "goodbye"),))
    with no_leak(), Sick() as sick, Bench(backend(server(port=sick.port), http_check=http)) as bench:
        bench.until_checked()
        assert bench.table.check_text(bench.row()) == "HTTP content check did not match"


def test_what_this_machine_lacks_is_not_the_servers_fault() -> None:
    # Nobody accepts them: another thread's descriptors would make room, or be in want themselves.
    with (
        no_leak(),
        socket.create_server(("127.0.0.1", 0)) as listener,
        Bench(backend(server(port=listener.getsockname()[1]))) as bench,
    ):
        bench.until_checked()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = os.dup(0)
        os.close(spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
        try:
            bench.until_checked(4)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (bench.health().health, bench.number(Column.CHKFAIL)) == (Health.UP, 0)
        assert bench.lines[-1] == (
            "err",
            "cannot check server b/s: Too many open files; its state stays as it is",
        )
        before = bench.health().checked_at
        bench.until(lambda: bench.health().checked_at != before)


def test_an_attempt_that_cannot_begin_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with no_leak():
        loop = Loop(lambda _what, _error: None)
        monkeypatch.setattr(socket.socket, "connect_ex", lambda _sock, _address: errno.EADDRNOTAVAIL)
        with pytest.raises(OutOfMeans):
            Attempt(loop, backend(), server(), FAST, lambda _outcome: pytest.fail("done"))
        loop.close()


# What comes of it


def test_down_and_up_again_with_all_that_is_told() -> None:
    port = free_port()
    front = Frontend("other", 1)
    pair = backend(server(port=port, on_marked_down="shutdown-sessions"), server("spare", port, backup=True))
    with no_leak(), Bench(pair, frontends=(front,)) as bench:
        bench.until(lambda: bench.health("spare").health == bench.health().health == Health.DOWN)
        assert not bench.table.usable(bench.row()) and not bench.table.running(bench.row())
        tail = "0 sessions active, 0 requeued, 0 remaining in queue."
        why = 'is DOWN, reason: Layer4 connection problem, info: "Connection refused", check duration: 0ms.'
        assert bench.lines == [
            ("alert", f"Server b/s {why} 0 active and 1 backup servers left. Running on backup. {tail}"),
            ("alert", f"Backup Server b/spare {why} 0 active and 0 backup servers left. {tail}"),
            ("emerg", "backend b has no server available!"),
        ]
        assert bench.shut == [("b", "s")]
        assert bench.table.health(bench.table.index[RowKey("backend", "b")]).health == Health.DOWN
        bench.until_checked(3)
        assert (bench.number(Column.CHKFAIL), bench.number(Column.CHKDOWN)) == (1, 1)
        bench.lines.clear()
        with Sick(port=port):
            bench.until(lambda: bench.health("spare").health == bench.health().health == Health.UP)
            assert {line for _, line in bench.lines[:1]} <= {
                f"{who} is UP, reason: Layer4 check passed, check duration: 0ms. {count} servers online."
                " 0 sessions requeued, 0 total in queue."
                for who, count in (
                    ("Server b/s", "1 active and 0 backup"),
                    ("Backup Server b/spare", "0 active and 1 backup"),
                )
            }
            assert bench.table.up_since(bench.row()) == bench.health().since > 0
            assert bench.table.health(bench.table.index[RowKey("backend", "b")]).health == Health.UP
            bench.until(lambda: bench.health().counter == 4)
        # Three failures in a row, now.
        fallen = bench.number(Column.CHKFAIL)
        bench.until(lambda: bench.health().health == Health.DOWN)
        assert bench.number(Column.CHKFAIL) == fallen + 3
        assert bench.number(Column.CHKDOWN) == 2


def test_a_server_that_flaps_does_not_flood_the_log_and_its_last_state_is_said() -> None:
    port = free_port()
    quick = Check(inter=0.01, rise=1, fall=1)
    with Bench(backend(server(port=port, check=quick), server("steady", check=None))) as bench:
        bench.until(lambda: bench.health().health == Health.DOWN)
        for _ in range(10):
            with Sick(port=port):
                bench.until(lambda: bench.health().health == Health.UP)
            bench.until(lambda: bench.health().health == Health.DOWN)
        assert bench.number(Column.CHKDOWN) == 11
        assert len(bench.lines) == 10
    assert len(bench.lines) == 11
    assert "Server b/s is DOWN" in bench.lines[-1][1]
    assert bench.lines[-1][1].endswith(" (10 similar messages suppressed)")


def test_a_proxy_of_both_sides_is_called_one() -> None:
    with Bench(backend(server(port=free_port())), frontends=(Frontend("b", 2),)) as bench:
        bench.until_checked()
        assert bench.lines[-1] == ("emerg", "proxy b has no server available!")


def test_who_is_in_maintenance_is_not_checked() -> None:
    with Sick() as sick, Bench(backend(server(port=sick.port, disabled=True), http_check=HTTP)) as bench:
        bench.until_checked(3)
        assert (bench.health().result, sick.accepted) == (Result.INI, 0)
        bench.table.set_state(bench.row(), ServerState.READY, 1, 5)
        bench.until(lambda: bench.health().result == Result.L7OK)


def test_faster_while_changing_slower_while_down() -> None:
    check = Check(inter=0.03, fastinter=0.01, downinter=30)
    with Bench(backend(server(port=free_port(), check=check))) as bench:
        record = bench.until_checked()
        assert 29_000 < record.next_at - record.checked_at <= 30_100
    check = Check(inter=30, fastinter=0.01)
    with Sick() as sick, Bench(backend(server(port=sick.port, check=check), http_check=HTTP)) as bench:
        bench.until_checked()
        assert bench.health().counter == 4
        sick.answer = SICK
        bench.checks.observed("b", "s", "x")
        bench.until(lambda: bench.health().health == Health.DOWN)  # fastinter, not 30 seconds
        assert bench.number(Column.CHKFAIL) == 3


# observe


@pytest.mark.parametrize(
    ("how", "counter", "failed"),
    [("fastinter", 4, 0), ("fail-check", 3, 1), ("sudden-death", 2, 1), ("mark-down", 0, 1)],
)
def test_on_error(how: Any, counter: int, failed: int) -> None:
    slow = Check(inter=60)
    with Sick() as sick:
        one = server(port=sick.port, check=slow, observe="layer4", on_error=how)
        with Bench(backend(one)) as bench:
            bench.until_checked()
            text = "Detected 10 consecutive errors, last one was: L4 unsuccessful connection"
            bench.checks.observed("b", "s", text)
            assert (bench.health().counter, bench.number(Column.CHKFAIL)) == (counter, failed)
            assert (bench.number(Column.HANAFAIL), bench.number(Column.OBSERVED_OK)) == (1, 2)
            if failed:
                assert (bench.health().result, bench.table.check_text(bench.row())) == (Result.HANA, text)
            logged = f'Server b/s is DOWN, reason: Health analyze, info: "{text}". 0 active and 0 backup servers left.'
            assert bool(bench.lines) is (how == "mark-down")
            assert not bench.lines or bench.lines[0][1].startswith(logged)
            bench.checks.observed("b", "nobody", text)
            bench.checks.observed("nobody", "s", text)


# Many


def test_a_thousand_servers_hold_nothing_up() -> None:
    """They begin a few at a time, each once an interval; what else is due comes in between."""
    count = 1000
    with no_leak(), Sick() as sick:
        servers = tuple(server(f"s{number}", sick.port, Check(inter=1.0)) for number in range(count))
        with Bench(backend(*servers)) as bench:
            most = 0
            for _ in range(10 * count):
                before = sum(bench.health(one.name).result == Result.L4OK for one in servers)
                if before == count:
                    break
                bench.loop.turn(0.1)
                most = max(most, sum(bench.health(one.name).result == Result.L4OK for one in servers) - before)
            assert before == count
            assert most < count / 2  # a turn never waits for all of them


def test_when_all_are_due_at_once_others_come_in_between() -> None:
    servers = tuple(server(f"s{number}", 9, Check(inter=60)) for number in range(500))
    begun: list[int] = []
    with no_leak(), Bench(backend(*servers)) as bench:

        def tick() -> None:
            begun.append(sum(bench.health(one.name).result != Result.INI for one in servers))
            bench.loop.call_soon(tick)

        for each in bench.checks._checked.values():
            bench.checks._schedule(each, 0)
        bench.loop.call_soon(tick)
        bench.until(lambda: begun and begun[-1] == len(servers))
        assert max(after - before for before, after in itertools.pairwise(begun)) <= 64


# The next generation


def older(one: Backend, record: HealthRecord, text: str = "why") -> Table:
    table = Table.create(row_keys(Config(backends=(one,))), 1, 1)
    for each in one.servers:
        row = table.index[RowKey("server", one.name, each.name)]
        table.set_state(row, ServerState.READY, each.weight, 1)
        table.set_health(row, record)
        table.set_check_text(row, text)
    return table


def identified(one: Backend, **more: int) -> HealthRecord:
    now = round(moment() * 1000)
    fields = {"health": Health.DOWN, "since": 77, "result": Result.L4CON, "checked_at": now, "next_at": now + 500}
    return HealthRecord(**{**fields, **more}, identity=identity(one, one.servers[0]))


@pytest.mark.parametrize(
    ("changed", "age", "known"),
    [
        ({}, 0, True),
        ({"check": Check(1, 2, 3, 4, 5)}, 0, True),
        ({"weight": 9, "backup": True}, 0, True),
        ({"address": InetAddress("127.0.0.1", 9)}, 0, False),
        ({"check": replace(FAST, address=InetAddress("127.0.0.1", 9))}, 0, False),
        ({"name": "t"}, 0, False),
        ({}, 59, True),
        ({}, 61, False),
        ({}, -61, False),
        ({"check": replace(FAST, downinter=40.0)}, 119, True),
        ({"check": replace(FAST, downinter=40.0)}, 121, False),
    ],
)
def test_what_is_known_of_the_same_server_is_known_on(changed: dict[str, Any], age: int, known: bool) -> None:
    before = backend(server())
    after = backend(replace(server(), **changed))
    then = round((moment() - age) * 1000)
    old = older(before, identified(before, checked_at=then, next_at=then))
    table = Table.create(row_keys(Config(backends=(after,))), 1, 2)
    row = table.index[RowKey("server", "b", after.servers[0].name)]
    table.set_state(row, ServerState.READY, 1, 1)
    carry_over(Config(backends=(after,)), table, [old], time.time())
    record = table.health(row)
    assert (record.health == Health.DOWN, record.since == 77) == (known, known)
    assert table.check_text(row) == ("why" if known else "")
    check = after.servers[0].check
    assert check
    assert record.counter == (0 if known else check.rise)
    whole = table.health(table.index[RowKey("backend", "b")])
    assert whole.health == (Health.DOWN if known else Health.UP)
    old.close()
    table.close()


@pytest.mark.parametrize("hours", [-2, 2])
def test_setting_the_clock_makes_nothing_older_or_younger(hours: int) -> None:
    one = backend(server())
    old = older(one, identified(one))
    table = Table.create(row_keys(Config(backends=(one,))), 1, 2)
    carry_over(Config(backends=(one,)), table, [old], time.time() + hours * 3600)
    assert table.health(table.index[RowKey("server", "b", "s")]).health == Health.DOWN
    old.close()
    table.close()


def test_the_youngest_that_knows_something_is_asked_and_later_news_come_too() -> None:
    one = backend(server())
    config = Config(backends=(one,))
    now = round(moment() * 1000)
    young = older(one, identified(one, health=Health.UP, counter=4, checked_at=now - 1000))
    old = older(one, identified(one, checked_at=now - 2000))
    table = Table.create(row_keys(config), 1, 3)
    row = table.index[RowKey("server", "b", "s")]
    table.set_state(row, ServerState.READY, 1, 1)
    carry_over(config, table, [young, old], time.time())
    assert table.health(row).health == Health.UP
    young.set_health(row, identified(one, checked_at=now))
    carry_over(config, table, [young, old], time.time())
    assert (table.health(row).health, table.usable(row)) == (Health.DOWN, False)
    for each in (young, old, table):
        each.close()


def test_counters_fit_another_rise_and_fall() -> None:
    before = backend(server(check=replace(FAST, rise=9, fall=9)))
    after = backend(server(check=replace(FAST, rise=2, fall=3)))
    for health, counter, expected in ((Health.DOWN, 8, 1), (Health.UP, 17, 4), (Health.UP, 9, 4), (Health.DOWN, 0, 0)):
        old = older(before, identified(before, health=health, counter=counter))
        table = Table.create(row_keys(Config(backends=(after,))), 1, 2)
        carry_over(Config(backends=(after,)), table, [old], time.time())
        record = table.health(table.index[RowKey("server", "b", "s")])
        assert (record.health, record.counter) == (health, expected)
        old.close()
        table.close()


def test_checks_go_on_where_they_were() -> None:
    slow = Check(inter=30)
    one = backend(server(check=slow), server("t", 2, slow))
    due = round(moment() * 1000) + 20_000
    with Bench(one, older=(older(one, identified(one, next_at=due)),)) as bench:
        assert abs(bench.health().next_at - due) < 100
        assert bench.health().counter == 0
        assert bench.health("t").next_at <= moment() * 1000 + 15_100  # another address: unknown, in its turn


def test_who_was_not_checked_yet_keeps_its_turn() -> None:
    """Or reloads that come faster than checks would put them off for ever."""
    one = backend(server(check=Check(inter=30)), server("t", 1, Check(inter=30)))
    unchecked = identified(one, health=Health.UP, counter=2, result=Result.INI, checked_at=0, next_at=1)
    soon = round(moment() * 1000) + 700
    with Bench(one, older=(older(one, unchecked._replace(next_at=soon)),)) as bench:
        assert abs(bench.health("t").next_at - soon) < 100


def test_who_is_retired_checks_on_in_silence() -> None:
    with Bench(backend(server(port=free_port(), on_marked_down="shutdown-sessions"))) as bench:
        bench.checks.retire(True)
        bench.until_checked(3)
        assert (bench.health().health, bench.lines, bench.shut) == (Health.DOWN, [], [])
        assert (bench.number(Column.CHKFAIL), bench.number(Column.CHKDOWN)) == (0, 0)


def test_whose_successor_failed_speaks_again() -> None:
    with Bench(backend(server(port=free_port()))) as bench:
        bench.checks.retire(True)
        bench.checks.retire(False)
        bench.until_checked()
        assert [severity for severity, _ in bench.lines] == ["alert", "emerg"]
        assert bench.number(Column.CHKDOWN) == 1


# --- what operators change


def changed(bench: Bench, *servers: Server) -> None:
    """The servers of b are these now."""
    bench.config = Config(frontends=bench.config.frontends, backends=(backend(*servers),))
    bench.checks.follow(bench.config)


def test_a_server_that_is_added_is_checked_soon_and_one_that_is_deleted_no_more() -> None:
    with Bench(backend(server("old", 1, Check(inter=3600)))) as bench:
        new = server("new", free_port(), Check(inter=3600))
        bench.table.set_health(bench.standing.admit(bench.config.backends[0], new), HealthRecord(since=1))
        changed(bench, server("old", 1, Check(inter=3600)), new)
        bench.until(lambda: bench.health("new").health == Health.DOWN)
        assert "Server b/new is DOWN, reason: Layer4 connection problem" in bench.lines[-2][1]
        changed(bench, server("old", 1, Check(inter=3600)))
        due = bench.health("new").next_at
        for _ in range(5):
            bench.loop.turn(0.01)
        assert bench.health("new").next_at == due
        # Of the same name again: nothing is known of it.
        bench.standing.admit(bench.config.backends[0], new)
        assert bench.health("new").health == Health.UNCHECKED


def test_health_switched_off_and_on() -> None:
    with Sick() as sick, Bench(backend(server(port=sick.port), http_check=HTTP)) as bench:
        sick.answer = SICK
        bench.until(lambda: bench.health().health == Health.DOWN)
        off = replace(bench.config.backends[0], servers=(server(port=sick.port, check=None),))
        bench.checks.follow(Config(backends=(off,)))
        bench.standing.forget_health(off, off.servers[0])
        sick.settle()  # a check may have been on its way
        asked = sick.checks
        assert bench.health().health == Health.UNCHECKED and bench.number(Column.CHKDOWN) == 1
        assert bench.table.usable(bench.row())
        for _ in range(10):
            bench.loop.turn(0.01)
        sick.settle()
        assert sick.checks == asked
        bench.checks.follow(bench.config)
        assert bench.health().health == Health.UP
        bench.until(lambda: bench.health().health == Health.DOWN)
        assert sick.checks > asked


def test_a_server_that_moves_stays_down_until_checks_of_its_new_address_pass() -> None:
    with Sick() as good, Bench(backend(server(port=free_port()))) as bench:
        bench.until(lambda: bench.health().health == Health.DOWN)
        changed(bench, server(port=good.port))
        assert bench.health().health == Health.DOWN
        assert bench.health().identity == identity(bench.config.backends[0], server(port=good.port))
        bench.until(lambda: bench.health().health == Health.UP)
        assert "Server b/s is UP, reason: Layer4 check passed" in bench.lines[-1][1]


def test_what_an_operator_says_holds_until_a_check_passes() -> None:
    with Sick() as good, Bench(backend(server(port=good.port, check=Check(inter=0.02, rise=2)))) as bench:
        bench.until_checked(2)
        bench.standing.force(bench.config.backends[0], bench.config.backends[0].servers[0], "stopping")
        assert not bench.table.usable(bench.row()) and bench.table.running(bench.row())
        bench.until(lambda: bench.health().health == Health.UP)
        bench.standing.force(bench.config.backends[0], bench.config.backends[0].servers[0], "down")
        assert not bench.table.running(bench.row()) and bench.health().counter == 0
        bench.until(lambda: bench.health().health == Health.UP)
        assert [line.partition(".")[0] for _, line in bench.lines if "changed from CLI" in line] == [
            "Server b/s is stopping, changed from CLI",
            "Server b/s is DOWN, changed from CLI",
        ]


def test_what_an_operator_says_of_a_server_without_checks_comes_over() -> None:
    plain = backend(server(check=None))
    with Bench(plain) as before:
        before.standing.force(plain, plain.servers[0], "down")
        with Bench(plain, older=(before.table,)) as after:
            assert after.health().health == Health.DOWN
            after.standing.force(plain, plain.servers[0], "up")
            assert after.health().health == Health.UNCHECKED
        # Not at another address.
        with Bench(backend(server(port=2, check=None)), older=(before.table,)) as elsewhere:
            assert elsewhere.health().health == Health.UNCHECKED


def test_a_change_of_state_reaches_older_generations_and_is_counted_once() -> None:
    one = backend(server(check=None, on_marked_down="shutdown-sessions"))
    with Bench(one) as older, Bench(one, older=(older.table,)) as bench:
        bench.standing.administer(one, one.servers[0], "maint")
        assert older.table.state(older.row()) is bench.table.state(bench.row()) is ServerState.MAINT
        assert bench.shut == [("b", "s")] and not older.shut
        assert (bench.number(Column.CHKDOWN), older.number(Column.CHKDOWN)) == (1, 0)
        assert bench.table.health(bench.table.index[RowKey("backend", "b")]).health == Health.DOWN
        assert bench.lines[-1] == ("emerg", "backend b has no server available!")
        bench.standing.retired = True
        bench.standing.administer(one, one.servers[0], "ready")
        assert len(bench.lines) == 2 and bench.table.usable(bench.row())
