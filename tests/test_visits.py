"""The page of a proxy, and metrics, asked for at its own address: with a real daemon, through reloads and deaths,
beside a haproxy, and by an exporter that was written for one."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import os
import resource
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.beside import Client, Line, Reply, Side, beside
from tests.support.daemon import Daemon
from tests.support.origin import Origin
from tests.support.processes import Process, free_port, poll_until, stat_fields, wait_gone
from tests.support.restartable import Restartable
from tests.test_http_features import get, post

ACCOUNT = "Authorization: Basic " + base64.b64encode(b"u:p").decode()
_PAGE = """
[listen web]
mode = http
bind = 127.0.0.1:{port}
option migrate = {migrate}
server s = 127.0.0.1:{server}
stats uri = /stats
stats auth = u:p
http-request = use-service prometheus-exporter if {{ path /metrics }}
"""
_LATER = "[backend later]\nmode = http\nserver s = 192.0.2.1:1\n"


@contextlib.contextmanager
def server() -> Iterator[Origin]:
    origin = Origin("a")
    try:
        yield origin
    finally:
        origin.stop()


def page(port: int, server: int = 1, migrate: str = "on") -> str:
    return _PAGE.format(port=port, server=server, migrate=migrate)


def mains(daemon: Daemon) -> list[int]:
    """Main processes of all generations."""
    pids = daemon.processes()
    return [pid for pid in pids if int(stat_fields(pid)[1]) not in pids]


def ask(port: int, target: str, *fields: str, method: str = "GET") -> Reply:
    """A client of its own."""
    with Client(port) as client:
        return client.ask(get(target, ACCOUNT, *fields, method=method))


def rows(text: str) -> dict[tuple[str, str], dict[str, str]]:
    """What `show stat`, or `;csv`, says, by proxy and name."""
    table = csv.DictReader(io.StringIO(text.removeprefix("# ")))
    return {(row["pxname"], row["svname"]): row for row in table}


# -- what is there -----------------------------------------------------------------------------------------------------


def test_password_and_csv(tmp_path: Path) -> None:
    port, idle = free_port(), free_port()
    other = f"[listen idle]\nmode = http\nbind = 127.0.0.1:{idle}\nserver s = 127.0.0.1:1\n"
    with Daemon(tmp_path, page(port) + other) as daemon:
        with Client(port) as client:
            refused = client.ask(get("/stats;csv"))
        assert refused.status == 401
        assert refused.values(b"www-authenticate") == [b'Basic realm="HAProxy Statistics"']
        reply = ask(port, "/stats;csv")
        assert (reply.status, reply.goes_on) == (200, False)
        found, expected = rows(reply.body.decode()), rows(daemon.ask("show stat"))
        assert list(found) == list(expected)
        for name in ("FRONTEND", "s", "BACKEND"):
            ours, theirs = found["idle", name], expected["idle", name]
            for changing in ("lastchg", "addr", "algo", "cookie"):  # the latter are for operators
                ours.pop(changing), theirs.pop(changing)
            assert ours == theirs
        assert "<html" in ask(port, "/stats").body.decode().lower()
        assert ask(port, "/stats", method="HEAD").body == b""


def test_an_exporter_that_was_written_for_haproxy(tmp_path: Path) -> None:
    port, own = free_port(), free_port()
    uri = f"http://127.0.0.1:{port}/haproxy?stats;csv"
    text = f"[listen web]\nmode = http\nbind = 127.0.0.1:{port}\nserver s = 127.0.0.1:1\nstats enable\n"
    with (
        Daemon(tmp_path, text),
        Process(
            ["prometheus-haproxy-exporter", f"--haproxy.scrape-uri={uri}", f"--web.listen-address=127.0.0.1:{own}"]
        ),
    ):

        def scraped() -> str:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{own}/metrics", timeout=10) as reply:
                    found: str = reply.read().decode()
                    return found
            except OSError:
                return ""

        metrics = poll_until(scraped, 15, "the exporter answers").splitlines()
        assert "haproxy_up 1" in metrics
        assert "haproxy_exporter_csv_parse_failures_total 0" in metrics
        assert 'haproxy_server_up{backend="web",server="s"} 1' in metrics
        assert 'haproxy_backend_current_queue{backend="web"} 0' in metrics


# -- beside haproxy ----------------------------------------------------------------------------------------------------

_BESIDE = """
[frontend web]
bind = $web
http-request = deny if { hdr(deny) yes }
  use-service prometheus-exporter if { path /metrics }
