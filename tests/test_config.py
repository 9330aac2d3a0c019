"""What a valid configuration means: every option's value in the model, inheritance, numbering, several files."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import hitlessd
from hitlessd.config import parse
from hitlessd.errors import ConfigError
from hitlessd.model import (
    Backend,
    Bind,
    Config,
    Frontend,
    InetAddress,
    LogTarget,
    Server,
    SourceFile,
    StatsSocket,
    SystemdAddress,
    Timeouts,
    UnixAddress,
    Where,
)

TIMEOUTS = "[defaults]\ntimeout connect = 5s\ntimeout client = 1m\ntimeout server = 1m\n"


def no_names(host: str) -> Sequence[str]:
    raise AssertionError(f"{host} was looked up")


def read(*texts: str, resolver: Callable[[str], Sequence[str]] = no_names) -> Config:
    """The texts as files 1.conf, 2.conf, ..."""
    return parse([SourceFile(f"{i}.conf", text) for i, text in enumerate(texts, 1)], resolver=resolver)


def read_global(lines: str) -> Config:
    return read(f"[global]\n{lines}\n[listen a]\nbind = :1\nserver s = 192.0.2.1\n")


def read_bind(value: str) -> tuple[Bind, ...]:
    return read(f"[frontend f]\nbind = {value}\ndefault_backend = b\n[backend b]\n").frontends[0].binds


def read_server(value: str, resolver: Callable[[str], Sequence[str]] = no_names) -> Server:
    return read(f"[listen f]\nbind = :1\nserver s = {value}\n", resolver=resolver).backends[0].servers[0]


def test_whole_example() -> None:
    config = read(
        """\
[global]
stats socket = /run/hitlessd/hitlessd.sock mode 600 expose-fd listeners level user
workers = auto
maxconn = 20000

[defaults]
mode = tcp
timeout connect = 5s
timeout client = 1m
timeout server = 1m

[listen postgres]
bind = 127.0.0.1:5432
       [::1]:5432
balance = leastconn
server db1 = 10.0.0.11:5432
server db2 = 10.0.0.12:5432 backup

[frontend www]
bind = sd@http
default_backend = app

