"""`show stat` and `show info` beside a real haproxy's after the same traffic, in HTTP and TCP mode."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.http_backend import HttpBackend
from tests.support.processes import Process, free_port, poll_until

#: Sections, with `=` behind the first word or two for hitlessd.
SECTIONS: list[tuple[str, list[tuple[str, str]]]] = [
    (
        "listen web",
        [
            ("mode", "http"),
            ("bind", "127.0.0.1:{web}"),
            ("http-request", "deny if {{ path /deny }}"),
            ("http-request", "redirect location / if {{ path /redirect }}"),
            ("http-request", "return status 200 if {{ path /return }}"),
            ("http-response", "deny if {{ status 418 }}"),
            ("cookie", "SRV insert"),
            ("balance", "leastconn"),
            ("server s", "{server} cookie c1 pool-max-conn 100"),
            ("server off", "{server} cookie c2 disabled"),
        ],
    ),
    (
        "frontend www",
        [
            ("mode", "http"),
            ("bind", "127.0.0.1:{www}"),
            ("acl dead", "path_beg /dead"),
            ("use_backend", "dead if dead"),
            ("default_backend", "app"),
        ],
    ),
    ("backend app", [("mode", "http"), ("balance", "uri"), ("server s", "{server}")]),
    ("backend dead", [("mode", "http"), ("balance", "hdr(x)"), ("retries", "0"), ("server s", "{dead}")]),
    ("backend nobody", [("mode", "http")]),
    ("listen plain", [("mode", "tcp"), ("bind", "127.0.0.1:{plain}"), ("server s", "{server}")]),
]
DEFAULTS = [("timeout connect", "5s"), ("timeout client", "1m"), ("timeout server", "1m")]

#: Filled by haproxy only: averages of times, and what it counts for its own exporter.
_UNKNOWN = (
    "qtime ctime ttime qtime_max ctime_max ttime_max need_conn_est agg_server_status agg_server_check_status "
    "agg_check_status"
)
UNKNOWN = frozenset(_UNKNOWN.split())
#: Times, rates, and bytes, which haproxy counts in HTTP mode in a form of its own.
_VARYING = (
    "bin bout lastchg lastsess downtime rate rate_max conn_rate conn_rate_max req_rate req_rate_max rtime rtime_max "
    "addr smax slim h1_bytes_in h1_bytes_out h1_open_streams h1_total_streams"
)
VARYING = frozenset(_VARYING.split())


def haproxy_text(ports: dict[str, str], path: Path) -> str:
    lines = ["global", "    nbthread 1", "    maxconn 2000"]
    lines += [
        f"    stats socket {path}{more} mode 600 level {level}" for more, level in (("", "admin"), (".user", "user"))
    ]
    lines += ["defaults"]
    lines += [f"    {name} {value}" for name, value in DEFAULTS]
    for title, options in SECTIONS:
        lines.append(title)
        lines += [f"    {name} {value.format(**ports)}" for name, value in options]
    return "\n".join(lines) + "\n"


def our_text(ports: dict[str, str]) -> str:
    text = ""
    for title, options in SECTIONS:
        text += f"[{title}]\n"
        before = ""
        for name, value in options:
            text += ("  " if name == before else f"{name} = ") + value.format(**ports) + "\n"
            before = name
    return text


class Client:
    """One connection."""

    def __init__(self, port: str) -> None:
        self.sock = socket.create_connection(("127.0.0.1", int(port)))
        self.sock.settimeout(20)

    def get(self, target: str, head: str = "Host: a") -> int:
        """The status of the answer, which is read to its end; 0: none."""
        self.sock.sendall(f"GET {target} HTTP/1.1\r\n{head}\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.sock.recv(65536)
            if not piece:
                return 0
            data += piece
        head_, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head_)
        while length and len(body) < int(length[1]):
            body += self.sock.recv(65536)
        return int(data.split(b" ", 2)[1])

    def close(self) -> None:
        self.sock.close()


def traffic(ports: dict[str, str]) -> list[Client]:
    """One of everything. The clients that are returned keep their connections."""
    kept = Client(ports["web"])
    for target, status in (
        ("/", 200),
        ("/?status=204", 204),
        ("/?status=304", 304),
        ("/?status=404", 404),
        ("/?status=503", 503),
        ("/deny", 403),
        ("/redirect", 302),
        ("/return", 200),
        ("/?frame=chunked", 200),
    ):
        assert kept.get(target) == status
    for target, head, status in (
        ("/?status=418", "Host: a", 502),
        ("/?end=drop", "Host: a", 502),
        ("/", "Ho st: a", 400),
    ):
        client = Client(ports["web"])
        assert client.get(target, head) == status
        client.close()
    Client(ports["web"]).close()
    other = Client(ports["www"])
    for target, status in (("/", 200), ("/dead", 503)):
        assert other.get(target) == status
    plain = Client(ports["plain"])
    assert plain.get("/") == 200
    return [kept, other, plain]


def ask(path: str, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(path)
        sock.sendall(command.encode() + b"\n")
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    return answer.decode()


Rows = dict[str, dict[str, str]]


def rows(text: str) -> Rows:
    header, *lines = text.strip().splitlines()
    names = header.removeprefix("# ").split(",")
    cells = [line.split(",") for line in lines]
    return {f"{each[0]} {each[1]}": dict(zip(names, each, strict=True)) for each in cells}


def wait_left(path: str) -> None:
    """Until those who have left are counted."""
    poll_until(lambda: rows(ask(path, "show stat"))["web FRONTEND"]["scur"] == "1", 15, "all have left")


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The runtime sockets of hitlessd and of haproxy, both after the same traffic."""
    directory = tmp_path_factory.mktemp("stat")
    with HttpBackend() as backend:
        common = {"server": backend.addresses[0], "dead": f"127.0.0.1:{free_port()}"}
        ours, theirs = (
            common | {name: str(free_port()) for name in ("web", "www", "plain")} for _ in ("hitlessd", "haproxy")
        )
        path, file = directory / "haproxy.sock", directory / "haproxy.cfg"
        file.write_text(haproxy_text(theirs, path))
        haproxy = Process(["haproxy", "-db", "-f", str(file)])
        clients: list[Client] = []
        try:
            poll_until(path.exists, 15, "haproxy")
            with Daemon(directory, our_text(ours), workers=1) as daemon:
                for ports in (ours, theirs):
                    clients += traffic(ports)
                for where in (str(daemon.socket), str(path)):
                    wait_left(where)
                yield str(daemon.socket), str(path)
                for client in clients:
                    client.close()
        finally:
            haproxy.stop()


