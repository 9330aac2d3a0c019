"""Access logs as a whole: which format, JSON, and what HAProxy's own reader, halog(1), makes of our lines."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hitlessd.accesslog import PlainLog, access_log
from hitlessd.log import Log
from hitlessd.logfacts import compile_json
from hitlessd.model import Config, Frontend, LogTarget
from tests.support.daemon import Daemon
from tests.support.echo import Echo, exchange
from tests.support.processes import Process, free_port, poll_until
from tests.support.records import Head, Record
from tests.support.relay import Farm, Lab, make_config

_HEAD = "2026-02-06T12:12:56.001 hitlessd[14387] generation 1 info: "


def lines_of(config: Frontend, *records: Record) -> list[str]:
    class Kept:
        wanted, structured = True, False

        def access(self, line: str, whole: bool = False, fields: str = "", /) -> None:
            assert whole is config.log_json and not fields
            found.append(line)

    found: list[str] = []
    log = access_log(config, Kept())
    assert log is not None
    for record in records:
        log(record)
    return found


def halog(lines: list[str], *arguments: str) -> list[list[str]]:
    """The table that halog makes of a file of ours, without the line that begins with `#`."""
    text = "".join(f"{_HEAD}{line}\n" for line in lines)
    argv = ["/usr/bin/halog", *arguments]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=20, check=True)
    # With a filter and -c it tells nothing but the number.
    assert not done.stderr or ", 0 parsing errors" in done.stderr, done.stderr
    return [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ({"tcplog": True}, r".* -- 5/4/3/2/0 0/0"),
        ({"tcplog": True, "mode": "http"}, r".* -- 5/4/3/2/0 0/0"),
        ({"httplog": True, "mode": "http"}, r'.* ---- 5/4/3/2/0 0/0 "GET / HTTP/1.1"'),
        ({"httplog": True, "mode": "tcp"}, r".* -- 5/4/3/2/0 0/0"),
        ({"httplog": True, "mode": "http", "log_format": "%b"}, "app"),
        ({"log_format": "%f"}, "www"),
        ({"log_format": "%f", "log_json": True}, r"\{.*\}"),
    ],
)
def test_which_format(words: dict[str, Any], pattern: str) -> None:
    (line,) = lines_of(Frontend("www", 2, **words), Record())
    assert re.fullmatch(pattern, line)


def test_without_an_option_nothing_is_logged() -> None:
    assert access_log(Frontend("www", 2), PlainLog(Log(LogTarget("stderr")))) is None


def test_what_the_log_would_leave_out_is_not_even_written() -> None:
    assert access_log(Frontend("www", 2, tcplog=True), Log(LogTarget("stderr", "notice"))) is None


def test_json() -> None:
    never: dict[str, Any] = dict.fromkeys(("assigned", "connected", "response_began"), -1.0)
    record = Record(request=Head(target=b'/"\xff\x01'), server_name="", client=None, cause="SC", status=503, **never)
    text = compile_json()(record)
    assert text.isascii() and "\n" not in text
    found = json.loads(text)
    assert re.fullmatch(r"2023-11-1\dT\d\d:\d\d:20\.250[+-]\d\d:\d\d", found.pop("time"))
    assert found == {
        "client_addr": "unix",
        "client_port": None,
        "frontend": "www",
        "backend": "app",
        "server": None,
        "method": "GET",
        "uri": '/"\xff\x01',
        "version": "HTTP/1.1",
        "host": "example.org",
        "status": 503,
        "time_idle": 250,
        "time_request": 125,
        "time_queue": None,
        "time_connect": None,
        "time_response": None,
        "time_active": 3500,
        "time_total": 3750,
        "bytes_read": 2750,
        "bytes_uploaded": 120,
        "termination_state": "SC",
        "retries": 0,
        "redispatched": False,
        "server_queue": 0,
        "backend_queue": 0,
        "process_connections": 5,
        "frontend_connections": 4,
        "backend_connections": 3,
        "server_connections": 2,
    }


def test_json_in_tcp_mode_says_nothing_of_requests() -> None:
    found = json.loads(compile_json(http=False)(Record(http=False, request=None, sni="example.org")))
    assert found["sni"] == "example.org"
    assert not found.keys() & {"method", "uri", "version", "host", "status", "time_response", "time_request"}


def test_every_variable_of_a_connection(tmp_path: Path) -> None:
    farm = Farm(1)
    text = "%ci:%cp %fi:%fp %si:%sp %bi:%bp %U %B %Th %ST %tsc %rt"
    config = make_config(farm.servers())
    config = Config(frontends=(replace(config.frontends[0], log_format=text),), backends=config.backends)
    with Lab(config) as lab:
        client, server = lab.pair(farm)
        client.send(b"x" * 10)
        lab.until(lambda: len(server.read()) == 10)
        names = client.sock.getsockname(), lab.address, server.sock.getsockname(), server.sock.getpeername()
        client.close()
        server.close()
        lab.until(lambda: lab.lines)
        ends = " ".join(f"{host}:{port}" for host, port in names)
        assert re.fullmatch(rf"{re.escape(ends)} 10 0 0 0 ---- \d+", lab.lines[-1])
    farm.close()


# -- halog -----------------------------------------------------------------------------------------------------------


def _requests() -> list[Record]:
    """Three hundred of them, all different."""
    made = []
    for number in range(300):
        server = ("s1", "s2", "s3", "")[number % 4]
        failed = not server
        status = 503 if failed else (200, 200, 304, 404, 500)[number % 5]
        made.append(
            Record(
                status=status,
                server_name=server,
                cause="SC" if failed else ("", "", "", "CD", "sH", "PR")[number % 6],
                request=Head(target=b"/%d?q=%d" % (number % 7, number)),
                assigned=-1.0 if failed else 1_700_000_000.75,
                connected=-1.0 if failed else 1_700_000_001.0,
                response_began=-1.0 if failed else 1_700_000_001.0 + number / 64,
                ended=1_700_000_010.0,
                bytes_read=number * 10,
                backend_queue=number % 3,
            )
        )
    return made


@pytest.fixture(scope="module")
def requests() -> list[Record]:
    return _requests()


@pytest.fixture(scope="module")
def http_lines(requests: list[Record]) -> list[str]:
    return lines_of(Frontend("www", 2, mode="http", httplog=True), *requests)


def test_halog_counts_status_codes(requests: list[Record], http_lines: list[str]) -> None:
    expected = Counter(str(record.status) for record in requests)
    assert {code: int(count) for code, count in halog(http_lines, "-st")} == expected


def test_halog_counts_termination_states(requests: list[Record], http_lines: list[str]) -> None:
    expected = Counter(record.cause or "--" for record in requests)
    assert {code: int(count) for code, count in halog(http_lines, "-tc")} == expected
    assert {code: int(count) for code, count in halog(http_lines, "-cc")} == {"--": 300}


def test_halog_counts_servers(requests: list[Record], http_lines: list[str]) -> None:
    expected: dict[str, Counter[str]] = defaultdict(Counter)
    for record in requests:
        expected[f"app/{record.server_name or '<NOSRV>'}"][f"{record.status // 100}xx"] += 1
    found = {
        row[0]: dict(zip(("1xx", "2xx", "3xx", "4xx", "5xx"), map(int, row[1:6]), strict=True))
        for row in halog(http_lines, "-srv")
    }
    assert {name: Counter(counts) for name, counts in found.items()} == expected


def test_halog_counts_urls(requests: list[Record], http_lines: list[str]) -> None:
    expected = Counter(record.request.target.decode().partition("?")[0] for record in requests if record.request)
    assert {row[-1]: int(row[0]) for row in halog(http_lines, "-u")} == expected
    totals = Counter[str]()
    for record in requests:
        assert record.request
        totals[record.request.target.decode().partition("?")[0]] += record.bytes_read
    assert {row[-1]: int(row[7]) for row in halog(http_lines, "-ubt")} == totals


def test_halog_finds_queued_slow_and_erroneous_requests(requests: list[Record], http_lines: list[str]) -> None:
    times = [int((r.response_began - r.connected) * 1000) for r in requests if r.response_began > 0]
    assert halog(http_lines, "-c", "-rt", "1000") == [[str(sum(1 for time in times if time >= 1000))]]
    assert halog(http_lines, "-c", "-Q") == [[str(sum(1 for record in requests if record.backend_queue))]]
    assert halog(http_lines, "-c", "-hs", "404") == [[str(sum(1 for record in requests if record.status == 404))]]
    assert halog(http_lines, "-c", "-tcn", "sH") == [[str(sum(1 for record in requests if record.cause == "sH"))]]
    assert halog(http_lines, "-H", "-c") == [["300"]]
    assert [float(row[0]) for row in halog(http_lines, "-pct")][-1] == 100.0


# -- real processes --------------------------------------------------------------------------------------------------

_HAPROXY = """\
global
    log stdout format raw local0
