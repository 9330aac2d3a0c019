"""`show servers state`, `show servers conn` and `show backend` beside a real haproxy with the same servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.processes import Process, free_port, poll_until
from tests.support.sick import OK, SICK, Sick
from tests.test_stat_haproxy import ask

OPTIONS = [
    ("mode", "http"),
    ("bind", "127.0.0.1:{port}"),
    ("timeout check", "1s"),
    ("option httpchk", "GET /health"),
    ("server ok", "{ok} check inter 1s weight 7"),
    ("server sts", "{sts} check inter 1s fall 1"),
    ("server rsp", "{rsp} check inter 1s rise 3"),
    ("server tout", "{tout} check inter 1s fall 1"),
    ("server con", "{dead} check inter 1s"),
    ("server slow", "{ok} check inter 1s slowstart 1h"),
    ("server else", "127.0.0.2:1 check addr {host} port {ok_port} inter 1s"),
    ("server unix", "unix@/nowhere.sock"),
    ("server six", "[::1]:44"),
    ("server host", "localhost:45"),
    ("server off", "127.0.0.1:1 disabled"),
    ("server both", "{ok} disabled check inter 1s"),
]
PLAIN = [("mode", "tcp"), ("server a", "127.0.0.1:1"), ("server b", "127.0.0.1:2 backup weight 9 maxconn 3")]
NAMES = ["w", "plain"]


def _haproxy(ports: dict[str, str], path: Path) -> str:
    lines = ["global", f"    stats socket {path} mode 600 level admin", "    nbthread 1", "defaults"]
    lines += [f"    timeout {name} 5s" for name in ("connect", "client", "server")]
    for title, options in (("listen w", OPTIONS), ("backend plain", PLAIN)):
        lines.append(title)
        lines += [f"    {name} {value.format(**ports)}" for name, value in options]
    return "\n".join(lines) + "\n"


def _ours(ports: dict[str, str]) -> str:
    text = ""
    for title, options in (("listen w", OPTIONS), ("backend plain", PLAIN)):
        text += f"[{title}]\n" + "".join(f"{name} = {value.format(**ports)}\n" for name, value in options)
    return text


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The runtime sockets of hitlessd and of haproxy, when both know the worst."""
    directory = tmp_path_factory.mktemp("lists")
    path, file = directory / "haproxy.sock", directory / "haproxy.cfg"
    with contextlib.ExitStack() as stack:
        sick = {"ok": OK, "sts": SICK, "rsp": b"nonsense\r\n\r\n", "tout": None}
        common = {"dead": f"127.0.0.1:{free_port()}", "host": "127.0.0.1"}
        for name, answer in sick.items():
            server = stack.enter_context(Sick(answer))
            common |= {name: f"127.0.0.1:{server.port}", f"{name}_port": str(server.port)}
        file.write_text(_haproxy(common | {"port": str(free_port())}, path))
        haproxy = Process(["haproxy", "-db", "-f", str(file)])
        stack.callback(haproxy.stop)
        poll_until(path.exists, 15, "haproxy")
        ours = _ours(common | {"port": str(free_port())})
        daemon = stack.enter_context(Daemon(directory, ours, workers=1))
        for where in (str(daemon.socket), str(path)):
            poll_until(lambda where=where: _all_checked(where), 15, "all are checked")  # type: ignore[misc]
        yield str(daemon.socket), str(path)


def _all_checked(path: str) -> bool:
    """Whether nobody waits for the first results, and nothing is about to change."""
    names = ("ok", "sts", "rsp", "tout", "con", "slow", "else")
    checked = [row for row in _table(ask(path, "show servers state w"))[1:] if row[3] in names]
    states = {row[3]: (row[10], row[12]) for row in checked}
    wanted = {"ok": "4", "slow": "4", "else": "4", "sts": "0", "rsp": "0", "tout": "0", "con": "0"}
    return len(states) == len(names) and all(
        states[name][0] not in ("1", "0") and states[name][1] == counter for name, counter in wanted.items()
    )


def _table(text: str) -> list[list[str]]:
    lines = text.splitlines()
    if lines[:1] == ["1"]:
        del lines[0]
    return [line.split() for line in lines if line]


def _comparable(path: str, command: str) -> list[list[str]]:
    """Without how long ago the state has changed; when nobody is being checked, for then haproxy knows no result."""

    def told() -> list[list[str]]:
        rows = _table(ask(path, command))
        return [] if any(int(row[13]) & 1 for row in rows[1:]) else rows

    rows = poll_until(told, 15, "a moment between the checks")
    for row in rows[1:]:
        row[9] = "-"
    return rows


@pytest.mark.parametrize("more", ["", " w", " plain"])
def test_the_same_states(sockets: tuple[str, str], more: str) -> None:
    ours = ask(sockets[0], f"show servers state{more}")
    assert ours.startswith("1\n# be_id") and ours.endswith("\n\n")
    mine, real = (_comparable(path, f"show servers state{more}") for path in sockets)
    assert [row[3] for row in mine] == [row[3] for row in real]
    for one, other in zip(mine, real, strict=True):
        assert one == other


@pytest.mark.parametrize("more", ["", " w", " plain"])
def test_the_same_connections(sockets: tuple[str, str], more: str) -> None:
    mine, real = (_table(ask(path, f"show servers conn{more}")) for path in sockets)
    assert [name for name in mine[0] if name != "#"] == [name for name in real[0] if name != "#"]
    # haproxy counts what checks use and guesses what will be needed.
    guesses = {mine[0].index(name) - 1 for name in ("used_cur", "used_max", "need_est")}
    for one, other in zip(mine[1:], real[1:], strict=True):
        assert len(one) == len(other)
        assert [v for at, v in enumerate(one) if at not in guesses] == [
            v for at, v in enumerate(other) if at not in guesses
        ]


@pytest.mark.parametrize("command", ["show backend", "show servers state nope", "show servers conn nope"])
def test_the_same_answer(sockets: tuple[str, str], command: str) -> None:
    ours, theirs = (ask(path, command) for path in sockets)
    assert ours == theirs
