"""What `/metrics` says: beside a real haproxy's exporter, by itself, and from generation to generation."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hitlessd.loop import Loop
from hitlessd.table import PROCESS, Column, RowKey, Table
from hitlessd.web.message import Grant, Reply, Request, Waiting
from hitlessd.web.metrics import responder
from tests.support.daemon import Daemon
from tests.support.echo import Echo
from tests.support.fronts import HAPROXY
from tests.support.processes import ROOT, Process, free_port, poll_until
from tests.support.restartable import Restartable
from tests.support.scraping import Exposition, Labels, Scraper, read
from tests.test_runtime_harness import FakeControl

DASHBOARD = ROOT / "examples" / "grafana-hitlessd.json"
#: What HAProxy has and there is nothing of here.
ABSENT = re.compile(
    r"hitlessd_(backend|server)_((queue|connect|response|total)_time_average|max_(queue|connect|response|total)_time)_seconds"
    r"|hitlessd_process_(bytes_out_rate|dropped_logs_total|failed_resolutions|(max|current)_zlib_memory|max_pipes"
    r"|pipes_(used|free)_total|pool_(allocated|used)_bytes|pool_failures_total)"
)
#: What HAProxy has of everything, saying NaN where it means nothing.
OPTIONAL = re.compile(
    r"hitlessd_(backend_limit_sessions|server_(current_throttle|need_connections_current|queue_limit|limit_sessions"
    r"|idle_connections_limit)|process_(current_run_queue|current_tasks|idle_time_percent))"
)
BODY = """
[frontend web]
mode = http
bind = 127.0.0.1:{web}
default_backend = app
[frontend tcp]
bind = 127.0.0.1:{tcp}
default_backend = db
[backend app]
mode = http
option httpchk =
server a = 127.0.0.1:{echo} check inter 100ms
server b = 127.0.0.1:9 disabled
server c = 127.0.0.1:9 weight 5 maxconn 7
[backend db]
server a = 127.0.0.1:{echo} check
"""
HAPROXY_TEXT = """
global
  maxconn 100
defaults
  timeout connect 1s
  timeout client 5s
  timeout server 5s
frontend web
  mode http
  bind 127.0.0.1:{web}
  http-request use-service prometheus-exporter if {{ path /metrics }}
  default_backend app
frontend tcp
  mode tcp
  bind 127.0.0.1:{tcp}
  default_backend db
backend app
  mode http
  option httpchk
  server a 127.0.0.1:{echo} check inter 100ms
  server b 127.0.0.1:9 disabled
  server c 127.0.0.1:9 weight 5 maxconn 7
backend db
  mode tcp
  server a 127.0.0.1:{echo} check
"""


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    with Echo() as server:
        yield server.port


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory, echo: int) -> Exposition:
    """A real haproxy's, under our prefix."""
    file = tmp_path_factory.mktemp("haproxy") / "haproxy.cfg"
    web = free_port()
    file.write_text(HAPROXY_TEXT.format(web=web, tcp=free_port(), echo=echo))
    with Process([HAPROXY, "-f", file, "-db"]), Scraper(web) as scraper:
        return _checked(scraper, "haproxy")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, echo: int) -> Iterator[Exposition]:
    metrics = free_port()
    body = BODY.format(web=free_port(), tcp=free_port(), echo=echo)
    more = f"metrics bind = 127.0.0.1:{metrics}"
    with Daemon(tmp_path_factory.mktemp("hitlessd"), body, more=more) as daemon:
        daemon.reload()
        with Scraper(metrics) as scraper:
            yield _checked(scraper, "hitlessd")


def _checked(scraper: Scraper, prefix: str) -> Exposition:
    """When both servers have been checked; an echo server passes no HTTP check, but a connection is enough for TCP."""
    found: list[Exposition] = []

    def checked() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            found.append(read(scraper.scrape().text.replace("haproxy_", "hitlessd_")))
            states = found[-1].samples["hitlessd_server_check_status"]
            return sum(states.values()) == 2
        scraper.connection.close()
        return False

    poll_until(checked, 15, f"{prefix} has checked its servers")
    # What that one said first may be from before.
    return read(scraper.scrape().text.replace("haproxy_", "hitlessd_"))