defaults
    mode tcp
    log global
    option tcplog
    timeout connect 5s
    timeout client 1m
    timeout server 1m
listen www
    bind 127.0.0.1:{port}
    server s1 127.0.0.1:{server}
"""
_OURS = """
[listen www]
option tcplog =
bind = 127.0.0.1:{port}
server s1 = 127.0.0.1:{server}
"""
_NUMBERS = re.compile(r"\d+")


def _shape(line: str) -> str:
    """A line with every number replaced."""
    return _NUMBERS.sub("0", line)


def _wait_port(port: int) -> None:
    def serves() -> bool:
        try:
            return exchange(port) == b"hello"
        except OSError:
            return False

    poll_until(serves, 20, "somebody serves")


def test_the_same_connections_through_haproxy_look_alike(tmp_path: Path) -> None:
    with Echo() as echo:
        theirs, ours = free_port(), free_port()
        file = tmp_path / "haproxy.cfg"
        file.write_text(_HAPROXY.format(port=theirs, server=echo.port))
        haproxy = Process(["/usr/sbin/haproxy", "-db", "-f", file])
        try:
            _wait_port(theirs)
            for _ in range(20):
                assert exchange(theirs) == b"hello"
            poll_until(lambda: haproxy.stdout.text.count("www/s1") == 21, 10, "haproxy logs")
            theirs_lines = [line for line in haproxy.stdout.text.splitlines() if "www/s1" in line]
        finally:
            haproxy.stop()
        with Daemon(tmp_path, _OURS.format(port=ours, server=echo.port), workers=2) as daemon:
            daemon.wait_serving()
            before = daemon.log.count("www/s1")
            for _ in range(20):
                assert exchange(ours) == b"hello"
            poll_until(lambda: daemon.log.count("www/s1") >= before + 20, 10, "hitlessd logs")
            lines = [line for line in daemon.log.splitlines() if "www/s1" in line]
    heads = [line.partition(" info: ") for line in lines]
    assert {_shape(tail) for _, _, tail in heads} == {_shape(line.strip()) for line in theirs_lines}
    assert {_NUMBERS.sub("0", head) for head, _, _ in heads} == {"0-0-0T0:0:0.0 hitlessd[0] generation 0"}
    done = subprocess.run(
        ["/usr/bin/halog", "-c", "-v", "-time", "1:2"],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    # It reads the date of each, and finds none so old.
    assert int(done.stdout) == len(lines), done.stderr


_HTTP = """\
global
    nbthread 1
    log stdout format raw local0