def test_the_same_values(sockets: tuple[str, str]) -> None:
    ours, theirs = (rows(ask(path, "show stat")) for path in sockets)
    assert list(ours) == list(theirs)
    differing = {}
    for name, real in theirs.items():
        mine = ours[name]
        assert list(mine) == list(real)
        for column in real:
            if column not in UNKNOWN | VARYING and mine[column] != real[column]:
                differing[f"{name} {column}"] = (mine[column], real[column])
    assert differing == {}


def test_the_same_columns_are_filled(sockets: tuple[str, str]) -> None:
    ours, theirs = (rows(ask(path, "show stat")) for path in sockets)
    for name, real in theirs.items():
        filled, known = ({column for column, value in row.items() if value} for row in (ours[name], real))
        if real["mode"] == "http" and real["type"] == "1":
            known -= {"h1_bytes_in", "h1_bytes_out"}
        if real["type"] == "1":
            known.discard("slim")
        if real["type"] == "0":
            known.discard("h1_open_streams")
            filled.discard("h1_open_streams")
        assert filled == known - UNKNOWN, name


def test_those_below_operator_see_as_little(sockets: tuple[str, str]) -> None:
    ours, theirs = rows(ask(sockets[0], "user; show stat")), rows(ask(f"{sockets[1]}.user", "show stat"))
    for name, real in theirs.items():
        for column in ("cookie", "algo", "addr"):
            assert ours[name][column] == real[column], (name, column)