# --- beside haproxy


def test_every_name_of_haproxys_is_there_with_its_type_and_labels(ours: Exposition, theirs: Exposition) -> None:
    compared = [name for name in theirs.types if not ABSENT.fullmatch(name)]
    compared = [name for name in compared if name in ours.types or not OPTIONAL.fullmatch(name)]
    assert len(compared) > 120
    for name in compared:
        assert ours.types.get(name) == theirs.types[name], name
        assert ours.label_names(name) == theirs.label_names(name), name


def test_samples_are_of_the_same_objects_where_haproxys_say_something(ours: Exposition, theirs: Exposition) -> None:
    for name, samples in theirs.samples.items():
        if name.startswith("hitlessd_process") or name not in ours.samples:
            continue
        # NaN is not equal to itself; what a check has not measured is 0 there.
        wanted = {labels for labels, value in samples.items() if value == value}
        assert wanted - set(ours.samples[name]) == set(), name


def test_states_are_haproxys(ours: Exposition, theirs: Exposition) -> None:
    for name in ("hitlessd_server_status", "hitlessd_frontend_status", "hitlessd_backend_status"):
        assert ours.samples[name] == theirs.samples[name]
    for name in ("hitlessd_server_weight", "hitlessd_backend_agg_server_status", "hitlessd_backend_weight"):
        assert ours.samples[name] == theirs.samples[name]
    assert ours.value("hitlessd_server_limit_sessions", server="c") == 7


def test_promtool_finds_nothing(ours: Exposition) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=ours.text, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- by itself


def test_what_is_ours_alone(ours: Exposition) -> None:
    assert ours.value("hitlessd_generation") == 2
    assert ours.value("hitlessd_reloads_total", result="success") == 1
    assert ours.value("hitlessd_reloads_total", result="failure") == 0
    assert ours.value("hitlessd_last_reload_successful") == 1
    assert ours.value("hitlessd_reload_duration_seconds_count", phase="total") == 1
    assert 0 < ours.value("hitlessd_reload_duration_seconds_sum", phase="total") < 60
    assert ours.value("hitlessd_configuration_stored") == 0
    assert ours.types["hitlessd_worker_deaths_total"] == "counter"
    assert ours.label_names("hitlessd_build_info") == {"version", "python_version"}


def test_the_dashboard_asks_for_what_there_is(ours: Exposition) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert {panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"} == {
        "Process",
        "Reloads and survival",
        "Frontends",
        "Backends",
        "Servers",
    }
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    queries += [each["expr"] for each in dashboard["annotations"]["list"]]
    assert len(queries) > 40
    for query in queries:
        names = re.findall(r"hitlessd_\w+", query)
        assert names, query
        assert set(names) <= set(ours.samples), query
        for label in re.findall(r"by \((\w+)\)", query):
            assert label == "le" or label in ours.label_names(names[0])
    squares = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(squares)) == len(squares)


class Asked:
    """A responder of a fake main, asked without a server."""

    def __init__(self, control: FakeControl) -> None:
        self.control = control
        self.steps: list[object] = []

    def __call__(self, target: str, method: str = "GET", grant: Grant | None = None) -> Reply:
        answer = responder(self.control)(Request(method, target), grant or Grant("metrics"))
        if isinstance(answer, Waiting):
            replies: list[Reply] = []
            answer.begin(replies.append)
            return replies[0]
        assert isinstance(answer, Reply)
        return answer

    def families(self, query: str) -> set[str]:
        reply = self("/metrics" + query)
        assert reply.status == 200
        return {name.split("_")[1] for name in read(reply.body.decode()).types}


@pytest.fixture
def control() -> Iterator[FakeControl]:
    loop = Loop(lambda _what, _error: None)
    control = FakeControl(loop)
    yield control
    loop.close()
    control.table.close()


