"""Clients of HAProxy's that nobody here wrote, unmodified: they read a running hitlessd as they read a haproxy."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.http_backend import HttpBackend
from tests.support.processes import Deadline, Process, free_port, poll_until
from tests.test_stat_haproxy import Client

REQUESTS = 7
PLAIN = 3
BODY = """
[listen web]
mode = http
bind = 127.0.0.1:{web}
option httplog = on
cookie = SRV insert
server a = {server} cookie a check inter 2s
server down = 127.0.0.1:{dead} check inter 2s
server off = {server} disabled

[listen plain]
mode = tcp
bind = 127.0.0.1:{plain}
option tcplog = on
server a = {server}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Serves, has answered REQUESTS requests and PLAIN connections, and has found one server down."""
    directory = tmp_path_factory.mktemp("clients")
    with HttpBackend() as backend:
        ports = {name: str(free_port()) for name in ("web", "plain", "dead")}
        body = BODY.format(server=backend.addresses[0], **ports)
        with Daemon(directory, body, workers=1, more="log = stderr") as daemon:
            poll_until(lambda: _status(daemon, "web", "down") == "DOWN", 15, "the dead server is found")
            for name, count in (("web", REQUESTS), ("plain", PLAIN)):
                for _ in range(count):
                    client = Client(ports[name])
                    assert client.get("/") == 200
                    client.close()

            poll_until(lambda: daemon.info()["CurrConns"] == "0", 15, "all have left")
            yield daemon


def _status(daemon: Daemon, proxy: str, server: str) -> str:
    return next(row["status"] for row in _rows(daemon) if (row["# pxname"], row["svname"]) == (proxy, server))


def _rows(daemon: Daemon) -> list[dict[str, str]]:
    return list(csv.DictReader(daemon.ask("show stat").strip().splitlines()))


_HAPROXYADMIN = """
import json, sys
from haproxyadmin import haproxy
hap = haproxy.HAProxy(socket_dir=sys.argv[1], timeout=10)
print(json.dumps({
    "version": hap.version, "requests": hap.totalrequests, "maxconn": hap.maxconn, "uptime": hap.uptimesec,
    "frontends": {f.name: [f.status, f.requests] for f in hap.frontends()},
    "backends": {b.name: [b.status, b.requests] for b in hap.backends()},
    "servers": {
        s.backendname + "/" + s.name: [s.status, s.weight, s.address, s.port, s.requests] for s in hap.servers()
    },
    "checked": hap.server("down")[0].check_status,
}))
"""


def test_haproxyadmin_reads_everything(daemon: Daemon) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _HAPROXYADMIN, str(daemon.directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    info, rows = daemon.info(), _rows(daemon)
    assert found["version"] == info["Version"] and found["maxconn"] == 2000
    assert found["requests"] == REQUESTS + PLAIN == int(info["CumReq"])
    assert found["frontends"] == {"web": ["OPEN", REQUESTS], "plain": ["OPEN", 0]}  # it asks for requests of HTTP
    assert found["backends"] == {"web": ["UP", REQUESTS], "plain": ["UP", PLAIN]}
    assert {name: values[0] for name, values in found["servers"].items()} == {
        f"{row['# pxname']}/{row['svname']}": row["status"] for row in rows if row["type"] == "2"
    }
    assert found["servers"]["web/a"][4] == REQUESTS
    assert f"{found['servers']['web/a'][2]}:{found['servers']['web/a'][3]}" in {row["addr"] for row in rows}
    assert found["checked"] == "L4CON"


_HAPROXYSTATS = """
import configparser, json, sys
import pandas
pandas.Series.iteritems = pandas.Series.items  # the name that it had before pandas 2
from haproxystats import DEFAULT_OPTIONS
from haproxystats.process import Consumer
from haproxystats.utils import dispatcher
config = configparser.ConfigParser()
config.read_dict(DEFAULT_OPTIONS)
config.set("graphite", "namespace", "test")
config.set("graphite", "prefix-hostname", "false")
sent = {}
dispatcher.register("send", lambda data: sent.update([data.split()[:2]]))
consumer = Consumer(None, config)
consumer.timestamp = "0"
consumer.process_stats(sys.argv[1])
print(json.dumps(sent))
"""


def test_haproxystats_adds_up_what_it_pulled(daemon: Daemon, tmp_path: Path) -> None:
    # Its program that asks the socket needs a Python before 3.11; it writes both answers down as they are.
    for name in ("info", "stat"):
        (tmp_path / f"h.sock_{name}").write_text(daemon.ask(f"show {name}"))
    command = [sys.executable, "-W", "ignore", "-c", _HAPROXYSTATS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr and "WARNING" not in done.stderr, done.stderr
    sent = json.loads(done.stdout.splitlines()[-1])
    found = {name.partition(".haproxy.")[2]: value for name, value in sent.items()}
    assert float(found["daemon.CumReq"]) == REQUESTS + PLAIN
    assert float(found["frontend.web.req_tot"]) == REQUESTS
    assert float(found["backend.web.hrsp_2xx"]) == REQUESTS
    assert float(found["backend.web.server.a.lbtot"]) == REQUESTS, sorted(found)


def test_the_prometheus_exporter_scrapes_the_socket(daemon: Daemon) -> None:
    port = free_port()
    program = shutil.which("prometheus-haproxy-exporter")
    assert program, "prometheus-haproxy-exporter is not installed"
    process = Process([program, f"--web.listen-address=127.0.0.1:{port}", f"--haproxy.scrape-uri=unix:{daemon.socket}"])

    def scrape() -> str:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as got,
        ):
            return str(got.read().decode())
        return ""

    try:
        text = poll_until(scrape, 20, "the exporter")
    finally:
        process.stop()
    samples = dict(re.findall(r"(?m)^(haproxy_\S+) (\S+)$", text))
    assert samples["haproxy_up"] == "1"
    assert samples["haproxy_exporter_csv_parse_failures_total"] == "0"
    assert samples['haproxy_frontend_http_requests_total{frontend="web"}'] == str(REQUESTS)
    assert samples['haproxy_backend_http_responses_total{backend="web",code="2xx"}'] == str(REQUESTS)
    assert samples['haproxy_server_up{backend="web",server="a"}'] == "1"
    assert samples['haproxy_server_up{backend="web",server="down"}'] == "0"


def test_hatop_shows_what_there_is(daemon: Daemon) -> None:
    program = shutil.which("hatop")
    assert program, "hatop is not installed"
    terminal, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("4H", 40, 160, 0, 0))
    process = subprocess.Popen(
        [program, "-s", str(daemon.socket)],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env={"TERM": "xterm", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    )
    os.close(inner)
    screen, limit = b"", Deadline(20)

    def until(*words: str) -> str:
        """Read until the screen has shown these."""
        nonlocal screen
        while True:
            text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b\([A-Z0-9]", b" ", screen).decode(errors="replace")
            if all(word in text for word in words):
                return text
            assert select.select([terminal], [], [], limit.left)[0], text[-3000:]
            try:
                screen += os.read(terminal, 65536)
            except OSError as error:  # EIO: it has ended
                raise AssertionError(text[-3000:]) from error

    try:
        text = until("web", "plain", "down", "DOWN", "MAINT", "OPEN", daemon.info()["Version"])
        assert "Traceback" not in text
        # Its own command line, and the answer.
        screen = b""
        os.write(terminal, b"5")
        until(">")
        os.write(terminal, b"show cli level\r")
        until("admin")
    finally:
        process.kill()
        process.wait(10)
        os.close(terminal)


def _halog(daemon: Daemon, *options: str) -> str:
    program = shutil.which("halog")
    assert program, "halog is not installed"
    # As a syslog server would have written them: a date and a sender before what we send.
    lines = []
    for line in daemon.log.splitlines():
        if match := re.search(r"(?:\]|\S): (\S+:\d+ \[\d+/\w+/\d+:.*)$| (127\.0\.0\.1:\d+ \[\d+/\w+/\d+:.*)$", line):
            lines.append(f"Nov 28 12:00:00 127.0.0.1 haproxy[1]: {match[1] or match[2]}")
    assert len(lines) >= REQUESTS + PLAIN, daemon.log
    done = subprocess.run(
        [program, *options], input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_halog_understands_the_logs(daemon: Daemon) -> None:
    status = dict(line.split()[:2] for line in _halog(daemon, "-st", "-H", "-q").splitlines())
    assert status["200"] == str(REQUESTS)
    servers = _halog(daemon, "-srv", "-H", "-q")
    assert re.search(rf"(?m)^web/a 0 {REQUESTS} ", servers), servers
    # It has statistics for HTTP only, but counts and filters lines of both.
    assert _halog(daemon, "-tc", "-q").split() == ["--", str(REQUESTS)]
    assert _halog(daemon, "-c", "-q").strip() == str(REQUESTS + PLAIN)


_HAPROXYADMIN_CHANGES = """
import sys
import haproxyadmin
from haproxyadmin import haproxy
hap = haproxy.HAProxy(socket_dir=sys.argv[1], timeout=10)
server = hap.server("a", backend="plain")[0]
assert server.setweight(33)
assert int(server.weight) == 33, server.weight
for state, status in (
    (haproxyadmin.STATE_DISABLE, "MAINT"), (haproxyadmin.STATE_READY, "no check"), (haproxyadmin.STATE_DRAIN, "DRAIN"),
    (haproxyadmin.STATE_ENABLE, "no check"),
):
    assert server.setstate(state)
    assert server.status == status, (state, server.status)
front = hap.frontend("plain")
assert front.setmaxconn(77)
assert int(front.maxconn) == 77, front.maxconn
front.disable()
assert front.status in ("PAUSED", "STOP"), front.status
front.enable()
assert front.status == "OPEN", front.status
assert hap.setmaxconn(1500)
assert hap.maxconn == 1500, hap.maxconn
"""


def test_haproxyadmin_changes_servers_and_frontends(tmp_path: Path) -> None:
    with Daemon(tmp_path, f"[listen plain]\nbind = 127.0.0.1:{free_port()}\nserver a = 127.0.0.1:1\n") as daemon:
        command = [sys.executable, "-W", "ignore", "-c", _HAPROXYADMIN_CHANGES, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        kinds = {line.split()[0] for line in daemon.ask("show changes").splitlines()[1:] if line}
        assert {"server-weight", "frontend-maxconn", "global-maxconn"} <= kinds