[backend app]
server a = 127.0.0.1:9001 weight 10
"""
    )
    timeouts = Timeouts(connect=5.0, client=60.0, server=60.0)
    assert config.frontends == (
        Frontend(
            "postgres",
            2,
            (
                Bind(InetAddress("127.0.0.1", 5432), Where("1.conf", 13)),
                Bind(InetAddress("::1", 5432), Where("1.conf", 14)),
            ),
            "postgres",
            timeouts,
            where=Where("1.conf", 12),
        ),
        Frontend(
            "www", 3, (Bind(SystemdAddress("http"), Where("1.conf", 20)),), "app", timeouts, where=Where("1.conf", 19)
        ),
    )
    assert config.backends == (
        Backend(
            "postgres",
            2,
            (
                Server("db1", InetAddress("10.0.0.11", 5432), 1, where=Where("1.conf", 16)),
                Server("db2", InetAddress("10.0.0.12", 5432), 2, backup=True, where=Where("1.conf", 17)),
            ),
            "leastconn",
            timeouts,
            where=Where("1.conf", 12),
        ),
        Backend(
            "app",
            4,
            (Server("a", InetAddress("127.0.0.1", 9001), 1, weight=10, where=Where("1.conf", 24)),),
            timeouts=timeouts,
            where=Where("1.conf", 23),
        ),
    )
    assert config.global_.stats_sockets == (
        StatsSocket(
            UnixAddress("/run/hitlessd/hitlessd.sock"), 0o600, "", "", "user", True, Where("1.conf", 2)
        ),
    )  # fmt: skip
    assert (config.global_.workers, config.global_.maxconn) == (0, 20000)
    assert (config.warnings, config.resolved) == ((), {})
    assert [file.name for file in config.files] == ["1.conf"]


def test_defaults_of_everything() -> None:
    config = read("[listen a]\nbind = :1\nserver s = 192.0.2.1\n")
    assert config.global_ == type(config.global_)()
    assert (config.global_.crash_proof, config.global_.park_after, config.global_.park_timeout) == (True, 1.0, 60.0)
    assert config.backends[0].retries == 3
    assert config.backends[0].balance == "roundrobin"
    assert config.backends[0].timeouts == Timeouts()
    assert not config.backends[0].redispatch
    assert not config.frontends[0].tcplog


@pytest.mark.parametrize(
    ("line", "attribute", "value"),
    [
        ("workers = 4", "workers", 4),
        ("workers = 64", "workers", 64),
        ("maxconn = 0", "maxconn", 0),
        ("hard-stop-after = 30s", "hard_stop_after", 30.0),
        ("stats maxconn = 40", "stats_maxconn", 40),
        ("reload-timeout = 90s", "reload_timeout", 90.0),
        ("external-takeover = on", "external_takeover", True),
        ("external-takeover = off", "external_takeover", False),
        ("crash-proof = on", "crash_proof", True),
        ("crash-proof = off", "crash_proof", False),
        ("park-after = 0", "park_after", 0.0),
        ("park-after = 250ms", "park_after", 0.25),
        ("park-timeout = 5s", "park_timeout", 5.0),
        ("log = stderr", "log", LogTarget("stderr", "info")),
        ("log = stdout debug", "log", LogTarget("stdout", "debug")),
        ("log = journal notice", "log", LogTarget("journal", "notice")),
        ("log = /dev/log local0", "log", LogTarget("journal", "info")),
        ("log = /dev/log daemon warning", "log", LogTarget("journal", "warning")),
    ],
)
def test_global_option(line: str, attribute: str, value: object) -> None:
    assert getattr(read_global(line).global_, attribute) == value


def test_several_stats_sockets() -> None:
    sockets = read_global(
        "stats socket = /run/a user root group root mode 0660 level admin\n"
        "  # spoken to by the exporter\n"
        "\n"
        "  ipv4@127.0.0.1:9999 level operator\n"
        "  ipv6@[::1]:9999 ; inline\n"
        "  127.0.0.1:9998\n"
        "  abns@hitlessd expose-fd listeners\n"
        "  unix@/run/b"
    ).global_.stats_sockets
    assert sockets == (
        StatsSocket(UnixAddress("/run/a"), 0o660, "root", "root", "admin", False, Where("1.conf", 2)),
        StatsSocket(InetAddress("127.0.0.1", 9999), level="operator", where=Where("1.conf", 5)),
        StatsSocket(InetAddress("::1", 9999), where=Where("1.conf", 6)),
        StatsSocket(InetAddress("127.0.0.1", 9998), where=Where("1.conf", 7)),
        StatsSocket(UnixAddress("\0hitlessd"), expose_fd_listeners=True, where=Where("1.conf", 8)),
        StatsSocket(UnixAddress("/run/b"), where=Where("1.conf", 9)),
    )


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:5432", InetAddress("127.0.0.1", 5432)),
        (":80", InetAddress("0.0.0.0", 80)),
        ("*:80", InetAddress("0.0.0.0", 80)),
        ("ipv4@:80", InetAddress("0.0.0.0", 80)),
        ("ipv4@*:80", InetAddress("0.0.0.0", 80)),
        ("ipv4@192.0.2.1:65535", InetAddress("192.0.2.1", 65535)),
        ("[::]:80", InetAddress("::", 80)),
        (":::80", InetAddress("::", 80)),
        ("::1:80", InetAddress("::1", 80)),
        ("ipv6@:80", InetAddress("::", 80)),
        ("ipv6@*:80", InetAddress("::", 80)),
        ("ipv6@[2001:DB8:0::1]:80", InetAddress("2001:db8::1", 80)),
        ("ipv6@:::80", InetAddress("::", 80)),
        ("[::ffff:192.0.2.1]:80", InetAddress("::ffff:192.0.2.1", 80)),
        ("/run/x", UnixAddress("/run/x")),
        ("/run/a@b:1", UnixAddress("/run/a@b:1")),
        ("unix@/run/x", UnixAddress("/run/x")),
        ("abns@name", UnixAddress("\0name")),
        ("sd@http", SystemdAddress("http")),
    ],
)
def test_bind_address(text: str, address: object) -> None:
    assert read_bind(text) == (Bind(address, Where("1.conf", 2)),)  # type: ignore[arg-type]


def test_longest_socket_path() -> None:
    path = "/" + "x" * 96
    assert read_bind(path)[0].address == UnixAddress(path)
    assert read_server("/" + "x" * 106).address == UnixAddress("/" + "x" * 106)


def test_bind_words() -> None:
    assert read_bind("[::]:80 v4v6 backlog 128 interface eth0")[0] == Bind(
        InetAddress("::", 80), Where("1.conf", 2), 128, "eth0", False
    )
    assert read_bind("[::]:80 v6only")[0].v6only
    assert read_bind("[::]:80")[0].v6only
    assert read_bind("/run/x mode 666 user root group 0")[0] == Bind(
        UnixAddress("/run/x"), Where("1.conf", 2), mode=0o666, user="root", group="0"
    )


def test_same_address_on_two_interfaces() -> None:
    assert len(read_bind(":80 interface eth0\n  :80 interface eth1")) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1:80", Server("s", InetAddress("192.0.2.1", 80))),
        ("192.0.2.1", Server("s", InetAddress("192.0.2.1", 0))),
        ("[2001:db8::1]:80", Server("s", InetAddress("2001:db8::1", 80))),
        ("[2001:db8::1]", Server("s", InetAddress("2001:db8::1", 0))),
        ("ipv4@192.0.2.1:80", Server("s", InetAddress("192.0.2.1", 80))),
        ("ipv6@[::1]:80", Server("s", InetAddress("::1", 80))),
        ("unix@/run/x", Server("s", UnixAddress("/run/x"))),
        ("/run/x", Server("s", UnixAddress("/run/x"))),
        ("abns@x", Server("s", UnixAddress("\0x"))),
        ("192.0.2.1:80 weight 0", Server("s", InetAddress("192.0.2.1", 80), weight=0)),
        (
            "192.0.2.1:80 backup disabled maxconn 7 weight 256",
            Server("s", InetAddress("192.0.2.1", 80), weight=256, backup=True, disabled=True, maxconn=7),
        ),
    ],
)
def test_server(text: str, expected: Server) -> None:
    found = read_server(text)
    assert found.where == Where("1.conf", 3)
    fields = ("name", "address", "sid", "weight", "backup", "disabled", "maxconn", "hostname")
    assert [getattr(found, name) for name in fields] == [getattr(expected, name) for name in fields]


def test_server_by_name() -> None:
    asked = []

    def resolver(host: str) -> Sequence[str]:
        asked.append(host)
        return ["2001:db8::7", "192.0.2.7", "192.0.2.8"]

    config = read(
        "[listen f]\nbind = :1\nserver a = db.example:5432\nserver b = ipv4@db.example\nserver c = ipv6@db.example:1\n",
        resolver=resolver,
    )
    assert [(server.address, server.hostname) for server in config.backends[0].servers] == [
        (InetAddress("2001:db8::7", 5432), "db.example"),
        (InetAddress("192.0.2.7", 0), "db.example"),
        (InetAddress("2001:db8::7", 1), "db.example"),
    ]
    assert config.resolved == {"db.example": ("2001:db8::7", "192.0.2.7", "192.0.2.8")}
    assert asked == ["db.example"]


def test_system_resolver_knows_localhost() -> None:
    config = parse([SourceFile("a", "[listen f]\nbind = :1\nserver a = ipv4@localhost:1\n")])
    assert config.backends[0].servers[0].address == InetAddress("127.0.0.1", 1)
    assert "127.0.0.1" in config.resolved["localhost"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("2s", 2.0),
        ("1m", 60.0),
        ("1h", 3600.0),
        ("1d", 86400.0),
        ("100us", 1e-4),
        ("1500", 1.5),
        ("24d", 24 * 86400.0),
        ("2147483647", 2147483.647),
        ("0", None),
        ("0s", None),
    ],
)
def test_time(text: str, seconds: float | None) -> None:
    config = read(f"[listen f]\nbind = :1\nserver s = 192.0.2.1\ntimeout client = {text}\n")
    assert config.frontends[0].timeouts.client == (seconds if seconds is None else pytest.approx(seconds))


def test_every_timeout_has_its_place() -> None:
    names = ("connect", "client", "server", "client-fin", "server-fin", "tunnel", "queue")
    lines = "".join(f"timeout {name} = {i}s\n" for i, name in enumerate(names, 1))
    timeouts = Timeouts(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    config = read(f"[listen f]\nbind = :1\nserver s = 192.0.2.1\n{lines}")
    assert (config.frontends[0].timeouts, config.backends[0].timeouts) == (timeouts, timeouts)


def test_defaults_are_inherited_and_overruled() -> None:
    config = read(
        "[frontend f]\nbind = :1\nno option tcplog\nmaxconn = 5\ntimeout client = 9s\n"
        "[backend b]\nserver s = 192.0.2.1\nretries = 0\nbalance = source\noption redispatch = off\n"
        "[backend c]\nserver s = 192.0.2.1\n"
        + TIMEOUTS  # after the sections that inherit from it
        + "mode = tcp\nmaxconn = 100\nretries = 7\nbalance = leastconn\noption redispatch\noption tcplog\n"
        "option dontlognull = on\ndefault_backend = b\n"
    )
    frontend, (b, c) = config.frontends[0], config.backends
    assert (frontend.maxconn, frontend.tcplog, frontend.dontlognull, frontend.default_backend) == (5, False, True, "b")
    assert frontend.timeouts.client == 9.0
    assert (b.retries, b.balance, b.redispatch) == (0, "source", False)
    assert (c.retries, c.balance, c.redispatch) == (7, "leastconn", True)
    assert c.timeouts == Timeouts(connect=5.0, client=60.0, server=60.0)


def test_default_backend_of_defaults_leaves_a_listen_with_servers_alone() -> None:
    config = read(
        TIMEOUTS + "default_backend = b\n[listen a]\nbind = :1\nserver s = 192.0.2.1\n[listen c]\nbind = :2\n"
        "[listen d]\nbind = :3\nserver s = 192.0.2.1\ndefault_backend = a\n[backend b]\nserver s = 192.0.2.1\n"
    )
    assert [(frontend.name, frontend.default_backend) for frontend in config.frontends] == [
        ("a", "a"),
        ("c", "b"),
        ("d", "a"),
    ]
    assert config.warnings == ()


def test_numbers_follow_the_order_of_first_appearance() -> None:
    config = read(
        "[backend x]\nserver one = 192.0.2.1\nserver two = 192.0.2.2\n[frontend x]\nbind = :1\ndefault_backend = x\n"
        "[listen y]\nbind = :2\n",
        "[backend z]\n[listen y]\nserver a = 192.0.2.1\n",
    )
    assert [(backend.name, backend.iid) for backend in config.backends] == [("x", 2), ("y", 4), ("z", 5)]
    assert [(frontend.name, frontend.iid) for frontend in config.frontends] == [("x", 3), ("y", 4)]
    assert [(server.name, server.sid) for server in config.backends[0].servers] == [("one", 1), ("two", 2)]


def test_drop_in_replaces_option_by_option() -> None:
    config = read(
        "[global]\nmaxconn = 1\nworkers = 2\nstats socket = /run/a\n  /run/b\n"
        "[listen l]\nbind = :1\n  :2\nserver a = 192.0.2.1\nserver b = 192.0.2.2\noption redispatch\n",
        "[global]\nmaxconn = 3\nstats socket = /run/c\n[listen l]\nbind = :3\nserver a = 192.0.2.9 weight 5\n"
        "no option redispatch\n",
        "[listen l]\nserver c = 192.0.2.3\n",
    )
    assert (config.global_.maxconn, config.global_.workers) == (3, 2)
    assert [str(sock.address) for sock in config.global_.stats_sockets] == ["unix@/run/c"]
    assert [str(bind.address) for bind in config.frontends[0].binds] == ["0.0.0.0:3"]
    assert [(server.name, server.sid, str(server.address)) for server in config.backends[0].servers] == [
        ("a", 1, "192.0.2.9:0"),
        ("b", 2, "192.0.2.2:0"),
        ("c", 3, "192.0.2.3:0"),
    ]
    assert not config.backends[0].redispatch
    assert config.frontends[0].where == Where("1.conf", 6)
    assert config.backends[0].servers[0].where == Where("2.conf", 6)
    assert [file.name for file in config.files] == ["1.conf", "2.conf", "3.conf"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_layout(newline: str, mark: str) -> None:
    """Indentation, blanks, comments, an indented file, no newline at the end: lines keep their numbers."""
    lines = [
        "# comment = no",
        "  ; nor this",
        "[listen   web]   ; a comment",
        "",
        "    option\tredispatch   # bare, indented",
        "\t",
        "    bind   =  :1   backlog   5  # first",
        "",
        "        # [listen other]",
        "\t       :2",
        "    server  A.1=192.0.2.1",
    ]
    config = read(mark + newline.join(lines))
    frontend, backend = config.frontends[0], config.backends[0]
    assert backend.redispatch
    assert [(bind.address, bind.where.line, bind.backlog) for bind in frontend.binds] == [
        (InetAddress("0.0.0.0", 1), 7, 5),
        (InetAddress("0.0.0.0", 2), 10, 0),
    ]
    assert (backend.servers[0].name, backend.servers[0].where.line, frontend.where.line) == ("A.1", 11, 3)


def test_value_may_begin_on_the_next_line() -> None:
    config = read("[listen a]\nbind =\n\n  :1\n  :2\nserver s = 192.0.2.1\n")
    assert [bind.where.line for bind in config.frontends[0].binds] == [4, 5]


def test_section_called_default_or_with_configparser_meaning_is_nothing_special() -> None:
    with pytest.raises(ConfigError) as caught:
        read("[DEFAULT]\nx = %(y)s ${z}\n[listen a]\nbind = :1\nserver s = 192.0.2.1\n")
    assert len(caught.value.problems) == 1
    assert "[DEFAULT]" in caught.value.problems[0]


def test_warnings() -> None:
    config = read(
        "[frontend f]\nbind = :1\ndefault_backend = b\n[backend b]\ntimeout connect = 0\n"
        "[listen l]\nbind = :2\nserver s = 192.0.2.1\n"
    )
    assert config.warnings == (
        "1.conf:1: [frontend f]: timeout client: not set, so a connection whose other side has vanished may stay for "
        "ever",
        "1.conf:4: [backend b]: there is no server, so every connection to it is closed",
        "1.conf:4: [backend b]: timeout server: not set, so a connection whose other side has vanished may stay for "
        "ever",
        "1.conf:6: [listen l]: timeout client, timeout connect, timeout server: not set, so a connection whose other "
        "side has vanished may stay for ever",
    )


def test_parsing_again_gives_the_same() -> None:
    """What a warm start relies on: the files in a Config are enough to make it again."""
    config = read(
        TIMEOUTS + "[listen a]\nbind = :1\nserver s = db.example:1\n",
        "[listen a]\nmaxconn = 4\n",
        resolver=lambda host: ["192.0.2.1"],
    )
    assert parse(config.files, resolver=lambda host: config.resolved[host]) == config


def test_reader_stays_light() -> None:
    """A reload imports all of this anew: nothing for errors, command lines or networks that reading does not need."""
    code = (
        "import sys; from hitlessd.config import parse; from hitlessd.model import SourceFile\n"
        "parse([SourceFile('a', '[listen a]\\nbind = :1\\nserver s = 192.0.2.1\\n')])\n"
        "print(*sorted({'difflib', 'argparse', 'ipaddress', 'logging', 'asyncio', 'subprocess'} & set(sys.modules)))"
    )
    root = str(Path(hitlessd.__file__).parent.parent)
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, env={"PYTHONPATH": root}
    )
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", "")


def test_families() -> None:
    assert read_bind("[::]:80")[0].address.family is socket.AF_INET6  # type: ignore[union-attr]
    assert read_bind(":80")[0].address.family is socket.AF_INET  # type: ignore[union-attr]
