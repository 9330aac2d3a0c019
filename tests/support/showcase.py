"""A control object with a bit of everything that the statistics page can show, and a server for that page."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from hitlessd.changes import Change, Item
from hitlessd.health import Result
from hitlessd.loop import READ, Loop
from hitlessd.model import Backend, Bind, Check, Config, Frontend, Global, InetAddress, Server, StatsPage
from hitlessd.runtime.control import GenerationInfo, ReloadOutcome
from hitlessd.table import Column, Health, HealthRecord, RowKey, ServerState, Table, row_keys
from hitlessd.web.message import Grant
from hitlessd.web.page import responder
from hitlessd.web.server import WebServer
from tests.test_runtime_harness import FakeControl

__all__ = ["HOSTILE", "Showcase", "control_of", "showcase", "showcase_control"]

HOSTILE = "<script>alert(1)</script>\"'&\u202e"
_HOST = "127.0.0.1"


def _servers(*names: str, **more: object) -> tuple[Server, ...]:
    return tuple(
        Server(name, InetAddress("10.0.0.1", 8000 + at), at, check=Check(), **more)  # type: ignore[arg-type]
        for at, name in enumerate(names, 1)
    )


def _config() -> Config:
    app = _servers("app1", "app2", "app3", "app4")
    app = (*app[:3], replace(app[3], backup=True))
    return Config(
        Global(maxconn=10000),
        (
            Frontend("www", 2, (Bind(InetAddress(_HOST, 0)),), "app", maxconn=4000, mode="http"),
            Frontend("postgres", 4, (Bind(InetAddress(_HOST, 0)),), "postgres"),
        ),
        (
            Backend("app", 3, app, mode="http"),
            Backend("postgres", 4, _servers("primary", "replica", maxconn=200)),
            Backend("images", 5, (Server("cdn", InetAddress("10.0.0.9", 80), 1),), mode="http"),
        ),
    )


class Showcase:
    """The page under `address`; `do()` runs something in the loop's thread, and `failures` are what it reported."""

    def __init__(self, loop: Loop, control: FakeControl, server: WebServer, page: StatsPage) -> None:
        self.loop, self.control, self.server, self.page = loop, control, server, page
        self.port = 0
        self.failures: list[str] = []

    @property
    def url(self) -> str:
        return f"http://{_HOST}:{self.port}{self.page.uri}"

    def do(self, what: Callable[[], object]) -> None:
        """Run it in the loop's thread, and wait for that."""
        done = threading.Event()

        def run() -> None:
            what()
            done.set()

        self._calls.append(run)
        self._waker.send(b"x")
        assert done.wait(10)

    def count(self, key: RowKey, column: Column, number: int) -> None:
        self.control.table.add(key, column, number)

    def health(self, backend: str, server: str, record: HealthRecord, text: str = "") -> None:
        """What checks say from now on."""
        row = self.control.table.index[RowKey("server", backend, server)]
        self.control.table.set_health(row, record)
        self.control.table.set_check_text(row, text)

    def administered(self, backend: str, server: str, state: ServerState, weight: int = 1) -> None:
        row = self.control.table.index[RowKey("server", backend, server)]
        self.control.table.set_state(row, state, weight, int(time.time()) - 40)

    _calls: list[Callable[[], None]]
    _waker: socket.socket


