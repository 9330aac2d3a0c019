"""Commands that change something, beside a real haproxy: the same answers, the same states, the same log lines."""

from __future__ import annotations

import csv
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.echo import Echo
from tests.support.processes import Deadline, Process, free_ports, poll_until

HAPROXY = "/usr/sbin/haproxy"

SECTIONS = """
{open}frontend f{close}
    bind {eq} 127.0.0.1:{ports[0]}
    maxconn {eq} 50
    default_backend {eq} b
{open}listen l{close}
    bind {eq} 127.0.0.1:{ports[1]}
    server x {eq} 127.0.0.1:{echo}
{open}backend b{close}
    balance {eq} roundrobin
    server s1 {eq} 127.0.0.1:{echo} check inter 1h weight 10
    server s2 {eq} 127.0.0.1:{echo} weight 20 maxconn 5
    server s3 {eq} 127.0.0.1:{echo} disabled
    server bk {eq} 127.0.0.1:{echo} backup
{open}backend st{close}
    balance {eq} static-rr
    server a {eq} 127.0.0.1:{echo} weight 4
    server c {eq} 127.0.0.1:{echo} weight 2
{open}backend one{close}
    server a {eq} 127.0.0.1:{echo} check inter 1h
"""

#: One script, in this order, since each step builds on those before.
SCRIPT = """
get weight b/s1 | get weight b | get weight b/zz | get weight zz/s | get weight
set weight b/s1 50% | get weight b/s1 | set weight b/s1 300 | set weight b/s1 -1 | set weight b/s1 -1%
set weight b/s1 3000% | get weight b/s1 | set weight b/s1 30000% | get weight b/s1 | set weight b/s1 x
set weight b/s1 5x | set weight b/s1 5%x | set weight b/s1 | set weight b/zz 5 | set weight | set weight b/s1 10
set weight st/a 2 | set weight st/a 0% | get weight st/a | set weight st/a 100% | set weight st/a 50%
set weight st/a 0
set weight st/a 4 | get weight st/a | get weight l/x
set server | set server b | set server b/zz state ready | set server zz/s state ready | set server b/s1
set server b/s1 foo
set server b/s1 state | set server b/s1 state foo | set server b/s1 weight | set server b/s1 weight foo
set server b/s1 weight 7 | get weight b/s1 | set server b/s1 weight 100%
disable server b | disable server b/zz | enable server zz/x
enable health b/s2 | enable health b/zz | disable health b/s2 | disable agent one/a | enable agent one/a
enable agent
disable agent b/zz
set server b/s1 health | set server b/s1 health foo
set server b/s1 addr | set server b/s1 addr 127.0.0.2 | set server b/s1 addr 127.0.0.2 port 81
set server b/s1 addr 127.0.0.2 port 81 | set server b/s1 addr 127.0.0.2 port x | set server b/s1 addr foo
set server b/s1 addr 127.0.0.2 port | set server b/s1 addr 127.0.0.2 foo | set server b/s1 addr /run/x
set server b/s1 port 99 | set server b/s2 check-port 80 | set server b/s1 fqdn foo | set server b/s1 fqdn
set server b/s1 agent up | set server b/s1 agent-addr 127.0.0.1 | set server b/s1 agent-port 1
set server b/s1 agent-send x
set server b/s1 ssl on | set server b/s1 maxconn 5
set maxconn frontend | set maxconn frontend l | set maxconn frontend l x | set maxconn frontend l 7
set maxconn frontend l -3
set maxconn frontend zz 5
set maxconn server | set maxconn server b/s2 | set maxconn server b/s2 x | set maxconn server b/s2 9
set maxconn server b/zz 0
set maxconn global | set maxconn global 99999999 | set maxconn global 10 | set maxconn global 0
disable frontend f | disable frontend f | enable frontend f | enable frontend f | enable frontend zz
disable frontend
disable frontend b | enable frontend
add server | add server b | add server b/ | add server zz/s | add server b/n1 | add server b/s1 127.0.0.1:1
add server st/n 127.0.0.1:1 | add server b/n4 127.0.0.1:1 cookie x
add server b/n2 127.0.0.1:1 weight 7 maxconn 3 check
enable health b/n2 | get weight b/n2 | set weight b/n2 50% | get weight b/n2 | add server b/n2 127.0.0.1:1
enable server b/n2 | del server b/n2 | disable server b/n2 | del server b/n2 | del server b/n2 | del server b/s3
add server b/s3 127.0.0.1:1 backup | del server | del server b | del server b/zz | del server l/x
clear counters | clear counters all | clear counters foo
shutdown frontend l | shutdown frontend l | enable frontend l | disable frontend l | shutdown frontend zz
shutdown frontend
shutdown sessions server b/s1 | shutdown session | shutdown sessions server b
"""


