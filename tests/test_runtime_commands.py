"""The runtime API's commands: framing, levels, help, and every answer's form."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hitlessd.changes import Change, Item
from hitlessd.model import Level
from hitlessd.runtime.control import GenerationInfo, ReloadOutcome
from hitlessd.runtime.stat import COLUMNS
from hitlessd.runtime.words import split_line, split_words
from hitlessd.table import PROCESS, Column, RowKey, ServerState, Table, row_keys
from tests.test_runtime_harness import Harness

LAST_THREE = (
    b"  help [<command>]                        : list matching or all commands\n"
    b"  prompt                                  : toggle interactive mode with prompt\n"
    b"  quit                                    : disconnect\n"
)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(tmp_path)
    yield harness
    harness.close()


@pytest.fixture
def unprivileged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers of our own uid or root's are not taken for the operator."""
    monkeypatch.setattr("hitlessd.runtime.server.is_privileged", lambda _credentials: False)
    monkeypatch.setattr("hitlessd.runtime.client.is_privileged", lambda _credentials: False)


def rows(answer: bytes) -> list[dict[str, str]]:
    header, *lines = answer.decode().rstrip("\n").split("\n")
    names = header.removeprefix("# ").split(",")
    return [dict(zip(names, line.split(","), strict=True)) for line in lines]


def fields(answer: bytes) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in answer.decode().rstrip("\n").split("\n"))


@pytest.mark.parametrize(
    ("line", "commands"),
    [
        (b"show info", [["show", "info"]]),
        (b"  show \t info  ", [["show", "info"]]),
        (b"a;b", [["a"], ["b"]]),
        (b"a;", [["a"], []]),
        (rb"a\;b;c", [["a;b"], ["c"]]),
        (rb"a\\;b", [["a\\"], ["b"]]),
        (rb"a\ b c", [["a b", "c"]]),
        (b"a\\", [["a\\"]]),
        (b"a\r", [["a"]]),
        (b"a\0b;c", [["a"]]),
        (b"a\\;\0b;c", [["a;"]]),
        (b"\xff\xfe", [["\ufffd\ufffd"]]),
        (b"", [[]]),
    ],
)
def test_line_is_split(line: bytes, commands: list[list[str]]) -> None:
    assert [split_words(command) for command in split_line(line)] == commands


def test_answers_end_with_an_empty_line_and_the_connection_closes(harness: Harness) -> None:
    path = harness.listen()
    with harness.connect(path) as peer:
        peer.sock.sendall(b"show version;show cli level\n")
        assert peer.read_all() == b"1.2.3\n\nadmin\n\n"


def test_half_closed_client_gets_its_answer(harness: Harness) -> None:
    assert harness.ask(harness.listen(), b"show version\n") == b"1.2.3\n\n"


def test_unfinished_line_is_not_executed(harness: Harness) -> None:
    path = harness.listen()
    assert harness.ask(path, b"reload") == b""
    assert harness.ask(path, b"show version\nreload") == b"1.2.3\n\n"
    assert harness.control.waiting == []


def test_prompt_toggles(harness: Harness) -> None:
    path = harness.listen()
    assert harness.ask(path, b"prompt\nshow version\nprompt\nshow version\n") == b"\n> 1.2.3\n\n> \n1.2.3\n\n"
    assert harness.ask(path, b"prompt;show version;quit;show version\n") == b"\n> 1.2.3\n\n> "
    with harness.connect(path) as peer:
        peer.sock.sendall(b"prompt\n")
        assert peer.read_until(b"> ") == b"\n> "
        peer.sock.sendall(b"show cli level\n")
        assert peer.read_until(b"> ") == b"admin\n\n> "
        peer.sock.sendall(b"quit\n")
        assert peer.read_all() == b""


def test_quit_discards_what_follows(harness: Harness) -> None:
    assert harness.ask(harness.listen(), b"show version;quit;show version\n") == b"1.2.3\n\n"