def _fill(control: FakeControl) -> None:
    """A night of trouble."""
    config, now = control.config, int(time.time())
    control.table.close()
    table = control.table = Table.create(row_keys(config), 2, 7)
    up = HealthRecord(Health.UP, now - 90000, 4, Result.L7OK, 200, 3, now * 1000)
    for key, row in table.index.items():
        if key.kind == "server":
            table.set_state(row, ServerState.READY, 1, now - 90000)
            table.set_health(row, up)
    place = table.index
    ill = HealthRecord(Health.DOWN, now - 872, 0, Result.L7STS, 503, 12, now * 1000)
    table.set_health(place[RowKey("server", "app", "app2")], ill)
    table.set_check_text(place[RowKey("server", "app", "app2")], "503 Service Unavailable")
    table.set_health(
        place[RowKey("server", "app", "app3")], HealthRecord(Health.UP, now - 9, 3, Result.L4TOUT, 0, 2000, now * 1000)
    )
    table.set_state(place[RowKey("server", "postgres", "replica")], ServerState.DRAIN, 1, now - 300)
    table.set_state(place[RowKey("server", "app", "app4")], ServerState.MAINT, 1, now - 7200)
    for key in table.keys:
        for column, number in {
            Column.SCUR: 12,
            Column.SMAX: 40,
            Column.STOT: 1_234_567,
            Column.HRSP_2XX: 912_345,
            Column.HRSP_4XX: 321,
            Column.HRSP_5XX: 17,
            Column.BIN: 9 << 20,
            Column.BOUT: 3 << 30,
        }.items():
            table.add(key, column, number)
    control.history += [
        ReloadOutcome(6, True, "generation 6 serves", 0.188, now - 86400.0, 6, 120, 2, 0, 3, 1, 0,
                      (("start", 0.09), ("prepare", 0.04), ("commit", 0.02), ("move", 0.038))),
        ReloadOutcome(7, True, "generation 7 serves\n/etc/h.conf:3: a warning", 0.231, now - 5400.0, 7, 140,
                      0, 1, 4, 0, 0, (("start", 0.1), ("prepare", 0.05), ("commit", 0.021), ("move", 0.06))),
        ReloadOutcome(8, False, "/etc/hitlessd/hitlessd.conf:14: [listen web] bogus: cannot use this option\n"
                      "/etc/hitlessd/hitlessd.conf:20: [backend app] server app9: cannot read the address", 0.05,
                      now - 130.0, 7, phases=(("start", 0.05),)),
    ]  # fmt: skip
    control.last_reload = control.history[-1]
    change = Change(Item("server-state", "postgres", "replica"), "drain", "ready")
    control.changes.items[change.item] = change
    control.trend = lambda key: [  # type: ignore[method-assign]
        max(0, round(60 + 40 * math.sin(at / 7 + len(key.proxy)) + (at * 37 % 23))) for at in range(60)
    ]
    control.info = [
        GenerationInfo(7, 4711, "current", 5400.0, 6, [(4712, 30), (4713, 34)], "1.2.3", 140),
        GenerationInfo(6, 4611, "draining", 86400.0, 1, [(4612, 2)], "1.2.3", 140, "2: option migrate is off"),
    ]


@contextlib.contextmanager
def showcase_control() -> Iterator[FakeControl]:
    """The control object of a night of trouble."""
    loop = Loop(lambda what, error: None)
    control = FakeControl(loop)
    control.config = _config()
    _fill(control)
    try:
        yield control
    finally:
        control.table.close()
        loop.close()


@contextlib.contextmanager
def control_of(*servers: str, proxy: str = "app", text: str = "") -> Iterator[tuple[FakeControl, list[float]]]:
    """One of a backend with these servers, all of them up or, with a `text` of their checks, down; and a clock to be
    moved."""
    loop = Loop(lambda what, error: None)
    control = FakeControl(loop)
    control.table.close()
    control.info = []  # whose uptime would not go on
    control.config = Config(Global(), (), (Backend(proxy, 2, _servers(*servers), mode="http"),))
    table = control.table = Table.create(row_keys(control.config), 2, 7)
    for key, row in table.index.items():
        if key.kind == "server":
            table.set_state(row, ServerState.READY, 1, 1_700_000_000)
            down = HealthRecord(Health.DOWN, 1_700_000_100, 0, Result.L7RSP)
            table.set_health(row, down if text else HealthRecord(Health.UP, 1_700_000_000, 4, Result.L4OK))
            table.set_check_text(row, text)
    try:
        yield control, [1000.0]
    finally:
        control.table.close()
        loop.close()


@contextlib.contextmanager
def showcase(page: StatsPage | None = None, admin: bool = True) -> Iterator[Showcase]:
    """Serve it in a thread."""
    failures: list[str] = []
    loop = Loop(lambda what, error: failures.append(f"{what}: {error!r}"))
    control = FakeControl(loop)
    control.config = _config()
    _fill(control)
    page = page or StatsPage(uri="/stats", node="lb1.example.net", description="Shop, Frankfurt")
    server = WebServer(loop, lambda *words, **_: failures.append(str(words)), {"page": responder(control)})
    shown = Showcase(loop, control, server, page)
    shown.failures = failures
    sock = socket.create_server((_HOST, 0))
    sock.setblocking(False)
    shown.port = sock.getsockname()[1]
    server.add_listener(sock, Grant("page", page, "www", admin))
    waker, woken = socket.socketpair()
    calls: list[Callable[[], None]] = []
    shown._calls, shown._waker = calls, waker
    stop = threading.Event()

    def called(_events: int) -> None:
        woken.recv(100)
        while calls:
            calls.pop(0)()

    def run() -> None:
        while not stop.is_set():
            loop.turn()

    loop.add(woken.fileno(), READ, called)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield shown
    finally:
        shown.do(stop.set)
        thread.join()
        server.close()
        loop.remove(woken.fileno())
        for each in (sock, waker, woken):
            each.close()
        loop.close()
        control.table.close()
    assert failures == []
