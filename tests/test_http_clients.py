"""A browser and WebSocket sessions do not notice reloads."""

from __future__ import annotations

from pathlib import Path

from tests.support.browser import PAGES, Browser
from tests.support.fronts import UNDER_TEST, front
from tests.support.http_backend import HttpBackend
from tests.support.processes import Deadline, poll_until
from tests.support.websockets import EchoServer, Sessions

OURS = UNDER_TEST == "hitlessd"

ROUNDS, A_ROUND = 20, 48
"""What the page loads, and how many requests with numbers that are."""


def test_a_browser_loads_everything_while_one_reload_follows_another(tmp_path: Path) -> None:
    with (
        HttpBackend(2, pages=PAGES) as backend,
        front(tmp_path, backend.addresses) as proxy,
        Browser(tmp_path, f"http://{proxy.address}/index.html?rounds={ROUNDS}") as browser,
    ):
        backend.wait_report(deadline=30)
        over, reloads, limit = False, 0, Deadline(180)
        while not over:
            assert browser.process.running, browser.log
            limit.check("the page has loaded all")
            proxy.reload()
            reloads += 1
            over = any('\\"over\\":true' in line for line in backend.process.stderr)
        report = backend.wait_report(lambda found: bool(found["over"]))
        assert report["errors"] == []
        assert report["done"] == report["numbers"] == ROUNDS * A_ROUND
        assert reloads >= 5
        assert backend.spotless()["unique"] == ROUNDS * A_ROUND


def test_websocket_sessions_are_held_through_fifty_reloads_and_a_restart(tmp_path: Path) -> None:
    sessions = 20
    with (
        EchoServer() as server,
        front(tmp_path, [server.address]) as proxy,
        Sessions(proxy.address, sessions, pause=0.05) as clients,
    ):
        for _ in range(50):
            proxy.reload()
            clients.wait_echoed(1)
        if OURS:
            proxy.restart()
        clients.wait_echoed(5)
        assert server.sessions == sessions
        assert min(clients.echoed) > 50
        clients.stop()
        assert clients.errors == []
        poll_until(lambda: proxy.connections == 0, 10, "all ends are counted")