def test_level_can_be_lowered_only(harness: Harness) -> None:
    answer = harness.ask(
        harness.listen(), b"show cli level;operator;show cli level;user;show cli level;operator;show cli level\n"
    )
    assert answer == b"admin\n\n\noperator\n\n\nuser\n\nPermission denied\n\nuser\n\n"


def test_lowering_gives_up_the_operators_rights(harness: Harness) -> None:
    assert (
        harness.ask(harness.listen(), b"user;reload;show errors\n") == b"\nPermission denied\n\nPermission denied\n\n"
    )
    assert harness.control.waiting == []


@pytest.mark.usefixtures("unprivileged")
@pytest.mark.parametrize(
    ("level", "denied"),
    [
        ("user", [b"reload", b"show errors", b"show startup-logs"]),
        ("operator", [b"reload"]),
    ],
)
def test_forbidden_commands(harness: Harness, level: Level, denied: list[bytes]) -> None:
    path = harness.listen(level)
    for command in denied:
        assert harness.ask(path, command + b"\n") == b"Permission denied\n\n"
        assert b"\n  " + command + b" " not in harness.ask(path, b"help\n")
    assert harness.control.waiting == []


@pytest.mark.usefixtures("unprivileged")
@pytest.mark.parametrize("level", ["user", "operator", "admin"])
def test_allowed_commands(harness: Harness, level: Level) -> None:
    path = harness.listen(level)
    for command in (
        "show info",
        "show stat",
        "show proc",
        "show version",
        "show cli level",
        "show cli sockets",
        "help",
    ):
        assert b"Permission denied" not in harness.ask(path, command.encode() + b"\n")
    if level != "user":
        assert harness.ask(path, b"show errors\n").startswith(b"Total events captured on [")


def test_owner_may_reload_and_read_errors_whatever_the_level(harness: Harness) -> None:
    path = harness.listen("user")
    assert harness.ask(path, b"show errors\n").startswith(b"Total events captured on [")
    with harness.connect(path) as peer:
        peer.sock.sendall(b"reload\n")
        harness.until(lambda: harness.control.waiting, "the reload")


def test_help_lists_what_matches(harness: Harness) -> None:
    path = harness.listen()
    heading = b"The following commands are valid at this level:\n"
    assert harness.ask(path, b"help show cli\n") == (
        heading + b"  show cli level                          : display the level of the current CLI session\n"
        b"  show cli sockets                        : dump list of cli sockets\n" + LAST_THREE + b"\n"
    )
    everything = harness.ask(path, b"help\n")
    assert everything.startswith(heading) and everything.endswith(LAST_THREE + b"\n")
    for command in (b"reload", b"show info", b"show stat", b"show proc", b"show errors", b"operator", b"set timeout"):
        assert b"\n  " + command in everything


def test_unknown_command_names_the_nearest(harness: Harness) -> None:
    path = harness.listen()
    heading = b"Unknown command, but maybe one of the following ones is a better match:\n"
    assert harness.ask(path, b"show versio\n") == (
        heading
        + b"  show version                            : show version of the current process\n"
        + LAST_THREE
        + b"\n"
    )
    assert b"  reload " in harness.ask(path, b"relaod\n")
    assert b"  show stat " in harness.ask(path, b"show stta\n")
    assert b"  show proc " in harness.ask(path, b"show\n")


@pytest.mark.parametrize("line", [b"\n", b"%%%%%\n", b"\xff\xfe\x80\n"])
def test_unintelligible_command_gets_the_whole_list(harness: Harness, line: bytes) -> None:
    answer = harness.ask(harness.listen(), line)
    assert answer.startswith(b"Unknown command. Please enter one of the following commands only:\n  add server")
    assert answer.endswith(LAST_THREE + b"\n")


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (b"set timeout cli 20", b"\n"),
        (b"set timeout cli 5m", b"\n"),
        (b"set timeout cli", b"Expects an integer value.\n\n"),
        (b"set timeout cli x", b"Invalid timeout value.\n\n"),
        (b"set timeout cli 0", b"Invalid timeout value.\n\n"),
        (b"set timeout foo 20", b"'set timeout' only supports 'cli'.\n\n"),
    ],
)
def test_set_timeout(harness: Harness, command: bytes, answer: bytes) -> None:
    assert harness.ask(harness.listen(), command + b"\n") == answer