@pytest.fixture
def asked(control: FakeControl) -> Asked:
    return Asked(control)


@pytest.mark.parametrize(
    ("query", "families"),
    [
        ("?scope=frontend", {"frontend"}),
        ("?scope=frontend&scope=server", {"frontend", "server"}),
        ("?scope=backend&scope=", {"backend"}),
        ("?scope=sticktable", set()),
    ],
)
def test_a_scope_chooses(asked: Asked, query: str, families: set[str]) -> None:
    assert asked.families(query) == families


def test_all_is_the_same_as_no_scope(asked: Asked) -> None:
    assert asked.families("") == asked.families("?scope=*") > {"process", "frontend", "backend", "server", "generation"}


def test_no_maint_leaves_servers_in_maintenance_out(asked: Asked) -> None:
    found = read(asked("/metrics?scope=server&no-maint").body.decode()).samples["hitlessd_server_weight"]
    whole = read(asked("/metrics?scope=server").body.decode()).samples["hitlessd_server_weight"]
    assert {dict(labels)["server"] for labels in set(whole) - set(found)} == {"c", "dis"}


@pytest.mark.parametrize(
    ("target", "method", "status"),
    [("/metrics?scope=none", "GET", 400), ("/metric", "GET", 404), ("/metrics", "POST", 405), ("/", "GET", 200)],
)
def test_other_requests(asked: Asked, target: str, method: str, status: int) -> None:
    assert asked(target, method).status == status


def test_the_first_page_links_to_the_metrics(asked: Asked) -> None:
    assert b'href="/metrics"' in asked("/").body


def test_a_passed_client_may_use_any_path(asked: Asked) -> None:
    assert asked("/any", grant=Grant("metrics", proxy="www")).status == 200


def test_labels_are_escaped(asked: Asked, control: FakeControl) -> None:
    from dataclasses import replace

    name = 'a"b\\c'
    control.config = replace(control.config, frontends=(replace(control.config.frontends[0], name=name),))
    found = read(asked("/metrics?scope=frontend").body.decode())
    assert found.value("hitlessd_frontend_current_sessions", proxy=name) == 0


def test_counters_of_the_table(asked: Asked, control: FakeControl) -> None:
    control.table.add(PROCESS, Column.DEATHS, 3)
    control.table.add(PROCESS, Column.MOVED, 4)
    control.table.add(RowKey("server", "pg", "a"), Column.BIN, 1 << 40)
    found = read(asked("/metrics").body.decode())
    assert found.value("hitlessd_worker_deaths_total") == 3
    assert found.value("hitlessd_connections_moved_total") == 4
    assert found.value("hitlessd_server_bytes_in_total", proxy="pg", server="a") == 1 << 40