stats uri = /page
use_backend = b if { path_beg /b }
default_backend = app
[backend app]
server a = $a
[backend b]
http-request = use-service prometheus-exporter if { path /b/metrics }
stats uri = /b/page
server b = $b
[listen all]
bind = $all
stats enable
stats admin = if { hdr(admin) yes }
server a = $a
[listen counters]
bind = $counters
stats enable
"""
#: Where, what, and what the log says of it: status, backend and server, termination state.
_ASKED: list[tuple[str, bytes, tuple[str, str, str]]] = [
    ("web", get("/page"), ("200", "web/<STATS>", "LR--")),
    ("web", get("/page;csv"), ("200", "web/<STATS>", "LR--")),
    ("web", get("/pages"), ("200", "web/<STATS>", "LR--")),
    ("web", get("http://h/page;up"), ("200", "web/<STATS>", "LR--")),
    ("web", get("/page", method="HEAD"), ("200", "web/<STATS>", "LR--")),
    ("web", get("/page", method="OPTIONS"), ("200", "app/a", "----")),
    ("web", get("/Page"), ("200", "app/a", "----")),
    ("web", get("/page", "Deny: yes"), ("403", "web/<NOSRV>", "PR--")),
    ("web", get("/metrics"), ("200", "web/<PROMEX>", "LR--")),
    ("web", get("/b/metrics"), ("200", "b/<PROMEX>", "LR--")),
    ("web", get("/b/page"), ("200", "b/<STATS>", "LR--")),
    ("web", get("/b"), ("200", "b/b", "----")),
    ("all", get("/haproxy?stats"), ("200", "all/<STATS>", "LR--")),
    ("all", get("/haproxy?stats;norefresh", version="1.0", host=""), ("200", "all/<STATS>", "LR--")),
    ("all", get("/haproxy"), ("200", "all/a", "----")),
    ("all", post(b"s=a&action=drain", "/haproxy?stats"), ("303", "all/<STATS>", "LR--")),
]


def told(log: Line) -> tuple[str, str, str]:
    return log["ST"], f"{log['b']}/{log['s']}", log["tsc"]


def counted(side: Side) -> dict[tuple[str, str], dict[str, str]]:
    """By a page's word, without that page."""
    found = rows(side.ask(get("/haproxy?stats;csv"), "counters").body.decode())
    names = ("stot", "req_tot", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx", "hrsp_5xx", "intercepted", "dreq", "ereq", "lbtot")
    return {key: {name: row[name] for name in names} for key, row in found.items() if key[0] != "counters"}


def test_haproxy_logs_and_counts_the_same(tmp_path: Path) -> None:
    with beside(tmp_path, _BESIDE) as pair:
        for number, (where, request, _) in enumerate(_ASKED, 1):
            for side in pair:
                side.ask(request, where)
                side.logs(number)
        ours, theirs = (side.logs(len(_ASKED)) for side in pair)
        assert [told(line) for line in ours] == [expected for _, _, expected in _ASKED]
        assert [told(line) for line in theirs] == [expected for _, _, expected in _ASKED]
        timers = ("TR", "Tw", "Tc", "Tr")
        assert [[line[name] == "-1" for name in timers] for line in ours] == [
            [line[name] == "-1" for name in timers] for line in theirs
        ]
        assert counted(pair.ours) == counted(pair.theirs)


def test_statuses_are_haproxys(tmp_path: Path) -> None:
    with beside(tmp_path, _BESIDE) as pair:
        for where, request, (status, _, _) in _ASKED:
            assert [side.ask(request, where).status for side in pair] == [int(status)] * 2


# -- reloads and deaths ------------------------------------------------------------------------------------------------


def test_a_generation_that_drains_asks_its_successor(tmp_path: Path) -> None:
    """Over two reloads: the page is that of the current configuration, or there is none any more."""
    port = free_port()
    with server() as origin, Daemon(tmp_path, page(port, origin.port, "off")) as daemon:
        clients = [Client(port) for _ in range(3)]
        for client in clients:
            assert client.ask(get("/")).status == 200
        for number in range(2):
            daemon.write(daemon.text(page(port, origin.port, "off") + _LATER))
            assert daemon.reload().returncode == 0
            poll_until(lambda: daemon.info()["Generations"] == "2", 10, "only the first one has clients")
            with clients[number] as client:
                reply = client.ask(get("/stats;csv", ACCOUNT))
            assert reply.status == 200
            assert ("later", "BACKEND") in rows(reply.body.decode())
        daemon.write(daemon.text(page(port, origin.port).replace("stats ", "# stats ")))
        assert daemon.reload().returncode == 0
        with clients[2] as client:
            assert client.ask(get("/stats;csv", ACCOUNT)).status == 404
        poll_until(lambda: daemon.info()["Generations"] == "1", 10, "the older generations have ended")


def test_reloads_under_fire(tmp_path: Path) -> None:
    """Nobody who asks is left without an answer."""
    port, over = free_port(), threading.Event()
    wrong: list[object] = []
    asked = [0] * 4

    def fire(number: int) -> None:
        while not over.is_set():
            try:
                reply = ask(port, "/stats;csv")
            except (OSError, AssertionError) as error:
                wrong.append(error)
                continue
            asked[number] += 1
            if reply.status != 200 or not reply.whole:
                wrong.append((reply.status, reply.body[:100]))

    with Daemon(tmp_path, page(port)) as daemon:
        threads = [threading.Thread(target=fire, args=(number,)) for number in range(len(asked))]
        for thread in threads:
            thread.start()
        try:
            for _ in range(4):
                before = list(asked)
                assert daemon.reload().returncode == 0
                poll_until(lambda before=before: all(map(int.__gt__, asked, before)), 10, "everybody is answered")  # type: ignore[misc]
        finally:
            over.set()
            for thread in threads:
                thread.join(20)
        assert wrong == []


@pytest.mark.parametrize("how", ["reload", "kill a worker"])
def test_half_a_request(tmp_path: Path, how: str) -> None:
    """Main has the client, whatever happens to the worker that it came from; a reload takes it along."""
    port = free_port()
    with Restartable(tmp_path, page(port)) as service, Client(port) as client:
        client.send(get("/stats", ACCOUNT, "Content-Length: 15", method="POST") + b"s=s&acti")
        poll_until(lambda: service.number("CumReq") >= 1, 10, "the request is passed on")
        if how == "reload":
            assert service.daemon.reload().returncode == 0
        else:
            for worker in service.workers():
                os.kill(worker, signal.SIGKILL)
                wait_gone(worker)
        client.send(b"on=drain")
        assert client.receive().status == 303


def test_parked_clients_come_over(tmp_path: Path) -> None:
    """Their sockets lie in a park, too: they hear the end nevertheless, and a restart does not bring them back."""
    port = free_port()
    with server() as origin, Restartable(tmp_path, page(port, origin.port), more="park-after = 0") as service:
        with Client(port) as client, Client(port) as stays:
            for each in (client, stays):
                assert each.ask(get("/")).status == 200
            service.wait_number("CurrParked", 2)
            assert client.ask(get("/stats", ACCOUNT)).status == 200
            assert client.rest() == b""
            service.wait_number("CurrParked", 1)
            service.restart()
            assert stays.ask(get("/")).status == 200
            assert stays.ask(get("/stats;csv", ACCOUNT)).status == 200
        assert service.number("CumLost") == 0


def test_while_main_finishes(tmp_path: Path) -> None:
    """SIGUSR1: who is connected is served, by main as well."""
    port = free_port()
    with server() as origin, Daemon(tmp_path, page(port, origin.port)) as daemon:
        with Client(port) as client:
            assert client.ask(get("/")).status == 200
            os.kill(daemon.pid, signal.SIGUSR1)
            daemon.wait_log("finishing")
            assert client.ask(get("/stats;csv", ACCOUNT)).status == 200
        assert daemon.process.wait(10) == 0


def test_a_successor_that_dies_amid_the_handover(tmp_path: Path) -> None:
    """The generation that goes on answers, for those who come while it is not known which one will, too."""
    port = free_port()
    with server() as origin, Daemon(tmp_path, page(port, origin.port, "off")) as daemon, Client(port) as client:
        assert client.ask(get("/")).status == 200
        before = daemon.pid
        daemon.fault("successor.migrate", signal.SIGSTOP)
        with ThreadPoolExecutor(1) as reloads:
            result = reloads.submit(daemon.reload)
            poll_until(lambda: not daemon.faults.exists(), 10, "the successor stands still")
            client.send(get("/stats;csv", ACCOUNT))
            (successor,) = set(mains(daemon)) - {before}
            os.kill(successor, signal.SIGKILL)
            assert client.receive().status == 200
            assert result.result(60).returncode == 1
        assert daemon.pid == before
        assert ask(port, "/stats;csv").status == 200
        assert "fe=web" not in daemon.ask("show sess")


def test_main_has_no_descriptor_left(tmp_path: Path) -> None:
    """It costs that client its answer, and nobody else anything."""
    port = free_port()
    with Restartable(tmp_path, page(port), more="log = stderr debug") as service:
        # Until then main opens files now and then, whose numbers would seem to be taken.
        service.daemon.wait_log("all modules are loaded")
        workers = service.workers()
        limits = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
        most = max(int(name) for name in os.listdir(f"/proc/{service.pid}/fd")) + 1
        free = [number for number in range(most) if not os.path.lexists(f"/proc/{service.pid}/fd/{number}")]
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (min([most, *free]), limits[1]))
        with pytest.raises((ConnectionError, AssertionError)):
            ask(port, "/stats")
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, limits)
        assert "a client that worker" in service.daemon.wait_log("cannot receive descriptors")
        assert ask(port, "/stats").status == 200
        assert service.workers() == workers


def test_main_keeps_no_descriptors(tmp_path: Path) -> None:
    port = free_port()

    def sockets(pid: int) -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    with Daemon(tmp_path, page(port), workers=1) as daemon:
        ask(port, "/stats")
        before = {pid: sockets(pid) for pid in daemon.processes()}
        for _ in range(30):
            assert ask(port, "/stats;csv").status == 200
        with socket.create_connection(("127.0.0.1", port), 10) as leaver:
            leaver.sendall(get("/stats", ACCOUNT))
        # The first one may have been there still when they were counted.
        poll_until(lambda: all(sockets(pid) <= before[pid] for pid in before), 10, "no more descriptors than before")