class Both:
    """The two, with one configuration."""

    def __init__(self, daemon: Daemon, socket_path: Path, haproxy: Process) -> None:
        self.daemon = daemon
        self.haproxy = haproxy
        self._path = socket_path

    def theirs(self, command: str) -> str:
        limit = Deadline(10)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(limit.left)
            sock.connect(str(self._path))
            sock.sendall(command.encode() + b"\n")
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        return answer.decode()

    def same(self, command: str) -> None:
        # Some of haproxy's errors lack the end of their line, so that no empty line ends the answer.
        ours, theirs = self.daemon.ask(command).rstrip("\n"), self.theirs(command).rstrip("\n")
        assert ours == theirs, command

    def states(self, *names: str) -> None:
        """Both show the same of every server, backend and frontend."""
        ours, theirs = (
            {(row["pxname"], row["svname"]): {name: row[name] for name in names} for row in _rows(text)}
            for text in (self.daemon.ask("show stat"), self.theirs("show stat"))
        )
        assert ours == theirs


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.removeprefix("# ").splitlines()))


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    with Echo() as echo:
        ours = SECTIONS.format(open="[", close="]", eq="=", ports=free_ports(2), echo=echo.port)
        text = SECTIONS.format(open="", close="", eq="", ports=free_ports(2), echo=echo.port)
        path, file = tmp_path / "theirs.sock", tmp_path / "haproxy.cfg"
        file.write_text(
            f"global\n    stats socket {path} level admin\n    log stdout format raw local0\n    maxconn 2000\n"
            "defaults\n    log global\n    timeout connect 1s\n    timeout client 9s\n    timeout server 9s\n" + text
        )
        process = Process([HAPROXY, "-db", "-f", str(file)])
        try:
            with Daemon(tmp_path, "\n".join(line.strip() for line in ours.splitlines()), workers=1) as daemon:
                poll_until(path.exists, 10, "haproxy serves")
                pair = Both(daemon, path, process)
                # The first check has passed; the other one is half an hour away.
                for ask in (daemon.ask, pair.theirs):
                    poll_until(
                        lambda ask=ask: [row["check_status"] for row in _rows(ask("show stat"))].count("L4OK") == 1,  # type: ignore[misc]
                        10,
                        "checks",
                    )
                yield pair
        finally:
            process.stop()


def test_the_same_answers_and_states(both: Both) -> None:
    for line in SCRIPT.strip().splitlines():
        for command in line.split(" | "):
            both.same(command)
        both.states("status", "uweight", "act", "bck")
    for command in (
        "help add server",
        "help set weight",
        "help enable frontend",
        "help clear counters",
        "help del server",
    ):
        both.same(command)


LINES = """
set server b/s1 state drain | set server b/s1 state maint | set server b/s1 state ready | disable server one/a
enable server one/a | set server one/a state drain | set server one/a state ready | disable server bk/none
disable server b/bk | enable server b/bk | set server b/s1 health down | disable server b/s1 | enable server b/s1
set server b/s1 health stopping | set server b/s1 health up | set server b/s2 health down
set server b/s2 health stopping
set server b/s2 health up | set server one/a health down | set server one/a state drain | set server one/a state ready
set server one/a health up | set server b/s3 state drain | set server b/s3 state ready | set server b/s3 state ready
disable frontend f | enable frontend f | disable frontend l | enable frontend l | shutdown frontend f
"""


def test_the_same_log_lines_and_states(both: Both) -> None:
    for line in LINES.strip().splitlines():
        for command in line.split(" | "):
            both.same(command)
            both.states("status", "weight", "act", "bck", "chkdown", "check_health", "check_status")
    both.daemon.wait_log("Proxy f stopped")
    wanted = re.compile(r"^(?:Backup Server|Server|backend|Paused|Resumed|Proxy) .*$")
    theirs = [line for line in _until(both, "Proxy f stopped").splitlines() if wanted.match(line)]
    ours = [
        found[1]
        for line in both.daemon.log.splitlines()
        if (found := re.match(r"\S+ \S+ generation 1 \w+: (.*)", line))
    ]
    ours = [line.partition(" | ")[0] for line in ours]
    assert [line for line in ours if wanted.match(line)] == theirs


def _until(both: Both, text: str) -> str:
    both.haproxy.stdout.wait(lambda line: line if text in line else None, 10, text)
    return both.haproxy.stdout.text


@pytest.mark.parametrize("level", ["user", "operator"])
def test_the_same_permissions(tmp_path: Path, level: str) -> None:
    file, path = tmp_path / "haproxy.cfg", tmp_path / "theirs.sock"
    port, other = free_ports(2)
    file.write_text(
        f"global\n    stats socket {path} level {level}\nlisten l\n    bind 127.0.0.1:{port}\n"
        "    timeout connect 1s\n    timeout client 1s\n    timeout server 1s\n    server s 127.0.0.1:1\n"
    )
    process = Process([HAPROXY, "-db", "-f", str(file)])
    try:
        with Daemon(tmp_path, f"[listen l]\nbind = 127.0.0.1:{other}\nserver s = 127.0.0.1:1\n", workers=1) as daemon:
            poll_until(path.exists, 10, "haproxy serves")
            pair = Both(daemon, path, process)
            commands = {command.split(" ")[0] + " " + command.split(" ")[1] for command in _commands()}
            for command in sorted(commands):
                for args in ("l/s", "l", "all"):
                    ours = daemon.ask(f"{level}; {command} {args}").rstrip("\n")
                    theirs = pair.theirs(f"{command} {args}").rstrip("\n")
                    assert ("denied" in ours) is ("denied" in theirs), (command, args, ours, theirs)
    finally:
        process.stop()


def _commands() -> list[str]:
    lines = (SCRIPT + LINES).replace("\n", " | ").split(" | ")
    found = [command for command in lines if len(command.split(" ")) > 2]
    return [command for command in found if not command.startswith(("set maxconn", "shutdown sessions"))] + [
        "set maxconn"
    ]