def test_a_scrape_gives_others_their_turn_and_survives_what_happens_then(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hitlessd.web.metrics.SLICE", 0.0)
    later: list[object] = []
    respond = responder(control, later.append)
    replies: list[Reply] = []
    for _ in range(2):
        answer = respond(Request("GET", "/metrics?scope=frontend&scope=server"), Grant("metrics"))
        assert isinstance(answer, Waiting)
        answer.begin(replies.append)
    assert len(later) == 1, "the second waits for the first"
    turns = 0
    while later:
        step = later.pop()
        assert callable(step)
        step()
        turns += 1
        if turns == 3:  # a generation ends, and takes its table with it
            old, control.table = control.table, Table.create(control.table.keys, 2, 8)
            old.close()
    assert turns > 20
    assert [reply.status for reply in replies] == [200, 200]
    assert replies[0] is replies[1]
    assert len(read(replies[0].body.decode()).samples["hitlessd_server_weight"]) == 7


# --- from generation to generation


def _listen(port: int, echo: int) -> str:
    return f"[listen l]\nbind = 127.0.0.1:{port}\nserver s = 127.0.0.1:{echo}\n"


def _talk(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"


def test_counters_never_go_back(tmp_path: Path, echo: int) -> None:
    port, metrics = free_port(), free_port()
    more = f"metrics bind = 127.0.0.1:{metrics}\npark-after = 0s"
    with Restartable(tmp_path, _listen(port, echo), more=more) as service:
        before: dict[tuple[str, Labels], float] = {}

        def scrape() -> Exposition:
            with Scraper(metrics) as scraper:
                found = scraper.scrape()
            for key, value in found.counters().items():
                assert value >= before.get(key, 0.0), f"{key} has gone from {before[key]} to {value}"
            assert set(before) <= set(found.counters())
            before.update(found.counters())
            return found

        _talk(port)
        scrape()
        for act in (service.daemon.reload, service.restart, service.daemon.reload, service.crash):
            # Who was there before is not taken for who comes now.
            service.wait(lambda: service.number("CurrConns") == service.number("CurrParked") == 0, 10, "nobody")
            with socket.create_connection(("127.0.0.1", port), 10) as client:
                client.sendall(b"1")
                assert client.recv(1) == b"1"
                service.wait_number("CurrParked", 1)
                act()
                client.sendall(b"2")
                assert client.recv(1) == b"2"
            scrape()
        service.wait_number("CurrConns", 0)
        service.kill_worker()
        service.daemon.wait_log("was killed by SIGKILL")
        found = scrape()
        assert found.value("hitlessd_reloads_total", result="success") == 2
        assert found.value("hitlessd_reload_duration_seconds_count", phase="total") == 2
        assert found.value("hitlessd_connections_moved_total") == 2
        assert found.value("hitlessd_connections_resumed_total") == 2
        assert found.value("hitlessd_worker_deaths_total") >= 1
        assert found.value("hitlessd_frontend_sessions_total", proxy="l") == 5


def test_a_connection_and_its_answer_outlive_reloads(tmp_path: Path) -> None:
    metrics = free_port()
    servers = "".join(f"server s{n} = 127.0.0.1:9\n" for n in range(2000))
    body = f"[listen l]\nbind = 127.0.0.1:{free_port()}\n{servers}"
    more = f"metrics bind = 127.0.0.1:{metrics}"
    with Daemon(tmp_path, body, workers=1, more=more) as daemon, Scraper(metrics) as scraper:
        scraper.connection.request("GET", "/metrics?scope=server")
        sock = scraper.connection.sock
        response = scraper.connection.getresponse()
        text = response.read(1000)
        assert daemon.reload().returncode == 0
        text += response.read()
        assert len(text) > 4 << 20
        assert len(read(text.decode()).samples["hitlessd_server_weight"]) == 2000
        assert scraper.scrape("?scope=global").value("hitlessd_generation") == 2
        assert scraper.connection.sock is sock


def test_a_unix_socket_has_its_mode_and_is_kept(tmp_path: Path, echo: int) -> None:
    path = tmp_path / "metrics.sock"
    body = _listen(free_port(), echo)
    with Daemon(tmp_path, body, more=f"metrics bind = unix@{path} mode 640") as daemon:
        for generation in (1, 2):
            assert path.stat().st_mode & 0o777 == 0o640
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(b"GET /metrics?scope=global HTTP/1.0\r\n\r\n")
                answer = b"".join(iter(lambda: client.recv(65536), b""))
            assert b"\nhitlessd_generation %d.0\n" % generation in answer
            assert daemon.reload().returncode == 0
        daemon.write(daemon.file.read_text().replace("metrics bind", "#"))
        assert daemon.reload().returncode == 0
        assert not path.exists()


def test_an_address_that_is_taken_refuses_the_reload(tmp_path: Path, echo: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, Daemon(tmp_path, _listen(free_port(), echo)) as daemon:
        port = taken.getsockname()[1]
        daemon.write(daemon.file.read_text().replace("[global]", f"[global]\nmetrics bind = 127.0.0.1:{port}"))
        done = daemon.reload()
        assert done.returncode != 0
        assert f"127.0.0.1:{port}" in done.stderr
        assert daemon.info()["Generation"] == "1"