def test_show_cli_sockets(harness: Harness) -> None:
    path = harness.listen("user")
    host, port = harness.listen_tcp("operator")
    answer = harness.ask(path, b"show cli sockets\n").decode()
    assert answer == f"# socket lvl processes\nunix@{path} user all\nipv4@{host}:{port} operator all\n\n"


def test_show_info(harness: Harness) -> None:
    slot = harness.control.table.slot(1)
    slot[Column.SCUR], slot[Column.STOT], slot[Column.BOUT] = 3, 40, 500
    slot.release()
    assert harness.control.table.index[PROCESS] == 0
    harness.control.last_reload = ReloadOutcome(8, False, "secret", 0.25, 1700000000.5)
    harness.control.reloads = (6, 2)
    answer = harness.ask(harness.listen("user"), b"show info\n")
    info = fields(answer)
    assert (
        info["Name"] == "HAProxy"
        and info["Product"] == "hitlessd"
        and info["Version"] == "1.2.3"
        and info["Pid"] == "4711"
    )
    assert info["Uptime"].startswith("0d 0h") and int(info["Uptime_sec"]) >= 59
    assert (info["CurrConns"], info["CumConns"], info["TotalBytesOut"]) == ("3", "40", "500")
    assert (info["SessRate"], info["MaxSessRate"], info["Maxconn"], info["Listeners"]) == ("5", "9", "100", "2")
    assert (info["Generation"], info["Workers"], info["Reloads"], info["ReloadsRefused"]) == ("7", "2", "6", "2")
    assert info["LastReload"] == "8 failure" and info["ConfigState"] == "file"
    assert int(info["Now_monotonic_usec"]) - int(info["Start_monotonic_usec"]) >= 59_000_000
    assert b"secret" not in answer


def test_show_stat_counts_over_workers_and_generations(harness: Harness) -> None:
    table, key = harness.control.table, RowKey("server", "pg", "a")
    for worker in (0, 1):
        slot = table.slot(worker)
        at = table.index[key] * table.columns
        slot[at + Column.STOT], slot[at + Column.SCUR], slot[at + Column.SMAX] = 10, 2, 5 + worker
        slot.release()
    row = next(row for row in rows(harness.ask(harness.listen(), b"show stat\n")) if row["svname"] == "a")
    assert (row["stot"], row["scur"], row["smax"], row["connect"]) == ("20", "4", "6", "20")