def test_requests_are_counted_for_the_process(sockets: tuple[str, str]) -> None:
    path = sockets[0]
    found = rows(ask(path, "show stat"))
    info = dict(line.split(": ", 1) for line in ask(path, "show info").splitlines() if line)
    requests = sum(int(row["req_tot"]) for row in found.values() if row["type"] == "0" and row["mode"] == "http")
    assert int(info["CumReq"]) == requests + 1  # and one connection of TCP
    assert int(info["CumConns"]) < int(info["CumReq"])
    assert found["www FRONTEND"]["req_rate"].isdecimal()


def test_sessions_tell_their_mode(sockets: tuple[str, str]) -> None:
    lines = ask(sockets[0], "show sess").strip().splitlines()
    assert sorted(line.partition(" c_exp=")[2].strip() for line in lines) == ["", "req=-", "req=-"]
    told = ask(sockets[0], "show sess all")
    assert told.count("(mode=http)") == 4 and told.count("(mode=tcp)") == 2
    assert told.count("  request=- status=-1 exchanges=") == 2


def _typed(text: str) -> dict[str, list[str]]:
    """Tags, type and value by what stands before them."""
    return {line.split(":", 1)[0]: line.split(":", 3)[1:] for line in text.splitlines() if line}


def test_typed_values_have_the_same_places_tags_and_types(sockets: tuple[str, str]) -> None:
    ours, theirs = (_typed(ask(path, "show stat typed")) for path in sockets)
    assert ours and set(ours) <= set(theirs)
    missing = {key.split(".")[4] for key in set(theirs) - set(ours)}
    assert missing <= UNKNOWN | {"slim", "h1_bytes_in", "h1_bytes_out", "h1_open_streams"}
    for key, (tags, kind, value) in ours.items():
        assert [tags, kind] == theirs[key][:2], key
        if key.split(".")[4] not in UNKNOWN | VARYING:
            assert value == theirs[key][2], key


def test_json_has_the_same_form(sockets: tuple[str, str]) -> None:
    ours, theirs = (
        {
            (each["objType"], each["proxyId"], each["id"], each["field"]["pos"]): each
            for row in json.loads(ask(path, "show stat json"))
            for each in row
        }
        for path in sockets
    )
    assert ours
    for key, mine in ours.items():
        real = theirs[key]
        assert list(mine) == list(real)
        assert {**mine, "value": mine["value"]["type"]} == {**real, "value": real["value"]["type"]}
        assert type(mine["value"]["value"]) is type(real["value"]["value"])
    assert len(json.loads(ask(sockets[0], "show stat web 4 1 json"))) == 1


@pytest.mark.parametrize("more", ["", " float"])
def test_info_has_the_same_places_tags_and_types(sockets: tuple[str, str], more: str) -> None:
    ours, theirs = (_typed(ask(path, f"show info typed{more}")) for path in sockets)
    common = set(ours) & set(theirs)
    assert len(common) > 50
    for key in ours:
        if key in theirs:
            assert ours[key][:2] == theirs[key][:2], key
        elif "Zlib" not in key:  # haproxy has these where it was built with zlib
            assert int(key.split(".")[0]) > 71, "our own fields come last"
    ours_json, theirs_json = (json.loads(ask(path, f"show info json{more}")) for path in sockets)
    real = {each["field"]["pos"]: each for each in theirs_json}
    for mine in ours_json:
        if mine["field"]["pos"] in real:
            other = real[mine["field"]["pos"]]
            assert {**mine, "value": mine["value"]["type"]} == {**other, "value": other["value"]["type"]}


def test_the_schema_is_the_same(sockets: tuple[str, str]) -> None:
    ours, theirs = (json.loads(ask(path, "show schema json")) for path in sockets)
    assert ours == theirs


@pytest.mark.parametrize("command", ["show stat typed desc", "show info desc", "show info typed desc"])
def test_descriptions_stand_where_haproxys_stand(sockets: tuple[str, str], command: str) -> None:
    ours, theirs = ({line.split(":")[0]: line for line in ask(path, command).splitlines() if line} for path in sockets)
    for key in set(ours) & set(theirs):
        assert re.search(r':"[^"]+"$', ours[key]) and re.search(r':"[^"]+"$', theirs[key])
    assert not [line for key, line in ours.items() if key in theirs and theirs[key].count('"') != line.count('"')]