defaults
    mode http
    log global
    option httplog
    timeout connect 5s
    timeout client 1m
    timeout server 1m
listen www
    bind 127.0.0.1:{port}
    http-request return status 200 if {{ path /here }}
    use_backend nobody if {{ path /nobody }}
    server s1 127.0.0.1:{server}
backend nobody
"""


def _ask(port: int, request: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(request)
        while sock.recv(65536):
            pass


def test_requests_through_haproxy_look_like_our_records(tmp_path: Path) -> None:
    """An answer of its own, no server, no request, and a server that sends the request back, which is no answer."""
    never = dict.fromkeys(("assigned", "connected", "response_began"), -1.0)
    nothing: dict[str, Any] = {"server_name": "", "backend_name": "www", **never}
    cases = [
        (b"GET /here HTTP/1.0\r\n\r\n", Record(request=Head(target=b"/here", version=10), cause="LR", **nothing)),
        (
            b"GET /nobody HTTP/1.0\r\n\r\n",
            Record(request=Head(target=b"/nobody", version=10), cause="SC", **{**nothing, "backend_name": "nobody"}),
        ),
        (b"what\r\n\r\n", Record(request=None, cause="PR", **{**nothing, "request_done": -1.0})),
        (
            b'POST /a"{|}\\ HTTP/1.0\r\n\r\n',
            Record(request=Head(b"POST", b'/a"{|}\\', 10), cause="PH", backend_name="www", response_began=-1.0),
        ),
    ]
    port = free_port()
    file = tmp_path / "haproxy.cfg"
    with Echo() as echo:
        file.write_text(_HTTP.format(port=port, server=echo.port))
        haproxy = Process(["/usr/sbin/haproxy", "-db", "-f", file])
        try:
            poll_until(lambda: _connects(port), 20, "haproxy listens")
            for request, _ in cases:
                _ask(port, request)
            poll_until(lambda: haproxy.stdout.text.count('/1.0"') == 3, 10, "haproxy logs")
            text = haproxy.stdout.text
        finally:
            haproxy.stop()
    theirs = [line for line in text.splitlines() if "HTTP/1.0" in line or "PR--" in line]
    ours = lines_of(Frontend("www", 2, mode="http", httplog=True), *(record for _, record in cases))
    assert [_shape(line) for line in theirs] == [_shape(line) for line in ours]


def _connects(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_syslog_and_json_by_real_processes(tmp_path: Path) -> None:
    with Echo() as echo, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(20)
        port, to = free_port(), server.getsockname()[1]
        body = _OURS.format(port=port, server=echo.port).replace("option tcplog", "option jsonlog")
        with Daemon(tmp_path, body, more=f"log = 127.0.0.1:{to} local3 info\n"):
            _wait_port(port)
            while b'"frontend"' not in (packet := server.recv(65536)):
                pass
    head, _, text = packet.decode().partition("]: ")
    assert re.fullmatch(r"<158>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d hitlessd\[\d+", head)
    found = json.loads(text)
    assert (found["frontend"], found["server"], found["bytes_read"]) == ("www", "s1", 5)