def test_show_stat_order_types_and_states(harness: Harness) -> None:
    table, now = harness.control.table, 1_000_000_000
    table.set_state(table.index[RowKey("server", "app", "x")], ServerState.DRAIN, 1, now)
    table.set_state(table.index[RowKey("server", "app", "q")], ServerState.READY, 40, now)
    table.set_state(table.index[RowKey("server", "app", "six")], ServerState.READY, 0, now)
    found = rows(harness.ask(harness.listen(), b"show stat\n"))
    assert [(r["pxname"], r["svname"], r["status"], r["weight"], r["act"], r["bck"], r["type"]) for r in found] == [
        ("pg", "FRONTEND", "OPEN", "", "", "", "0"),
        ("pg", "a", "no check", "1", "1", "0", "2"),
        ("pg", "b", "no check", "5", "0", "1", "2"),
        ("pg", "c", "MAINT", "1", "1", "0", "2"),
        ("pg", "BACKEND", "UP", "1", "1", "1", "1"),
        ("www", "FRONTEND", "OPEN", "", "", "", "0"),
        ("app", "x", "DRAIN", "1", "1", "0", "2"),
        ("app", "q", "no check", "40", "1", "0", "2"),
        ("app", "six", "no check", "0", "1", "0", "2"),
        ("app", "BACKEND", "UP", "40", "1", "0", "1"),
        ("empty", "dis", "MAINT", "1", "1", "0", "2"),
        ("empty", "BACKEND", "DOWN", "0", "0", "0", "1"),
    ]
    assert {row["slim"] for row in found if row["type"] == "0"} == {"100", "50"}
    assert int(found[6]["lastchg"]) > 500_000_000 and int(found[1]["lastchg"]) < 1000


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("2 4 -1", ["a", "b", "c"]),
        ("pg 2 -1", ["BACKEND"]),
        ("-1 4 1", ["a", "x", "dis"]),
        ("2 7 2", ["FRONTEND", "b", "BACKEND"]),
        ("-2 4 1", []),
        ("pg 4 999", []),
        ("2 4 foo", []),
        ("domain proxy www -1 -1", ["FRONTEND"]),
        ("pg -1 -1 no-maint", ["FRONTEND", "a", "b", "BACKEND"]),
        ("empty -1 -1 up", ["BACKEND"]),
    ],
)
def test_show_stat_filters(harness: Harness, arguments: str, names: list[str]) -> None:
    assert [row["svname"] for row in rows(harness.ask(harness.listen(), f"show stat {arguments}\n".encode()))] == names


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("nope 4 1", b"No such proxy.\n\n"),
        ("domain dns", b"Invalid statistics domain.\n\n"),
    ],
)
def test_show_stat_refusals(harness: Harness, arguments: str, answer: bytes) -> None:
    assert harness.ask(harness.listen(), f"show stat {arguments}\n".encode()) == answer


@pytest.mark.usefixtures("unprivileged")
def test_addresses_are_for_operators(harness: Harness) -> None:
    hidden = rows(harness.ask(harness.listen("user"), b"show stat\n"))
    shown = rows(harness.ask(harness.listen("operator"), b"show stat\n"))
    assert {row["addr"] + row["algo"] for row in hidden} == {""}
    assert [row["addr"] for row in shown if row["pxname"] == "app"] == ["127.0.0.1:18435", "unix", "[::1]:18436", ""]
    assert [row["algo"] for row in shown if row["type"] == "1"] == ["leastconn", "roundrobin", "source"]


def test_rows_are_as_wide_as_the_header(harness: Harness) -> None:
    lines = harness.ask(harness.listen(), b"show stat\n").decode().rstrip("\n").split("\n")
    assert {line.count(",") for line in lines} == {len(COLUMNS)}
    assert all(line.endswith(",") for line in lines)


def test_show_proc(harness: Harness) -> None:
    harness.control.info.append(GenerationInfo(6, 4000, "draining", 90061.0, 1, [(4001, 2)], "1.2.2", 90, "2: because"))
    harness.control.reloads = (6, 1)
    assert harness.ask(harness.listen(), b"show proc\n").decode().splitlines() == [
        "#<PID>          <type>          <reloads>       <uptime>        <version>       <generation>    <sessions>"
        "      <moved>         <note>",
        "4711            master          6 [failed: 1]   0d00h00m59s     1.2.3           7               7"
        "               0",
        "# workers",
        "4712            worker          0               0d00h00m59s     1.2.3           7               3",
        "4713            worker          0               0d00h00m59s     1.2.3           7               4",
        "# old workers",
        "4000            master          1               1d01h01m01s     1.2.2           6               2"
        "               90              2: because",
        "4001            worker          1               1d01h01m01s     1.2.2           6               2",
        "# programs",
        "",
    ]


def test_show_errors(harness: Harness) -> None:
    path = harness.listen()
    assert harness.ask(path, b"show errors\n").endswith(b"] : 0\n\n")
    harness.control.last_reload = ReloadOutcome(8, False, "f:1: bad\n\n  f:2: worse\n", 0.1234, 1700000000.5)
    lines = harness.ask(path, b"show errors\n").decode().splitlines()
    assert lines[0].endswith("] : 1")
    assert lines[1].endswith(".500] reload 8: refused after 0.123 s, nothing was changed")
    assert lines[2:] == ["  f:1: bad", "    f:2: worse", ""]
    harness.control.last_reload = ReloadOutcome(9, True, "", 0.1, 1700000001.5)
    harness.control.warm, harness.control.config_error = True, "f:3: broken"
    lines = harness.ask(path, b"show errors\n").decode().splitlines()
    assert lines[0].endswith("] : 1")
    assert lines[1].endswith("start: the configuration is invalid, the stored one is served")
    assert lines[2:] == ["  f:3: broken", ""]


def test_show_startup_logs_have_no_empty_line(harness: Harness) -> None:
    path = harness.listen()
    assert harness.ask(path, b"show startup-logs\n") == b"\n"
    harness.control.startup_logs = "one\n\nzwölf\n"
    assert harness.ask(path, b"show startup-logs\n") == "one\nzwölf\n\n".encode()


@pytest.mark.parametrize(
    ("ok", "reason", "answer"),
    [
        (True, "generation 8 serves", b"Success=1\n--\ngeneration 8 serves\n\n"),
        (False, "f:1: bad\n\nf:2: worse\n", b"Success=0\n--\nf:1: bad\nf:2: worse\n\n"),
        (True, "", b"Success=1\n--\n\n"),
    ],
)
def test_reload_answers_when_it_has_ended(harness: Harness, ok: bool, reason: str, answer: bytes) -> None:
    path = harness.listen()
    with harness.connect(path) as peer:
        peer.sock.sendall(b"reload\n")
        peer.sock.shutdown(socket.SHUT_WR)
        harness.until(lambda: harness.control.waiting, "the reload")
        harness.settle()
        assert not peer.readable
        harness.control.end_reload(ok, reason)
        assert peer.read_all() == answer


def test_commands_after_reload_wait_for_it(harness: Harness) -> None:
    path = harness.listen()
    with harness.connect(path) as peer:
        peer.sock.sendall(b"prompt;reload;show version\nshow cli level\n")
        assert peer.read_until(b"> ") == b"\n> "
        harness.until(lambda: harness.control.waiting, "the reload")
        harness.settle()
        assert not peer.readable
        harness.control.end_reload(True, "")
        peer.read_until(b"Success=1\n--\n\n> 1.2.3\n\n> admin\n\n> ")


def test_mistake_in_a_command_is_contained(harness: Harness) -> None:
    harness.control.fail = True
    answer = harness.ask(harness.listen(), b"reload;show version\n")
    assert answer == b"cannot execute the command: internal error\n\n1.2.3\n\n"
    assert harness.logged == [("err", "cannot execute a runtime API command: RuntimeError: broken")]


def test_show_reloads(harness: Harness) -> None:
    path = harness.listen()
    header = harness.ask(path, b"show reloads\n").decode()
    assert header.startswith("# number ") and header.count("\n") == 2
    phases = (("check", 0.01), ("listen", 0.02))
    harness.control.history = [
        ReloadOutcome(7, False, "f:1: bad\nf:2: worse", 0.05, 1700000000.5, 6),
        ReloadOutcome(8, True, "fine", 0.1234, 1700000001.25, 7, 5, 2, 1, 3, 1, 0, phases),
    ]
    _, refused, done, *rest = harness.ask(path, b"show reloads\n").decode().splitlines()
    assert refused.split()[:4] == ["7", "failure", "50", "6"] and refused.endswith("  f:1: bad")
    assert done.split()[:10] == ["8", "success", "123", "7", "3", "1", "0", "5", "2", "1"] and rest == [""]
    found = json.loads(harness.ask(path, b"show reloads json\n"))
    assert [each["number"] for each in found] == [7, 8]
    assert found[0]["reason"] == "f:1: bad\nf:2: worse" and not found[0]["ok"]
    assert found[1] == {
        "number": 8,
        "ok": True,
        "reason": "fine",
        "duration": 0.1234,
        "at": 1700000001.25,
        "generation": 7,
        "moved": 5,
        "kept": 2,
        "lost": 1,
        "taken": 3,
        "bound": 1,
        "closed": 0,
        "phases": [["check", 0.01], ["listen", 0.02]],
    }


def test_show_changes(harness: Harness) -> None:
    path = harness.listen()
    assert harness.ask(path, b"show changes\n") == b"# kind proxy/server value configured\n\n"
    assert harness.ask(path, b"show changes json\n") == b"[]\n\n"
    for change in (
        Change(Item("server-weight", "pg", "a"), 30, 1),
        Change(Item("frontend-state", "www"), "off", "on"),
        Change(Item("global-maxconn"), 50, 100),
        Change(Item("server-deleted", "pg", "b"), True, None),
    ):
        harness.control.changes.items[change.item] = change
    assert harness.ask(path, b"show changes\n").decode().splitlines()[1:] == [
        "server-weight pg/a 30 1",
        "frontend-state www off on",
        "global-maxconn - 50 100",
        "server-deleted pg/b true -",
        "",
    ]
    found = json.loads(harness.ask(path, b"show changes json\n"))
    assert found[0] == {"kind": "server-weight", "proxy": "pg", "server": "a", "value": 30, "configured": 1}
    assert len(found) == 4


@pytest.mark.usefixtures("unprivileged")
@pytest.mark.parametrize("command", [b"show reloads\n", b"show changes\n"])
def test_what_was_changed_is_for_operators(harness: Harness, command: bytes) -> None:
    assert harness.ask(harness.listen("user"), command) == b"Permission denied\n\n"
    assert harness.ask(harness.listen("operator"), command).startswith(b"# ")


def test_changed_servers_and_frontends_show_it(harness: Harness) -> None:
    config = harness.control.config
    pg, *others = config.backends
    drained = replace(pg.servers[0], drain=True, weight=9)
    harness.control.config = replace(
        config,
        frontends=tuple(replace(frontend, disabled=True) for frontend in config.frontends),
        backends=(replace(pg, servers=(drained, *pg.servers[1:])), *others),
    )
    found = rows(harness.ask(harness.listen(), b"show stat\n"))
    assert [row["status"] for row in found if row["type"] == "0"] == ["PAUSED", "PAUSED"]
    assert [(row["status"], row["weight"]) for row in found if row["svname"] == "a"] == [("DRAIN", "9")]
    state = harness.ask(harness.listen(name="more"), b"show servers state pg\n").decode().splitlines()[2].split()
    assert state[3:9] == ["a", "127.0.0.1", "2", "8", "9", "9"]


@pytest.fixture
def older(harness: Harness) -> Iterator[Table]:
    """A generation that drains beside the current one; its table."""
    control = harness.control
    table = Table.create(row_keys(control.config), 1, 6)
    control.info.append(GenerationInfo(6, 4000, "draining", 90061.0, 1, [(4001, 2)], "1.2.2", 90, "2: because"))
    control.others.append(table)
    for each, sessions in ((control.table, 5), (table, 2)):
        slot = each.slot(0)
        for key in (PROCESS, RowKey("frontend", "pg")):
            slot[each.index[key] * each.columns + Column.SCUR] = sessions
        slot.release()
    yield table
    control.others.clear()
    table.close()


@pytest.mark.parametrize(
    ("prefix", "sessions", "pid"),
    [
        ("", "7", "4711"),
        ("@ ", "7", "4711"),
        ("@master ", "7", "4711"),
        ("@7 ", "5", "4711"),
        ("@!4712 ", "5", "4711"),
        ("@6 ", "2", "4000"),
        ("@!4000 ", "2", "4000"),
        ("@!4001 ", "2", "4000"),
    ],
)
@pytest.mark.usefixtures("older")
def test_one_generation_is_asked(harness: Harness, prefix: str, sessions: str, pid: str) -> None:
    path = harness.listen()
    info = fields(harness.ask(path, f"{prefix}show info\n".encode()))
    assert (info["CurrConns"], info["Pid"]) == (sessions, pid)
    found = rows(harness.ask(path, f"{prefix}show stat\n".encode()))
    assert [row["scur"] for row in found if row["pxname"] == "pg" and row["type"] == "0"] == [sessions]
    if pid == "4000":
        assert (info["Uptime"], info["Version"], info["Generation"]) == ("1d 1h01m01s", "1.2.2", "6")
        assert (info["SessRate"], info["Stopping"], info["Workers"]) == ("0", "1", "1")


@pytest.mark.parametrize("prefix", ["@5", "@!1", "@x", "@!", "@-1", "@master2"])
def test_nobody_is_behind_this_prefix(harness: Harness, prefix: str) -> None:
    answer = f"Can't find the target PID matching the prefix '{prefix}'\n\n".encode()
    assert harness.ask(harness.listen(), f"{prefix} show info\n".encode()) == answer


@pytest.mark.usefixtures("older")
def test_a_prefix_alone_counts_for_what_follows(harness: Harness) -> None:
    control, path = harness.control, harness.listen()
    with harness.connect(path) as peer:
        peer.sock.sendall(b"prompt\n@6\n")
        assert peer.read_until(b"6> ") == b"\n> \n6> "
        peer.sock.sendall(b"show version\n")
        assert peer.read_until(b"> ") == b"1.2.2\n\n6> "
        peer.sock.sendall(b"@7 show version; show cli level; reload\n")
        refused = b"cannot ask generation 6 for 'reload': it drains, ask the current one\n\n6> "
        assert peer.read_until(refused) == b"1.2.3\n\n6> admin\n\n6> " + refused
        del control.info[1]  # it has ended
        peer.sock.sendall(b"show info\n")
        assert peer.read_until(b"> ") == b"Can't find the target PID matching the prefix '@6'\n\n6> "
        peer.sock.sendall(b"@master\nshow version\n")
        assert peer.read_until(b"1.2.3\n\n> ") == b"\n> 1.2.3\n\n> "
        # The current generation may be asked for everything.
        peer.sock.sendall(b"@7 reload\n")
        harness.until(lambda: control.waiting, "the reload")


@pytest.mark.usefixtures("older")
def test_sessions_of_one_generation(harness: Harness) -> None:
    path = harness.listen()
    harness.control.forms = [{"number": n, "generation": 6 + (n > 3), "frontend": "pg"} for n in range(1, 8)]
    harness.control.page_size = 2
    numbers = [line.partition(b":")[0] for line in harness.ask(path, b"@7 show sess\n").splitlines() if line]
    assert numbers == [b"0x4", b"0x5", b"0x6", b"0x7"]
    numbers = [line.partition(b":")[0] for line in harness.ask(path, b"@6 show sess\n").splitlines() if line]
    assert numbers == [b"0x1", b"0x2", b"0x3"]
    assert harness.ask(path, b"@6 show sess 0x5\n") == b"Session not found.\n\n"


def test_the_prompt_can_tell_the_time(harness: Harness) -> None:
    path = harness.listen()
    answer = harness.ask(path, b"prompt timed;show version;prompt timed;show version;prompt;show version\n")
    stamp = rb"\[0:00:0[0-9]:[0-9]{2}\]> "
    assert re.fullmatch(rb"\n" + stamp + rb"1\.2\.3\n\n" + stamp + rb"\n> 1\.2\.3\n\n> \n1\.2\.3\n\n", answer)
